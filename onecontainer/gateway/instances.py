"""What the end and the beginning of sidecar instances mean for jobs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from onecontainer.errors import CapabilityMissing, CredentialsInvalid, QueueUnreachable
from onecontainer.jobs.changes import Changes
from onecontainer.jobs.dispatch.port import Dispatch
from onecontainer.jobs.ledger import Ledger, Worker
from onecontainer.rpc.server import Call, Metadata, bearer_token, same_token
from onecontainer.sidecars.model import InstanceIdentity, RuntimeKind, SidecarState
from onecontainer.sidecars.supervisor import Supervisor

log = logging.getLogger(__name__)

_ENDED = frozenset({SidecarState.BACKOFF, SidecarState.STOPPED})


class InstanceTokensOnly:
    """Authenticates callers of the internal listener: sidecar instances, by their tokens."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._complete = False

    def complete(self) -> None:
        """The supervisor has been told of all services."""
        self._complete = True

    def authenticate(self, metadata: Metadata) -> Call:
        token = bearer_token(metadata)
        identity = self._supervisor.authenticate(token) if token is not None else None
        if identity is None and not (self._complete and self._supervisor.introduced):
            # A sidecar that was told it is unknown would give up what it runs.
            raise QueueUnreachable("the gateway is starting and does not know all sidecars yet", retry_after=0.5)
        if identity is None:
            raise CredentialsInvalid("the internal listener takes the token of a running sidecar instance only")
        return Call(identity.instance, identity=identity)


class RegistrationTokenOnly:
    """Authenticates those who want to register, by the installation's registration token."""

    def __init__(self, token: str) -> None:
        self._token = token

    def authenticate(self, metadata: Metadata) -> Call:
        token = bearer_token(metadata)
        if token is None or not same_token(token, self._token):
            raise CredentialsInvalid(
                "send the text of the gateway's registration.token as `authorization: Bearer TOKEN`"
            )
        return Call("registration")


class InstanceWatch:
    """Follows the supervisor: gives up the leases of an instance that has ended, without waiting for them to run out, and ends queued
    jobs whose method the new driver does not have. A task: `run`."""

    def __init__(
        self,
        supervisor: Supervisor,
        ledger: Ledger,
        changes: Changes,
        dispatch: Dispatch,
        gateway: str,
        max_running: Callable[[str], int],
    ) -> None:
        """``gateway`` names this process; ``max_running(service)`` is how many jobs of a service may run at once."""
        self._supervisor = supervisor
        self._ledger = ledger
        self._changes = changes
        self._dispatch = dispatch
        self._gateway = gateway
        self._max_running = max_running
        self._touched: asyncio.Queue[str] = asyncio.Queue()
        self._left: set[str] = set()
        self._running: dict[str, set[str]] = {}
        self._ready: dict[str, str] = {}

    def worker_of(self, identity: object) -> tuple[Worker, int] | None:
        """The worker of an instance, and how many jobs of its service may run at once."""
        if not isinstance(identity, InstanceIdentity):
            return None
        record = self._supervisor.sidecar(identity.instance)
        bound = self._gateway if record.runtime is RuntimeKind.PROCESS else ""
        worker = Worker(identity.instance, identity.service, identity.service_uid, bound)
        return worker, self._max_running(identity.service)

    def ended(self, instance: str, left: bool) -> None:
        """The registration of an instance has ended. What one that has taken leave still held is lost at once; of one that was not
        heard of its leases tell, for it may be at another gateway."""
        self._dispatch.forget(instance)
        if left:
            self._left.add(instance)

    async def run(self) -> None:
        """Runs until it is cancelled."""
        unsubscribe = self._supervisor.subscribe(self._touched.put_nowait)
        try:
            while True:
                uid = await self._touched.get()
                try:
                    await self._look(uid)
                except Exception:  # one service's trouble must not blind the watch for the others
                    log.exception("after a change of the sidecars of %s", uid)
        finally:
            unsubscribe()

    async def _look(self, uid: str) -> None:
        known = self._supervisor.sidecars(uid)
        if known and known[0].runtime is RuntimeKind.ATTACHED and not known[0].worker_only and known[0].state in _ENDED:
            # Who answers next under this name may be another process. Its leases tell what became of its attempts.
            self._dispatch.forget(known[0].name)
        # What an attached sidecar runs goes on without it being reached.
        sidecars = [record for record in known if record.runtime is not RuntimeKind.ATTACHED]
        running = {record.name for record in sidecars if record.state not in _ENDED}
        left, self._left = self._left, set()
        # One that has ended may be forgotten before we look; one that was never seen running has claimed nothing.
        for name in sorted(left | (self._running.pop(uid, set()) - running)):
            self._dispatch.forget(name)
            outcome = await self._ledger.lose(instance=name)
            self._changes.publish(outcome.changed)
        if running:
            self._running[uid] = running
        endpoint = self._supervisor.endpoint(uid)
        if endpoint is None:
            self._ready.pop(uid, None)
        elif self._ready.get(uid) != endpoint.instance:
            self._ready[uid] = endpoint.instance
            gone = CapabilityMissing("the service's driver does not have this method any more")
            outcome = await self._ledger.refuse_methods(uid, sorted(endpoint.methods), gone)
            self._changes.publish(outcome.changed)
            self._changes.work(uid)
