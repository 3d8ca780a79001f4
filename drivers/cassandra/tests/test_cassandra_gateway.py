"""As a user has it: a service in a gateway, a table, records through the client, and a select as a job."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivers.cassandra.tests.conftest import ACCOUNT
from onecontainer import errors
from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.client import Client
from tests.fixtures.cassandra import CassandraNode
from tests.fixtures.processes import GatewayProcess, running

SELECT = "onecontainer.api.db.v1.DatabaseService/SelectRecords"


def test_a_service_of_a_gateway(node: CassandraNode, tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path / "data")
    with running(gateway), Client(gateway.address) as client:
        options = ACCOUNT | {"keyspace": "e2e", "request_timeout": "50s", "replication": {"datacenter1": 1}}
        client.services.create(
            "events", "cassandra", app_version="5.0.9", endpoints={"one": node.address}, options=options
        )
        client.services.wait_ready("events", timeout=120)
        client.db.create_table("events", "items", {"id": "int64", "name": "text", "tags": "text"}, key=["id"])
        rows = [{"id": index, "name": f"name-{index}", "tags": None} for index in range(20)]
        client.db.insert("events", "items", rows)
        assert client.db.select("events", "items", {"id": 7}) == [rows[7]]
        assert sorted(client.db.select("events", "items"), key=lambda row: row["id"]) == rows
        with pytest.raises(errors.BackendCapabilityMissing, match="allow_filtering"):
            client.db.select("events", "items", {"name": "name-7"})
        request = pb.SelectRecordsRequest(service="services/events", table="items", page_size=5)
        job = client.jobs.create("events", SELECT, request)
        found = job.result(pb.SelectRecordsResponse, timeout=60)
        assert len(found.records) == 5
        assert found.next_page_token
