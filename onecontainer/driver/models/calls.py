"""Calls of models: the way of a predict request through the repository, the worker threads and the model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from google.protobuf import struct_pb2

from onecontainer.api.ai.v1 import inference_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.driver import Context, errors, to_status
from onecontainer.driver.models import predict as prediction
from onecontainer.driver.models.batcher import Batcher, Ran
from onecontainer.driver.models.config import model_id, version_id
from onecontainer.driver.models.repository import Repository
from onecontainer.driver.models.request import Fetched, Limits, Plan, artifact_names, plan
from onecontainer.driver.models.served import Served
from onecontainer.driver.models.statistics import CallTimes
from onecontainer.driver.models.version import Version

T = TypeVar("T")

MAX_WAITING = 1024
MAX_TENSOR_BYTES = 1024 * 1024 * 1024


@dataclass(slots=True)
class Calls:
    """Runs calls on a fixed number of threads, so that the event loop is always free."""

    repository: Repository
    pool: ThreadPoolExecutor
    workers: int
    limits: Limits
    waiting: int = 0

    async def predict(
        self,
        model: str,
        version: str,
        inputs: Sequence[inference_pb2.Input],
        output: inference_pb2.OutputOptions,
        parameters: struct_pb2.Struct,
        context: Context,
    ) -> pb.PredictResponse:
        """Raises what the contract says of Predict."""
        found, served = await self.enter(model_id(context.service, model), version_id(version), context)
        started, times = time.perf_counter(), CallTimes()
        try:
            fetched = await self.fetch(inputs, context)
            times.compute_input = time.perf_counter() - started
            checked = plan(served, inputs, output, parameters, fetched)
            if served.batching is not None:
                predictions = await self._batched(served, checked, times, found.statistics.ran, context)
            else:
                async with self._slot(served):
                    predictions = await self._in_thread(
                        served,
                        lambda: prediction.predict(served, checked, self.limits, times, lambda: context.cancelled),
                    )
            seconds = time.perf_counter() - started
            # What is neither input, model nor output was waiting, for a slot or for a thread.
            times.queue = max(0.0, seconds - times.compute_input - times.compute_infer - times.compute_output)
            found.statistics.succeeded(seconds, times, time.time())
        except (asyncio.CancelledError, errors.Cancelled):
            found.statistics.cancelled(time.perf_counter() - started, time.time())
            raise
        except Exception:
            found.statistics.failed(time.perf_counter() - started, time.time())
            raise
        finally:
            served.leave()
        return pb.PredictResponse(
            model=f"{context.service}/models/{found.model}",
            version=found.version,
            predictions=predictions,
            timing=times.to_proto(),
        )

    async def enter(self, model: str, version: str, context: Context) -> tuple[Version, Served]:
        """As the repository's. A job waits for a load: it may have been given to a sidecar that has just been started again, and that has
        its models back in a moment; a call is not given to one before.
        """
        if context.job is not None:
            await self.repository.find(model, version).wait_loaded()
        return await self.repository.enter(model, version)

    async def _batched(
        self, served: Served, plan: Plan, times: CallTimes, ran: Ran, context: Context
    ) -> list[inference_pb2.Prediction]:
        """The same, but that runs of the model may be shared with other calls: it waits for them without a thread."""
        assert served.batching is not None
        if served.batcher is None:
            execute = partial(self._in_thread, served)
            served.batcher = Batcher(served.session, served.batching, served.concurrency or self.workers, execute)
        batcher = served.batcher
        size = served.batching.max_batch_size
        predictions: list[inference_pb2.Prediction] = []
        for chunk in prediction.chunks(plan, size) if plan.item_count else (range(0),):
            predictions += await self._chunk(served, batcher, plan, chunk, times, ran, context)
        return predictions

    async def _chunk(
        self, served: Served, batcher: Batcher, plan: Plan, chunk: range, times: CallTimes, ran: Ran, context: Context
    ) -> list[inference_pb2.Prediction]:
        feeds = await self._in_thread(
            served, lambda: prediction.inputs(served, plan, chunk, self.limits, times, lambda: context.cancelled)
        )
        rows = [prediction.rows_of(served, feed) for feed in feeds]
        shares = await batcher.run_all(feeds, rows, plan.outputs, ran)
        times.compute_infer += max(share.seconds for share in shares)
        times.shared_size = max(times.shared_size, *(share.batch_size for share in shares))
        times.shared_items += sum(rows)
        return await self._in_thread(
            served,
            lambda: [answer for share in shares for answer in prediction.answers(served, plan, share.results, times)],
        )

    async def stream(
        self, requests: AsyncIterator[pb.PredictStreamRequest], context: Context
    ) -> AsyncGenerator[pb.PredictStreamResponse]:
        """Answers in the order of the items. So many are under way at once that all threads are busy; then the next item is not
        read before an answer is taken."""
        window = asyncio.Semaphore(2 * self.workers)
        started: asyncio.Queue[asyncio.Task[pb.PredictStreamResponse] | None] = asyncio.Queue()
        reader = asyncio.create_task(self._read(requests, context, window, started))
        tasks: set[asyncio.Task[Any]] = {reader}
        try:
            while (task := await started.get()) is not None:
                tasks.add(task)
                yield await task
                tasks.discard(task)
                window.release()
            await reader
        finally:
            while not started.empty():
                if (left := started.get_nowait()) is not None:
                    tasks.add(left)
            for left in tasks:
                left.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(
        self,
        requests: AsyncIterator[pb.PredictStreamRequest],
        context: Context,
        window: asyncio.Semaphore,
        started: asyncio.Queue[asyncio.Task[pb.PredictStreamResponse] | None],
    ) -> None:
        index = 0
        try:
            while True:
                await window.acquire()
                try:
                    request = await anext(requests)
                except StopAsyncIteration:
                    return
                if request.service and request.service != context.service:
                    raise errors.FieldInvalid("service", f"the stream is for {context.service}")
                started.put_nowait(asyncio.create_task(self._item(index, request, context)))
                index += 1
        finally:
            started.put_nowait(None)

    async def _item(self, index: int, request: pb.PredictStreamRequest, context: Context) -> pb.PredictStreamResponse:
        response = pb.PredictStreamResponse(index=index, item_id=request.item_id)
        try:
            if len(request.item_id) > 128:
                raise errors.FieldInvalid("item_id", "has more than 128 characters")
            answer = await self.predict(
                request.model, request.version, request.inputs, request.output, request.parameters, context
            )
            response.response.CopyFrom(answer)
        except errors.OneContainerError as error:
            response.error.CopyFrom(to_status(error))
        return response

    async def fetch(
        self, inputs: Sequence[inference_pb2.Input], context: Context, root: str = "inputs"
    ) -> dict[str, Fetched]:
        """Reads the artifacts that inputs name: path of the field → artifact."""
        fetched: dict[str, Fetched] = {}
        for path, name in artifact_names(inputs, root).items():
            artifact = await context.artifacts.get(name)
            limit = MAX_TENSOR_BYTES if path.endswith(".tensor.artifact") else self.limits.image_bytes
            if artifact.size_bytes > limit:
                raise errors.DataInvalid(path, f"{name} has {artifact.size_bytes} bytes; {limit} are allowed")
            fetched[path] = Fetched(await context.artifacts.read_bytes(name, limit), artifact.media_type)
        return fetched

    @asynccontextmanager
    async def _slot(self, served: Served) -> AsyncIterator[None]:
        """Waits until the model takes one more call, where it was served with `max_concurrency`."""
        if self.waiting >= MAX_WAITING:
            raise errors.LimitExceeded(f"{MAX_WAITING} calls wait for a thread already", retry_after=1.0)
        self.waiting += 1
        try:
            if served.slots is None:
                yield
            else:
                async with served.slots:
                    yield
        finally:
            self.waiting -= 1

    async def _in_thread(self, served: Served, work: Callable[[], T]) -> T:
        """The model stays as long as the thread is at it, though the caller may have gone before."""
        served.enter()
        future = asyncio.get_running_loop().run_in_executor(self.pool, work)

        def done(ended: asyncio.Future[T]) -> None:
            served.leave()
            if not ended.cancelled():
                # Taken note of here, for when nobody waits any more.
                ended.exception()

        future.add_done_callback(done)
        return await asyncio.shield(future)
