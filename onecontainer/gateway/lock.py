"""One gateway per data folder: the lock, and the note that tells others where it listens."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from onecontainer.errors import StateInvalid
from onecontainer.settings import private_folder

LOCK_FILE = "gateway.lock"
NOTE_FILE = "gateway.json"
NODE_FILE = "node"


@dataclass(frozen=True, slots=True)
class Note:
    """What a running gateway tells of itself."""

    pid: int
    address: str
    internal_address: str
    version: str
    log_file: str = ""


def read_note(data_dir: Path) -> Note | None:
    """The note of the gateway that runs on this folder; None: none runs."""
    lock_path = data_dir / LOCK_FILE
    try:
        with lock_path.open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                return None  # nobody holds it: what is noted is from one that has ended
        return Note(**json.loads((data_dir / NOTE_FILE).read_text()))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None


def check_unused(data_dir: Path) -> None:
    """Raises StateInvalid if a gateway uses the folder now. It takes nothing: another one may still come before us."""
    try:
        with (data_dir / LOCK_FILE).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return
    except BlockingIOError:
        raise _used(data_dir) from None


def _used(data_dir: Path) -> StateInvalid:
    other = read_note(data_dir)
    who = f"pid {other.pid}, listening on {other.address}" if other else "it is just starting"
    return StateInvalid(
        f"another gateway ({who}) uses the data folder {data_dir}: "
        "stop it with `oca down`, or start this one with another --data-dir"
    )


LOOK_SECONDS = 0.01
"""More than `read_note` and `check_unused` have the lock for."""


def _hold(lock: int) -> None:
    """Takes the lock. Raises BlockingIOError if another gateway has it; who only looks whether one has it shares it for a moment."""
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # With those who look it can be shared, with a gateway it cannot.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(lock, fcntl.LOCK_UN)
            time.sleep(LOOK_SECONDS)
        else:
            return


LEAST_FREE_BYTES = 1 << 20
"""With less the gateway's database cannot even be opened."""


class DataFolder:
    """The data folder, held by this process as long as the context lasts."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir
        self._lock: int | None = None

    def __enter__(self) -> DataFolder:
        private_folder(self.path)
        free = shutil.disk_usage(self.path).free
        if free < LEAST_FREE_BYTES:
            raise StateInvalid(
                f"the disk with the data folder {self.path} is full ({free} bytes are free): make room on it"
            )
        lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _hold(lock)
        except BlockingIOError:
            os.close(lock)
            raise _used(self.path) from None
        self._lock = lock
        (self.path / NOTE_FILE).unlink(missing_ok=True)
        return self

    @property
    def node(self) -> str:
        """The folder's own name among those of other gateways, made the first time that it is asked for."""
        path = self.path / NODE_FILE
        if not path.exists():
            draft = self.path / (NODE_FILE + ".new")
            draft.write_text(uuid.uuid4().hex)
            draft.replace(path)
        return path.read_text()

    def tell(self, note: Note) -> None:
        """Writes the note, whole or not at all."""
        draft = self.path / (NOTE_FILE + ".new")
        draft.write_text(json.dumps(asdict(note)))
        draft.replace(self.path / NOTE_FILE)

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        (self.path / NOTE_FILE).unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
