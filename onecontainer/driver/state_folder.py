"""The sidecar's state folder: it survives restarts, and if the driver says so one instance has it at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from onecontainer.errors import ResourceInUse

LOCK_FILE = ".onecontainer-lock"


class StateFolder:
    """A folder with an advisory lock in it, which the kernel lets go of when the process dies, however it dies."""

    def __init__(self, path: Path | None) -> None:
        """`path` None: a temporary folder, gone at `release`."""
        self._configured = path
        self.path = path or Path(tempfile.gettempdir())
        self._lock: int | None = None

    def acquire(self, *, exclusive: bool) -> None:
        """Makes and locks it. Raises ResourceInUse if another instance has it to itself, or `exclusive` and any has it.
        Holding it already is fine.

        A driver without exclusive state shares it with its successor, which is ready before it goes.
        """
        if self._lock is not None:
            return
        self.path = self._configured or Path(tempfile.mkdtemp(prefix="onecontainer-state-"))
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(handle, 200, 0).decode("utf-8", "replace").strip()
            os.close(handle)
            raise ResourceInUse(
                f"the state folder {self.path} is used by another sidecar ({holder or 'unknown'}): stop that one first"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()}".encode(), 0)
        self._lock = handle

    def release(self) -> None:
        """Lets go of it. Not holding it is fine."""
        if self._lock is None:
            return
        if self._configured is None:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = None
