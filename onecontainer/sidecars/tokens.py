"""Instance tokens: each stands for one sidecar instance of one service, as long as that is not stopped."""

from __future__ import annotations

import hashlib

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


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
