"""The stuck driver: handlers that end when they are cancelled or killed, and leave a trace of it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from pathlib import Path

from onecontainer.driver import Context, Driver, ProbeResult, errors, isolated
from onecontainer_driver_stuck import stuck_pb2


class StuckDriver(Driver):
    services = (stuck_pb2.DESCRIPTOR.services_by_name["StuckService"],)

    async def probe(self) -> ProbeResult:
        return ProbeResult(ready=True)

    async def wait(self, request: stuck_pb2.StuckRequest, context: Context) -> stuck_pb2.StuckResult:
        try:
            _trace(request, context, "entered")
            await asyncio.Event().wait()
        finally:
            _trace(request, context, "left", time.time())
        raise errors.InternalError("the wait ended by itself")

    @isolated
    def block(self, request: stuck_pb2.StuckRequest, context: Context) -> stuck_pb2.StuckResult:
        helper = subprocess.Popen(["sleep", "3600"])
        _trace(request, context, "entered", os.getpid(), helper.pid)
        threading.Event().wait()
        raise errors.InternalError("the wait ended by itself")

    async def go(self, request: stuck_pb2.StuckRequest, context: Context) -> stuck_pb2.StuckResult:
        return stuck_pb2.StuckResult()

    @isolated
    async def go_isolated(self, request: stuck_pb2.StuckRequest, context: Context) -> stuck_pb2.StuckResult:
        return stuck_pb2.StuckResult()


def _trace(request: stuck_pb2.StuckRequest, context: Context, what: str, *facts: float) -> None:
    if context.job is None:
        raise errors.StateInvalid("only to be run as a job")
    if not request.trace_file:
        raise errors.FieldRequired("trace_file")
    # One write of a short line to a file in append mode is atomic.
    with Path(request.trace_file).open("a") as file:
        file.write(" ".join(map(str, (what, context.job.name, *facts))) + "\n")
