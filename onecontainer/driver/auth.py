"""Who may call a sidecar: the holder of its instance token, if the call means this instance."""

from __future__ import annotations

import hmac

from onecontainer.errors import Code, CredentialsInvalid, NotAttached, WrongInstance
from onecontainer.rpc.server import Call, Metadata

INSTANCE_KEY, SERVICE_KEY, PRINCIPAL_KEY = "onecontainer-instance", "onecontainer-service", "onecontainer-principal"
REQUEST_ID_KEY, TRACE_KEY = "x-request-id", "traceparent"
RETRY_AFTER = 0.2
_OURS = frozenset({INSTANCE_KEY, SERVICE_KEY, PRINCIPAL_KEY, "authorization", "user-agent"})


class SidecarAuthenticator:
    """Checks each call's token (in constant time) and the instance and service that it names.

    Without a token everybody who reaches the socket may call: settings allow that on loopback and UNIX sockets only.
    Health checks do not come here: who probes a container has no token, and they tell nothing but serving or not.
    """

    def __init__(self, token: str | None, instance: str = "", *, registers: bool = False) -> None:
        """``registers``: it lets nobody in until the gateway has given it a token."""
        self.token = token
        self._closed = registers
        self.instance = instance
        """Empty: nobody has named it yet, every name is right."""
        self.service = ""
        """Empty: not attached."""

    def admit(self, token: str) -> None:
        """The token that callers show from now on."""
        self.token = token
        self._closed = False

    def authenticate(self, metadata: Metadata) -> Call:
        """The caller and its metadata. Raises CredentialsInvalid, WrongInstance, or NotAttached before it has registered."""
        if self._closed:
            raise NotAttached(
                "this sidecar has not registered with its gateway yet", code=Code.UNAVAILABLE, retry_after=RETRY_AFTER
            )
        values = {key: value if isinstance(value, str) else "" for key, value in metadata}
        if self.token is not None:
            scheme, _, token = values.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self.token.encode()):
                raise CredentialsInvalid("send this sidecar's instance token as `authorization: Bearer TOKEN`")
        for key, mine in ((INSTANCE_KEY, self.instance), (SERVICE_KEY, self.service)):
            meant = values.get(key)
            if meant and mine and meant != mine:
                raise WrongInstance(
                    f"the call means {meant!r}, but this is {mine!r}: resolve the address again",
                    metadata={"instance": self.instance, "attached_service": self.service},
                )
        return Call(
            principal=values.get(PRINCIPAL_KEY, ""),
            traceparent=values.get(TRACE_KEY, ""),
            metadata={key: value for key, value in values.items() if key not in _OURS and value},
        )
