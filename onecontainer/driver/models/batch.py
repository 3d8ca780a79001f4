"""BatchPredict: many items through a model, one line of answer each, into one artifact; the next attempt goes on where the last stopped.

The lines so far are in the sidecar's state folder, named by the job, because what an attempt that failed has uploaded goes with it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format

from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.driver import Context, errors, to_status
from onecontainer.driver.models import batch_source
from onecontainer.driver.models.batch_source import BatchItem
from onecontainer.driver.models.calls import Calls
from onecontainer.driver.models.config import model_id, version_id

MAX_PARALLELISM = 64
MAX_ARTIFACTS = 100_000
KEPT_SECONDS = 7 * 24 * 3600.0
RESULT_FILENAME = "predictions.jsonl"
MEDIA_TYPE = "application/jsonl"

# They are not the item's fault: every other item would meet them too. So the attempt ends, and the next one goes on.
_JOB_ERRORS = (errors.ModelNotFound, errors.ModelNotReady)
_JOB_CODES = {
    errors.Code.CANCELLED,
    errors.Code.DEADLINE_EXCEEDED,
    errors.Code.PERMISSION_DENIED,
    errors.Code.RESOURCE_EXHAUSTED,
    errors.Code.ABORTED,
    errors.Code.UNAVAILABLE,
    errors.Code.UNAUTHENTICATED,
}


@dataclass(slots=True)
class _Lines:
    """The lines of one job. All methods block."""

    path: Path
    done: int = 0
    failed: int = 0

    def open(self) -> None:
        """Counts what an earlier attempt wrote, and cuts off a line that it did not finish."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        whole = 0
        with self.path.open("rb+") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                self.done += 1
                self.failed += "error" in json.loads(line)
            file.truncate(whole)

    def add(self, lines: list[pb.BatchPredictLine]) -> None:
        text = "".join(json_format.MessageToJson(line, indent=None) + "\n" for line in lines)
        with self.path.open("ab") as file:
            file.write(text.encode())
        self.done += len(lines)
        self.failed += sum(line.HasField("error") for line in lines)


