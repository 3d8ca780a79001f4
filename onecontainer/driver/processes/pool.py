"""The children of a sidecar: one is warm from the start, those that ended well are used again, those that were killed are replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from onecontainer.driver.context import Context
from onecontainer.driver.isolation import Write
from onecontainer.driver.methods import DriverMethod
from onecontainer.driver.processes.process import ChildProcess, Outcome
from onecontainer.driver.processes.recipe import Recipe
from onecontainer.errors import OneContainerError

log = logging.getLogger(__name__)

IDLE_SECONDS = 60.0
"""How long a child beyond the first one waits for work before it is let go."""
DETACH_SECONDS = 3.0
"""What a child gets to let go of the backend when the sidecar does."""


class ProcessPool:
    """Children for one attachment. Everything in the loop's thread."""

    def __init__(self, recipe: Recipe, limit: int, idle_seconds: float = IDLE_SECONDS) -> None:
        """`limit`: handlers that run at the same time; further ones wait."""
        self._idle_seconds = idle_seconds
        self._recipe = recipe
        self._room = asyncio.Semaphore(limit)
        self._idle: list[ChildProcess] = []
        self._busy: set[ChildProcess] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._adding: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def warm(self) -> None:
        """Sees to it that there is a child, so that the next handler need not wait for an interpreter."""
        if not (self._idle or self._adding or self._closed):
            self._adding = self._begin(self._add())

    async def _add(self) -> None:
        try:
            self._idle.append(await ChildProcess.start(self._recipe))
        except OneContainerError as error:
            log.warning("%s", error)  # whoever needs one will meet it again
        finally:
            self._adding = None

    async def take(self) -> ChildProcess:
        """A child that is ready, for one handler; give it back, or discard it. Raises what its `attach` raised."""
        await self._room.acquire()
        try:
            child = await self._next()
        except BaseException:
            self._room.release()
            raise
        self._busy.add(child)
        try:
            await child.wait_attached()
        except asyncio.CancelledError:
            self.give_back(child)  # it goes on getting ready, for another one
            raise
        except BaseException:
            await self.discard(child, replace=False)
            raise
        return child

    async def _next(self) -> ChildProcess:
        """The one that was used last, of those that are ready; else one on its way; else a new one."""
        if self._adding is not None and not self._idle:
            await asyncio.wait((self._adding,))
        for child in [child for child in self._idle if not child.alive]:
            self._idle.remove(child)
            self._begin(child.kill())
        ready = [child for child in self._idle if child.attached]
        if ready or self._idle:
            child = (ready or self._idle)[-1]
            self._idle.remove(child)
            return child
        return await ChildProcess.start(self._recipe)

    def give_back(self, child: ChildProcess) -> None:
        """It may run another handler."""
        self._busy.discard(child)
        self._room.release()
        if self._closed or not child.alive:
            self._begin(child.kill())
            return
        child.idle_since = asyncio.get_running_loop().time()
        self._idle.append(child)
        self._set_timer()

    async def discard(self, child: ChildProcess, *, replace: bool = True) -> None:
        """Ends it and all that it started; returns when nothing is left of it."""
        try:
            await child.kill()
        finally:
            self._busy.discard(child)
            self._room.release()
            if replace:
                self.warm()

    async def close(self) -> None:
        """Lets all of them go. No handler runs any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        children = [*self._idle, *self._busy]
        self._idle.clear()
        await asyncio.gather(*(child.leave(DETACH_SECONDS) for child in children))

    # --- idle ones -----------------------------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        if self._timer is None and len(self._idle) + len(self._busy) > 1:
            self._timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._trim)

    def _trim(self) -> None:
        self._timer = None
        since = asyncio.get_running_loop().time() - self._idle_seconds
        for child in [child for child in self._idle if child.idle_since <= since]:
            if len(self._idle) + len(self._busy) > 1:
                self._idle.remove(child)
                self._begin(child.leave(DETACH_SECONDS))
        if self._idle:
            self._set_timer()

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class InProcess:
    """`Isolation` of handlers that are declared with `@isolated`."""

    cancellable = True

    def __init__(self, pool: ProcessPool) -> None:
        self._pool = pool

    async def run(self, method: DriverMethod, argument: Any, context: Context, write: Write | None) -> Any:
        """Runs it in a child. When this is cancelled it ends once the child, and all that it started, is gone."""
        assert write is None  # found at the start: an isolated handler has one response
        child = await self._pool.take()
        try:
            outcome: Outcome = await child.run(method, argument, context)
        except BaseException:
            await self._pool.discard(child)
            raise
        if outcome.reusable:
            self._pool.give_back(child)
        else:
            await self._pool.discard(child)
        if outcome.error is not None:
            raise outcome.error
        return outcome.result
