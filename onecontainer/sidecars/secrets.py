"""Secrets by name: a file that only its owner reads, or an environment variable. Values are handed on as files, never stored."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from onecontainer.errors import StateInvalid
from onecontainer.rpc.options import secret_name

ENVIRONMENT_PREFIX = "ONECONTAINER_SECRET_"


class SecretStore:
    """Reads `secrets/NAME` from the file NAME in a folder, else from ONECONTAINER_SECRET_NAME (upper case, `-` and `.` as `_`)."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._environment = os.environ if environment is None else environment

    def problem(self, name: str) -> str:
        """Why a secret cannot be used, empty if it can."""
        try:
            self.read(name)
        except StateInvalid as error:
            return error.message
        return ""

    def read(self, name: str) -> str:
        """The text of a secret, without a line end behind it. Raises StateInvalid if there is none, or others may read it."""
        if secret_name(f"secrets/{name}") is None:
            raise StateInvalid(f"secrets/{name} is not a name of a secret")
        path = self._folder / name
        try:
            mode = path.stat().st_mode
            if stat.S_ISREG(mode):
                if mode & (stat.S_IRWXG | stat.S_IRWXO):
                    raise StateInvalid(f"secrets/{name}: others than its owner may use the file {path}; chmod 600 it")
                return path.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            if not isinstance(error, FileNotFoundError):
                raise StateInvalid(f"secrets/{name} cannot be read: {error}") from error
        variable = ENVIRONMENT_PREFIX + re.sub(r"[-.]", "_", name).upper()
        if variable in self._environment:
            return self._environment[variable]
        raise StateInvalid(f"there is no secrets/{name}: write the file {path} (0600), or set {variable}")

    def read_all(self, names: Iterable[str]) -> dict[str, str]:
        """Name to text. Raises StateInvalid as `read` does."""
        return {name: self.read(name) for name in names}
