"""Leadership: what only one of several gateways may do at a time, such as sweeping, is done by the one that leads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

Work = Callable[[], Awaitable[None]]


class Leadership(Protocol):
    """Who leads. Two may believe it for a moment, when a connection breaks: what a leader does must bear that."""

    @property
    def held(self) -> bool:
        """Whether this gateway leads now."""
        ...

    async def lead(self, work: Work) -> None:
        """Runs ``work`` whenever this gateway leads, and cancels it when it does not any more. Ends when ``work`` does."""
        ...


class Alone:
    """The leadership of a gateway that has its database to itself."""

    held = True

    async def lead(self, work: Work) -> None:
        await work()
