"""The dispatch port: how a queued job gets to a worker. Two adapters, embedded and Kafka, pass the same suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.jobs.ledger import Granted, Worker
from onecontainer.jobs.unconfirmed import Unconfirmed


class Dispatch(Protocol):
    """Brings jobs to workers. The claim in the ledger, not the dispatch, decides who runs a job."""

    @property
    def reachable(self) -> bool:
        """Whether what carries the work answers, as far as is known. False: jobs wait in the ledger."""
        ...

    @property
    def unconfirmed(self) -> Unconfirmed:
        """What workers were granted and may not have heard of."""
        ...

    async def poll(
        self, worker: Worker, limit: int, max_running: int, wait: float, held: Sequence[tuple[str, int]]
    ) -> list[Granted]:
        """Waits up to ``wait`` seconds for jobs of the worker's service and claims up to ``limit``."""
        ...

    def forget(self, instance: str) -> None:
        """An instance has gone for good."""
        ...

    def source(self, service_uid: str) -> driver_pb2.JobSource:
        """What a sidecar of this service is told about where its jobs come from; target and slots are the caller's to fill in."""
        ...
