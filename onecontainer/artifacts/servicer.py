"""ArtifactService: proto to calls and back, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf import empty_pb2

from onecontainer.api.artifact.v1 import artifact_pb2, artifact_pb2_grpc
from onecontainer.artifacts.artifacts import Artifacts
from onecontainer.artifacts.model import MAX_PART_BYTES, Artifact, Attempt, State, Upload, is_artifact_id
from onecontainer.errors import FieldInvalid, FieldRequired, PermissionDenied
from onecontainer.rpc.filters import parse_filter
from onecontainer.rpc.pages import page_position, page_size, page_token
from onecontainer.rpc.server import current_call

Context = grpc.aio.ServicerContext[Any, Any]

FILTER_FIELDS = ("job", "principal", "filename", "media_type")
STATES = {State.STAGED: artifact_pb2.ARTIFACT_STATE_STAGED, State.READY: artifact_pb2.ARTIFACT_STATE_READY}


class ArtifactServicer(artifact_pb2_grpc.ArtifactServiceServicer):
    """Serves one listener.

    Args:
        internal: the listener is the sidecars': they upload for attempts, and neither list nor delete.
    """

    def __init__(self, artifacts: Artifacts, *, internal: bool = False) -> None:
        self._artifacts = artifacts
        self._internal = internal

    async def Upload(
        self, request_iterator: AsyncIterator[artifact_pb2.UploadRequest], context: Context
    ) -> artifact_pb2.Artifact:
        call = current_call()
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("part") != "header":
            raise FieldRequired("header", "must be the first message")
        upload = upload_from_proto(first.header)
        if upload.attempt is not None and not self._internal:
            raise FieldInvalid("header.attempt", "is for sidecars only, on their own listener")
        artifact = await self._artifacts.upload(
            upload, _parts(request_iterator), principal=call.principal, identity=self._identity()
        )
        return artifact_to_proto(artifact)

    async def Download(
        self, request: artifact_pb2.DownloadRequest, context: Context
    ) -> AsyncIterator[artifact_pb2.DownloadResponse]:
        artifact = await self._artifacts.get(request.name, identity=self._identity())
        # The artifact goes with the first bytes, or alone if there are none; errors of the request come before it.
        head: artifact_pb2.Artifact | None = artifact_to_proto(artifact)
        async with aclosing(self._artifacts.download(artifact, request.offset, request.limit_bytes)) as chunks:
            async for chunk in chunks:
                yield artifact_pb2.DownloadResponse(artifact=head, data=chunk)
                head = None
        if head is not None:
            yield artifact_pb2.DownloadResponse(artifact=head)

    async def GetArtifact(self, request: artifact_pb2.GetArtifactRequest, context: Context) -> artifact_pb2.Artifact:
        return artifact_to_proto(await self._artifacts.get(request.name, identity=self._identity()))

    async def ListArtifacts(
        self, request: artifact_pb2.ListArtifactsRequest, context: Context
    ) -> artifact_pb2.ListArtifactsResponse:
        self._refuse_sidecars("list")
        terms = parse_filter(request.filter, FILTER_FIELDS, labels=True)
        size = page_size(request.page_size)
        position = page_position(request.page_token, "ListArtifacts", request.filter)
        found = await self._artifacts.page(terms, size=size + 1, after=_position(position))
        response = artifact_pb2.ListArtifactsResponse(artifacts=[artifact_to_proto(one) for one in found[:size]])
        if len(found) > size:
            last = found[size - 1]
            response.next_page_token = page_token("ListArtifacts", request.filter, f"{last.create_time} {last.id}")
        return response

    async def DeleteArtifact(self, request: artifact_pb2.DeleteArtifactRequest, context: Context) -> empty_pb2.Empty:
        self._refuse_sidecars("delete")
        await self._artifacts.delete(request.name)
        return empty_pb2.Empty()

    def _identity(self) -> object:
        return current_call().identity if self._internal else None

    def _refuse_sidecars(self, what: str) -> None:
        if self._internal:
            raise PermissionDenied(f"a sidecar may not {what} artifacts")


async def _parts(requests: AsyncIterator[artifact_pb2.UploadRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") == "header":
            raise FieldInvalid("header", "must be in the first message only")
        if len(request.data) > MAX_PART_BYTES:
            raise FieldInvalid("data", f"has {len(request.data)} bytes; a message may have {MAX_PART_BYTES}")
        yield request.data


def _position(text: str | None) -> tuple[int, str] | None:
    if text is None:
        return None
    create_time, _, key = text.partition(" ")
    if not is_artifact_id(key):
        raise FieldInvalid("page_token", "is not a token of ours: pass the last page's next_page_token")
    return int(create_time), key


def upload_from_proto(header: artifact_pb2.UploadHeader) -> Upload:
    attempt = header.attempt
    return Upload(
        filename=header.filename,
        media_type=header.media_type,
        size_bytes=header.size_bytes if header.HasField("size_bytes") else None,
        sha256=header.sha256,
        labels=dict(header.labels),
        ttl=header.ttl.ToMicroseconds(),
        request_id=header.request_id,
        attempt=Attempt(attempt.job, attempt.attempt, attempt.fence) if header.HasField("attempt") else None,
    )


def artifact_to_proto(artifact: Artifact) -> artifact_pb2.Artifact:
    message = artifact_pb2.Artifact(
        name=artifact.name,
        filename=artifact.filename,
        media_type=artifact.media_type,
        size_bytes=artifact.size_bytes,
        sha256=artifact.sha256,
        state=STATES[artifact.state],
        labels=artifact.labels,
        principal=artifact.principal,
        job=artifact.attempt.job if artifact.attempt else "",
    )
    message.create_time.FromMicroseconds(artifact.create_time)
    if artifact.expire_time is not None:
        message.expire_time.FromMicroseconds(artifact.expire_time)
    return message
