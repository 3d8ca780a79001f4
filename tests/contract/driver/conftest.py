"""A sidecar with the echo driver, on a UNIX socket, and a channel to it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from onecontainer.api.driver.v1 import driver_pb2, driver_pb2_grpc
from onecontainer.driver.serve import SidecarServer, serving
from onecontainer.driver.settings import SidecarSettings
from onecontainer.rpc.channel import open_channel
from tests.contract.driver.echo import MANIFEST, SERVICE, EchoDriver, EchoRequest, EchoResponse
from tests.fixtures.sending import sending

ATTACH = driver_pb2.AttachRequest(
    service="services/echo-1", service_uid="uid-1", instance="sidecars/echo-1", app="echo", app_version="1.0"
)


class Calls:
    """The echo service as a client sees it, by names."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.driver: Any = driver_pb2_grpc.DriverServiceStub(channel)
        shapes = {
            (False, False): channel.unary_unary,
            (False, True): channel.unary_stream,
            (True, False): channel.stream_unary,
            (True, True): channel.stream_stream,
        }
        for method in SERVICE.methods:
            make = shapes[method.client_streaming, method.server_streaming]
            call = make(
                f"/{SERVICE.full_name}/{method.name}",
                request_serializer=EchoRequest.SerializeToString,
                response_deserializer=EchoResponse.FromString,
            )
            setattr(self, method.name, partial(_sent, call) if method.client_streaming else call)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def _sent(make: Any, requests: Any, **arguments: Any) -> Any:
    return sending(make(**arguments), requests)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short temporary folder: the path of a UNIX socket has at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="oc-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def settings(folder: Path) -> SidecarSettings:
    return SidecarSettings(
        listen=f"unix:{folder}/s", state_dir=folder / "state", scratch_dir=folder / "scratch", stop_timeout=5.0
    )


@pytest.fixture
async def driver() -> EchoDriver:
    return EchoDriver()


@pytest.fixture
async def server(driver: EchoDriver, settings: SidecarSettings) -> AsyncIterator[SidecarServer]:
    async with serving(driver, MANIFEST, settings) as server:
        yield server
        driver.release.set()
        driver.thread_release.set()


@pytest.fixture
async def detached(server: SidecarServer) -> AsyncIterator[Calls]:
    async with open_channel(server.target) as channel:
        yield Calls(channel)


@pytest.fixture
async def calls(detached: Calls) -> Calls:
    await detached.driver.Attach(ATTACH)
    return detached
