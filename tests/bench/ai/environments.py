"""The peers' own environments: their pins and ours exclude each other."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

from platformdirs import user_cache_path

COMMON = ("numpy==2.4.6", "onnxruntime==1.32.0", "pillow==13.0.0")
REQUIREMENTS = {
    "mlserver": (*COMMON, "mlserver==1.7.1", "uvloop==0.21.0"),
    "bentoml": (*COMMON, "bentoml==1.4.40"),
    "litserve": (*COMMON, "litserve==0.2.19", "python-multipart"),
    "http_chain": (*COMMON, "fastapi==0.165.0", "uvicorn==0.54.0", "requests==2.34.2", "python-multipart"),
}


def environment(name: str) -> Path:
    """The folder of its programs; made on first use (minutes), kept in the user's cache folder."""
    requirements = REQUIREMENTS[name]
    digest = hashlib.sha256("\n".join((sys.version, *requirements)).encode()).hexdigest()[:12]
    folder = user_cache_path("onecontainer-bench", appauthor=False) / f"{name}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            print(f"  installing {' '.join(requirements)}", flush=True)
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
            pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, *requirements], check=True)
            (folder / "complete").touch()
    return folder / "bin"
