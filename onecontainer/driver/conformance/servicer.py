"""The gateway's internal listener as a driver sees it: jobs and artifacts in memory, on a real socket."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
from google.rpc import status_pb2

from onecontainer.api.artifact.v1 import artifact_pb2
from onecontainer.api.job.v1 import job_lease_service_pb2 as pb
from onecontainer.errors import FieldInvalid, LeaseLost, OneContainerError, ResourceNotFound
from onecontainer.rpc.channel import MAX_MESSAGE_BYTES, server_options
from onecontainer.rpc.server import Authenticator, Context, StaticTokens, service_handler
from onecontainer.rpc.status import to_status

Key = tuple[str, int]
OUTCOMES = frozenset({"succeeded", "failed", "stopped", "released"})
CHUNK = 1024 * 1024


class Desk:
    """JobLeaseService and ArtifactService for one driver. An async context manager: it listens while the block runs."""

    def __init__(self, listen: str, token: str | None) -> None:
        self.listen = listen
        """`unix:PATH` or `HOST:PORT`; port 0 picks one."""
        self.target = listen
        self.polls = 0
        self.leases: dict[Key, pb.Grant] = {}
        """Attempts that may report and upload: granted ones, and those that the kit runs by DriverService.Run."""
        self.reports: list[pb.Report] = []
        self.strange: list[str] = []
        """What a worker said that no worker may say, for people."""
        self.artifacts: dict[str, tuple[artifact_pb2.Artifact, bytes]] = {}
        self.held = asyncio.Event()
        self.held.set()
        """Cleared: downloads wait. A job that needs one runs until it is set."""
        self._queue: list[pb.Grant] = []
        self._commands: list[pb.Command] = []
        self._changed = asyncio.Condition()
        self._authenticator: Authenticator = StaticTokens(
            {} if token is None else {token: "instance"}, anonymous="instance" if token is None else None
        )
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Desk:
        server = self._server = grpc.aio.server(options=server_options(MAX_MESSAGE_BYTES))
        server.add_generic_rpc_handlers(
            tuple(
                service_handler(self, service, self._authenticator)
                for service in (
                    pb.DESCRIPTOR.services_by_name["JobLeaseService"],
                    artifact_pb2.DESCRIPTOR.services_by_name["ArtifactService"],
                )
            )
        )
        port = server.add_insecure_port(self.listen)
        if not self.listen.startswith("unix:"):
            self.target = f"{self.listen.rpartition(':')[0]}:{port}"
        await server.start()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self.held.set()
        if self._server is not None:
            await self._server.stop(None)

    # --- the kit's side ------------------------------------------------------------------------------------------------

    async def submit(self, grant: pb.Grant) -> None:
        self._queue.append(grant)
        await self._notify()

    async def command(self, command: pb.Command) -> None:
        """Tells the worker, over the stream of its reports."""
        self._commands.append(command)
        await self._notify()

    async def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether the condition on this desk came true in time."""
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            return False
        return True

    def of(self, job: str) -> list[pb.Report]:
        """Reports of a job, in the order in which they came."""
        return [report for report in self.reports if report.job == job]

    def outcome(self, job: str) -> pb.Report | None:
        found = [report for report in self.of(job) if report.WhichOneof("event") in OUTCOMES]
        return found[-1] if found else None

    def keep(self, data: bytes, filename: str, media_type: str) -> str:
        """Stores an artifact; returns its name."""
        return self._store(data, filename, media_type).name

    def take_back(self, job: str) -> None:
        """The attempt is over: what still comes of it is refused."""
        for key in [key for key in self.leases if key[0] == job]:
            del self.leases[key]

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # --- JobLeaseService -----------------------------------------------------------------------------------------------

    async def PollJobs(self, request: pb.PollJobsRequest, context: Context) -> pb.PollJobsResponse:
        self.polls += 1
        await self._notify()
        if not 1 <= request.max_grants <= 1000:
            self.strange.append(f"PollJobs with max_grants {request.max_grants}")
            raise FieldInvalid("max_grants", "must be 1 to 1000")
        if not self._queue:
            await self.wait(lambda: bool(self._queue), request.wait.ToMicroseconds() / 1e6)
        grants, self._queue = self._queue[: request.max_grants], self._queue[request.max_grants :]
        self.leases.update({(grant.job, grant.fence): grant for grant in grants})
        return pb.PollJobsResponse(grants=grants)

    async def ReportJobs(
        self, requests: AsyncIterator[pb.ReportJobsRequest], context: Context
    ) -> AsyncIterator[pb.ReportJobsResponse]:
        answers: asyncio.Queue[pb.ReportJobsResponse | OneContainerError | None] = asyncio.Queue()

        async def read() -> None:
            last = 0
            async for request in requests:
                response = pb.ReportJobsResponse()
                for report in request.reports:
                    if report.sequence <= last:
                        self.strange.append(f"ReportJobs: sequence {report.sequence} after {last}")
                        answers.put_nowait(FieldInvalid("reports.sequence", "does not rise"))
                        return
                    last = report.sequence
                    refusal = self._accept(report)
                    if refusal is not None:
                        response.refused.add(sequence=last, job=report.job, fence=report.fence, error=refusal)
                response.acknowledged_sequence = last
                if request.reports:
                    answers.put_nowait(response)
                await self._notify()
            answers.put_nowait(None)

        async def tell() -> None:
            while True:
                async with self._changed:
                    await self._changed.wait_for(lambda: self._commands)
                    commands, self._commands = self._commands, []
                answers.put_nowait(pb.ReportJobsResponse(commands=commands))

        tasks = [asyncio.create_task(read()), asyncio.create_task(tell())]
        try:
            while (answer := await answers.get()) is not None:
                if isinstance(answer, OneContainerError):
                    raise answer
                yield answer
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, report: pb.Report) -> status_pb2.Status | None:
        grant = self.leases.get((report.job, report.fence))
        if grant is None:
            self.strange.append(
                f"a report ({report.WhichOneof('event')}) of {report.job} with fence {report.fence}, which is not held"
            )
            return to_status(LeaseLost("this attempt is not the current one"))
        if report.attempt != grant.attempt:
            self.strange.append(f"a report of {report.job} with attempt {report.attempt} instead of {grant.attempt}")
        self.reports.append(report)
        if report.WhichOneof("event") in OUTCOMES:
            del self.leases[report.job, report.fence]
        return None

    # --- ArtifactService -----------------------------------------------------------------------------------------------

    async def Upload(
        self, requests: AsyncIterator[artifact_pb2.UploadRequest], context: Context
    ) -> artifact_pb2.Artifact:
        header: artifact_pb2.UploadHeader | None = None
        data = bytearray()
        async for request in requests:
            if request.WhichOneof("part") == "header":
                header = request.header
            data += request.data
        if header is None:
            raise FieldInvalid("header", "is missing")
        if header.HasField("attempt") and (header.attempt.job, header.attempt.fence) not in self.leases:
            raise LeaseLost("this attempt is not the current one")
        return self._store(bytes(data), header.filename, header.media_type)

    async def GetArtifact(self, request: artifact_pb2.GetArtifactRequest, context: Context) -> artifact_pb2.Artifact:
        return self._find(request.name)[0]

    async def Download(
        self, request: artifact_pb2.DownloadRequest, context: Context
    ) -> AsyncIterator[artifact_pb2.DownloadResponse]:
        artifact, data = self._find(request.name)
        await self.held.wait()
        yield artifact_pb2.DownloadResponse(artifact=artifact)
        end = len(data) if not request.limit_bytes else min(len(data), request.offset + request.limit_bytes)
        for offset in range(request.offset, end, CHUNK):
            yield artifact_pb2.DownloadResponse(data=data[offset : min(end, offset + CHUNK)])

    def _store(self, data: bytes, filename: str, media_type: str) -> artifact_pb2.Artifact:
        artifact = artifact_pb2.Artifact(
            name=f"artifacts/kit-{len(self.artifacts) + 1}",
            filename=filename,
            media_type=media_type,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).digest(),
            state=artifact_pb2.ARTIFACT_STATE_READY,
        )
        self.artifacts[artifact.name] = (artifact, data)
        return artifact

    def _find(self, name: str) -> tuple[artifact_pb2.Artifact, bytes]:
        if name not in self.artifacts:
            raise ResourceNotFound(f"there is no {name}", resource=("Artifact", name))
        return self.artifacts[name]


def socket_in(folder: Path) -> str:
    """A UNIX socket for a desk."""
    return f"unix:{folder / 'desk.sock'}"
