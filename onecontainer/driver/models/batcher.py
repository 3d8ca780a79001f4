"""Dynamic batching: runs of a model that wait are put together into one, and each caller gets its own rows."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onecontainer.api.ai.v1 import model_pb2
from onecontainer.driver import errors
from onecontainer.driver.models.session import Session

Array = npt.NDArray[Any]
Results: TypeAlias = dict[str, Array]

DEFAULT_QUEUE = 1024

Ran = Callable[[int, float], None]
"""Told of each run of the model: its items, and its seconds."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one caller has of a run.

    Attributes:
        results: its own rows of each output.
        batch_size: items of the run, those of others included.
        seconds: that the run took.
    """

    results: Results
    batch_size: int
    seconds: float


@dataclass(slots=True, eq=False)
class _Waiting:
    feeds: Mapping[str, Array]
    outputs: Sequence[str]
    rows: int
    since: float
    ran: Ran
    future: asyncio.Future[Share]
    kind: tuple[object, ...] = field(init=False)
    """Only what is of one kind can go through the model together."""

    def __post_init__(self) -> None:
        shapes = sorted((name, array.dtype.str, array.shape[1:]) for name, array in self.feeds.items())
        self.kind = (tuple(self.outputs), *shapes)


_Outcome: TypeAlias = Share | errors.OneContainerError
Execute = Callable[[Callable[[], list[_Outcome]]], Awaitable[list[_Outcome]]]
"""Does blocking work in a thread; the model stays until it is done."""


class Batcher:
    """One model's queue. All methods belong to the event loop's thread."""

    def __init__(self, session: Session, options: model_pb2.DynamicBatching, parallel: int, execute: Execute) -> None:
        """`parallel`: runs of the model at the same time."""
        self._session = session
        self._most = options.max_batch_size
        self._delay = options.max_delay.ToNanoseconds() / 1e9
        self._room = options.max_queue_size or DEFAULT_QUEUE
        self._free = parallel
        self._execute = execute
        self._waiting: deque[_Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._splits = True
        """False: the model has given an output that cannot be told apart by items, so each call is run by itself."""

    async def run(self, feeds: Mapping[str, Array], outputs: Sequence[str], rows: int, ran: Ran) -> Share:
        """Runs the model on inputs whose first dimension is `rows`, beside those of others. More than `max_batch_size` rows go alone.

        Raises:
            LimitExceeded: so many items wait already.
            BackendExecutionFailed: the model failed on this input.
        """
        waiting = sum(one.rows for one in self._waiting)
        if self._waiting and waiting + rows > self._room:
            raise errors.LimitExceeded(
                f"{waiting} items wait for this model already; its config.dynamic_batching.max_queue_size is {self._room}",
                retry_after=1.0,
            )
        loop = asyncio.get_running_loop()
        one = _Waiting(feeds, outputs, rows, loop.time(), ran, loop.create_future())
        self._waiting.append(one)
        self._start()
        try:
            return await one.future
        finally:
            if one in self._waiting:  # its caller has gone
                self._waiting.remove(one)

    async def run_all(
        self, feeds: Sequence[Mapping[str, Array]], rows: Sequence[int], outputs: Sequence[str], ran: Ran
    ) -> list[Share]:
        """The same for several of one caller; if one of them fails, the others are given up."""
        tasks = [
            asyncio.ensure_future(self.run(feed, outputs, count, ran)) for feed, count in zip(feeds, rows, strict=True)
        ]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self) -> None:
        """Starts as many runs as may be, of what need not wait any longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._free and self._waiting:
            first = self._waiting[0]
            batch = self._batch(first)
            loop = asyncio.get_running_loop()
            due = first.since + self._delay
            if self._splits and sum(one.rows for one in batch) < self._most and loop.time() < due:
                self._timer = loop.call_at(due, self._start)
                return
            for one in batch:
                self._waiting.remove(one)
            self._free -= 1
            task = loop.create_task(self._run(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _batch(self, first: _Waiting) -> list[_Waiting]:
        """The first one, and what goes with it, in the order of arrival."""
        batch, rows = [first], first.rows
        for one in islice(self._waiting, 1, None) if self._splits else ():
            if rows >= self._most:
                break
            if rows + one.rows <= self._most and one.kind == first.kind:
                batch.append(one)
                rows += one.rows
        return batch

    async def _run(self, batch: list[_Waiting]) -> None:
        outcomes: Sequence[_Outcome | BaseException]
        try:
            outcomes = await self._execute(lambda: self._through_the_model(batch))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the callers must hear of it
            outcomes = [error] * len(batch)
        finally:
            self._free += 1
        for one, outcome in zip(batch, outcomes, strict=True):
            if one.future.done():
                continue
            if isinstance(outcome, Share):
                one.future.set_result(outcome)
            else:
                one.future.set_exception(outcome)
        self._start()

    def _through_the_model(self, batch: list[_Waiting]) -> list[_Outcome]:
        """Blocks."""
        if len(batch) > 1:
            together = self._together(batch)
            if together is not None:
                return together
        return [self._alone(one) for one in batch]

    def _together(self, batch: list[_Waiting]) -> list[_Outcome] | None:
        """None: they have to be run one by one."""
        names = batch[0].feeds
        joined = {name: np.concatenate([one.feeds[name] for one in batch]) for name in names}
        size = sum(one.rows for one in batch)
        started = time.perf_counter()
        try:
            results = self._session.run(joined, batch[0].outputs)
        except errors.BackendExecutionFailed:
            return None  # one of them may be at fault, and the others are not to suffer for it
        seconds = time.perf_counter() - started
        if not all(value.ndim and len(value) == size for value in results.values()):
            self._splits = False
            return None
        batch[0].ran(size, seconds)
        shares: list[_Outcome] = []
        begin = 0
        for one in batch:
            rows = {name: value[begin : begin + one.rows] for name, value in results.items()}
            shares.append(Share(rows, size, seconds))
            begin += one.rows
        return shares

    def _alone(self, one: _Waiting) -> _Outcome:
        started = time.perf_counter()
        try:
            results = self._session.run(one.feeds, one.outputs)
        except errors.OneContainerError as error:
            return error
        seconds = time.perf_counter() - started
        one.ran(one.rows, seconds)
        return Share(results, one.rows, seconds)
