"""What a gateway is and does beside others on one PostgreSQL, put together. A part of the composition root: `app.py` names it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sqlalchemy.engine import Connection

from onecontainer.catalog.catalog import Catalog
from onecontainer.catalog.installing import Installer
from onecontainer.catalog.servicer import ManagementServicer
from onecontainer.cluster.advisory_lock import AdvisoryLeadership
from onecontainer.cluster.postgresql import PostgresNotices
from onecontainer.cluster.sidecars import SharedSidecars
from onecontainer.cluster.sql import SqlOwners
from onecontainer.database import Database
from onecontainer.errors import OneContainerError
from onecontainer.gateway.peers import Peers
from onecontainer.gateway.servicer_shared import SharedManagementServicer
from onecontainer.gateway.tasks import Tasks
from onecontainer.jobs.changes import Changes
from onecontainer.jobs.lookout import Lookout
from onecontainer.jobs.notify import JobNotices
from onecontainer.jobs.servicer_lease import JobLeaseServicer
from onecontainer.jobs.sql_look import SqlView
from onecontainer.settings import Settings, reachable
from onecontainer.sidecars.supervisor import Supervisor

log = logging.getLogger(__name__)

SERVICES, OWNERS = "services", "owners"
ALL = "*"
LEASE_PARTS = 3
"""A lease is renewed so many times before it ends."""


class Cluster:
    """This gateway's place among those that share its database."""

    def __init__(self, settings: Settings, database: Database, name: str, node: str, changes: Changes) -> None:
        """``node`` names the data folder, ``name`` this process."""
        self._settings = settings
        self._database = database
        self._name = name
        self._node = node
        self._changes = changes
        self._interval = settings.gateway_lease_duration / LEASE_PARTS
        self._catalog_changed = asyncio.Event()
        self._look_at_jobs: Callable[[], None] | None = None
        self._address = ""
        self._notices = PostgresNotices(database.engine, name)
        self._jobs = JobNotices(self._notices, changes, self._look)
        self.leadership = AdvisoryLeadership(database.engine)
        self.tell_jobs = self._jobs.tell
        self._peers = Peers(
            name,
            max_message_bytes=settings.max_message_bytes,
            tls=settings.tls_cert_file is not None,
            ca_file=settings.peer_ca_file,
        )

    def _look(self) -> None:
        if self._look_at_jobs is not None:
            self._look_at_jobs()

    def tell_services(self, connection: Connection, made: str) -> None:
        """Tells the others, with this transaction, that the catalog has changed; a service (uid) that is made here is run here."""
        if made:
            self._owners.take(connection, made)
        self._notices.add(connection, SERVICES, ALL)

    def share(self, supervisor: Supervisor) -> SharedSidecars:
        """The sidecars of all services; those that this gateway owns are the supervisor's. Once."""
        self._owners = SqlOwners(
            self._database,
            self._name,
            self._node,
            lambda: self._address,
            self._settings.gateway_lease_duration,
            lambda connection: self._notices.add(connection, OWNERS, ALL),
        )
        self.sidecars = SharedSidecars(
            supervisor, self._owners, self._name, self._peers.way_to, interval=self._interval
        )
        return self.sidecars

    def management(self, catalog: Catalog, installer: Installer) -> ManagementServicer:
        retention = self._settings.request_id_retention
        return SharedManagementServicer(catalog, installer, self.sidecars, self._peers, request_id_retention=retention)

    async def __aenter__(self) -> Cluster:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Leave it when the supervisor has ended: what this gateway owned is free then."""
        async with self._peers:
            await self._leave()

    async def _leave(self) -> None:
        try:
            await self._owners.leave()
        except OneContainerError as error:
            log.warning("the other gateways take over when this one's lease ends: %s", error)

    async def start(self, tasks: Tasks, address: str, catalog: Catalog, leases: JobLeaseServicer) -> None:
        """Takes part, once this gateway can be reached at ``address``."""
        self._address = self._settings.advertise or reachable(address)
        lookout = Lookout(SqlView(self._database), self._changes, leases.connected)
        self._look_at_jobs = lookout.soon
        self._notices.subscribe(SERVICES, lambda _items: self._catalog_changed.set())
        self._notices.subscribe(OWNERS, lambda _items: self.sidecars.look_soon())
        await self._owners.join()
        tasks.start(self.leadership.run(), "leadership")
        tasks.start(self._notices.run(), "notices of other gateways")
        tasks.start(lookout.run(), "lookout for jobs")
        tasks.start(self._follow(catalog), "catalog of all gateways")
        tasks.start(self.sidecars.run(), "owners of sidecars")

    async def _follow(self, catalog: Catalog) -> None:
        """Takes over what other gateways change in the catalog."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._catalog_changed.clear()
                tasks.create_task(_refresh(catalog))
                try:
                    async with asyncio.timeout(self._interval):
                        await self._catalog_changed.wait()
                except TimeoutError:
                    pass


async def _refresh(catalog: Catalog) -> None:
    try:
        await catalog.refresh()
    except Exception:  # the next one may be luckier
        log.exception("what other gateways changed in the catalog could not be taken over")
