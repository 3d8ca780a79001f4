"""tests/conftest.py: with CI=true, a skip that is not listed with its reason fails the run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parent.parent / "conftest.py"


def run(folder: Path, allowed: str, ci: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(CONFTEST, folder)
    (folder / "allowed_skips.txt").write_text(allowed)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_x.py").write_text(
        "import pytest\n@pytest.mark.skip(reason='why')\ndef test_one(): pass\ndef test_two(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "."]
    environment = os.environ | {"CI": ci}
    return subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("allowed", "ci", "code"),
    [
        ("", "", 0),
        ("", "true", 1),
        ("test_x.py::test_one  it needs a thing that no machine here has\n", "true", 0),
        ("test_x.py::*  all of them\n", "true", 0),
        ("test_x.py::test_two  another one\n", "true", 1),
    ],
)
def test_no_skip_goes_unseen(tmp_path: Path, allowed: str, ci: str, code: int) -> None:
    result = run(tmp_path, allowed, ci)
    assert result.returncode == code, result.stdout + result.stderr
    assert ("not listed" in result.stdout) is (code == 1)


def test_a_reason_is_required(tmp_path: Path) -> None:
    result = run(tmp_path, "test_x.py::test_one\n", "true")
    assert result.returncode != 0
    assert "no reason given" in result.stdout + result.stderr
