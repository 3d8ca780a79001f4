"""Who runs a service's sidecar: one gateway, as long as its lease lasts. The records, and the port to where they are kept."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

from google.rpc import status_pb2

from onecontainer.errors import OneContainerError
from onecontainer.rpc.status import from_status, to_status
from onecontainer.sidecars.model import RuntimeKind, ServiceState, Sidecar, SidecarState


@dataclass(frozen=True, slots=True)
class View:
    """What an owner lets the others see of a service: its state, its sidecars, and what the one that serves implements."""

    state: ServiceState = ServiceState.STARTING
    error: OneContainerError | None = None
    instance: str = ""
    methods: frozenset[str] = frozenset()
    max_message_bytes: int = 0
    sidecars: tuple[Sidecar, ...] = ()


@dataclass(frozen=True, slots=True)
class Owner:
    """The gateway that runs a service's sidecar. ``live`` is False when its lease has run out, and nobody has taken over yet."""

    service_uid: str
    gateway: str
    address: str
    live: bool
    view: View


class Owners(Protocol):
    """Keeps who owns what. Each method is one transaction, and the other gateways hear of what it changes."""

    async def join(self) -> None:
        """This gateway begins. What one before it on the same data folder owned is its own: that one has ended, or this could not run."""
        ...

    async def renew(self, wanted: Collection[str]) -> list[Owner]:
        """Renews this gateway's lease, takes those services (uids) among ``wanted`` that nobody alive owns, and tells of all."""
        ...

    async def take_over(self, service_uid: str) -> None:
        """The service is this gateway's from now on, whoever has it: its sidecar has come here."""
        ...

    async def show(self, service_uid: str, view: View) -> None:
        """Lets the others see this of a service, if it is this gateway's."""
        ...

    async def release(self, service_uid: str) -> None:
        """The service has no owner, unless it is another gateway that lives."""
        ...

    async def leave(self) -> None:
        """This gateway ends: all that it owns is free."""
        ...


def view_to_text(view: View) -> str:
    """A view as it is stored."""
    values = asdict(replace(view, error=None, sidecars=()))
    values |= {
        "methods": sorted(view.methods),
        "error": _error_to_text(view.error),
        "sidecars": [
            asdict(replace(sidecar, error=None)) | {"error": _error_to_text(sidecar.error)} for sidecar in view.sidecars
        ],
    }
    return json.dumps(values)


@lru_cache(maxsize=4096)
def view_from_text(text: str) -> View:
    """The view that was stored; what a newer release has added to it is left out. The same text gives the same object."""
    if not text:
        return View()
    values = _known(View, json.loads(text))
    sidecars = [
        Sidecar(
            **_known(Sidecar, one)
            | {
                "runtime": RuntimeKind(one["runtime"]),
                "state": SidecarState(one["state"]),
                "error": _error_from_text(one["error"]),
            }
        )
        for one in values["sidecars"]
    ]
    return View(
        **values
        | {
            "state": ServiceState(values["state"]),
            "error": _error_from_text(values["error"]),
            "methods": frozenset(values["methods"]),
            "sidecars": tuple(sidecars),
        }
    )


def _known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in kind.__dataclass_fields__}  # type: ignore[attr-defined]


def _error_to_text(error: OneContainerError | None) -> str:
    return "" if error is None else base64.b64encode(to_status(error).SerializeToString()).decode()


def _error_from_text(text: str) -> OneContainerError | None:
    return from_status(status_pb2.Status.FromString(base64.b64decode(text))) if text else None
