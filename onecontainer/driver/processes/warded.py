"""A program in a warden's care, with a socket between it and the sidecar: started, listened to, ended with all that it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from onecontainer.driver.processes.frames import READ_AHEAD_BYTES
from onecontainer.driver.processes.output import Output
from onecontainer.errors import DriverUnreachable

WARDEN = Path(__file__).with_name("warden.py")
GRACE_SECONDS = 0.3
"""Between SIGTERM and SIGKILL: for an async handler's `finally`, and for tools that tidy up after themselves."""
EXIT_SECONDS = 1.0
"""What a program gets to be gone after it has closed its socket, and its last lines to arrive after that."""

Link = tuple[asyncio.subprocess.Process, asyncio.StreamReader, asyncio.StreamWriter]


async def spawn(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Link:
    """Starts Python with these arguments and, as the last one, the number of its end of the socket. To be called in the thread whose
    end is the sidecar's: the kernel ties the warden to it.

    Raises DriverUnreachable if there is no room for another process.
    """
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            handle = str(theirs.fileno())
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(WARDEN), str(os.getpid()), str(GRACE_SECONDS), handle),
                *(sys.executable, *arguments, handle),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env=environment,
                # Out of the sidecar's group: what kills that must leave somebody to end the program.
                start_new_session=True,
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=READ_AHEAD_BYTES)
    except OSError as error:
        ours.close()
        raise DriverUnreachable(f"no process could be started: {error}", retry_after=1.0) from error
    return process, reader, writer


class WardedProcess:
    """A warden and the program in its care. Everything in the loop's thread."""

    def __init__(self, link: Link) -> None:
        self._process, self._reader, self._writer = link
        self._output = Output()
        assert self._process.stdout is not None
        self._pump = asyncio.create_task(self._output.pump(self._process.stdout))

    @property
    def running(self) -> bool:
        return self._process.returncode is None and not self._reader.at_eof()

    async def kill(self) -> None:
        """Ends it and all that it started: SIGTERM, and SIGKILL after GRACE_SECONDS. Returns when nothing is left of it."""
        # The warden does it, in its own time: even if we are interrupted here, it is under way.
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        await self._process.wait()
        with contextlib.suppress(TimeoutError):
            # The warden has seen to it that nobody else holds the pipe; whatever it says is here at once.
            await asyncio.wait_for(asyncio.shield(self._pump), EXIT_SECONDS)
        self._pump.cancel()
        self._writer.close()

    async def ended(self) -> tuple[str, dict[str, str]]:
        """How it ended, once it has closed its socket, for people and for programs. One that lives on is ended."""
        try:
            async with asyncio.timeout(EXIT_SECONDS):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            await self._process.wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._pump), EXIT_SECONDS)
        return end_of(self._process.returncode or 0)

    @property
    def last_words(self) -> str:
        """What it printed last, as the end of a message. Empty: nothing."""
        lines = self._output.lines()
        return "\n".join(["; its last lines:", *lines]) if lines else ""


def end_of(return_code: int) -> tuple[str, dict[str, str]]:
    """`was killed by SIGKILL`, and the same as metadata. Minus the signal's number if a signal ended it."""
    if return_code >= 0:
        return f"exited with code {return_code}", {"exit_code": str(return_code)}
    try:
        name = signal.Signals(-return_code).name
    except ValueError:
        name = f"signal {-return_code}"
    how = f"was killed by {name}"
    if -return_code == signal.SIGKILL:
        how += " (the kernel's, if memory was short)"
    return how, {"signal": name}