@dataclass(frozen=True, slots=True)
class Batches:
    """Runs BatchPredict. `folder` survives restarts."""

    calls: Calls
    folder: Path
    max_archive_bytes: int

    def clean(self) -> None:
        """Drops what jobs that never came back have left. Blocks."""
        for path in self.folder.glob("*"):
            if path.stat().st_mtime < time.time() - KEPT_SECONDS:
                path.unlink(missing_ok=True)

    async def run(self, request: pb.BatchPredictRequest, context: Context) -> pb.BatchPredictResult:
        """Raises what the contract says of BatchPredict."""
        if not 0 <= request.parallelism <= MAX_PARALLELISM:
            raise errors.FieldInvalid("parallelism", f"must be 1 to {MAX_PARALLELISM}")
        if "/" in request.result_filename:
            raise errors.FieldInvalid("result_filename", "must be a name without folders")
        if request.HasField("max_failed_items") and request.max_failed_items < 0:
            raise errors.FieldInvalid("max_failed_items", "must not be negative")
        model, version = await self._model(request, context)
        items, total = await self._items(request.source, context)
        lines = _Lines(self._path(context, "jsonl"))
        await asyncio.to_thread(lines.open)
        await self._ask(request, model, version, items, total, lines, context)
        artifact = await context.artifacts.put(
            lines.path, filename=request.result_filename or RESULT_FILENAME, media_type=MEDIA_TYPE
        )
        for suffix in ("jsonl", "model"):
            await asyncio.to_thread(self._path(context, suffix).unlink, missing_ok=True)
        return pb.BatchPredictResult(
            artifact=artifact.name,
            item_count=lines.done,
            failed_count=lines.failed,
            model=f"{context.service}/models/{model}",
            version=version,
        )

    def _path(self, context: Context, suffix: str) -> Path:
        job = context.job.name.rpartition("/")[2] if context.job is not None else "direct"
        return self.folder / f"{job}.{suffix}"

    async def _model(self, request: pb.BatchPredictRequest, context: Context) -> tuple[str, str]:
        """All lines come from one version, also when another became the default between two attempts."""
        path = self._path(context, "model")
        model, version = model_id(context.service, request.model), version_id(request.version)
        if await asyncio.to_thread(path.exists):
            model, version = json.loads(await asyncio.to_thread(path.read_text, encoding="utf-8"))
        found, served = await self.calls.enter(model, version, context)
        served.leave()
        await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
        await asyncio.to_thread(path.write_text, json.dumps([found.model, found.version]), encoding="utf-8")
        return found.model, found.version

    async def _items(self, source: pb.BatchSource, context: Context) -> tuple[Iterator[BatchItem], int | None]:
        """The items, and how many there are, if that is known."""
        match source.WhichOneof("source"):
            case "artifacts":
                names = list(source.artifacts.names)
                if not 1 <= len(names) <= MAX_ARTIFACTS:
                    raise errors.FieldInvalid("source.artifacts.names", f"must be 1 to {MAX_ARTIFACTS}")
                return batch_source.artifacts(names, source.input), len(names)
            case "archive":
                path = await self._fetch(source.archive, "source.archive", context)
                limit = self.calls.limits.image_bytes
                return batch_source.archive(path, source.input, limit), None
            case "json_lines":
                path = await self._fetch(source.json_lines, "source.json_lines", context)
                return batch_source.lines(path), None
            case "artifact_filter":
                raise errors.FieldInvalid("source.artifact_filter", "is not supported here; list the artifacts")
        raise errors.FieldRequired("source", "needs one of artifacts, archive and json_lines")

    async def _fetch(self, name: str, path: str, context: Context) -> Path:
        artifact = await context.artifacts.get(name)
        if artifact.size_bytes > self.max_archive_bytes:
            raise errors.DataInvalid(path, f"has {artifact.size_bytes} bytes; {self.max_archive_bytes} are allowed")
        target = context.scratch / "source"
        await context.artifacts.fetch(name, target)
        return target

    async def _ask(
        self,
        request: pb.BatchPredictRequest,
        model: str,
        version: str,
        items: Iterator[BatchItem],
        total: int | None,
        lines: _Lines,
        context: Context,
    ) -> None:
        window = request.parallelism or 2 * self.calls.workers
        under_way: deque[asyncio.Task[pb.BatchPredictLine]] = deque()
        index, more = 0, True
        adding: asyncio.Future[None] | None = None
        try:
            while more or under_way:
                while more and len(under_way) < window and not context.finishing:
                    item = await asyncio.to_thread(next, items, None)
                    more = item is not None
                    # What an earlier attempt has answered is passed over.
                    if item is not None and index >= lines.done + len(under_way):
                        under_way.append(asyncio.create_task(self._line(index, item, request, model, version, context)))
                    index += item is not None
                more = more and not context.finishing
                if not under_way:
                    continue
                answers = [await under_way.popleft()]
                while under_way and under_way[0].done():
                    answers.append(under_way.popleft().result())
                adding = asyncio.ensure_future(asyncio.to_thread(lines.add, answers))
                await asyncio.shield(adding)
                self._tell(request, total, lines, context)
        finally:
            for task in under_way:
                task.cancel()
            # A thread goes on when we are cancelled: the next attempt must not meet what it writes.
            await asyncio.gather(*under_way, *([] if adding is None else [adding]), return_exceptions=True)

    def _tell(self, request: pb.BatchPredictRequest, total: int | None, lines: _Lines, context: Context) -> None:
        details = pb.BatchPredictProgress(done_count=lines.done, failed_count=lines.failed)
        message = f"{lines.failed} failed" if lines.failed else ""
        context.progress(lines.done, total, "items", message, details)
        context.checkpoint(details)
        if request.HasField("max_failed_items") and lines.failed > request.max_failed_items:
            raise errors.DataInvalid(
                "source", f"{lines.failed} of {lines.done} items failed; {request.max_failed_items} are allowed"
            )

    async def _line(
        self,
        index: int,
        item: BatchItem,
        request: pb.BatchPredictRequest,
        model: str,
        version: str,
        context: Context,
    ) -> pb.BatchPredictLine:
        line = pb.BatchPredictLine(index=index, item=item.name)
        own = item.request
        try:
            if item.error is not None:
                raise item.error
            for name, wanted, given in (("model", model, own.model), ("version", version, own.version)):
                if given and given.rpartition("/")[2] != wanted:
                    raise errors.FieldInvalid(name, f"the batch is for {wanted!r}, not {given!r}")
            answer = await self.calls.predict(
                model,
                version,
                own.inputs,
                own.output if own.HasField("output") else request.output,
                own.parameters if own.HasField("parameters") else request.parameters,
                context,
            )
            line.response.CopyFrom(answer)
        except errors.OneContainerError as error:
            if isinstance(error, _JOB_ERRORS) or error.code in _JOB_CODES:
                raise
            line.error.CopyFrom(to_status(error))
        return line
