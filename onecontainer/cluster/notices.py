"""The port for what gateways tell each other: hints, sent with the commit that they speak of. The database is the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from sqlalchemy.engine import Connection

Hear = Callable[[Sequence[str] | None], None]
"""Takes the items that others told of a topic; None: something was told that did not arrive whole, look for yourself."""


class Notices(Protocol):
    """Tells the other gateways, and is told."""

    def add(self, connection: Connection, topic: str, item: str) -> None:
        """Tells of ``item``, a line of text, if and when this transaction is committed."""
        ...

    def subscribe(self, topic: str, hear: Hear) -> None:
        """Calls ``hear`` with what others tell, on the event loop; it must not block."""
        ...
