"""The gateway's internal listener in memory, as job_lease_service.proto and artifact.proto describe it, on a real socket.

Faults on request: it goes away and comes back with what it knew, holds acknowledgements back, loses answers, takes leases away.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from google.rpc import status_pb2

from onecontainer.api.artifact.v1 import artifact_pb2
from onecontainer.api.job.v1 import job_lease_service_pb2 as pb
from onecontainer.errors import DataInvalid, FieldInvalid, LeaseLost, OneContainerError, ResourceNotFound, StateInvalid
from onecontainer.rpc.channel import server_options
from onecontainer.rpc.server import Context, StaticTokens, service_handler
from onecontainer.rpc.status import to_status

Key = tuple[str, int]
OUTCOMES = ("succeeded", "failed", "stopped", "released")


class FakeGateway:
    """One service's queue, the leases of its workers, and artifacts. Use as an async context manager."""

    def __init__(self, folder: Path, token: str = "s3cret") -> None:
        self.target = f"unix:{folder}/gateway.sock"
        self.token = token
        self.queue: list[pb.Grant] = []
        self.leases: dict[Key, pb.Grant] = {}
        self.reports: list[pb.Report] = []
        """Those that were accepted, in the order of arrival."""
        self.refused: list[pb.Report] = []
        self.outcomes: dict[str, pb.Report] = {}
        self.artifacts: dict[str, tuple[artifact_pb2.Artifact, bytes]] = {}
        self.uploads: list[artifact_pb2.UploadHeader] = []
        self.polls: list[pb.PollJobsRequest] = []
        self.messages = 0
        """ReportJobs messages with reports in them."""
        self.streams = 0
        self.lose_answers = 0
        """So many PollJobs answers get lost on their way."""
        self.acknowledge = asyncio.Event()
        self.acknowledge.set()
        self.downloads = asyncio.Event()
        self.downloads.set()
        self.changed = asyncio.Condition()
        self._commands: asyncio.Queue[pb.Command] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> FakeGateway:
        await self.start()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self.acknowledge.set()
        await self.stop()

    async def start(self) -> None:
        """Comes (back) with all that it knew."""
        self._server = grpc.aio.server(options=server_options())
        tokens = StaticTokens({self.token: "instance"}, anonymous=None)
        lease = pb.DESCRIPTOR.services_by_name["JobLeaseService"]
        artifacts = artifact_pb2.DESCRIPTOR.services_by_name["ArtifactService"]
        self._server.add_generic_rpc_handlers(
            (service_handler(self, lease, tokens), service_handler(self, artifacts, tokens))
        )
        self._server.add_insecure_port(self.target)
        await self._server.start()

    async def stop(self) -> None:
        """Goes away, in the middle of whatever it was doing."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    # --- the test's side -----------------------------------------------------------------------------------------------

    async def submit(self, *grants: pb.Grant) -> None:
        self.queue.extend(grants)
        await self._notify()

    def command(self, command: pb.Command) -> None:
        self._commands.put_nowait(command)

    async def take_away(self, key: Key) -> None:
        """Another attempt of this job has been started: the fence is old now."""
        del self.leases[key]
        await self._notify()

    async def wait_for(self, condition: Any, seconds: float = 120.0) -> None:
        """Returns when the condition, on this object's attributes, is true."""
        async with asyncio.timeout(seconds), self.changed:
            await self.changed.wait_for(condition)

    async def outcome(self, job: str) -> pb.Report:
        await self.wait_for(lambda: job in self.outcomes)
        return self.outcomes[job]

    def kinds(self, job: str) -> list[str]:
        """What was accepted for a job, in order."""
        return [str(report.WhichOneof("event")) for report in self.reports if report.job == job]

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    # --- JobLeaseService -----------------------------------------------------------------------------------------------

    async def PollJobs(self, request: pb.PollJobsRequest, context: Context) -> pb.PollJobsResponse:
        if not 1 <= request.max_grants <= 1000:
            raise FieldInvalid("max_grants", "must be 1 to 1000")
        self.polls.append(request)
        await self._notify()
        held = {(item.job, item.fence) for item in request.held}
        grants = [grant for key, grant in self.leases.items() if key not in held]
        if not grants:
            try:
                async with asyncio.timeout(request.wait.ToMicroseconds() / 1e6), self.changed:
                    await self.changed.wait_for(lambda: self.queue)
            except TimeoutError:
                return pb.PollJobsResponse()
            grants, self.queue = self.queue[: request.max_grants], self.queue[request.max_grants :]
            self.leases.update({(grant.job, grant.fence): grant for grant in grants})
        if self.lose_answers:
            self.lose_answers -= 1
            raise StateInvalid("this answer gets lost")
        return pb.PollJobsResponse(grants=grants)

    async def ReportJobs(
        self, requests: AsyncIterator[pb.ReportJobsRequest], context: Context
    ) -> AsyncIterator[pb.ReportJobsResponse]:
        self.streams += 1
        out: asyncio.Queue[pb.ReportJobsResponse | OneContainerError | None] = asyncio.Queue()

        async def read() -> None:
            last = 0
            async for request in requests:
                if request.reports:
                    self.messages += 1
                    await self._notify()
                    await self.acknowledge.wait()
                response = pb.ReportJobsResponse()
                for report in request.reports:
                    if report.sequence <= last:
                        out.put_nowait(FieldInvalid("reports.sequence", "does not rise"))
                        return
                    last = report.sequence
                    refusal = self._accept(report)
                    if refusal is not None:
                        response.refused.add(sequence=last, job=report.job, fence=report.fence, error=refusal)
                response.acknowledged_sequence = last
                await self._notify()
                if last:
                    out.put_nowait(response)
            out.put_nowait(None)

        async def tell() -> None:
            while True:
                command = await self._commands.get()
                out.put_nowait(pb.ReportJobsResponse(commands=[command]))

        tasks = [asyncio.create_task(read()), asyncio.create_task(tell())]
        try:
            await self._notify()
            while (response := await out.get()) is not None:
                if isinstance(response, OneContainerError):
                    raise response
                yield response
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, report: pb.Report) -> status_pb2.Status | None:
        key = (report.job, report.fence)
        if key not in self.leases:
            self.refused.append(report)
            return to_status(LeaseLost("another attempt has been started"))
        self.reports.append(report)
        if report.WhichOneof("event") in OUTCOMES:
            del self.leases[key]
            self.outcomes[report.job] = report
        return None

    # --- ArtifactService -----------------------------------------------------------------------------------------------

    async def Upload(
        self, requests: AsyncIterator[artifact_pb2.UploadRequest], context: Context
    ) -> artifact_pb2.Artifact:
        header: artifact_pb2.UploadHeader | None = None
        data = b""
        async for request in requests:
            if request.WhichOneof("part") == "header":
                header = request.header
            data += request.data
        if header is None:
            raise FieldInvalid("header", "is missing")
        if header.HasField("attempt") and (header.attempt.job, header.attempt.fence) not in self.leases:
            raise LeaseLost("another attempt has been started")
        if header.HasField("size_bytes") and header.size_bytes != len(data):
            raise DataInvalid("header.size_bytes", f"{len(data)} bytes came")
        self.uploads.append(header)
        return self.keep(data, header.filename, header.media_type)

    def keep(self, data: bytes, filename: str = "", media_type: str = "") -> artifact_pb2.Artifact:
        artifact = artifact_pb2.Artifact(
            name=f"artifacts/{len(self.artifacts) + 1}",
            filename=filename,
            media_type=media_type,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).digest(),
        )
        self.artifacts[artifact.name] = (artifact, data)
        return artifact

    async def GetArtifact(self, request: artifact_pb2.GetArtifactRequest, context: Context) -> artifact_pb2.Artifact:
        return self._find(request.name)[0]

    async def Download(
        self, request: artifact_pb2.DownloadRequest, context: Context
    ) -> AsyncIterator[artifact_pb2.DownloadResponse]:
        artifact, data = self._find(request.name)
        await self.downloads.wait()
        yield artifact_pb2.DownloadResponse(artifact=artifact)
        for offset in range(request.offset, len(data), 1024 * 1024):
            yield artifact_pb2.DownloadResponse(data=data[offset : offset + 1024 * 1024])

    def _find(self, name: str) -> tuple[artifact_pb2.Artifact, bytes]:
        if name not in self.artifacts:
            raise ResourceNotFound(f"no {name}", resource=("Artifact", name))
        return self.artifacts[name]
