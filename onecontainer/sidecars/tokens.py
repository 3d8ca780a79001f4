"""Instance tokens: each stands for one sidecar instance of one service, as long as that is not stopped."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from pathlib import Path

from onecontainer.errors import StateInvalid
from onecontainer.rpc.server import same_token
from onecontainer.sidecars.model import InstanceIdentity


class InstanceTokens:
    """Whom the tokens of live instances stand for."""

    def __init__(self) -> None:
        self._by_digest: dict[bytes, tuple[str, InstanceIdentity]] = {}

    def register(self, token: str, identity: InstanceIdentity) -> None:
        """Raises StateInvalid if another service has the same token: it must not claim for both."""
        held = self._by_digest.get(_digest(token))
        if held is not None and held[1].service_uid != identity.service_uid:
            raise StateInvalid(f"{identity.service} has the same instance token as {held[1].service}; give it its own")
        self._by_digest[_digest(token)] = (token, identity)

    def revoke(self, token: str, instance: str) -> None:
        """The token is not valid any more, unless a later instance has taken it over. Idempotent."""
        held = self._by_digest.get(_digest(token))
        if held is not None and held[1].instance == instance:
            del self._by_digest[_digest(token)]

    def authenticate(self, token: str) -> InstanceIdentity | None:
        """Whom a token stands for, None if for nobody. Looked up by digest, so the time it takes tells nothing of the tokens."""
        held = self._by_digest.get(_digest(token))
        return held[1] if held is not None and same_token(held[0], token) else None


def registration_token(path: Path) -> str:
    """The token with which workers register: the text of a file of its owner, which is made if it is not there.

    Raises StateInvalid if others can read it, or if it is empty.
    """
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    except FileExistsError:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise StateInvalid(f"{path} can be read by others than its owner: chmod 600") from None
    token = path.read_text().strip()
    if not token:
        raise StateInvalid(f"{path} is empty: remove it, and the gateway makes a new one")
    return token


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
