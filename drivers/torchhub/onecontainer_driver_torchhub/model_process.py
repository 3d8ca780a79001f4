"""A model's process as the sidecar sees it: started, asked, lost, ended."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onecontainer.driver import errors
from onecontainer.driver.processes.warded import Link, WardedProcess, spawn
from onecontainer_driver_torchhub.config import HUB
from onecontainer_driver_torchhub.process.failures import Kind
from onecontainer_driver_torchhub.process.wire import HEAD, Array, Facts, decode, encode

MODULE = "onecontainer_driver_torchhub.process"

Progress = Callable[[str, int, int | None], None]
Answer = tuple[Facts, dict[str, Array]]


class ModelProcess(WardedProcess):
    """One model in a process that can be killed. Everything in the loop's thread."""

    def __init__(self, link: Link, progress: Progress) -> None:
        super().__init__(link)
        self._progress = progress
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Answer]] = {}
        self._lost: errors.OneContainerError | None = None
        self._tell_lost: Callable[[errors.OneContainerError], None] | None = None
        self._closing = False
        self._listener = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, variables: Mapping[str, str], progress: Progress) -> ModelProcess:
        """Raises DriverUnreachable if there is no room for another process."""
        return cls(await spawn(("-P", "-m", MODULE), variables), progress)

    async def ask(self, facts: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> Answer:
        """Sends a question, and returns its answer. The first one is what to load. Raises the typed error that a failure stands for."""
        if self._lost is not None:
            raise self._lost
        number = next(self._numbers)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            for piece in encode({**facts, "id": number} if number else facts, arrays):
                self._writer.write(piece)
            return await answer
        finally:
            self._asked.pop(number, None)

    def watch(self, lost: Callable[[errors.OneContainerError], None]) -> None:
        """`lost` is called once, when the process ends by itself; now, if it has."""
        self._tell_lost = lost
        if self._lost is not None and not self._closing:
            lost(self._lost)

    async def kill(self) -> None:
        self._closing = True
        await super().kill()
        await asyncio.gather(self._listener, return_exceptions=True)

    async def _listen(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(HEAD.size)
                facts_size, data_size = HEAD.unpack(head)
                raw = await self._reader.readexactly(facts_size)
                self._take(*decode(raw, await self._reader.readexactly(data_size)))
        except (asyncio.IncompleteReadError, ConnectionError):
            await self._end()

    def _take(self, facts: Facts, arrays: dict[str, Array]) -> None:
        if facts["kind"] == "progress":
            self._progress(facts["message"], facts["done"], facts["total"])
            return
        asked = self._asked.get(facts["id"])
        if asked is None or asked.done():
            return  # whoever asked has gone
        if facts["kind"] == "answer":
            asked.set_result((facts, arrays))
        else:
            asked.set_exception(error_of(facts))

    async def _end(self) -> None:
        how, facts = await self.ended()
        last = "" if self._closing else self.last_words
        self._lost = errors.BackendExecutionFailed(
            f"the model's process {how}{last}", code=errors.Code.INTERNAL, metadata=facts, hop="backend"
        )
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(self._lost)
        if self._tell_lost is not None and not self._closing:
            self._tell_lost(self._lost)


def error_of(facts: Facts) -> errors.OneContainerError:
    """What a failure that the process has told is here."""
    message, field = facts["message"], facts["field"]
    path = field if "." in field else f"{HUB}.{field}" if field else "config.source"
    match facts["why"]:
        case Kind.MISSING:
            return errors.ResourceNotFound(message, resource=("torch hub", field))
        case Kind.UNREACHABLE:
            return errors.BackendUnreachable(message, retry_after=30.0)
        case Kind.CAPABILITY:
            return errors.BackendCapabilityMissing(path, message)
        case Kind.INVALID:
            return errors.DataInvalid(path, message)
        case Kind.MEMORY:
            return errors.LimitExceeded(f"{message}: unload a model, or give the service more memory")
    return errors.BackendExecutionFailed(
        f"the model failed on this input: {message}", code=errors.Code.INVALID_ARGUMENT, hop="backend"
    )


def own_bytes(pid: int) -> int:
    """Memory that goes back to the system when a process ends: what it shares with nobody. 0: this system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    except (OSError, ValueError, IndexError):
        return 0
