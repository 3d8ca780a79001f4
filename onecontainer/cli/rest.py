"""The REST front beside a gateway: found or built, started with it, ended with it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import click

import onecontainer
from onecontainer.cli.process import POLL_SECONDS, is_alive, last_lines
from onecontainer.errors import DeadlineExceeded, StateInvalid
from onecontainer.gateway.lock import Note
from onecontainer.settings import Settings, reachable

DEFAULT_LISTEN = "127.0.0.1:8000"
PROGRAM = "onecontainer-rest"
NOTE_FILE = "rest.json"
BUILD = Path(onecontainer.__file__).resolve().parents[1] / "deploy" / "rest" / "build.py"
"""Only a checkout has it; the wheel has no Go sources."""
START_SECONDS = 10.0
STOP_SECONDS = 40.0
"""Longer than the front gives its running requests."""


def program(settings: Settings) -> Path:
    """The program: the setting's, the one beside this Python or on PATH, or one that is built now and kept in the user's cache folder.

    Raises:
        StateInvalid: there is none, and it cannot be built here.
    """
    if settings.rest_program is not None:
        return settings.rest_program
    beside = Path(sys.executable).with_name(PROGRAM)
    if found := str(beside) if beside.exists() else shutil.which(PROGRAM):
        return Path(found)
    if not BUILD.exists():
        raise StateInvalid(
            f"{PROGRAM} is not installed: put it on PATH (`make rest` builds it in a checkout), or name it in "
            "ONECONTAINER_REST_PROGRAM"
        )
    # Imported here: only who serves REST needs it.
    from platformdirs import user_cache_path

    out = user_cache_path("onecontainer", appauthor=False) / "rest" / PROGRAM
    click.echo("REST: looking whether its program is up to date …", err=True)
    built = subprocess.run(
        [sys.executable, str(BUILD), "--quick", "--out", str(out)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if built.returncode:
        raise StateInvalid("the REST front could not be built; the lines above tell why")
    return out


class RestFront:
    """The child that serves REST for a gateway of this process. Whatever becomes of us, it ends too: its standard input does."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._child: subprocess.Popen[str] | None = None
        self._note = settings.data_dir / NOTE_FILE

    def start(self, address: str) -> str:
        """Starts it for the gateway at this address, and waits until it listens; returns its URL.

        Raises:
            StateInvalid: it does not start; it has said why on stderr.
        """
        settings = self._settings
        certificate = settings.tls_cert_file
        command = [
            *(str(settings.rest_program), "--end-with-stdin", "--gateway", reachable(address)),
            *("--listen", settings.rest_listen, "--max-message-bytes", str(settings.max_message_bytes)),
            # Always said: a variable is about other gateways.
            *("--ca-file", "" if certificate is None else str(certificate)),
        ]
        try:
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        except OSError as error:
            raise StateInvalid(f"{settings.rest_program} cannot be run: {error.strerror}") from None
        self._child = child
        assert child.stdout is not None
        # One that says nothing must not keep the gateway from answering.
        too_late = threading.Timer(START_SECONDS, child.kill)
        too_late.start()
        words = child.stdout.readline().split()
        too_late.cancel()
        if len(words) < 4:
            raise StateInvalid(f"REST on {settings.rest_listen} did not start; the line above tells why")
        url = words[3]
        self._note.write_text(json.dumps({"url": url, "pid": os.getpid()}))
        return url

    def stop(self) -> None:
        """Lets its running requests end; it takes nothing new."""
        self._note.unlink(missing_ok=True)
        if self._child is None:
            return
        self._child.terminate()
        try:
            self._child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                stream.close()


def rest_of(data_dir: Path, note: Note) -> str:
    """The URL of the REST front of a running gateway; empty: it has none."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        found = json.loads((data_dir / NOTE_FILE).read_text())
        if found["pid"] == note.pid:
            return str(found["url"])
    return ""


def wait_for_note(data_dir: Path, note: Note, *, timeout: float) -> None:
    """Waits until the REST front of a gateway that was started in the background listens.

    Raises:
        StateInvalid: the gateway has ended, for instance because the address is taken.
        DeadlineExceeded: it does not listen in time.
    """
    end = time.monotonic() + timeout
    while not rest_of(data_dir, note):
        if not is_alive(note.pid):
            raise StateInvalid(f"the gateway did not start with REST:\n{last_lines(Path(note.log_file), 0)}")
        if time.monotonic() > end:
            raise DeadlineExceeded(f"REST did not listen after {timeout:g} s; see {note.log_file}")
        time.sleep(POLL_SECONDS)
