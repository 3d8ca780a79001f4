"""A small gateway in memory: the public services with real behaviour, and faults on request."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2

from onecontainer.api.ai.v1 import inference_service_pb2 as ai_pb
from onecontainer.api.ai.v1 import tensor_pb2
from onecontainer.api.artifact.v1 import artifact_pb2
from onecontainer.api.job.v1 import job_pb2, job_service_pb2
from onecontainer.api.management.v1 import management_service_pb2 as management_pb
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.client import AsyncClient, Client, RetryPolicy
from onecontainer.client.jobs import TERMINAL
from onecontainer.client.portal import Portal
from onecontainer.errors import Draining, OneContainerError, ResourceNotFound
from onecontainer.rpc.channel import server_options
from onecontainer.rpc.server import StaticTokens, service_handler

FAST = RetryPolicy(initial_backoff=0.001, max_backoff=0.002)


@dataclass
class FakeGateway:
    """What is behind the listener, and which faults come next.

    Attributes:
        calls: how often each method was entered.
        writes: the requests of CreateService and UpdateService, in order.
        faults: errors that the next calls of a method raise, in order.
        tokens: principals by token; empty lets everybody in.
    """

    services: dict[str, resources_pb2.Service] = field(default_factory=dict)
    jobs: dict[str, job_pb2.Job] = field(default_factory=dict)
    blobs: dict[str, tuple[artifact_pb2.Artifact, bytes]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    writes: list[Any] = field(default_factory=list)
    faults: dict[str, list[OneContainerError]] = field(default_factory=dict)
    break_download_after: int | None = None
    corrupt: bool = False
    watchers: int = 0
    waited: list[list[str]] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def enter(self, method: str) -> None:
        self.calls[method] += 1
        waiting = self.faults.get(method)
        if waiting:
            raise waiting.pop(0)

    async def put_service(self, name: str, state: resources_pb2.ServiceState.ValueType, message: str = "") -> None:
        service = resources_pb2.Service(name=f"services/{name}", state=state)
        if message:
            service.error.code, service.error.message = 9, message
        async with self.changed:
            self.services[service.name] = service
            self.changed.notify_all()

    async def delete_service(self, name: str) -> None:
        async with self.changed:
            del self.services[f"services/{name}"]
            self.changed.notify_all()

    async def put_job(self, job: job_pb2.Job) -> None:
        async with self.changed:
            job.sequence = self.jobs[job.name].sequence + 1 if job.name in self.jobs else 1
            self.jobs[job.name] = job
            self.changed.notify_all()

    async def until(self, test: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(test)


class FakeManagement:
    def __init__(self, world: FakeGateway) -> None:
        self.world = world

    async def CreateService(self, request: management_pb.CreateServiceRequest, context: Any) -> resources_pb2.Service:
        self.world.enter("CreateService")
        self.world.writes.append(request)
        await self.world.put_service(request.service_id, resources_pb2.SERVICE_STATE_STARTING)
        return self.world.services[f"services/{request.service_id}"]

    async def UpdateService(self, request: management_pb.UpdateServiceRequest, context: Any) -> resources_pb2.Service:
        self.world.enter("UpdateService")
        self.world.writes.append(request)
        return self.world.services[request.service.name]

    async def GetService(self, request: management_pb.GetServiceRequest, context: Any) -> resources_pb2.Service:
        self.world.enter("GetService")
        if request.name not in self.world.services:
            raise ResourceNotFound(f"no service {request.name}", resource=("service", request.name))
        return self.world.services[request.name]

    async def ListServices(
        self, request: management_pb.ListServicesRequest, context: Any
    ) -> management_pb.ListServicesResponse:
        self.world.enter("ListServices")
        return management_pb.ListServicesResponse(services=self.world.services.values())

    async def WatchServices(
        self, request: management_pb.WatchServicesRequest, context: Any
    ) -> AsyncIterator[management_pb.WatchServicesResponse]:
        self.world.enter("WatchServices")
        sent: dict[str, bytes] = {}
        self.world.watchers += 1
        try:
            first = True
            while True:
                for name in sent.keys() - self.world.services.keys():
                    del sent[name]
                    yield management_pb.WatchServicesResponse(deleted=name)
                for name, service in list(self.world.services.items()):
                    content = service.SerializeToString(deterministic=True)
                    if sent.get(name) != content:
                        sent[name] = content
                        yield management_pb.WatchServicesResponse(service=service)
                if first:
                    yield management_pb.WatchServicesResponse(synchronized=management_pb.WatchSynchronized())
                    first = False
                async with self.world.changed:
                    self.world.changed.notify_all()
                    await self.world.changed.wait_for(
                        lambda: (
                            sent.keys() != self.world.services.keys()
                            or any(
                                sent[name] != service.SerializeToString(deterministic=True)
                                for name, service in self.world.services.items()
                            )
                        )
                    )
        finally:
            self.world.watchers -= 1
            async with self.world.changed:
                self.world.changed.notify_all()


class FakeJobs:
    def __init__(self, world: FakeGateway) -> None:
        self.world = world

    async def CreateJob(self, request: job_service_pb2.CreateJobRequest, context: Any) -> job_pb2.Job:
        self.world.enter("CreateJob")
        job = job_pb2.Job(
            name=f"jobs/{len(self.world.jobs) + 1}",
            service=request.service,
            method=request.method,
            state=job_pb2.JOB_STATE_QUEUED,
        )
        await self.world.put_job(job)
        return job

    async def GetJob(self, request: job_service_pb2.GetJobRequest, context: Any) -> job_pb2.Job:
        self.world.enter("GetJob")
        return self.world.jobs[request.name]

    async def CancelJob(self, request: job_service_pb2.CancelJobRequest, context: Any) -> job_pb2.Job:
        self.world.enter("CancelJob")
        job = job_pb2.Job(name=request.name, state=job_pb2.JOB_STATE_CANCELLED, cancel_mode=request.mode)
        await self.world.put_job(job)
        return job

    async def WaitJobs(
        self, request: job_service_pb2.WaitJobsRequest, context: Any
    ) -> AsyncIterator[job_service_pb2.WaitJobsResponse]:
        self.world.enter("WaitJobs")
        self.world.waited.append(list(request.names))
        for name in request.names:
            await self.world.until(lambda name=name: self.world.jobs[name].state in TERMINAL)
            result = job_service_pb2.WaitJobsResult(name=name, job=self.world.jobs[name])
            yield job_service_pb2.WaitJobsResponse(results=[result, result])
            self.world.enter("WaitJobs.next")

    async def WatchJob(
        self, request: job_service_pb2.WatchJobRequest, context: Any
    ) -> AsyncIterator[job_service_pb2.WatchJobResponse]:
        self.world.enter("WatchJob")
        last = request.from_sequence
        while True:
            await self.world.until(lambda seen=last: self.world.jobs[request.name].sequence > seen)
            job = self.world.jobs[request.name]
            last = job.sequence
            yield job_service_pb2.WatchJobResponse(update=job_pb2.JobUpdate(sequence=last, job=job))
            if job.state in TERMINAL:
                return
            self.world.enter("WatchJob.next")


class FakeArtifacts:
    def __init__(self, world: FakeGateway) -> None:
        self.world = world

    async def Upload(self, requests: AsyncIterator[artifact_pb2.UploadRequest], context: Any) -> artifact_pb2.Artifact:
        self.world.enter("Upload")
        header = artifact_pb2.UploadHeader()
        content = b""
        async for request in requests:
            if request.HasField("header"):
                header = request.header
            else:
                content += request.data
        return self.store(content, header.filename, header.media_type)

    def store(self, content: bytes, filename: str = "", media_type: str = "") -> artifact_pb2.Artifact:
        kept = content[:-1] if self.world.corrupt else content
        artifact = artifact_pb2.Artifact(
            name=f"artifacts/{len(self.world.blobs) + 1}",
            filename=filename,
            media_type=media_type,
            size_bytes=len(content),
            sha256=hashlib.sha256(kept).digest(),
        )
        self.world.blobs[artifact.name] = (artifact, content)
        return artifact

    async def Download(
        self, request: artifact_pb2.DownloadRequest, context: Any
    ) -> AsyncIterator[artifact_pb2.DownloadResponse]:
        self.world.enter("Download")
        artifact, content = self.world.blobs[request.name]
        end = request.offset + request.limit_bytes if request.limit_bytes else len(content)
        yield artifact_pb2.DownloadResponse(artifact=artifact)
        for at in range(request.offset, min(end, len(content)), 1000):
            limit = self.world.break_download_after
            if limit is not None and at >= limit:
                self.world.break_download_after = None
                raise Draining("the gateway stops", retry_after=0.001)
            yield artifact_pb2.DownloadResponse(data=content[at : min(at + 1000, end)])

    async def GetArtifact(self, request: artifact_pb2.GetArtifactRequest, context: Any) -> artifact_pb2.Artifact:
        self.world.enter("GetArtifact")
        return self.world.blobs[request.name][0]

    async def DeleteArtifact(self, request: artifact_pb2.DeleteArtifactRequest, context: Any) -> empty_pb2.Empty:
        self.world.enter("DeleteArtifact")
        del self.world.blobs[request.name]
        return empty_pb2.Empty()


class FakeInference:
    def __init__(self, world: FakeGateway) -> None:
        self.world = world

    async def Predict(self, request: ai_pb.PredictRequest, context: Any) -> ai_pb.PredictResponse:
        self.world.enter("Predict")
        answer = ai_pb.PredictResponse(model=request.model)
        for value in request.inputs:
            if value.text == "tensor":
                tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_UINT8, shape=[3], data=bytes([2, 4, 6]))
                answer.predictions.add().tensors.tensors.add(name="output", tensor=tensor)
                continue
            answer.predictions.add().json.string_value = f"{value.WhichOneof('value')}:{len(value.image)}"
        return answer

    async def PredictStream(
        self, requests: AsyncIterator[ai_pb.PredictStreamRequest], context: Any
    ) -> AsyncIterator[ai_pb.PredictStreamResponse]:
        self.world.enter("PredictStream")
        async for request in requests:
            yield ai_pb.PredictStreamResponse(item_id=f"{request.service}/{request.item_id}")


async def serve(world: FakeGateway, tokens: dict[str, str] | None = None) -> tuple[grpc.aio.Server, str]:
    """Starts the fake on a free port."""
    authenticator = StaticTokens(tokens or {}, anonymous=None if tokens else "anonymous")
    server = grpc.aio.server(options=server_options())
    for servicer, module, name in (
        (FakeManagement(world), management_pb, "ManagementService"),
        (FakeJobs(world), job_service_pb2, "JobService"),
        (FakeArtifacts(world), artifact_pb2, "ArtifactService"),
        (FakeInference(world), ai_pb, "InferenceService"),
    ):
        descriptor = module.DESCRIPTOR.services_by_name[name]
        server.add_generic_rpc_handlers((service_handler(servicer, descriptor, authenticator),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


@pytest.fixture
def world() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
async def client(world: FakeGateway) -> AsyncIterator[AsyncClient]:
    server, address = await serve(world)
    async with AsyncClient(address, retry=FAST, timeout=120) as found:
        yield found
    await server.stop(0)


@pytest.fixture
def elsewhere() -> Iterator[Portal]:
    """A loop in another thread, for the server that a blocking client calls."""
    portal = Portal()
    yield portal
    portal.close()


@pytest.fixture
def blocking(elsewhere: Portal) -> Iterator[tuple[Client, FakeGateway]]:
    async def start() -> tuple[FakeGateway, grpc.aio.Server, str]:
        inside = FakeGateway()
        return inside, *(await serve(inside))

    world, server, address = elsewhere.run(start)
    with Client(address, retry=FAST, timeout=120) as found:
        yield found, world
    elsewhere.run(server.stop, 0)


@pytest.fixture
def start() -> Callable[..., Awaitable[tuple[grpc.aio.Server, str]]]:
    """Starts a fake gateway by hand."""
    return serve
