"""The gateway as a process of this machine: its settings, its note, its start and its end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from onecontainer.errors import DeadlineExceeded, FieldInvalid, FieldViolation, StateInvalid
from onecontainer.gateway.lock import Note, read_note
from onecontainer.settings import Settings, private_folder

note_of = read_note
POLL_SECONDS = 0.05
LOG_NAME = "gateway.log"
LOG_FILE_VARIABLE = "ONECONTAINER_LOG_FILE"
"""Tells a detached gateway where its output goes, for its note."""
SHOWN_LINES = 20


def settings_of(data_dir: Path | None, **values: object) -> Settings:
    """The settings of the environment with these values over them. A wrong one is a usage error that names it."""
    if data_dir is not None:
        values["data_dir"] = data_dir
    try:
        return Settings(**{name: value for name, value in values.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        # What depends on a value that is wrong was not looked at.
        found = [item for item in error.errors() if item["type"] != "default_factory_not_called"]
        raise FieldInvalid(violations=[_violation(item) for item in found]) from None


def _violation(item: ErrorDetails) -> FieldViolation:
    # A rule of ours speaks for itself; pydantic puts the name of the exception before it.
    return FieldViolation(".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, "))


def start_detached(settings: Settings, *, timeout: float) -> Note:
    """Starts a gateway that goes on without us, and waits until it is ready.

    Raises StateInvalid with the end of its log if it ends before, DeadlineExceeded if it is not ready in time (and stops it).
    """
    private_folder(settings.data_dir)
    log = settings.data_dir / LOG_NAME
    begin = log.stat().st_size if log.exists() else 0
    environment = os.environ | {
        "ONECONTAINER_DATA_DIR": str(settings.data_dir),
        "ONECONTAINER_LISTEN": settings.listen,
        "ONECONTAINER_LOG_LEVEL": settings.log_level,
        "ONECONTAINER_DISPATCH_URL": settings.dispatch_url,
        "ONECONTAINER_RUNTIME": settings.runtime,
        "ONECONTAINER_REST_LISTEN": settings.rest_listen,
        LOG_FILE_VARIABLE: str(log),
        "ONECONTAINER_BACKENDS": "",  # whoever starts it sees to them, where the user sees how they come up
    }
    if settings.rest_program is not None:
        environment["ONECONTAINER_REST_PROGRAM"] = str(settings.rest_program)
    # Not subprocess: its Popen belongs to whoever waits for the child, and this one is to outlive us.
    pid = os.posix_spawn(
        sys.executable,
        # -P: what happens to lie in the working folder is not imported.
        [sys.executable, "-P", "-m", "onecontainer.cli", "up"],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    end = time.monotonic() + timeout
    try:
        while time.monotonic() < end:
            note = note_of(settings.data_dir)
            if note is not None and note.pid == pid:
                return note
            if not is_alive(pid):
                raise StateInvalid(f"the gateway did not start:\n{last_lines(log, begin)}")
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
        raise
    os.kill(pid, signal.SIGTERM)
    raise DeadlineExceeded(f"the gateway was not ready after {timeout:g} s and was stopped:\n{last_lines(log, begin)}")


def stop(data_dir: Path, note: Note, *, timeout: float) -> None:
    """Asks a gateway to drain and end, and waits until it has. Raises DeadlineExceeded; it goes on ending then."""
    try:
        os.kill(note.pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        now = note_of(data_dir)
        if (now is None or now.pid != note.pid) and not is_alive(note.pid):
            return
        time.sleep(POLL_SECONDS)
    raise DeadlineExceeded(f"the gateway (pid {note.pid}) is still ending after {timeout:g} s")


def is_alive(pid: int) -> bool:
    """Whether a process is there and has not ended. Reaps it if it is a child of ours that has."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the latter: it went between the opening and the reading
        if Path("/proc/self").exists():
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True
    return stat.rpartition(")")[2].split()[0] != "Z"


def last_lines(log: Path, begin: int) -> str:
    """The last lines of a log since an offset."""
    with log.open("rb") as file:
        file.seek(max(begin, file.seek(0, os.SEEK_END) - 64 * 1024))
        return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-SHOWN_LINES:])
