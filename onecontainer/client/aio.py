"""The asynchronous client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from onecontainer.client.ai import Ai
from onecontainer.client.artifacts import Artifacts
from onecontainer.client.calls import Caller, RetryPolicy
from onecontainer.client.channel import DEFAULT_ADDRESS, Tls, call_metadata, open_channel
from onecontainer.client.db import Db
from onecontainer.client.jobs import Jobs
from onecontainer.client.management import Drivers, Services, Sidecars
from onecontainer.client.media import Media

S = TypeVar("S")


class AsyncClient:
    """A connection to a gateway; use it as an async context manager, inside one event loop.

        async with AsyncClient("127.0.0.1:50051") as client:
            answer = await client.ai.predict("cat-classifier", Path("cat.jpg"), top_k=3)

    Args:
        address: `host:port` or `unix:/path`.
        token: bearer token; sent over TLS, or to this machine, only.
        tls: how to check the gateway. None: no TLS.
        timeout: seconds for a unary call that is given none.
        retry: how calls that may be repeated are.
        metadata: further metadata of every call.

    Attributes:
        services, drivers, sidecars, jobs, artifacts, ai, db, media: the calls, by what they are about.
        caller: makes calls of any other stub: `client.caller.unary(stub.Method, request)`.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        timeout: float = 60.0,
        retry: RetryPolicy | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.address = address
        self.caller = Caller(
            open_channel(address, tls=tls, token=token),
            address=address,
            metadata=call_metadata(token, metadata),
            timeout=timeout,
            retry=retry,
        )
        self.services = Services(self.caller)
        self.drivers = Drivers(self.caller)
        self.sidecars = Sidecars(self.caller)
        self.artifacts = Artifacts(self.caller)
        self.jobs = Jobs(self.caller, self.artifacts)
        self.ai = Ai(self.caller, self.jobs)
        self.db = Db(self.caller)
        self.media = Media(self.caller, self.jobs)

    def stub(self, make: Callable[[grpc.aio.Channel], S], service: ServiceDescriptor) -> S:
        """A generated stub of any service, a plug-in's too, whose calls `caller` retries and whose errors it types."""
        return self.caller.stub(make, service)

    async def close(self) -> None:
        """Ends all calls and the connection."""
        await self.caller.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()
