"""How a method is shown to work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from onecontainer.driver.conformance.session import Session


@dataclass(frozen=True, slots=True)
class Work:
    """Calls a method, and what it takes to see that it did what it says. By name: `needs`, methods without which
    it cannot be shown, and `after`, methods that go before it and must not have failed.
    """

    run: Callable[[Session], Awaitable[None]]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


Works = Mapping[str, Work]
"""By full method name, in the order in which they are run. What works is put into the session, for the checks that come after."""
