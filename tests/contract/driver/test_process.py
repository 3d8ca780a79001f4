"""A driver of about 40 lines as a process: `python -m onecontainer.driver`, signals, parents, what is told to people."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from onecontainer import errors
from onecontainer.api.ai.v1 import inference_service_pb2 as ai_pb
from onecontainer.api.ai.v1 import inference_service_pb2_grpc
from onecontainer.api.driver.v1 import driver_pb2, driver_pb2_grpc
from onecontainer.driver.serve import PACKAGES_MISSING, serving
from onecontainer.driver.settings import SidecarSettings
from onecontainer.rpc.channel import open_channel
from tests.contract.driver.echo import MANIFEST, EchoDriver, in_time, until
from tests.contract.driver.test_direct_calls import error_of

METADATA = {
    "name": "tiny",
    "version": "0.1.0",
    "app": "tiny",
    "scope": "ai",
    "entry_point": "tiny_driver:TinyDriver",
    "services": ["onecontainer.api.ai.v1.InferenceService"],
}
MODULE = """
import asyncio
from pathlib import Path

from onecontainer.api.ai.v1.inference_service_pb2 import PredictRequest, PredictResponse
from onecontainer.driver import Attachment, Context, InferenceDriver, errors, main


class TinyDriver(InferenceDriver):
    async def attach(self, attachment: Attachment) -> None:
        self.state = attachment.state_dir

    async def predict(self, request: PredictRequest, context: Context) -> PredictResponse:
        if not request.model:
            raise errors.FieldRequired("model")
        (self.state / "entered").touch()
        while request.model == "slow" and not (self.state / "go").exists():
            await asyncio.sleep(0.005)
        while request.model == "stubborn":
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass
        return PredictResponse(model=f"{context.service}/models/{request.model}")


if __name__ == "__main__":
    main(TinyDriver)
"""


def write_driver(folder: Path, **changes: Any) -> Path:
    driver = folder / "driver"
    driver.mkdir()
    (driver / "metadata.json").write_text(json.dumps({**METADATA, **changes}))
    (driver / "tiny_driver.py").write_text(MODULE)
    return driver


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ONECONTAINER_")}
    return {
        **kept,
        "ONECONTAINER_LISTEN": f"unix:{folder}/s",
        "ONECONTAINER_STATE_DIR": f"{folder}/state",
        "ONECONTAINER_INSTANCE": "sidecars/tiny-1",
        **more,
    }


def command(driver: Path) -> list[str]:
    return [sys.executable, "-m", "onecontainer.driver", "--driver-dir", str(driver)]


class Process:
    def __init__(self, process: asyncio.subprocess.Process, channel: grpc.aio.Channel) -> None:
        self.process = process
        self.driver: Any = driver_pb2_grpc.DriverServiceStub(channel)
        self.ai: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)

    async def attach(self) -> None:
        await self.driver.Attach(
            driver_pb2.AttachRequest(service="services/t", service_uid="u", instance="sidecars/tiny-1", app="tiny"),
            wait_for_ready=True,
            timeout=180,
        )

    async def end(self) -> int:
        return await in_time(self.process.wait())  # type: ignore[no-any-return]


@asynccontextmanager
async def started(folder: Path, *arguments: str, **more: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(arguments or command(write_driver(folder))),
        env=environment(folder, **more),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with open_channel(f"unix:{folder}/s") as channel:
            yield Process(process, channel)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("start", ["module", "main"])
async def test_a_small_driver_serves(folder: Path, start: str) -> None:
    driver = write_driver(folder)
    arguments = command(driver) if start == "module" else [sys.executable, str(driver / "tiny_driver.py")]
    async with started(folder, *arguments) as process:
        await process.attach()
        answer = await process.ai.Predict(ai_pb.PredictRequest(service="services/t", model="cat"))
        assert answer.model == "services/t/models/cat"
        error = await error_of(process.ai.Predict(ai_pb.PredictRequest()))
        assert [violation.field for violation in error.violations] == ["model"]
        error = await error_of(process.ai.GetUsage(ai_pb.GetUsageRequest()))
        assert error.reason is errors.Reason.CAPABILITY_MISSING
        process.process.send_signal(signal.SIGTERM)
        assert await process.end() == 0


async def wait_for_file(path: Path) -> None:
    await until(path.exists)


async def test_sigterm_lets_running_calls_end(folder: Path) -> None:
    async with started(folder) as process:
        await process.attach()
        call = asyncio.ensure_future(process.ai.Predict(ai_pb.PredictRequest(model="slow")))
        await wait_for_file(folder / "state" / "entered")
        process.process.send_signal(signal.SIGTERM)

        async def refused() -> None:
            while (await error_of(process.ai.Predict(ai_pb.PredictRequest()))).reason is not errors.Reason.DRAINING:
                pass

        await in_time(refused())
        (folder / "state" / "go").touch()
        assert (await in_time(call)).model == "services/t/models/slow"
        assert await process.end() == 0


async def test_sigterm_aborts_what_does_not_end(folder: Path) -> None:
    async with started(folder, ONECONTAINER_STOP_TIMEOUT="0.1") as process:
        await process.attach()
        call = asyncio.ensure_future(error_of(process.ai.Predict(ai_pb.PredictRequest(model="slow"))))
        await wait_for_file(folder / "state" / "entered")
        process.process.send_signal(signal.SIGTERM)
        assert (await in_time(call)).reason is errors.Reason.DRAINING
        assert await process.end() == 0


async def test_a_handler_that_does_not_let_go_does_not_hold_up_the_end(folder: Path) -> None:
    async with started(folder, ONECONTAINER_STOP_TIMEOUT="0.1") as process:
        await process.attach()
        call = asyncio.ensure_future(error_of(process.ai.Predict(ai_pb.PredictRequest(model="stubborn"))))
        await wait_for_file(folder / "state" / "entered")
        process.process.send_signal(signal.SIGTERM)
        assert (await in_time(call)).reason is errors.Reason.DRAINING
        assert await process.end() == 0


STUCK = """
        if request.model == "stuck":
            helper = subprocess.Popen(["sleep", "600"])
            (self.state / "pids.part").write_text(f"{os.getpid()} {helper.pid}")
            (self.state / "pids.part").replace(self.state / "pids")
            threading.Event().wait()
