"""What a class implements of its services, and what is wrong with a handler, before anything runs."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from onecontainer.driver import DatabaseDriver, Driver, InferenceDriver, MediaDriver, isolated
from onecontainer.driver.methods import handler_name, methods_of, snake_case
from onecontainer.errors import DriverMisimplemented


def implemented(driver: Driver) -> set[str]:
    found = methods_of(driver, driver.services).values()
    return {method.full_name.rpartition("/")[2] for method in found if method.handler is not None}


@pytest.mark.parametrize("base", [InferenceDriver, DatabaseDriver, MediaDriver])
def test_a_base_class_has_a_signature_for_every_method_and_implements_none(base: type[Driver]) -> None:
    assert implemented(base()) == set()
    for service in base.services:
        for method in service.methods:
            assert callable(getattr(base, handler_name(service.name, method.name))), method.full_name
    names = {handler_name(service.name, method.name) for service in base.services for method in service.methods}
    declared = {name for name in vars(base) if not name.startswith("_") and name not in {"services", "facades"}}
    assert declared == names


def test_what_is_overridden_is_announced_with_its_shape() -> None:
    class Mine(DatabaseDriver):
        async def get_table(self, request: Any, context: Any) -> Any:
            return None

        def list_tables(self, request: Any, context: Any) -> Any:
            return None

        async def stream_records(self, request: Any, context: Any) -> AsyncIterator[Any]:
            yield None

    methods = methods_of(Mine(), Mine.services)
    assert implemented(Mine()) == {"GetTable", "ListTables", "StreamRecords"}
    get = methods["onecontainer.api.db.v1.DatabaseService/GetTable"]
    assert (get.threaded, get.runnable, get.long_running, get.has_service_field) == (False, True, False, True)
    assert methods["onecontainer.api.db.v1.DatabaseService/ListTables"].threaded
    stream = methods["onecontainer.api.db.v1.DatabaseService/StreamRecords"]
    assert stream.server_streaming
    assert not stream.runnable


def test_a_long_running_method_returns_its_result_type() -> None:
    class Mine(MediaDriver):
        async def run_pipeline(self, request: Any, context: Any) -> Any:
            return None

        async def probe_media(self, request: Any, context: Any) -> Any:
            return None

    methods = methods_of(Mine(), Mine.services)
    pipeline = methods["onecontainer.api.media.v1.MediaService/RunPipeline"]
    assert pipeline.long_running
    assert pipeline.finishable
    assert pipeline.result_class.DESCRIPTOR.full_name == "onecontainer.api.media.v1.RunPipelineResult"
    # The driver's own `probe` is another thing: whether its backend works.
    assert methods["onecontainer.api.media.v1.MediaService/Probe"].handler is not None


def _decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapped(*arguments: Any) -> Any:
        return await function(*arguments)

    return wrapped


def test_a_decorated_handler_is_what_its_wrapper_is() -> None:
    class Mine(InferenceDriver):
        @_decorated
        async def predict(self, request: Any, context: Any) -> Any:
            return None

    assert not methods_of(Mine(), Mine.services)["onecontainer.api.ai.v1.InferenceService/Predict"].threaded


def test_isolation_is_declared_beside_the_handler_and_kept_by_decorators() -> None:
    class Mine(DatabaseDriver):
        @isolated
        async def get_table(self, request: Any, context: Any) -> Any:
            return None

        @_decorated
        @isolated
        def list_tables(self, request: Any, context: Any) -> Any:
            return None

        def drop_table(self, request: Any, context: Any) -> Any:
            return None

    class Other(Mine):
        def list_tables(self, request: Any, context: Any) -> Any:
            return None

    def isolated_in(driver: Driver) -> set[str]:
        found = methods_of(driver, driver.services).values()
        return {method.full_name.rpartition("/")[2] for method in found if method.isolated}

    assert isolated_in(Mine()) == {"GetTable", "ListTables"}
    assert isolated_in(Other()) == {"GetTable"}  # who overrides a handler declares it anew


class UnaryAsyncGenerator(DatabaseDriver):
    async def get_table(self, request: Any, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        yield None


class UnaryGenerator(DatabaseDriver):
    def get_table(self, request: Any, context: Any) -> Iterator[Any]:  # type: ignore[override]
        yield None


class StreamCoroutine(DatabaseDriver):
    async def stream_records(self, request: Any, context: Any) -> Any:
        return []


class StreamFunction(DatabaseDriver):
    def stream_records(self, request: Any, context: Any) -> Any:
        return []


class NoMethod(DatabaseDriver):
    get_table = 7  # type: ignore[assignment]


class IsolatedStream(DatabaseDriver):
    @isolated
    async def stream_records(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield None


class IsolatedClientStream(DatabaseDriver):
    @isolated
    async def bulk_insert(self, requests: Any, context: Any) -> Any:
        return None


class IsolatedProbe(DatabaseDriver):
    @isolated
    def probe(self) -> Any:
        return None


@pytest.mark.parametrize(
    "cls",
    [
        *(UnaryAsyncGenerator, UnaryGenerator, StreamCoroutine, StreamFunction, NoMethod),
        *(IsolatedStream, IsolatedClientStream, IsolatedProbe),
    ],
)
def test_a_handler_of_the_wrong_kind_is_found_at_the_start(cls: type[Driver]) -> None:
    with pytest.raises(DriverMisimplemented, match=cls.__name__):
        methods_of(cls(), cls.services)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("GetTable", "get_table"), ("ListHTTPRoutes", "list_http_routes"), ("Run2D", "run2_d"), ("X", "x")],
)
def test_snake_case(name: str, expected: str) -> None:
    assert snake_case(name) == expected


def test_an_ai_driver_leaves_the_contracts_of_others_alone_until_its_metadata_lists_them() -> None:
    """Protobuf has one pool: a driver that uses tritonclient could not be imported beside our stubs of its contract."""
    code = (
        "import sys; from onecontainer.driver import InferenceDriver; "
        "sys.exit(any(name.startswith('onecontainer.api.third_party.') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
