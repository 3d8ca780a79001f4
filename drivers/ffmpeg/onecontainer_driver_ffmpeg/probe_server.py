"""The process that holds FFmpeg's libraries, and the way to ask it: each probe is a fork of it.

Loading the libraries takes longer than most probes, so it is done once. The process itself opens no media: a hostile file may crash or
hang the libraries, and then it is a fork that is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from onecontainer.driver import errors
from onecontainer_driver_ffmpeg.process import Bounds, bounded

PROBE_CHILD = Path(__file__).with_name("probe_child.py")
_BOUNDS = Bounds(memory_bytes=2 * 1024**3)
# A process each.
_MOST_AT_ONCE = 16
_MOST_ANSWER = 64 * 1024 * 1024


class ProbeServer:
    """Starts with the first probe, starts again if it was killed, and ends with this object or with the sidecar."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self._slots = asyncio.Semaphore(_MOST_AT_ONCE)

    async def ask(self, request: Mapping[str, Any], *, folder: Path, environment: Mapping[str, str] | None) -> Any:
        """What `probe_child.py` answers to a request: facts, or `{"error": TEXT}`; None if its process died of the probe.

        `folder` is its working folder. However the call ends, the process of the probe has ended with it.
        """
        whole = {**request, "folder": str(folder), "environment": dict(environment or {})}
        async with self._slots, self._fork() as connection:
            reader, writer = await asyncio.open_connection(sock=connection)
            try:
                writer.write(json.dumps(whole).encode() + b"\n")
                answer = await reader.read(_MOST_ANSWER)
                while more := await reader.read(_MOST_ANSWER - len(answer)):
                    answer += more
            except ConnectionError:
                return None
            finally:
                writer.transport.abort()  # nothing may be left that uses the connection, which closes now
        try:
            return json.loads(answer)
        except ValueError:
            return None

    @contextlib.asynccontextmanager
    async def _fork(self) -> AsyncIterator[socket.socket]:
        """A connection to a process of its own, which is killed on the way out."""
        for last in (False, True):
            ours, theirs = socket.socketpair()
            with ours:
                ours.setblocking(False)
                with theirs:
                    server = self._send(theirs)
                process = await _process_of(ours)
                if process is None:
                    # The server was killed; the next one is asked.
                    server.close()
                    if self._control is server:
                        self._control = None
                    if last:
                        raise errors.BackendUnreachable(
                            "the process that probes media does not start; the log says why"
                        )
                    continue
                try:
                    yield ours
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(process, signal.SIGKILL)
                    os.close(process)
                return

    def _send(self, connection: socket.socket) -> socket.socket:
        """Gives the server one end of a connection, and tells which server that was."""
        if self._control is None:
            self._control = self._start()
        with contextlib.suppress(OSError):  # it was killed: then nothing comes back
            socket.send_fds(self._control, [b"\0"], [connection.fileno()])
        return self._control

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        folder = tempfile.gettempdir()
        # Without `site`, which takes a quarter of the start: only the folder that PyAV is in.
        command = [sys.executable, "-I", "-S", str(PROBE_CHILD), _packages()]
        with theirs:
            process = subprocess.Popen(
                bounded(command, _BOUNDS),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd=folder,
                env={"LC_ALL": "C.UTF-8", "HOME": folder, "TMPDIR": folder, "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )
        # Ends when its last fork has ended, which is not waited for.
        threading.Thread(target=process.wait, daemon=True).start()
        weakref.finalize(self, ours.close)
        return ours


async def _process_of(connection: socket.socket) -> int | None:
    """The pidfd that a fork sends before all else; None: there is no fork."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection)
    try:
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
    except ConnectionError:
        return None
    return descriptors[0] if descriptors else None


@functools.cache
def _packages() -> str:
    found = importlib.util.find_spec("av")
    if found is None or found.origin is None:
        raise errors.StateInvalid("PyAV, which probes media, is not installed: set the option ffprobe_path")
    return str(Path(found.origin).parents[1])
