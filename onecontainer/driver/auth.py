"""Who may call a sidecar: the holder of its instance token, if the call means this instance."""

from __future__ import annotations

import hmac

from onecontainer.errors import CredentialsInvalid, WrongInstance
from onecontainer.rpc.server import Call, Metadata

INSTANCE_KEY, SERVICE_KEY, PRINCIPAL_KEY = "onecontainer-instance", "onecontainer-service", "onecontainer-principal"
REQUEST_ID_KEY, TRACE_KEY = "x-request-id", "traceparent"
_OURS = frozenset({INSTANCE_KEY, SERVICE_KEY, PRINCIPAL_KEY, "authorization", "user-agent"})


class SidecarAuthenticator:
    """Checks each call's token (in constant time) and the instance and service that it names.

    Without a token everybody who reaches the socket may call: settings allow that on loopback and UNIX sockets only.
    Health checks do not come here: who probes a container has no token, and they tell nothing but serving or not.
    """

    def __init__(self, token: str | None, instance: str = "") -> None:
        self._token = None if token is None else token.encode()
        self.instance = instance
        """Empty: nobody has named it yet, every name is right."""
        self.service = ""
        """Empty: not attached."""

    def authenticate(self, metadata: Metadata) -> Call:
        """The caller and its metadata. Raises CredentialsInvalid or WrongInstance."""
        values = {key: value if isinstance(value, str) else "" for key, value in metadata}
        if self._token is not None:
            scheme, _, token = values.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token):
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
