"""The way to other gateways: calls of a service go to the one that owns its sidecar, with the caller's own credentials.

They go to its public listener, which authenticates the caller like any other. A call goes on once at the most: while ownership
changes hands, two gateways may take each other for the owner.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc

from onecontainer.cluster.owners import Owner
from onecontainer.gateway import onward
from onecontainer.rpc.channel import open_channel
from onecontainer.sidecars.model import Endpoint


class Peers:
    """Channels to other gateways. An async context manager."""

    def __init__(self, gateway: str, *, max_message_bytes: int, tls: bool, ca_file: Path | None) -> None:
        self._mark = (onward.FORWARDED_KEY, gateway)
        self._max_message_bytes = max_message_bytes
        self._tls = tls
        self._ca_file = ca_file
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def __aenter__(self) -> Peers:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for channel in self._channels.values():
            await channel.close()

    def channel(self, address: str) -> grpc.aio.Channel:
        """The channel to the gateway at this address."""
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = open_channel(
                address, max_message_bytes=self._max_message_bytes, ca_file=self._ca_file, tls=self._tls
            )
        return channel

    def way_to(self, owner: Owner) -> Endpoint:
        """The way to a service that another gateway owns."""
        return Endpoint(
            instance=owner.view.instance,
            channel=self.channel(owner.address),
            metadata=(self._mark,),
            methods=owner.view.methods,
            max_message_bytes=owner.view.max_message_bytes,
            forwards=True,
        )

    def metadata(self, context: grpc.aio.ServicerContext[Any, Any]) -> tuple[tuple[str, str | bytes], ...]:
        """What goes on with a call of our own API. Raises DriverUnreachable for one that has gone on before."""
        received: Any = context.invocation_metadata() or ()
        onward.refuse_second_hop(received)
        return (*onward.forwarded(received), self._mark)
