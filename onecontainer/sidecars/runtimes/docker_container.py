"""One running container: its log, its end, and how it is stopped or left running."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from onecontainer.errors import OneContainerError
from onecontainer.sidecars.logs import RING_LINES, LineSplitter, LogBuffer
from onecontainer.sidecars.runtime import TlsServer, exited
from onecontainer.sidecars.runtimes.docker_threads import in_thread

if TYPE_CHECKING:
    from docker.models.containers import Container

log = logging.getLogger(__name__)

RECONNECT = 1.0
"""Seconds between two tries to reach docker while it is away: a container may well outlive its restart."""
STOP_SLACK = 30.0
KILLED = 128
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?Z ")


class RunningContainer:
    """A `RunningSidecar` that outlives the gateway. Docker is asked in threads of its own: following a log blocks."""

    def __init__(
        self,
        container: Container,
        target: str,
        logs: LogBuffer,
        memory_bytes: int,
        *,
        tls: TlsServer | None,
        on_removed: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        """`on_removed` is called, in a thread, when it has been removed; `on_lost` if it cannot be removed when it has to go."""
        self.target = target
        self.tls = tls
        self.runtime_id = str(container.id)
        self._container = container
        self._logs = logs
        self._memory_bytes = memory_bytes
        self._on_removed = on_removed
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._how = ""
        self._leaving = threading.Event()
        self._streams: list[Any] = []
        self._thread = threading.Thread(target=self._follow, name=f"log of {container.name}", daemon=True)
        self._thread.start()

    async def wait(self) -> str:
        await self._ended.wait()
        return self._how

    async def stop(self, grace: float) -> None:
        try:
            await in_thread(remove, self._container, grace)
            await in_thread(self._on_removed)
        except OneContainerError:
            self._on_lost()
            self._end("could not be stopped")
            raise
        try:
            async with asyncio.timeout(STOP_SLACK):
                await self._ended.wait()
        except TimeoutError:
            self._end("was removed")

    async def leave(self) -> None:
        """It goes on; nobody here looks after it any more."""
        self._leaving.set()
        for stream in list(self._streams):
            stream.close()
        self._end("was left running")

    # --- in threads --------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        seen = {False: "", True: ""}
        while not self._leaving.is_set():
            reader = threading.Thread(target=self._read, args=(True, seen), daemon=True)
            reader.start()
            self._read(False, seen)
            reader.join()
            how = self._state()
            if how is not None:
                self._post(lambda how=how: self._end(how))  # type: ignore[misc]
                return
            self._leaving.wait(RECONNECT)

    def _read(self, stderr: bool, seen: dict[bool, str]) -> None:
        """One of the two streams, from the line after the last one that was seen, until it breaks off or the container ends."""
        splitter = LineSplitter()
        try:
            stream = self._container.logs(
                stdout=not stderr, stderr=stderr, stream=True, follow=True, timestamps=True, tail=RING_LINES,
                **({"since": _seconds(seen[stderr])} if seen[stderr] else {}),
            )  # fmt: skip
            self._streams.append(stream)
            for chunk in stream:
                self._tell(splitter.feed(chunk), stderr, seen)
            self._tell(splitter.end(), stderr, seen)
        except Exception as error:  # noqa: BLE001 - whatever breaks it off, the container's state tells what comes next
            if not self._leaving.is_set():
                log.debug("the log of %s broke off: %s", self._container.name, error)

    def _tell(self, lines: list[str], stderr: bool, seen: dict[bool, str]) -> None:
        fresh: list[tuple[str, int | None]] = []
        for line in lines:
            match = _STAMP.match(line)
            if match is None:
                fresh.append((line, None))
                continue
            stamp = f"{match[1]}.{(match[2] or '').ljust(9, '0')}"
            if stamp > seen[stderr]:
                seen[stderr] = stamp
                fresh.append((line[match.end() :], int(_seconds(stamp) * 1e6)))
        if fresh:
            self._post(lambda: self._write(fresh, stderr))

    def _write(self, lines: list[tuple[str, int | None]], stderr: bool) -> None:
        for text, time in lines:
            self._logs.write(text, stderr=stderr, time=time)

    def _state(self) -> str | None:
        """How it ended; None if it runs, or nobody knows."""
        from docker.errors import NotFound

        try:
            self._container.reload()
        except NotFound:
            return "was removed"
        except Exception:  # noqa: BLE001 - docker is away, and comes back
            return None
        state = self._container.attrs["State"]
        return None if state["Running"] else describe_end(state, self._memory_bytes)

    def _post(self, work: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(work)
        except RuntimeError:
            self._leaving.set()  # the loop is closed: nobody listens any more

    def _end(self, how: str) -> None:
        if not self._ended.is_set():
            self._how = how
            self._ended.set()


def describe_end(state: dict[str, Any], memory_bytes: int) -> str:
    """What docker says of a container that has ended, in words."""
    code = int(state.get("ExitCode", 0))
    if state.get("OOMKilled"):
        mib = memory_bytes // (1024 * 1024)
        return f"was killed: it needed more than its {mib} MiB of memory (runtime.resources.memory_bytes gives it more)"
    if state.get("Error"):
        return f"could not run: {state['Error']}"
    if code > KILLED:
        try:
            return f"was killed by {signal.Signals(code - KILLED).name}"
        except ValueError:
            pass
    return exited(code)


def _seconds(stamp: str) -> float:
    whole, _, fraction = stamp.partition(".")
    return datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp() + float(f"0.{fraction or '0'}")


def remove(container: Container, grace: float) -> None:
    """Stops and removes it; that it is gone already is fine."""
    from docker.errors import APIError, NotFound

    try:
        if grace > 0:
            container.stop(timeout=max(1, round(grace)))
        container.remove(force=True, v=True)
    except NotFound:
        pass
    except APIError as error:
        if error.status_code != 409:  # somebody else is removing it
            raise