"""


def isolating(module: str) -> str:
    """The tiny driver with an isolated `predict`, which gets stuck if it is told to."""
    module = module.replace("import asyncio\n", "import asyncio\nimport os\nimport subprocess\nimport threading\n")
    module = module.replace("errors, main", "errors, isolated, main")
    first = "    async def predict(self, request: PredictRequest, context: Context) -> PredictResponse:\n"
    return module.replace(first, f"    @isolated\n{first}{STUCK}")


def is_there(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("start", ["module", "main"])
async def test_isolated_handlers_end_with_a_sidecar_that_is_killed(folder: Path, start: str) -> None:
    """However the driver was started its child finds the class, and `kill -9` of it leaves nothing."""
    driver = write_driver(folder)
    module = driver / "tiny_driver.py"
    module.write_text(isolating(module.read_text()))
    arguments = command(driver) if start == "module" else [sys.executable, str(module)]
    async with started(folder, *arguments) as process:
        await process.attach()
        call = asyncio.ensure_future(error_of(process.ai.Predict(ai_pb.PredictRequest(model="stuck"))))
        await wait_for_file(folder / "state" / "pids")
        pids = [int(pid) for pid in (folder / "state" / "pids").read_text().split()]
        assert all(map(is_there, pids))
        process.process.kill()
        await until(lambda: not any(map(is_there, pids)))
        assert (await in_time(call)).code is errors.Code.UNAVAILABLE


@pytest.fixture
def certificate(folder: Path) -> Path:
    """A folder with a self-signed certificate of localhost: tls.crt and tls.key."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt"), "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return folder


async def test_it_serves_with_tls_and_refuses_to_without_where_others_may_come(folder: Path, certificate: Path) -> None:
    (folder / "token").write_text("s3cret")
    settings = SidecarSettings(
        listen="127.0.0.1:0",
        tls_cert_file=certificate / "tls.crt",
        tls_key_file=certificate / "tls.key",
        token_file=folder / "token",
    )
    async with (
        serving(EchoDriver(), MANIFEST, settings) as server,
        open_channel(server.target, ca_file=certificate / "tls.crt") as channel,
    ):
        stub: Any = driver_pb2_grpc.DriverServiceStub(channel)
        bearer = (("authorization", "Bearer s3cret"),)
        info = await stub.GetDriverInfo(driver_pb2.GetDriverInfoRequest(), metadata=bearer, timeout=180)
        assert info.manifest.name == "echo"
    assert "not loopback" in run(folder, write_driver(folder), ONECONTAINER_LISTEN="0.0.0.0:0").stderr


