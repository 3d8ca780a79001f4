"""`oca up --rest`: REST comes with the gateway and goes with it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import TypeVar

import pytest
import requests

from onecontainer.cli.process import is_alive, note_of
from onecontainer.cli.rest import check_free
from onecontainer.cli.rest_program import digest
from onecontainer.errors import FieldInvalid
from tests.fixtures.rest import program
from tests.fixtures.waiting import until

ROOT = Path(__file__).resolve().parents[3]
T = TypeVar("T")


def oca(data: Path, *arguments: str, code: int = 0, **variables: str) -> str:
    environment = {
        **os.environ,
        "ONECONTAINER_DATA_DIR": str(data),
        "ONECONTAINER_LISTEN": "127.0.0.1:0",
        "ONECONTAINER_REST_PROGRAM": str(program()),
        **variables,
    }
    command = [sys.executable, "-m", "onecontainer.cli", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def gone(url: str) -> bool:
    try:
        requests.get(f"{url}/healthz", timeout=60)
    except requests.ConnectionError:
        return True
    return False


@pytest.mark.parametrize("end", ["down", "kill"])
def test_rest_comes_and_goes_with_the_gateway(tmp_path: Path, end: str) -> None:
    told = json.loads(oca(tmp_path, "up", "--detach", "--rest", "127.0.0.1:0", "-o", "json"))
    url = told["rest"]
    try:
        assert requests.get(f"{url}/readyz", timeout=120).json() == {"status": "ready"}
        assert requests.get(f"{url}/v1/services", timeout=120).json() == {}
        again = oca(tmp_path, "up", "--detach")
        assert url in again
    finally:
        if end == "down":
            oca(tmp_path, "down")
        else:
            os.kill(told["pid"], signal.SIGKILL)
    if end == "kill":
        # It ends with whoever started it, however that ends.
        deadline = time.monotonic() + 180
        while (is_alive(told["pid"]) or not gone(url)) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert gone(url)


def test_an_address_that_is_wrong_is_told_before_anything_is_built_or_started(tmp_path: Path) -> None:
    # It would be found out later: there is nothing that could be run.
    nothing = {"ONECONTAINER_REST_PROGRAM": "/nowhere/onecontainer-rest"}
    told = oca(tmp_path, "up", "--rest", "127.0.0.1:65536", code=2, **nothing)
    assert "rest_listen: '127.0.0.1:65536' is not HOST:PORT with a port from 0 to 65535, as in 127.0.0.1:8000" in told
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        for further in ([], ["--detach"]):
            told = oca(tmp_path, "up", "--rest", taken, *further, code=2, **nothing)
            assert f"rest_listen: cannot listen on {taken}: Address already in use" in told
            assert "port 0 takes a free one" in told
    assert list(tmp_path.iterdir()) == []


def test_an_address_of_another_machine_or_of_none() -> None:
    # TEST-NET-1, and a name that never is one.
    for address in ("192.0.2.1:8000", "nobody.invalid:8000"):
        with pytest.raises(FieldInvalid, match=re.escape(f"cannot listen on {address}: ")):
            check_free(address)
    check_free("127.0.0.1:0")


def test_a_program_that_cannot_be_run_is_told_before_the_gateway_starts(tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "onecontainer-rest"
    file.write_text("no program")
    for wrong, words in ((tmp_path / "nowhere", "is not there"), (file, "cannot be executed")):
        told = oca(data, "up", "--rest", "127.0.0.1:0", "--rest-program", str(wrong), code=1)
        assert f"{wrong} cannot be run: it {words}" in told
        assert "docs/compose.md" in told
    assert not data.exists()


def test_one_that_does_not_start_ends_the_gateway_with_its_words(tmp_path: Path) -> None:
    program_ = script(tmp_path, "echo 'no, not today' >&2; exit 3")
    told = oca(tmp_path / "data", "up", "--detach", "--rest", "127.0.0.1:0", "--rest-program", str(program_), code=1)
    assert "did not start: the program ended with exit code 3; its last words:\n  no, not today" in told
    assert note_of(tmp_path / "data") is None


def script(folder: Path, text: str) -> Path:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def pid_of_rest(gateway: int) -> int | None:
    """The REST program that is a child of the gateway now."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, parent = rest.split()[:2]
        if int(parent) == gateway and name.startswith("onecontainer-re") and state != "Z":
            return int(stat.parent.name)
    return None


def ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/readyz", timeout=60).ok
    except requests.RequestException:
        return False


def test_one_that_dies_is_started_again_at_the_same_address(tmp_path: Path) -> None:
    told = json.loads(oca(tmp_path, "up", "--detach", "--rest", "127.0.0.1:0", "-o", "json"))
    try:
        for _ in range(2):
            first = until(lambda: pid_of_rest(told["pid"]), "REST running")
            os.kill(first, signal.SIGKILL)
            until(lambda: (now := pid_of_rest(told["pid"])) is not None and now != first, "REST started again")
            until(lambda: ready(told["rest"]), "REST ready")
        log = (tmp_path / "gateway.log").read_text()
        assert log.count(f"REST on {told['rest']}: the program was killed by signal 9") == 2
        assert log.count("next start in") == 2
        assert f"REST is back on {told['rest']}" in log
        assert told["rest"] in oca(tmp_path, "up", "--detach")
    finally:
        oca(tmp_path, "down")
    assert gone(told["rest"])
    # Its end on our own order is none to tell.
    assert (tmp_path / "gateway.log").read_text().count("next start in") == 2


