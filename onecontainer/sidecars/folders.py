"""The folders of sidecars: state that stays, and what one instance has for its own while it lives."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from onecontainer.errors import InternalError
from onecontainer.settings import UNIX_PATH_LIMIT, private_folder

KEPT_LOGS = 50
"""Log files of an earlier gateway's sidecars that are kept."""


@dataclass(frozen=True, slots=True)
class InstanceFolders:
    """Where an instance lives. `secrets` and `token_file` are None if it has none."""

    run: Path
    socket: Path
    scratch: Path
    state: Path
    secrets: Path | None
    token_file: Path | None


class Folders:
    """Makes and removes folders below the data folder; sockets are below `run_dir`, whose path must be short. What services keep is
    in `state_dir`, by default in the data folder too.

    All are 0700: sockets, tokens and secrets are in them.
    """

    def __init__(self, data_dir: Path, run_dir: Path, state_dir: Path | None = None) -> None:
        self._data_dir = data_dir
        self._state_dir = state_dir if state_dir is not None else data_dir / "state"
        self._run_dir = run_dir / "sidecars"
        self._logs = data_dir / "logs" / "sidecars"

    def clean(self) -> None:
        """Removes what instances of an earlier gateway left behind: their processes have ended with it. The newest logs stay."""
        for folder in (self._run_dir, self._data_dir / "scratch"):
            shutil.rmtree(folder, ignore_errors=True)
        logs = self._logs.glob("*.log*") if self._logs.is_dir() else ()
        for path in sorted(logs, key=lambda one: one.stat().st_mtime, reverse=True)[KEPT_LOGS:]:
            path.unlink(missing_ok=True)

    def state(self, uid: str) -> Path:
        return self._state_dir / uid

    def log(self, instance: str) -> Path:
        return self._logs / f"{_last(instance)}.log"

    def make(self, instance: str, uid: str, token: str | None, secrets: dict[str, str]) -> InstanceFolders:
        """The folders of a new instance, with its token and its secrets in files of 0600."""
        # The socket's folder has only the random end of the name, for the sake of its path's length.
        run = private_folder(self._run_dir / _last(instance)[-12:])
        socket = run / "s"
        if len(os.fsencode(socket)) > UNIX_PATH_LIMIT:
            raise InternalError(f"{socket}: longer than a UNIX socket's path may be; choose a shorter data folder")
        secrets_dir = None
        if secrets:
            secrets_dir = private_folder(run / "secrets")
            for name, text in secrets.items():
                _write_private(secrets_dir / name, text)
        token_file = None
        if token is not None:
            token_file = run / "token"
            _write_private(token_file, token)
        return InstanceFolders(
            run=run,
            socket=socket,
            scratch=private_folder(self._data_dir / "scratch" / _last(instance)),
            state=private_folder(self.state(uid)),
            secrets=secrets_dir,
            token_file=token_file,
        )

    def remove(self, folders: InstanceFolders) -> None:
        """Removes what was the instance's own; the state stays."""
        shutil.rmtree(folders.run, ignore_errors=True)
        shutil.rmtree(folders.scratch, ignore_errors=True)

    def remove_state(self, uid: str) -> None:
        shutil.rmtree(self.state(uid), ignore_errors=True)


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
