"""Workers that somebody else started beside a driver, and that registered: who they are, and until when."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from onecontainer.clock import Clock
from onecontainer.errors import Code, FieldInvalid, QueueUnreachable, StateInvalid
from onecontainer.rpc.server import same_token
from onecontainer.sidecars.model import InstanceIdentity, RuntimeKind, Sidecar, SidecarEvent, SidecarState

log = logging.getLogger(__name__)

MAX_SLOTS = 1000
REGISTER_AGAIN_SECONDS = 0.2
_INSTANCE_ID = re.compile(r"[a-z][a-z0-9-]{0,62}")


@dataclass(frozen=True, slots=True)
class Post:
    """What a worker of a service works for: the service's uid, its driver as a resource and by name, and the driver's own slots."""

    uid: str
    driver: str
    driver_name: str
    slots: int


@dataclass(slots=True, eq=False)
class Registration:
    """A worker that is known here. One of the same instance that comes later replaces it."""

    identity: InstanceIdentity
    token: str
    driver: str
    record: Sidecar
    expiry: asyncio.TimerHandle | None = None


class RegisteredWorkers:
    """The workers that keep a lease with this gateway. Everything in the loop's thread.

    Nothing of it is stored: a worker's name and token follow from what it announces, so it is the same to a gateway that has
    started anew, or to another one with the same registration token, and what it runs runs on.
    """

    def __init__(
        self,
        secret: str,
        *,
        post_of: Callable[[str], Post],
        clock: Clock,
        lease: float,
        on_change: Callable[[str], None],
    ) -> None:
        """``secret`` is the registration token. ``post_of(service)`` raises ResourceNotFound
        or DriverNotAvailable. ``lease`` in seconds. ``on_change`` is told a service's uid."""
        self.lease = lease
        self._secret = secret.encode()
        self._post_of = post_of
        self._clock = clock
        self._on_change = on_change
        self._by_token: dict[str, Registration] = {}

    # --- coming and going --------------------------------------------------------------------------------------------

    def register(self, service: str, driver: str, instance_id: str, slots: int) -> Registration:
        """Takes a worker in, or takes it back. ``slots`` 0: as many as its driver's manifest says.

        Raises FieldInvalid, StateInvalid for the wrong driver, and what ``post_of`` raises.
        """
        if not _INSTANCE_ID.fullmatch(instance_id):
            raise FieldInvalid("instance_id", "must be a name of its own, [a-z][a-z0-9-]{0,62}")
        if not 0 <= slots <= MAX_SLOTS:
            raise FieldInvalid("slots", f"must be 0 to {MAX_SLOTS}")
        post = self._post_of(service)
        if driver != post.driver_name:
            raise StateInvalid(
                f"the driver of {service} is {post.driver_name!r}, not {driver!r}",
                metadata={"service": service, "driver": post.driver},
            )
        token = self._token(post.uid, instance_id)
        old = self._by_token.get(token)
        if old is not None:
            self._stop_clock(old)
        name = f"sidecars/{service.removeprefix('services/')[:48]}-{self._digest(post.uid, instance_id)}"
        identity = InstanceIdentity(name, service, post.uid, slots or post.slots)
        registration = Registration(identity, token, driver, self._record(identity, post, old))
        self._by_token[token] = registration
        self._start_clock(registration)
        self._on_change(post.uid)
        log.info("%s %s as a worker of %s", name, "is back" if old is not None else "has registered", service)
        return registration

    def renew(self, registration: Registration) -> bool:
        """The worker is there. True: its service's driver has become another one, so it is to take no more jobs.

        Raises StateInvalid if it is not known any more, ResourceNotFound if its service is gone.
        """
        if self._by_token.get(registration.token) is not registration:
            raise StateInvalid("another stream of this instance has replaced this one", code=Code.ABORTED)
        self._start_clock(registration)
        retired = self._post_of(registration.identity.service).driver_name != registration.driver
        if retired and registration.record.state is not SidecarState.DRAINING:
            self._become(registration, SidecarEvent.DRAIN)
        return retired

    def broken(self, registration: Registration) -> None:
        """Its stream has broken: it has until the end of its lease to come back."""
        if self._by_token.get(registration.token) is registration:
            cause = QueueUnreachable("the stream of its registration has broken; its lease runs on")
            self._become(registration, SidecarEvent.BACKEND_BROKEN, error=cause)

    def leave(self, registration: Registration) -> None:
        """It has gone, or its lease is over."""
        if self._by_token.get(registration.token) is not registration:
            return
        self._stop_clock(registration)
        del self._by_token[registration.token]
        log.info("%s has gone", registration.identity.instance)
        self._on_change(registration.identity.service_uid)

    # --- questions ---------------------------------------------------------------------------------------------------

    def authenticate(self, token: str) -> InstanceIdentity | None:
        """Whom a worker's token stands for; None if it is none.

        Raises QueueUnreachable for the token of one that is not registered: the worker goes on with what it runs meanwhile.
        """
        registration = self._by_token.get(token)
        if registration is not None and same_token(registration.token, token):
            return registration.identity
        kind, _, rest = token.partition(".")
        uid, _, rest = rest.partition(".")
        instance_id = rest.partition(".")[0]
        if kind != "worker" or not same_token(self._token(uid, instance_id), token):
            return None
        raise QueueUnreachable(
            "this worker is not registered here (any more): register, then call again",
            retry_after=REGISTER_AGAIN_SECONDS,
        )

    def records(self, uid: str | None = None) -> Iterator[Sidecar]:
        """The workers of a service, or of all."""
        for registration in self._by_token.values():
            if uid is None or registration.identity.service_uid == uid:
                yield registration.record

    def slots(self, uid: str) -> int:
        """Jobs that a service's registered workers run at once, together."""
        found = (registration.identity for registration in self._by_token.values())
        return sum(identity.slots for identity in found if identity.service_uid == uid)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _token(self, uid: str, instance_id: str) -> str:
        signature = hmac.new(self._secret, f"worker {uid} {instance_id}".encode(), hashlib.sha256).hexdigest()
        return f"worker.{uid}.{instance_id}.{signature}"

    @staticmethod
    def _digest(uid: str, instance_id: str) -> str:
        return hashlib.sha256(f"worker {uid} {instance_id}".encode()).hexdigest()[:12]

    def _record(self, identity: InstanceIdentity, post: Post, old: Registration | None) -> Sidecar:
        if old is not None:
            return replace(old.record, state=SidecarState.READY, error=None)
        now = self._clock.now()
        record = Sidecar(
            identity.instance,
            identity.service,
            identity.service_uid,
            post.driver,
            RuntimeKind.ATTACHED,
            worker_only=True,
            create_time=now,
            ready_time=now,
        )
        return record.after(SidecarEvent.ATTACHED).after(SidecarEvent.BACKEND_READY)

    def _become(self, registration: Registration, event: SidecarEvent, **changes: object) -> None:
        registration.record = registration.record.after(event, **changes)
        self._on_change(registration.identity.service_uid)

    def _start_clock(self, registration: Registration) -> None:
        self._stop_clock(registration)
        registration.expiry = asyncio.get_running_loop().call_later(self.lease, self.leave, registration)

    def _stop_clock(self, registration: Registration) -> None:
        if registration.expiry is not None:
            registration.expiry.cancel()
            registration.expiry = None
