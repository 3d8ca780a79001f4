"""The documentation's commands, run as a reader would run them: each block's commands succeed, and what it shows is what comes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.fixtures import kafka
from tests.fixtures.postgresql import private_postgresql
from tests.fixtures.processes import free_port
from tests.fixtures.rest import program

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAM = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```", re.MULTILINE | re.DOTALL)
JSON = re.compile(r"^```json\n(.*?)^```", re.MULTILINE | re.DOTALL)


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


def run_page(
    name: str,
    folder: Path,
    variables: dict[str, str],
    *,
    least: int,
    stop: list[str],
    played: Mapping[str, Callable[[], object]] = MappingProxyType({}),
) -> None:
    """Runs the commands of a page in a folder; then, whatever came of them, those that stop what they started.

    Those in ``played`` stand for something of the reader's own, which the test does itself.
    """
    page = steps(ROOT / "docs" / name)
    assert len(page) > least
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "200",
        **variables,
    }

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    try:
        for step in page:
            if step.command in played:
                played[step.command]()
                continue
            exported = step.command.removeprefix("export ")
            if exported != step.command:
                # What a reader's shell would remember.
                for assignment in exported.split():
                    variable, _, value = run(f"echo {assignment}").stdout.strip().partition("=")
                    environment[variable] = value
                continue
            result = run(step.command)
            said = result.stdout + result.stderr
            # What `doctor` finds is this machine's business; that it runs is ours.
            if result.returncode and step.command != "oca doctor":
                pytest.fail(f"$ {step.command}\n{said}")
            for line in step.expected:
                assert squeezed(line) in squeezed(said), f"$ {step.command}\n{said}"
    finally:
        for command in stop:
            run(command)


def test_the_tutorial_runs(tmp_path: Path) -> None:
    (tmp_path / "drivers").symlink_to(ROOT / "drivers")
    variables = {
        "ONECONTAINER_DATA_DIR": str(tmp_path / "data"),
        "ONECONTAINER_LISTEN": f"127.0.0.1:{free_port()}",
    }
    run_page("tutorial.md", tmp_path, variables, least=15, stop=["oca down"])


def test_the_media_page_runs(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    page = (ROOT / "docs" / "media.md").read_text()
    programs = PROGRAM.findall(page)
    assert [name for name, _ in programs] == ["progress.py"]
    for name, text in programs:
        (tmp_path / name).write_text(text.replace("127.0.0.1:50051", address))
    (tmp_path / "pipeline.json").write_text(JSON.findall(page)[0])
    variables = {"ONECONTAINER_DATA_DIR": str(tmp_path / "data"), "ONECONTAINER_LISTEN": address}
    run_page("media.md", tmp_path, variables, least=15, stop=["oca down"])
    for name in ("small.webm", "tone.mp3", "keep.mkv", "frame.png", "thumbnail.jpg", "first-seconds.mp4"):
        assert (tmp_path / name).stat().st_size > 0


def test_sidecars_that_you_start_yourself_run(tmp_path: Path) -> None:
    (tmp_path / "drivers").symlink_to(ROOT / "drivers")
    variables = {
        "ONECONTAINER_DATA_DIR": str(tmp_path / "data"),
        "ONECONTAINER_LISTEN": f"127.0.0.1:{free_port()}",
        "PORT": str(free_port()),
    }
    run_page("attached.md", tmp_path, variables, least=7, stop=["kill $(cat notes.pid)", "oca down"])


def test_the_drivers_tutorial_runs(tmp_path: Path) -> None:
    variables = {
        "ONECONTAINER_DATA_DIR": str(tmp_path / "data"),
        "ONECONTAINER_LISTEN": f"127.0.0.1:{free_port()}",
    }
    run_page("write-a-driver.md", tmp_path, variables, least=30, stop=["oca down"])


def test_several_gateways_run(tmp_path: Path) -> None:
    with private_postgresql() as place:
        variables = {name: f"127.0.0.1:{free_port()}" for name in ("ONE", "TWO")} | {"PG": place}
        stop = ["oca down --data-dir one", "oca down --data-dir two"]
        run_page("several-gateways.md", tmp_path, variables, least=8, stop=stop)


def gateway_here(folder: Path) -> dict[str, str]:
    return {"ONECONTAINER_DATA_DIR": str(folder / "data"), "ONECONTAINER_LISTEN": f"127.0.0.1:{free_port()}"}


def test_postgresql_is_used(tmp_path: Path) -> None:
    with private_postgresql() as place:
        run_page("postgresql.md", tmp_path, gateway_here(tmp_path) | {"PG": place}, least=12, stop=["oca down"])


def test_upgrades_and_the_way_back(tmp_path: Path) -> None:
    run_page("upgrade.md", tmp_path, gateway_here(tmp_path), least=15, stop=["oca down"])


def test_a_lost_broker_is_recovered_from(tmp_path: Path) -> None:
    broker = kafka.KafkaBroker(tmp_path / "broker")

    def lose() -> None:
        broker.kill()
        shutil.rmtree(tmp_path / "broker" / "data")

    played = {"start-broker": broker.start, "stop-broker --and-lose-its-data": lose}
    variables = gateway_here(tmp_path) | {"BROKER": broker.address}
    try:
        run_page("lost-broker.md", tmp_path, variables, least=8, stop=["oca down"], played=played)
    finally:
        broker.kill()


def test_the_rest_page_runs(tmp_path: Path) -> None:
    variables = {
        "ONECONTAINER_DATA_DIR": str(tmp_path / "data"),
        "ONECONTAINER_LISTEN": f"127.0.0.1:{free_port()}",
        "ONECONTAINER_REST_PROGRAM": str(program()),
        "REST": f"127.0.0.1:{free_port()}",
    }
    run_page("rest.md", tmp_path, variables, least=9, stop=["oca down"])


def test_the_conformance_page_runs(tmp_path: Path) -> None:
    (tmp_path / "drivers").symlink_to(ROOT / "drivers")
    run_page("conformance.md", tmp_path, {}, least=2, stop=[])


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


def test_the_site_is_built_whole_and_of_nothing_else(tmp_path: Path) -> None:
    """A link that leads nowhere, or a page that the contents lack, is an error of the build; what a reader loads is in it."""
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "site" / "build.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    html = Path(done.stdout.strip().removeprefix("site: ")).parent
    pages = list(html.rglob("*.html"))
    assert len(pages) > 40
    loaded = re.compile(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="([^"]+)"')
    missing = [
        f"{page.relative_to(html)}: {target}"
        for page in pages
        for target in loaded.findall(page.read_text())
        if not target.startswith(("data:", "#"))
        and not (page.parent / target.partition("?")[0].partition("#")[0]).exists()
    ]
    assert not missing
