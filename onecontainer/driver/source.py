"""Where a worker's jobs come from: a port, and the embedded dispatch that polls the gateway."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import grpc

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.api.job.v1 import job_lease_service_pb2_grpc
from onecontainer.driver.artifacts import Metadata, typed_errors
from onecontainer.errors import FieldInvalid
from onecontainer.rpc.status import duration

Reject = Callable[[lease_pb2.Rejected, Callable[[], None]], None]
"""Reports a record that is no job; the second is called once the gateway has it."""
POLL_SECONDS = 20.0
ANSWER_SECONDS = 10.0
"""So much longer than its wait a poll may take; then its connection counts as dead."""


class Source(Protocol):
    """Brings grants. One of Kafka claims the jobs that its records name, commits beside it, and keeps polling while it is paused."""

    async def poll(
        self, free: int, held: Sequence[tuple[str, int]], *, wait: float = POLL_SECONDS
    ) -> Sequence[lease_pb2.Grant]:
        """At most `free` claimed jobs; waits up to `wait` seconds for the first one. Raises the gateway's typed error.

        `held` are the jobs and fences that the worker holds: what else the ledger has as this worker's is given again.
        """
        ...

    async def close(self) -> None:
        """Lets go of its connections."""
        ...


class EmbeddedSource:
    """PollJobs on the gateway's internal listener."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self._stub: job_lease_service_pb2_grpc.JobLeaseServiceAsyncStub = (
            job_lease_service_pb2_grpc.JobLeaseServiceStub(channel)
        )
        self._metadata = metadata

    async def poll(
        self, free: int, held: Sequence[tuple[str, int]], *, wait: float = POLL_SECONDS
    ) -> Sequence[lease_pb2.Grant]:
        request = lease_pb2.PollJobsRequest(
            max_grants=min(free, 1000),
            wait=duration(wait),
            held=[lease_pb2.HeldLease(job=job, fence=fence) for job, fence in held],
        )
        with typed_errors():
            response = await self._stub.PollJobs(request, metadata=self._metadata, timeout=wait + ANSWER_SECONDS)
        return response.grants

    async def close(self) -> None:
        """The channel is the sidecar's."""


def source_maker(
    job_source: driver_pb2.JobSource,
    channel: grpc.aio.Channel,
    metadata: Metadata,
    service: str,
    secrets: Callable[[set[str]], Mapping[str, str]],
) -> Callable[[Reject], Source] | None:
    """Makes the source that Attach names, for one who is told of each record that is no job. None: this sidecar runs no jobs.

    `secrets` gives the texts of secrets by name. Raises FieldInvalid for a source that is not installed.
    """
    kind = job_source.WhichOneof("dispatch")
    if kind is None or job_source.slots == 0:
        return None
    if kind == "embedded":
        return lambda _reject: EmbeddedSource(channel, metadata)
    if kind != "kafka":
        raise FieldInvalid(f"job_source.{kind}", "this sidecar takes jobs by `embedded` and `kafka` dispatch only")
    try:
        from onecontainer.driver.kafka import KafkaSource
        from onecontainer.rpc.kafka import client_options
    except ImportError:
        raise FieldInvalid(
            "job_source.kafka", "this sidecar has no Kafka client: pip install 'onecontainer[kafka]' in its environment"
        ) from None
    client = client_options(job_source.kafka.client_settings, secrets)
    return lambda reject: KafkaSource(job_source.kafka, channel, metadata, service, client, reject, job_source.slots)
