"""Started by the warden as `python -P -m onecontainer_driver_torchhub.process FD`: loads one model, then answers for it."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from onecontainer_driver_torchhub.process.failures import Failure, Kind, words
from onecontainer_driver_torchhub.process.wire import HEAD, Array, Facts, decode, encode

PROGRESS_STEP = 1024 * 1024
"""Bytes between two reports."""


class Line:
    """This end of the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = io.BufferedReader(connection.makefile("rb", buffering=0), 1 << 16)
        self._writing = threading.Lock()

    def receive(self) -> tuple[Facts, dict[str, Array]] | None:
        """None: the sidecar has closed its end."""
        head = self._reader.read(HEAD.size)
        if len(head) < HEAD.size:
            return None
        facts_size, data_size = HEAD.unpack(head)
        facts = self._reader.read(facts_size)
        # Of its own for each message: the model may keep, or change, what it is given.
        data = bytearray(data_size)
        view, at = memoryview(data), 0
        while at < data_size:
            count = self._reader.readinto(view[at:])
            if not count:
                return None
            at += count
        return decode(facts, data)

    def send(self, facts: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> None:
        with self._writing:
            for piece in encode(facts, arrays):
                self._connection.sendall(piece)

    def progress(self) -> Any:
        told = 0

        def tell(message: str, done: int, total: int | None) -> None:
            nonlocal told
            if done == 0 or done - told >= PROGRESS_STEP or done == total:
                told = done
                self.send({"kind": "progress", "message": message, "done": done, "total": total})

        return tell

    def fail(self, number: int, error: Exception) -> None:
        failure = error if isinstance(error, Failure) else Failure(Kind.FAILED, words(error))
        self.send(
            {"kind": "failure", "id": number, "why": failure.kind, "message": str(failure), "field": failure.field}
        )


def serve(line: Line) -> None:
    """Until the sidecar hangs up."""
    first = line.receive()
    if first is None:
        return
    facts = first[0]
    concurrency = facts.pop("concurrency")
    try:
        try:
            import torch  # pyright: ignore[reportMissingImports]

            from onecontainer_driver_torchhub.process import answers, load
        except ImportError as error:
            raise Failure(Kind.CAPABILITY, f"PyTorch cannot be imported here: {words(error)}", "repo") from error
        loaded = load.load(load.Wanted(**facts), line.progress())
    except Exception as error:  # noqa: BLE001 - whatever it is, the sidecar waits for an outcome
        line.fail(0, error)
        return
    line.send(
        {
            "kind": "answer",
            "id": 0,
            "names": loaded.names,
            "required": loaded.required,
            "platform": f"torch {torch.__version__}, {loaded.device}",
            "pid": os.getpid(),
        }
    )

    def answer(asked: Facts, feeds: dict[str, Array]) -> None:
        try:
            found = answers.run(loaded, feeds, asked["outputs"])
        except Failure as error:
            line.fail(asked["id"], error)
        else:
            line.send({"kind": "answer", "id": asked["id"]}, found)

    # One at a time there is no need for another thread, nor for its memory.
    pool = ThreadPoolExecutor(concurrency) if concurrency > 1 else None
    while (message := line.receive()) is not None:
        if pool is None:
            answer(*message)
        else:
            pool.submit(answer, *message)


if __name__ == "__main__":
    # A crash in C code leaves the stack of its thread, which the sidecar passes on.
    faulthandler.enable(all_threads=False)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(Line(connection))
    sys.stdout.flush()
    # Threads that a model has left behind are not waited for.
    os._exit(0)
