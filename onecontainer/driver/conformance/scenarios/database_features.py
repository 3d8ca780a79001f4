"""What the contract of DatabaseService leaves open to backends: each feature that is declared works, each other one is refused."""

from __future__ import annotations

import itertools
import secrets

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import table_pb2
from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.driver.conformance.expect import refused, require
from onecontainer.driver.conformance.model import Failed, Skipped
from onecontainer.driver.conformance.scenarios.database import NAME, creation
from onecontainer.driver.conformance.scenarios.database_read_features import READS
from onecontainer.driver.conformance.scenarios.database_stand import FIRST_KEY, Feature, Refusal, Stand
from onecontainer.driver.conformance.scenarios.database_table_features import TABLES, TYPES
from onecontainer.driver.conformance.scenarios.database_write_features import WRITES
from onecontainer.driver.conformance.session import SERVICE, Session
from onecontainer.errors import Code, Reason

RECORDS = (*WRITES, *READS)
FEATURES: tuple[Feature, ...] = (*TABLES, *TYPES, *RECORDS)
"""All of them, by method in the order of the contract."""


class Features:
    """The features of one run of the kit, and the table that they are tried on."""

    methods = tuple(f"{NAME}/{method}" for method in dict.fromkeys(feature.method for feature in FEATURES))
    needs = tuple(f"{NAME}/{method}" for method in ("CreateTable", "InsertRecords", "SelectRecords"))

    def __init__(self) -> None:
        self._table = ""
        self._keys = itertools.count(FIRST_KEY)

    async def check(self, session: Session, method: str) -> None:
        """Raises Failed for a feature of the method that is not as it is declared."""
        declared = await self._declared(session)
        if not self._table:
            self._table = await _create(session)
        stand = Stand(session, self._table, self._keys)
        for feature in FEATURES:
            if f"{NAME}/{feature.method}" == method:
                await _try(stand, feature, declared=feature.name in declared)

    async def _declared(self, session: Session) -> frozenset[str]:
        """What the backend that the driver is attached to can do. Raises Skipped if the manifest does not say."""
        backends = {backend.name: backend for backend in session.info.manifest.backends}
        if not backends:
            raise Skipped("the manifest has no `backends`, which would say what they can do")
        probed = await session.driver("Probe", driver_pb2.ProbeRequest())
        require(probed.ok, "Probe", str(probed))
        name = driver_pb2.ProbeResponse.FromString(probed.message).backend
        if not name and len(backends) == 1:
            (name,) = backends
        told = f"the backend {name!r}, which is none of the manifest's: {', '.join(backends)}"
        require(name in backends, "Probe", told, "Name in ProbeResult.backend which of metadata.json's backends it is.")
        declared = frozenset(backends[name].features)
        unknown = sorted(declared - {feature.name for feature in FEATURES})
        require(not unknown, f"the features of {name}", f"unknown ones: {', '.join(unknown)}", "See docs/databases.md.")
        return declared


async def _create(session: Session) -> str:
    table_id = f"conformance_{secrets.token_hex(4)}"
    # Where records do not expire the table is made without that, and a ttl has to be refused.
    for expires in (True, False):
        request = creation(table_id)
        request.table.expires = expires
        answer = await session.call(f"{NAME}/CreateTable", request)
        if answer.ok:
            if session.claims(f"{NAME}/DropTable"):
                gone = pb.DropTableRequest(service=SERVICE, table=table_id, if_exists=True)
                session.cleaning.append((f"{NAME}/DropTable", gone))
            return str(table_pb2.Table.FromString(answer.message).name.rpartition("/")[2])
    raise Failed(f"CreateTable of {table_id}", str(answer))


async def _try(stand: Stand, feature: Feature, *, declared: bool) -> None:
    sent = f"{feature.name} ({feature.title})"
    try:
        await feature.show(stand)
    except Refusal as refusal:
        answer = refusal.answer
        if declared:
            raise Failed(f"{sent}, which is declared", str(answer)) from None
        refused(answer, f"{sent}, which is not declared", Code.FAILED_PRECONDITION, Reason.BACKEND_CAPABILITY_MISSING)
        named = any(path.startswith(feature.field) for path in answer.fields)
        require(named, sent, f"{answer}, with the fields {answer.fields or 'none'}; wanted {feature.field}")
    else:
        require(declared, f"{sent}, which is not declared", "it was done")
