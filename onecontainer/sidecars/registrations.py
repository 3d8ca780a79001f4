"""Sidecars and workers that somebody else started, and that registered: who they are, and until when."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from onecontainer.clock import Clock
from onecontainer.errors import Code, FieldInvalid, QueueUnreachable, ResourceInUse, StateInvalid
from onecontainer.rpc.server import same_token
from onecontainer.settings import is_host_and_port
from onecontainer.sidecars.model import InstanceIdentity, RuntimeKind, Sidecar, SidecarEvent, SidecarState

log = logging.getLogger(__name__)

MAX_SLOTS = 1000
REGISTER_AGAIN_SECONDS = 0.2
_INSTANCE_ID = re.compile(r"[a-z][a-z0-9-]{0,62}")


STANDBY_SECONDS = 1.0
"""After so long one that finds its place taken may ask again."""
WORKER, SIDECAR = "worker", "sidecar"


@dataclass(frozen=True, slots=True)
class Post:
    """What a service has for those who register: its uid, its driver as a resource, by name and version, and the driver's own slots.
    ``serves``: its runtime waits for a sidecar that registers."""

    uid: str
    driver: str
    driver_name: str
    slots: int
    driver_version: str = ""
    serves: bool = False


class Presence:
    """A sidecar that serves calls, from its registration to its end, over as many streams as that takes."""

    def __init__(self, name: str, token: str, endpoint: str, driver: str) -> None:
        self.name = name
        self.token = token
        self.endpoint = endpoint
        self.driver = driver
        """As a resource, `drivers/{driver}`."""
        self.end = ""
        """How it ended; empty: it has not."""
        self.ended = asyncio.Event()
        self.draining = asyncio.Event()
        """Set when it takes nothing new."""
        self.doubt = asyncio.Event()
        """Set while its stream is broken: it may have died, or comes back."""

    def ends(self, how: str) -> None:
        self.end = self.end or how
        self.ended.set()

    @property
    def works(self) -> bool:
        """Whether it takes what is new."""
        return not self.draining.is_set() and not self.ended.is_set()

    @property
    def replaceable(self) -> bool:
        """Whether another instance may take its place."""
        return not self.works or self.doubt.is_set()


@dataclass(slots=True, eq=False)
class Registration:
    """A stream of one that is known here. One of the same instance that comes later replaces it."""

    identity: InstanceIdentity
    token: str
    post: Post
    record: Sidecar
    presence: Presence | None = None
    """None: a worker, which serves no calls."""
    expiry: asyncio.TimerHandle | None = None


class Registrations:
    """Who keeps a lease with this gateway. Everything in the loop's thread.

    Nothing of it is stored: name and token follow from what is announced, so they are the same to a gateway that has
    started anew, or to another one with the same registration token, and what runs runs on.
    """

    def __init__(
        self,
        secret: str,
        *,
        post_of: Callable[[str], Post],
        clock: Clock,
        lease: float,
        on_change: Callable[[str], None],
        on_end: Callable[[str, bool], None] = lambda _instance, _left: None,
    ) -> None:
        """``secret`` is the registration token. ``post_of(service)`` raises ResourceNotFound
        or DriverNotAvailable. ``lease`` in seconds. ``on_change`` is told a service's uid, ``on_end`` an instance's name and whether
        it has taken leave, so that nothing of it runs any more."""
        self.lease = lease
        self._secret = secret.encode()
        self._post_of = post_of
        self._clock = clock
        self._on_change = on_change
        self._on_end = on_end
        self._by_token: dict[str, Registration] = {}
        self._serving: dict[str, Registration] = {}
        """By the service's uid."""
        self._arrivals: dict[str, asyncio.Event] = {}

    # --- coming and going --------------------------------------------------------------------------------------------

    def register(
        self,
        service: str,
        driver: str,
        instance_id: str,
        slots: int = 0,
        *,
        version: str = "",
        endpoint: str = "",
        draining: bool = False,
    ) -> Registration:
        """Takes one in, or takes it back. With an ``endpoint`` it serves the service's calls; else it is a worker only, and ``slots`` 0
        is as many as its driver's manifest says. ``draining``: it takes nothing new, and only what it still runs is to be reported.

        Raises FieldInvalid, StateInvalid for the wrong driver or a service that waits for no sidecar, ResourceInUse while another
        instance serves it, and what ``post_of`` raises.
        """
        if not _INSTANCE_ID.fullmatch(instance_id):
            raise FieldInvalid("instance_id", "must be a name of its own, [a-z][a-z0-9-]{0,62}")
        if not 0 <= slots <= MAX_SLOTS:
            raise FieldInvalid("slots", f"must be 0 to {MAX_SLOTS}")
        if endpoint and not endpoint.startswith("unix:/") and not is_host_and_port(endpoint):
            raise FieldInvalid("endpoint", "must be `host:port` or `unix:/path`")
        post = self._post_of(service)
        _check(post, service, driver, version, serves=bool(endpoint))
        kind = SIDECAR if endpoint else WORKER
        token = self._token(kind, post.uid, instance_id)
        name = f"sidecars/{service.removeprefix('services/')[:48]}-{self._digest(kind, post.uid, instance_id)}"
        identity = InstanceIdentity(name, service, post.uid, slots or post.slots)
        presence = self._presence(post, name, token, endpoint, draining=draining) if endpoint else None
        old = self._by_token.get(token)
        if old is not None:
            self._stop_clock(old)
        registration = Registration(identity, token, post, self._record(identity, post, old, endpoint), presence)
        self._by_token[token] = registration
        if presence is not None and not presence.draining.is_set():
            self._serving[post.uid] = registration
            self.arrival(post.uid).set()
        self._start_clock(registration)
        self._on_change(post.uid)
        what = "a sidecar" if endpoint else "a worker"
        log.info("%s %s as %s of %s", name, "is back" if old is not None else "has registered", what, service)
        return registration

    def _presence(self, post: Post, name: str, token: str, endpoint: str, *, draining: bool) -> Presence:
        """Takes the place of the sidecar that serves the service: one instance has it at a time."""
        presence = Presence(name, token, endpoint, post.driver)
        if draining:
            presence.draining.set()
            return presence
        holder = self._serving.get(post.uid)
        held = None if holder is None else holder.presence
        if held is not None and held.name != name and not held.replaceable:
            raise ResourceInUse(
                f"{held.name} at {held.endpoint} serves it, and is alive: stop that one, or wait until it leaves",
                resource=("onecontainer.dev/Sidecar", held.name),
                retry_after=STANDBY_SECONDS,
            )
        # One that comes back goes on as what it was; somewhere else, or after a drain that was called off, it is to be met anew.
        if held is not None and held.works and (held.name, held.endpoint, held.driver) == (name, endpoint, post.driver):
            held.doubt.clear()
            return held
        if held is not None and not held.draining.is_set():
            held.ends(f"has given its place to {name} at {endpoint}")
        return presence

    def renew(self, registration: Registration, *, draining: bool = False) -> bool:
        """It is there; ``draining``: it takes nothing new. True: its service has another driver by now, so it is to take no more.

        Raises StateInvalid if it is not known any more, or by another name, ResourceNotFound if its service is gone.
        """
        if self._by_token.get(registration.token) is not registration:
            raise StateInvalid("another stream of this instance has replaced this one", code=Code.ABORTED)
        self._start_clock(registration)
        post = self._post_of(registration.identity.service)
        retired = post.driver_name != registration.post.driver_name
        if registration.presence is not None:
            if post.uid != registration.post.uid:
                raise StateInvalid("the service has been made anew: register again", code=Code.ABORTED)
            retired = (post.driver, post.serves) != (registration.post.driver, True)
        if (retired or draining) and registration.record.state is not SidecarState.DRAINING:
            if registration.presence is not None:
                registration.presence.draining.set()
            self._become(registration, SidecarEvent.DRAIN)
        return retired

    def broken(self, registration: Registration) -> None:
        """Its stream has broken: it has until the end of its lease to come back."""
        if self._by_token.get(registration.token) is registration:
            cause = QueueUnreachable("the stream of its registration has broken; its lease runs on")
            if registration.presence is not None:
                registration.presence.doubt.set()
            self._become(registration, SidecarEvent.BACKEND_BROKEN, error=cause)

    def leave(self, registration: Registration) -> None:
        """It has taken leave."""
        self._end(registration, "has taken leave", left=True)

    def _expire(self, registration: Registration) -> None:
        self._end(registration, f"has lost its lease: nothing was heard of it for {self.lease:g} s", left=False)

    def _end(self, registration: Registration, how: str, *, left: bool) -> None:
        if self._by_token.get(registration.token) is not registration:
            return
        self._stop_clock(registration)
        del self._by_token[registration.token]
        identity = registration.identity
        if registration.presence is not None:
            registration.presence.ends(how)
            if self._serving.get(identity.service_uid) is registration:
                del self._serving[identity.service_uid]
        log.info("%s %s", identity.instance, how)
        self._on_end(identity.instance, left)
        self._on_change(identity.service_uid)

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
        if kind not in (WORKER, SIDECAR) or not same_token(self._token(kind, uid, instance_id), token):
            return None
        raise QueueUnreachable(
            f"this {kind} is not registered here (any more): register, then call again",
            retry_after=REGISTER_AGAIN_SECONDS,
        )

    def presence(self, uid: str, driver: str) -> Presence | None:
        """The sidecar of this driver (a resource) that can serve a service now; None: one has to register first, or again."""
        registration = self._serving.get(uid)
        presence = None if registration is None else registration.presence
        if presence is None or presence.replaceable or presence.driver != driver:
            return None
        return presence

    def arrival(self, uid: str) -> asyncio.Event:
        """Set whenever a sidecar of the service registers; whoever waits for it clears it before."""
        return self._arrivals.setdefault(uid, asyncio.Event())

    def forget(self, uid: str) -> None:
        """The service is gone from here."""
        self._arrivals.pop(uid, None)

    def workers(self, uid: str | None = None) -> Iterator[Sidecar]:
        """The workers of a service, or of all."""
        for registration in self._by_token.values():
            if registration.presence is None and (uid is None or registration.identity.service_uid == uid):
                yield registration.record

    def record(self, name: str) -> Sidecar | None:
        """A worker or sidecar that is registered, as it is known here."""
        found = (registration.record for registration in self._by_token.values())
        return next((record for record in found if record.name == name), None)

    def slots(self, uid: str) -> int:
        """Jobs that a service's registered workers run at once, together."""
        found = (one.identity for one in self._by_token.values() if one.presence is None)
        return sum(identity.slots for identity in found if identity.service_uid == uid)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _token(self, kind: str, uid: str, instance_id: str) -> str:
        signature = hmac.new(self._secret, f"{kind} {uid} {instance_id}".encode(), hashlib.sha256).hexdigest()
        return f"{kind}.{uid}.{instance_id}.{signature}"

    @staticmethod
    def _digest(kind: str, uid: str, instance_id: str) -> str:
        return hashlib.sha256(f"{kind} {uid} {instance_id}".encode()).hexdigest()[:12]

    def _record(self, identity: InstanceIdentity, post: Post, old: Registration | None, endpoint: str) -> Sidecar:
        if old is not None:
            return replace(old.record, state=SidecarState.READY, error=None, target=endpoint)
        now = self._clock.now()
        record = Sidecar(
            identity.instance,
            identity.service,
            identity.service_uid,
            post.driver,
            RuntimeKind.ATTACHED,
            target=endpoint,
            worker_only=not endpoint,
            create_time=now,
            ready_time=now,
        )
        return record.after(SidecarEvent.ATTACHED).after(SidecarEvent.BACKEND_READY)

    def _become(self, registration: Registration, event: SidecarEvent, **changes: object) -> None:
        registration.record = registration.record.after(event, **changes)
        self._on_change(registration.identity.service_uid)

    def _start_clock(self, registration: Registration) -> None:
        self._stop_clock(registration)
        registration.expiry = asyncio.get_running_loop().call_later(self.lease, self._expire, registration)

    def _stop_clock(self, registration: Registration) -> None:
        if registration.expiry is not None:
            registration.expiry.cancel()
            registration.expiry = None


def _check(post: Post, service: str, driver: str, version: str, *, serves: bool) -> None:
    """Whether one who stands for this driver may register for the service, as its sidecar or as a worker."""
    facts = {"service": service, "driver": post.driver}
    if driver != post.driver_name:
        raise StateInvalid(f"the driver of {service} is {post.driver_name!r}, not {driver!r}", metadata=facts)
    if serves and version != post.driver_version:
        raise StateInvalid(
            f"{service} has version {post.driver_version} of the driver {driver}, not {version}: start that one, or assign this "
            "one with AssignDriver",
            metadata=facts,
        )
    if serves and not post.serves:
        raise StateInvalid(
            f"{service} waits for no sidecar: set its runtime to RUNTIME_KIND_ATTACHED without an endpoint, or register "
            "without one, as a worker only",
            metadata=facts,
        )
