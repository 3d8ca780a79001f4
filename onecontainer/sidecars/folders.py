"""The folders of sidecars: state that stays, and what one instance has for its own while it lives."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from onecontainer.errors import DriverUnreachable, InternalError
from onecontainer.settings import UNIX_PATH_LIMIT, private_folder

LEFT_FILE = "sidecar.json"
"""In the folder of a sidecar that outlives the gateway: which one it is. The sidecar itself cannot write there."""
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
        self._left: dict[str, str] = {}

    def clean(self) -> None:
        """Removes what instances of an earlier gateway left behind, but for those that outlive it, and the newest logs."""
        self._left = {}
        for run in self._run_dir.iterdir() if self._run_dir.is_dir() else ():
            try:
                facts = json.loads((run / LEFT_FILE).read_text())
                self._left[str(facts["instance"])] = str(facts["uid"])
            except (OSError, ValueError, KeyError):
                shutil.rmtree(run, ignore_errors=True)
        scratch = self._data_dir / "scratch"
        for folder in scratch.iterdir() if scratch.is_dir() else ():
            if f"sidecars/{folder.name}" not in self._left:
                shutil.rmtree(folder, ignore_errors=True)
        logs = self._logs.glob("*.log*") if self._logs.is_dir() else ()
        for path in sorted(logs, key=lambda one: one.stat().st_mtime, reverse=True)[KEPT_LOGS:]:
            path.unlink(missing_ok=True)

    def state(self, uid: str) -> Path:
        return self._state_dir / uid

    def log(self, instance: str) -> Path:
        return self._logs / f"{_last(instance)}.log"

    def make(
        self, instance: str, uid: str, token: str | None, secrets: dict[str, str], *, outlives: bool = False
    ) -> InstanceFolders:
        """The folders of a new instance, with its token and its secrets in files of 0600. `outlives`: the next gateway finds them."""
        folders = self._of(instance, uid)
        private_folder(folders.run)
        if outlives:
            (folders.run / LEFT_FILE).write_text(json.dumps({"instance": instance, "uid": uid}))
            folders = replace(folders, socket=private_folder(folders.run / "c") / "s")
        if len(os.fsencode(folders.socket)) > UNIX_PATH_LIMIT:
            raise InternalError(
                f"{folders.socket}: longer than a UNIX socket's path may be; choose a shorter data folder"
            )
        if secrets:
            folders = replace(folders, secrets=private_folder(folders.run / "secrets"))
            for name, text in secrets.items():
                _write_private(folders.run / "secrets" / name, text)
        if token is not None:
            folders = replace(folders, token_file=folders.run / "token")
            _write_private(folders.run / "token", token)
        private_folder(folders.scratch)
        # It may belong to the user of containers; the data folder around it is ours alone.
        folders.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folders

    def open(self, instance: str, uid: str) -> tuple[InstanceFolders, str]:
        """The folders of an instance that outlived an earlier gateway, and its token. Raises DriverUnreachable if they are gone."""
        folders = self._of(instance, uid)
        secrets, token_file = folders.run / "secrets", folders.run / "token"
        folders = replace(
            folders,
            socket=folders.run / "c" / "s",
            secrets=secrets if secrets.is_dir() else None,
            token_file=token_file,
        )
        try:
            token = token_file.read_text()
        except OSError as error:
            raise DriverUnreachable(f"{instance} cannot be taken over, its token is gone: {error}") from error
        self._left.pop(instance, None)
        return folders, token

    def left(self, uid: str) -> frozenset[str]:
        """Instances of a service that outlived an earlier gateway, as far as they were not taken over yet."""
        return frozenset(instance for instance, owner in self._left.items() if owner == uid)

    def forget_left(self, is_orphan: Callable[[str], bool], *, keep: Collection[str | None] = ()) -> None:
        """Removes the folders of sidecars that outlived an earlier gateway and have ended since, of the services, by uid, that are
        orphans; not those of the instances to keep."""
        for instance, uid in list(self._left.items()):
            if is_orphan(uid) and instance not in keep:
                del self._left[instance]
                self.remove(self._of(instance, uid))

    def _of(self, instance: str, uid: str) -> InstanceFolders:
        # The socket's folder has only the random end of the name, for the sake of its path's length.
        run = self._run_dir / _last(instance)[-12:]
        return InstanceFolders(
            run=run,
            socket=run / "s",
            scratch=self._data_dir / "scratch" / _last(instance),
            state=self.state(uid),
            secrets=None,
            token_file=None,
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
