"""A supervisor with real processes, and a driver's folder for them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.clock import SystemClock
from onecontainer.rpc.manifest import load_manifest, manifest_to_proto
from onecontainer.sidecars.folders import Folders
from onecontainer.sidecars.model import RuntimeSpec, ServiceState, Target
from onecontainer.sidecars.policy import Policy
from onecontainer.sidecars.registrations import Post, Registrations
from onecontainer.sidecars.runtimes.attached import AttachedRuntime
from onecontainer.sidecars.runtimes.process import ProcessRuntime
from onecontainer.sidecars.secrets import SecretStore
from onecontainer.sidecars.supervisor import Supervisor

PROGRAM = Path(__file__).with_name("program.py")
LIMIT = 180.0

POLICY = Policy(
    start_timeout=60,
    probe_interval=0.1,
    probe_timeout=10,
    first_probe_interval=0.02,
    health_failures=3,
    stop_grace=60,  # it is killed after that, and then it has not told of its end
    backoff_initial=0.05,
    backoff_max=0.2,
)


def write_driver(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {
        "name": "echo",
        "version": "1.0.0",
        "app": "echo",
        "scope": "hpc",
        "entry_point": "echo:Echo",
        "services": ["test.v1.EchoService"],
        "options": [
            {"name": name, "type": "string", "description": "Steers the test program."}
            for name in ("refuse", "ready_file", "broken_file", "linger", "lock", "password")
        ],
    }
    (folder / "metadata.json").write_text(json.dumps(metadata | changes))
    return folder


@dataclass
class Bench:
    """A supervisor, how to make targets for it, and how to wait for what it does."""

    root: Path
    supervisor: Supervisor
    registrations: Registrations
    flags: list[str] = field(default_factory=list)
    client_settings: dict[str, str] = field(default_factory=dict)

    def target(self, uid: str = "u1", **changes: object) -> Target:
        folder = self.root / "driver"
        if not folder.exists():
            write_driver(folder)
        base = Target(
            uid=uid,
            service=f"services/{uid}",
            app="echo",
            app_version="",
            endpoints={},
            options={},
            secrets=(),
            driver="drivers/echo-1.0.0",
            manifest=manifest_to_proto(load_manifest(folder)),
            folder=folder,
            runtime=RuntimeSpec(),
            slots=2,
            drain_timeout=10,
            generation=1,
        )
        return replace(base, **changes)

    async def until(self, condition: Callable[[], bool], what: str = "") -> None:
        """Waits until the condition holds, asked again at each change that the supervisor tells of."""
        changed = asyncio.Event()
        end = self.supervisor.subscribe(lambda _uid: changed.set())
        try:
            async with asyncio.timeout(LIMIT):
                while not condition():
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            states = {keeper: self.supervisor.state(keeper) for keeper in self.supervisor._keepers}
            raise AssertionError(
                f"not in {LIMIT} s: {what or condition}; {states}, {self.supervisor.sidecars()}"
            ) from None
        finally:
            end()

    async def ready(self, uid: str = "u1") -> str:
        """Waits until the service is READY and returns the instance that serves it."""
        await self.until(lambda: self.supervisor.state(uid)[0] is ServiceState.READY, "ready")
        return self.supervisor.endpoint(uid).instance

    async def call(self, uid: str = "u1", text: str = "hello") -> str:
        endpoint = self.supervisor.endpoint(uid)
        method = endpoint.channel.unary_unary("/test.v1.EchoService/Echo")
        return (await method(text.encode(), metadata=endpoint.metadata, timeout=60)).decode()

    def events(self, uid: str = "u1") -> list[str]:
        path = self.root / "data" / "state" / uid / "events"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
async def bench(
    request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Bench]:
    """Indirect parameters are changes of the policy."""
    flags: list[str] = []
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), "ONECONTAINER_SECRET_LEAKED": "yes"}

    def command(target: Target) -> list[str]:
        return [sys.executable, str(PROGRAM), str(target.folder), *flags]

    client_settings: dict[str, str] = {}

    def job_source(target: Target) -> driver_pb2.JobSource:
        kafka = driver_pb2.KafkaDispatch(topic=target.uid, client_settings=client_settings)
        return driver_pb2.JobSource(internal_target="unix:/nowhere", kafka=kafka, slots=target.slots)

    def post_of(service: str) -> Post:
        return Post(service.removeprefix("services/"), "drivers/echo-1.0.0", "echo", 2, "1.0.0", serves=True)

    run_dir = tmp_path_factory.mktemp("r")
    registrations = Registrations(
        "secret", post_of=post_of, clock=SystemClock(), lease=LIMIT, on_change=lambda uid: supervisor.tell(uid)
    )
    supervisor = Supervisor(
        [ProcessRuntime(command, environment), AttachedRuntime(registrations)],
        folders=Folders(tmp_path / "data", run_dir),
        secrets=SecretStore(tmp_path / "secrets", {}),
        clock=SystemClock(),
        policy=replace(POLICY, **getattr(request, "param", {})),
        job_source=job_source,
        registrations=registrations,
    )
    async with supervisor:
        yield Bench(tmp_path, supervisor, registrations, flags, client_settings)


@pytest.fixture
async def stranger(tmp_path: Path) -> AsyncIterator[Path]:
    """A sidecar that somebody else has started; its socket."""
    async with strange_sidecar(tmp_path, "stranger", token="the-stranger"):
        yield tmp_path / "stranger.sock"


@contextlib.asynccontextmanager
async def strange_sidecar(folder: Path, name: str, token: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
    """One that listens on `NAME.sock` in the folder, and asks for this token if there is one."""
    driver = write_driver(folder / "driver")
    state = folder / f"{name}-state"
    state.mkdir()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROGRAM),
        str(driver),
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": ":".join(sys.path),
            "ONECONTAINER_LISTEN": f"unix:{folder / name}.sock",
            "ONECONTAINER_STATE_DIR": str(state),
            "TEST_TOKEN": token,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(LIMIT):
        await process.stdout.readline()
    yield process
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
    process._transport.close()
