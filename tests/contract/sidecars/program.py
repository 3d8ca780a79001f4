"""A sidecar written without the SDK, on grpc.aio alone: the supervisor must get along with any driver that keeps the contract.

What it does is steered by the options of its service: `refuse` (Attach is INVALID_ARGUMENT), `ready_file` (not ready until the
file is there), `broken_file` (the backend is unreachable while it is there), `linger` (Drain does not end), `lock` (Attach locks
the state folder). By flags it is no proper driver at all: `--crash` ends at once, `--mute` never listens, `--impostor` is another
driver, `--orphan FILE` leaves a child behind. It appends what happens to `events` in its state folder.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from onecontainer.api.driver.v1 import driver_pb2, driver_pb2_grpc
from onecontainer.errors import BackendUnreachable, FieldInvalid, ResourceInUse, StateInvalid
from onecontainer.rpc import status
from onecontainer.rpc.manifest import load_manifest, manifest_to_proto
from onecontainer.rpc.server import bearer_token
from onecontainer.rpc.structs import struct_to_dict

STATE = Path(os.environ["ONECONTAINER_STATE_DIR"]) if "ONECONTAINER_STATE_DIR" in os.environ else None
TOKEN_FILE = os.environ.get("ONECONTAINER_TOKEN_FILE")
TOKEN = Path(TOKEN_FILE).read_text() if TOKEN_FILE else os.environ.get("TEST_TOKEN", "")
INSTANCE = os.environ.get("ONECONTAINER_INSTANCE", "")


def note(event: str) -> None:
    if STATE is not None:
        with (STATE / "events").open("a") as file:
            file.write(f"{event} {INSTANCE} {os.getpid()}\n")


class Program(driver_pb2_grpc.DriverServiceServicer):
    def __init__(self, folder: Path) -> None:
        self.manifest = manifest_to_proto(load_manifest(folder))
        if "--impostor" in sys.argv:
            self.manifest.name = "impostor"
        self.request: driver_pb2.AttachRequest | None = None
        self.options: dict[str, str] = {}

    async def authenticate(self, context) -> None:
        token = bearer_token(context.invocation_metadata())
        if TOKEN and token != TOKEN:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong token")

    async def GetDriverInfo(self, request, context):
        await self.authenticate(context)
        return driver_pb2.GetDriverInfoResponse(
            manifest=self.manifest,
            methods=["test.v1.EchoService/Echo"],
            max_message_bytes=1 << 26,
            contract_version="1.0",
            instance=INSTANCE or (self.request.instance if self.request else ""),
            service=self.request.service if self.request else "",
        )

    async def Attach(self, request, context):
        await self.authenticate(context)
        if self.request is not None:
            if self.request == request:
                note("attach-again")
                return driver_pb2.AttachResponse()
            await status.abort(context, StateInvalid("attached with other settings"), hop="sidecar")
        self.options = struct_to_dict(request.options)
        if "refuse" in self.options:
            error = FieldInvalid("options.refuse", self.options["refuse"])
            await status.abort(context, error, hop="sidecar")
        if "lock" in self.options:
            self.lock = (STATE / "lock").open("w")
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                await status.abort(context, ResourceInUse("the state folder is locked"), hop="sidecar")
        self.request = request
        note("attach")
        secrets = os.environ.get("ONECONTAINER_SECRETS_DIR")
        for path in sorted(Path(secrets).iterdir()) if secrets else []:
            print("secret", path.name, len(path.read_text()), oct(path.stat().st_mode & 0o777))
        return driver_pb2.AttachResponse()

    async def Detach(self, request, context):
        await self.authenticate(context)
        note("detach")
        self.request = None
        return driver_pb2.DetachResponse()

    async def Probe(self, request, context):
        await self.authenticate(context)
        if STATE is not None:
            with (STATE / "probes").open("a") as file:
                file.write(".")
        if "broken_file" in self.options and Path(self.options["broken_file"]).exists():
            await status.abort(context, BackendUnreachable("the backend is away"), hop="backend")
        ready = "ready_file" not in self.options or Path(self.options["ready_file"]).exists()
        return driver_pb2.ProbeResponse(ready=ready, message="found" if ready else "loading")

    async def Drain(self, request, context):
        await self.authenticate(context)
        note("drain")
        if "linger" in self.options:
            await asyncio.Event().wait()
        return driver_pb2.DrainResponse()


async def echo(request: bytes, context) -> bytes:
    return INSTANCE.encode() + b" " + request


async def serve(folder: Path) -> None:
    server = grpc.aio.server()
    program = Program(folder)
    driver_pb2_grpc.add_DriverServiceServicer_to_server(program, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.v1.EchoService", {"Echo": handler}),))
    server.add_insecure_port(os.environ["ONECONTAINER_LISTEN"])
    await server.start()
    note("start")
    print("listening", flush=True)
    print("ready to say what went wrong", file=sys.stderr, flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    note("stop")
    await server.stop(0.2)


if __name__ == "__main__":
    if "--unusable" in sys.argv:
        sys.exit(2)
    if "--crash" in sys.argv:
        print("first line", "the model file is missing", sep="\n", file=sys.stderr)
        sys.exit(3)
    if "--mute" in sys.argv:
        print("waiting for a lock that nobody gives back", file=sys.stderr, flush=True)
        signal.pause()
    if "--orphan" in sys.argv:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(sys.argv[-1]).write_text(str(child.pid))
    asyncio.run(serve(Path(sys.argv[1])))
