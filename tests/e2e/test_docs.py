"""The documentation's commands, run as a reader would run them: each block's commands succeed, and what it shows is what comes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fixtures.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    command: str
    expected: tuple[str, ...]


def steps(page: Path) -> list[Step]:
    """The commands of a page's console blocks, each with the lines shown below it."""
    found: list[Step] = []
    for block in BLOCK.findall(page.read_text()):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = part.rstrip("\n").split("\n")
            found.append(Step(command, tuple(line for line in shown if line.strip())))
    return found


def squeezed(text: str) -> str:
    return re.sub(r"[ \t]+", " ", text)


def test_the_tutorial_runs(tmp_path: Path) -> None:
    tutorial = steps(ROOT / "docs" / "tutorial.md")
    assert len(tutorial) > 15
    (tmp_path / "drivers").symlink_to(ROOT / "drivers")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ONECONTAINER_DATA_DIR": str(tmp_path / "data"),
        "ONECONTAINER_LISTEN": f"127.0.0.1:{free_port()}",
        "COLUMNS": "200",
    }

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    try:
        for step in tutorial:
            result = run(step.command)
            said = result.stdout + result.stderr
            # What `doctor` finds is this machine's business; that it runs is ours.
            if result.returncode and step.command != "oca doctor":
                pytest.fail(f"$ {step.command}\n{said}")
            for line in step.expected:
                assert squeezed(line) in squeezed(said), f"$ {step.command}\n{said}"
    finally:
        run("oca down")


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "drivers").glob("*/README.md")]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def test_each_guarantee_names_a_test_that_is_there() -> None:
    missing = []
    for reference in re.findall(r"`(tests/[^`]+)`", (ROOT / "docs" / "guarantees.md").read_text()):
        path, _, test = reference.partition("::")
        name = test.partition("[")[0]
        found = ROOT / path
        if not found.exists() or (name and f"def {name}(" not in found.read_text()):
            missing.append(reference)
    assert not missing