def test_ctrl_c_is_for_the_gateway_which_ends_it_last(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "ONECONTAINER_DATA_DIR": str(tmp_path),
        "ONECONTAINER_LISTEN": "127.0.0.1:0",
        "ONECONTAINER_REST_PROGRAM": str(program()),
    }
    command = [sys.executable, "-m", "onecontainer.cli", "up", "--rest", "127.0.0.1:0"]
    with (tmp_path / "said").open("w") as said:
        child = subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)
    try:
        until(lambda: "Ctrl-C ends it" in (tmp_path / "said").read_text(), "told how it ends")
        # As a terminal does it: to all in the foreground.
        os.killpg(child.pid, signal.SIGINT)
        assert child.wait(180) == 0
    finally:
        child.kill()
        child.wait()
    told = (tmp_path / "said").read_text()
    assert "INFO    onecontainer.cli.rest: REST: stopped" in told
    assert "next start" not in told
    assert told.endswith("stopped\n")


def test_the_gateway_goes_on_without_one_that_keeps_dying(tmp_path: Path) -> None:
    once = tmp_path / "once"
    dying = script(
        tmp_path,
        f"""if [ -e {once} ]; then echo "it hurts" >&2; exit 7; fi
touch {once}; echo "onecontainer-rest listens on http://127.0.0.1:1 for it"; sleep 0.1; exit 6""",
    )
    data = tmp_path / "data"
    quick = {"ONECONTAINER_RESTART_BACKOFF_INITIAL": "0.01", "ONECONTAINER_RESTART_BACKOFF_MAX": "0.05"}
    oca(data, "up", "--detach", "--rest", "127.0.0.1:0", "--rest-program", str(dying), **quick)
    try:
        log = data / "gateway.log"
        until(lambda: "has ended 7 times in a row" in log.read_text(), "seven ends told")
        said = log.read_text()
        assert "the program ended with exit code 6 and said nothing" in said
        assert "WARNING onecontainer.cli.rest: REST on http://127.0.0.1:1: the program ended with exit code 7" in said
        assert "has ended 4 times" not in said
        five = said[
            said.index("ERROR   onecontainer.cli.rest: REST on http://127.0.0.1:1 has ended 5 times in a row") :
        ]
        assert five.split(": ", 2)[2].splitlines()[:2] == [
            "the program ended with exit code 7; its last words:",
            "  it hurts",
        ]
        assert five.splitlines()[2].startswith("  the gateway goes on without REST; next start in")
        assert oca(data, "service", "list", "-o", "json").strip() == "[]"
    finally:
        oca(data, "down")


def test_a_program_that_is_lost_meanwhile_is_told_and_looked_for_again(tmp_path: Path) -> None:
    lost = tmp_path / "onecontainer-rest"
    lost.symlink_to(program())
    data = tmp_path / "data"
    told = json.loads(oca(data, "up", "--detach", "--rest", "127.0.0.1:0", "--rest-program", str(lost), "-o", "json"))
    try:
        running = until(lambda: pid_of_rest(told["pid"]), "REST running")
        lost.unlink()
        os.kill(running, signal.SIGKILL)
        until(lambda: "the program cannot be run: No such file" in (data / "gateway.log").read_text(), "told why")
        lost.symlink_to(program())
        until(lambda: ready(told["rest"]), "REST ready")
    finally:
        oca(data, "down")


def test_an_installed_wheel_brings_the_sources_and_says_what_it_lacks(tmp_path: Path) -> None:
    build_wheel = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build_wheel, cwd=ROOT, check=True, capture_output=True)
    site = tmp_path / "site"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    ours = {"PYTHONPATH": str(site), "PATH": str(bin_), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = (
        "import sys; from pathlib import Path; from onecontainer.cli import golang, main; golang.USUAL = Path('/nowhere'); "
        "sys.argv = ['oca', 'up', '--rest', '127.0.0.1:0']; main.cli()"
    )
    environment = {**os.environ, **ours, "ONECONTAINER_DATA_DIR": str(tmp_path / "data")}
    environment.pop("ONECONTAINER_REST_PROGRAM", None)

    def up() -> str:
        done = subprocess.run(
            [sys.executable, "-c", command], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stderr

    told = up()
    assert "install Go 1.26 or newer" in told
    for way in ("--rest-program FILE", "ONECONTAINER_REST_PROGRAM", "docs/compose.md"):
        assert way in told
    # With Go it generates from what is in the wheel, and comes as far as that Go builds.
    go = bin_ / "go"
    go.write_text("#!/bin/sh\necho 'this Go builds nothing' >&2; exit 1\n")
    go.chmod(0o755)
    told = up()
    assert "generating Go from the contracts" in told
    assert "this Go builds nothing" in told
    assert "could not be built; the lines above tell why" in told
    assert not (tmp_path / "data").exists()
    # What it builds counts as that of this checkout.
    code = "from onecontainer.cli.rest_program import *; root = source_root(); print(root, digest(root))"
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert shown.stdout.split() == [str(site / "onecontainer" / "_bundled"), digest(ROOT)]
