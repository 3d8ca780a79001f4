"""The code on docs/python.md runs as it stands there, but for the address."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from onecontainer.catalog.drivers import bundled_folder
from onecontainer.cli.process import settings_of, start_detached, stop

PAGE = Path(__file__).resolve().parents[3] / "docs" / "python.md"


def test_the_page(tmp_path: Path) -> None:
    drivers = bundled_folder()
    assert drivers is not None
    shutil.copy(drivers / "onnx" / "onecontainer_driver_onnx" / "assets" / "chelsea.png", tmp_path / "photo.png")
    clip = "import sys; from pathlib import Path; from onecontainer_driver_ffmpeg import make_demo_clip; "
    clip += "make_demo_clip(Path(sys.argv[1]), seconds=2, width=320, height=180)"
    subprocess.run([sys.executable, "-c", clip, tmp_path / "clip.mp4"], cwd=drivers / "ffmpeg", check=True, timeout=180)
    settings = settings_of(tmp_path / "data", listen="127.0.0.1:0")
    note = start_detached(settings, timeout=180)
    try:
        blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
        code = "\n".join(blocks).replace("127.0.0.1:50051", note.address)
        ran = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
    finally:
        stop(settings.data_dir, note, timeout=180)
    assert ran.returncode == 0, ran.stderr
    assert "tiger cat" in ran.stdout
    assert "DATA_INVALID" in ran.stdout
    assert "inputs[0]" in ran.stdout
    assert (tmp_path / "small.mkv").stat().st_size > 0
