"""The methods of a driver: what its services declare, and what its class implements of that."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from onecontainer.api.options.v1 import options_pb2
from onecontainer.errors import DriverMisimplemented

if TYPE_CHECKING:
    from onecontainer.driver.driver import Driver
    from onecontainer.driver.facade import Facade

LIFE_CYCLE = frozenset({"attach", "detach", "probe"})
_MARK = "__onecontainer_not_implemented__"
_ISOLATED_MARK = "__onecontainer_isolated__"

F = TypeVar("F", bound=Callable[..., Any])


def not_implemented(function: F) -> F:
    """Marks a base class's signature: a driver that does not override it does not have the method."""
    setattr(function, _MARK, True)
    return function


def isolated(function: F) -> F:
    """Declares `isolation: process`: each run of this handler is in a child process, which is killed when the run is aborted.

        class MyDriver(InferenceDriver):
            @isolated
            def batch_predict(self, request: BatchPredictRequest, context: Context) -> BatchPredictResult: ...

    For code that can be told in no other way: it blocks in a library and never looks at `context.cancelled`. One request, one
    response; `def` or `async def`. The child has a driver object of its own, made and attached like the sidecar's: what other
    handlers have kept in `self` is not there.
    """
    setattr(function, _ISOLATED_MARK, True)
    return function


@dataclass(frozen=True, slots=True)
class DriverMethod:
    """A method of a service, and the driver's handler of it.

    `result_class` is what the handler returns: the response, or the `result_type` of a long-running method.
    `handler` is None for a method that the driver does not implement.
    """

    full_name: str
    request_class: type[Message]
    result_class: type[Message]
    client_streaming: bool
    server_streaming: bool
    long_running: bool
    finishable: bool
    threaded: bool
    isolated: bool
    handler: Callable[..., Any] | None
    has_service_field: bool

    @property
    def runnable(self) -> bool:
        """Whether it can be an attempt of a job: implemented, one request, one result."""
        return self.handler is not None and not self.client_streaming and not self.server_streaming


def snake_case(name: str) -> str:
    """`GetTable` → `get_table`, `ListHTTPRoutes` → `list_http_routes`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def handler_name(service: str, method: str) -> str:
    """The attribute that handles a method: its snake_case name.

    One that a life-cycle method of the driver has already gets its vertical added: `MediaService.Probe` → `probe_media`.
    """
    name = snake_case(method)
    return f"{name}_{snake_case(service.removesuffix('Service'))}" if name in LIFE_CYCLE else name


def methods_of(driver: Driver | Facade, services: Iterable[ServiceDescriptor]) -> Mapping[str, DriverMethod]:
    """All methods of the services by full name, each with the driver's handler.

    Raises DriverMisimplemented for a handler of the wrong kind: this is found when the sidecar starts, not at the first call.
    """
    services = tuple(services)
    found = [_method_of(driver, service, method) for service in services for method in service.methods]
    _check_isolated(
        type(driver), {handler_name(service.name, method.name) for service in services for method in service.methods}
    )
    return {method.full_name: method for method in found}


def _check_isolated(owner: type, handlers: set[str]) -> None:
    """A mark on something that is never run as a handler would be a promise that nobody keeps."""
    for name in dir(owner):
        if name not in handlers and getattr(inspect.getattr_static(owner, name), _ISOLATED_MARK, False):
            raise DriverMisimplemented(f"{owner.__name__}.{name} is declared isolated, but it handles no method")


def _method_of(driver: Driver | Facade, service: ServiceDescriptor, method: MethodDescriptor) -> DriverMethod:
    options = method.GetOptions()
    long_running = options.HasExtension(options_pb2.long_running)
    declared = options.Extensions[options_pb2.long_running]
    result_type = method.output_type
    if long_running:
        try:
            result_type = service.file.pool.FindMessageTypeByName(declared.result_type)
        except KeyError:
            raise DriverMisimplemented(
                f"{service.full_name}/{method.name} declares the result type {declared.result_type!r}, which is unknown"
            ) from None
    name = handler_name(service.name, method.name)
    handler = getattr(driver, name, None)
    if handler is not None and getattr(handler, _MARK, False):
        handler = None
    is_isolated = handler is not None and getattr(handler, _ISOLATED_MARK, False)
    if is_isolated and (method.client_streaming or method.server_streaming):
        raise DriverMisimplemented(
            f"{type(driver).__name__}.{name} is declared isolated, but {method.name} has streams: an isolated handler has one "
            "request and one response"
        )
    service_field = method.input_type.fields_by_name.get("service")
    return DriverMethod(
        full_name=f"{service.full_name}/{method.name}",
        request_class=message_factory.GetMessageClass(method.input_type),
        result_class=message_factory.GetMessageClass(result_type),
        client_streaming=method.client_streaming,
        server_streaming=method.server_streaming,
        long_running=long_running,
        finishable=long_running and declared.finishable,
        threaded=handler is not None and _is_threaded(type(driver), name, handler, method.server_streaming),
        isolated=is_isolated,
        handler=handler,
        has_service_field=service_field is not None
        and service_field.number == 1
        and service_field.type == service_field.TYPE_STRING,
    )


def _is_threaded(owner: type, name: str, handler: Callable[..., Any], server_streaming: bool) -> bool:
    where = f"{owner.__name__}.{name}"
    asynchronous, threaded = inspect.iscoroutinefunction(handler), inspect.isfunction(inspect.unwrap(handler))
    threaded = threaded or inspect.ismethod(handler)
    if server_streaming:
        if inspect.isasyncgenfunction(handler):
            return False
        if inspect.isgeneratorfunction(handler):
            return True
        raise DriverMisimplemented(f"{where} must be a generator: `async def` or `def` with `yield`")
    if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
        raise DriverMisimplemented(f"{where} must return one message, but it is a generator")
    if asynchronous:
        return False
    if threaded:
        return True
    raise DriverMisimplemented(f"{where} must be a method")
