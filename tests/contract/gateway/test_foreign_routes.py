"""Calls whose contract is somebody else's: the relay finds their service by the option `route`, and answers what needs none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from onecontainer.catalog.methods import MethodRoute
from onecontainer.errors import CredentialsInvalid, DataInvalid, FieldRequired, OneContainerError, ResourceNotFound
from tests.contract.gateway.test_relay import Bench
from tests.fakes.routes import FakeMethod

FIELD_2 = {"field": 2, "answer": None}


def text(number: int, value: str) -> bytes:
    """A text field on the wire."""
    return bytes([number << 3 | 2, len(value)]) + value.encode()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with Bench(tmp_path) as ready:
        yield ready


def declare(bench: Bench, name: str, **rule: Any) -> None:
    known = bench.router.methods[f"test.Echo/{name}"]
    route = MethodRoute(**rule)
    bench.router.methods[known.full_name] = FakeMethod(
        known.full_name, client_streaming=known.client_streaming, server_streaming=known.server_streaming, route=route
    )


@pytest.mark.parametrize("value", ["cat", "cat/model", "cat/", "services/cat", "services/cat/models/model"])
@pytest.mark.parametrize("name", ["Unary", "Both"])
async def test_the_field_that_is_told_names_the_service(bench: Bench, name: str, value: str) -> None:
    declare(bench, name, **FIELD_2)
    request = text(1, "services/none") + text(2, value)
    assert await bench.call(name, request) == [request]
    assert bench.sidecar.metadata["onecontainer-service"] == "services/cat"


async def test_the_last_one_on_the_wire_wins(bench: Bench) -> None:
    declare(bench, "Unary", **FIELD_2)
    request = text(2, "none") + text(2, "cat")
    assert await bench.call("Unary", request) == [request]


async def test_metadata_goes_before_the_field_which_may_name_a_model_alone(bench: Bench) -> None:
    declare(bench, "Unary", **FIELD_2)
    request = text(2, "resnet")
    assert await bench.call("Unary", request, onecontainer_service="services/cat") == [request]


@pytest.mark.parametrize(
    ("request_", "kind", "words"),
    [
        (b"", FieldRequired, "onecontainer-service"),
        (text(1, "services/cat"), FieldRequired, "onecontainer-service"),
        (text(2, "/model"), FieldRequired, "onecontainer-service"),
        (text(2, "none/model"), ResourceNotFound, "services/none"),
        (b"\x12\xff", DataInvalid, "does not decode"),
    ],
)
async def test_what_has_no_route(bench: Bench, request_: bytes, kind: type[OneContainerError], words: str) -> None:
    declare(bench, "Unary", **FIELD_2)
    with pytest.raises(kind, match=words):
        await bench.call("Unary", request_)


async def test_without_a_field_only_metadata_names_the_service(bench: Bench) -> None:
    declare(bench, "Unary", field=0, answer=None)
    with pytest.raises(FieldRequired, match="onecontainer-service"):
        await bench.call("Unary", text(1, "services/cat"))
    assert await bench.call("Unary", b"", onecontainer_service="services/cat") == [b""]


async def test_what_needs_no_service_is_answered_by_the_gateway(bench: Bench) -> None:
    declare(bench, "Unary", field=0, answer=b"here")
    assert await bench.call("Unary", b"") == [b"here"]
    assert not bench.sidecar.entered.is_set()
    assert await bench.call("Unary", b"", onecontainer_service="services/cat") == [b""]
    assert bench.sidecar.entered.is_set()
    with pytest.raises(CredentialsInvalid):
        await bench.call("Unary", b"", authorization="Bearer wrong")