async def test_ctrl_c_is_the_parents_to_decide(folder: Path) -> None:
    async with started(folder, ONECONTAINER_PARENT_PID=str(os.getpid())) as process:
        await process.attach()
        process.process.send_signal(signal.SIGINT)
        answer = await process.ai.Predict(ai_pb.PredictRequest(model="cat"))
        assert answer.model == "services/t/models/cat"
        process.process.send_signal(signal.SIGTERM)
        assert await process.end() == 0


async def test_ctrl_c_stops_one_that_stands_for_itself(folder: Path) -> None:
    async with started(folder) as process:
        await process.attach()
        process.process.send_signal(signal.SIGINT)
        assert await process.end() == 0


def run(folder: Path, driver: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(driver), env=environment(folder, **more), capture_output=True, text=True, timeout=60, check=False
    )


def test_a_parent_that_has_gone_already(folder: Path) -> None:
    result = run(folder, write_driver(folder), ONECONTAINER_PARENT_PID="1")
    assert result.returncode == 3
    assert "process 1, which started this sidecar, has ended" in result.stderr


def _without_module(driver: Path) -> None:
    module = driver / "tiny_driver.py"
    module.write_text("import there_is_no_such_module\n" + module.read_text())
    (driver / "pyproject.toml").write_text(
        '[project]\nname = "tiny"\nversion = "1"\ndependencies = ["there-is-no-such-package>=2", "grpcio"]\n'
    )


def _bad_metadata(driver: Path) -> None:
    (driver / "metadata.json").write_text(json.dumps({**METADATA, "app": 7}))


def _no_metadata(driver: Path) -> None:
    (driver / "metadata.json").unlink()


def _no_class(driver: Path) -> None:
    (driver / "metadata.json").write_text(json.dumps({**METADATA, "entry_point": "tiny_driver:asyncio"}))


def _other_services(driver: Path) -> None:
    (driver / "metadata.json").write_text(json.dumps({**METADATA, "services": ["a.B"]}))


def _wrong_shape(driver: Path) -> None:
    module = driver / "tiny_driver.py"
    module.write_text(module.read_text().replace("return PredictResponse", "yield PredictResponse"))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_bad_metadata, "metadata.app"),
        (_no_metadata, "metadata.json cannot be read"),
        (_no_class, "is no subclass of onecontainer.driver.Driver"),
        (_other_services, "metadata.json lists the services ['a.B']"),
        (_wrong_shape, "TinyDriver.predict must return one message"),
    ],
)
def test_what_is_wrong_with_a_driver_is_told_in_a_line(folder: Path, spoil: Callable[[Path], None], told: str) -> None:
    driver = write_driver(folder)
    spoil(driver)
    result = run(folder, driver)
    assert result.returncode == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_missing_packages_have_an_exit_code_of_their_own(folder: Path) -> None:
    driver = write_driver(folder)
    _without_module(driver)
    result = run(folder, driver)
    assert result.returncode == PACKAGES_MISSING
    assert "python" in sys.executable
    assert f"{sys.executable} -m pip install 'there-is-no-such-package>=2'" in result.stderr


def test_what_is_wrong_with_the_place_is_told_in_a_line(folder: Path, tmp_path: Path) -> None:
    driver = write_driver(folder)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        taken = run(folder, driver, ONECONTAINER_LISTEN=address)
    assert (taken.returncode, taken.stderr.splitlines()[-1]) == (
        1,
        f"cannot listen on {address}: is something else there already?",
    )
    (tmp_path / "pem").write_text("no certificate")
    pem = {f"ONECONTAINER_TLS_{name}_FILE": str(tmp_path / "pem") for name in ("CERT", "KEY")}
    wrong = run(folder, driver, ONECONTAINER_LISTEN="127.0.0.1:0", **pem)
    assert wrong.returncode == 2
    assert "are no PEM certificate and its private key" in wrong.stderr.splitlines()[-1]
    unsafe = run(folder, driver, ONECONTAINER_LISTEN="0.0.0.0:0")
    assert (unsafe.returncode, len(unsafe.stderr.splitlines())) == (2, 1)
    assert unsafe.stderr.startswith("listen is 0.0.0.0:0, not loopback: that needs tls_cert_file")
