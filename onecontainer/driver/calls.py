"""Direct calls: the driver's services, served under their own names, all four call shapes.

The handler runs in a task of its own and the gRPC task waits for it. So a handler that lets a CancelledError out, or that does not
let go when it is cancelled, cannot leave its caller without an answer (grpc #29248), and we know of the end of a call by the
cancellation of the gRPC task, never by asking `context.cancelled()` (grpc #36193).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, cast

import grpc
from google.protobuf.message import Message

from onecontainer.driver.auth import REQUEST_ID_KEY
from onecontainer.driver.context import CallFacts
from onecontainer.driver.isolation import Requests
from onecontainer.driver.lifecycle import Sidecar
from onecontainer.driver.methods import DriverMethod
from onecontainer.driver.runs import Execution, check_size, decode
from onecontainer.errors import Cancelled, DeadlineExceeded, FieldInvalid, MethodUnknown, NeedsGateway, WrongInstance
from onecontainer.rpc import status
from onecontainer.rpc.server import Context as GrpcContext
from onecontainer.rpc.streams import confirm_end


def deadline_margin(remaining: float) -> float:
    """So much before its caller gives up a call is ended here, so that the answer says which process it was in.

    It is relative because gRPC rounds a timeout up on its way here: by up to 1 %, by a second at the most.
    """
    return min(remaining * 0.5, 0.05 + 0.02 * remaining, 2.0)


class DriverServices(grpc.GenericRpcHandler):
    """All methods of the driver's services, and a typed answer for every other name."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._handlers = {
            f"/{method.full_name}": _HANDLERS[method.client_streaming, method.server_streaming](
                _Entry(sidecar, method).behaviour()
            )
            for method in sidecar.methods.values()
        }
        self._unknown: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(_unknown)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        # The last handler that is asked: what no other service of this server is.
        return self._handlers.get(handler_call_details.method, self._unknown)


def time_remaining(context: GrpcContext) -> float | None:
    """Seconds until the caller's deadline, None if it set none (which gRPC's type stubs do not know)."""
    return cast("float | None", context.time_remaining())


async def _unknown(_requests: Any, context: GrpcContext) -> None:
    await status.abort(context, MethodUnknown("this sidecar has no method of that name"), hop="sidecar")


_HANDLERS: dict[tuple[bool, bool], Callable[..., grpc.RpcMethodHandler[Any, Any]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class _Entry:
    """One method as gRPC calls it: bytes in, bytes out."""

    def __init__(self, sidecar: Sidecar, method: DriverMethod) -> None:
        self._sidecar = sidecar
        self._method = method
        self._limit = sidecar.settings.max_message_bytes

    def behaviour(self) -> Callable[[Any, GrpcContext], Awaitable[Any]]:
        return self._streamed if self._method.server_streaming else self._single

    async def _single(self, request: Any, context: GrpcContext) -> bytes:
        execution: Execution | None = None
        timer: asyncio.TimerHandle | None = None
        try:
            execution = self._enter(context)
            execution.start(self._argument(request, context, execution), None, self._sidecar.ended)
            timer = self._arm(execution)
            await execution.wait_answer()
            response = execution.encode(execution.result())
            check_size(len(response), self._limit, "the response")
            return response
        except BaseException as error:
            await self._fail(error, execution, context)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    async def _streamed(self, request: Any, context: GrpcContext) -> None:
        execution: Execution | None = None
        timer: asyncio.TimerHandle | None = None

        async def write(response: bytes) -> None:
            check_size(len(response), self._limit, "a response")
            try:
                await context.write(response)
            except Exception as error:
                raise Cancelled("the caller has gone away", hop="sidecar") from error

        try:
            execution = self._enter(context)
            execution.start(self._argument(request, context, execution), write, self._sidecar.ended)
            timer = self._arm(execution)
            await execution.wait_answer()
            execution.result()
        except BaseException as error:
            await self._fail(error, execution, context)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _enter(self, context: GrpcContext) -> Execution:
        """Checks whether the call may begin. Raises what it is to be refused with."""
        sidecar = self._sidecar
        metadata = context.invocation_metadata() or ()
        call = sidecar.authenticator.authenticate(metadata)
        method = sidecar.method(self._method.full_name)
        if method.long_running:
            raise NeedsGateway(f"{method.full_name} takes long and is run as a job: call it through the gateway")
        remaining = time_remaining(context)
        facts = CallFacts(
            service=sidecar.service,
            principal=call.principal,
            request_id=call.metadata.get(REQUEST_ID_KEY, ""),
            traceparent=call.traceparent,
            deadline=None if remaining is None else asyncio.get_running_loop().time() + remaining,
            metadata=call.metadata,
        )
        return sidecar.begin(method, facts)

    def _argument(self, request: Any, context: GrpcContext, execution: Execution) -> Any:
        try:
            if not self._method.client_streaming:
                return self._decode(request)
            counted = count()
            return Requests(lambda: self._read(context, execution, next(counted)), asyncio.get_running_loop())
        except BaseException:
            self._sidecar.ended(execution)
            raise

    def _decode(self, data: bytes) -> Message:
        check_size(len(data), self._limit, "the request")
        return decode(self._method, data, self._sidecar.service)

    async def _read(self, context: GrpcContext, execution: Execution, number: int) -> Message | None:
        """The next request, None at the end of the stream. Raises if the call has ended meanwhile.

        The first one brings the call here. A later one that names another service is the caller's mistake, not a wrong address.
        """
        data = await context.read()
        if data is grpc.aio.EOF:
            await confirm_end(context)
        if execution.stop_error is not None:
            raise execution.stop_error
        if data is grpc.aio.EOF:
            return None
        try:
            return self._decode(data)
        except WrongInstance as error:
            if number == 0:
                raise
            raise FieldInvalid("service", f"the stream is for {self._sidecar.service!r}") from error

    def _arm(self, execution: Execution) -> asyncio.TimerHandle | None:
        remaining = execution.context.time_remaining()
        if remaining is None:
            return None
        error = DeadlineExceeded(f"{self._method.full_name} did not end within its deadline", hop="sidecar")
        return asyncio.get_running_loop().call_later(remaining - deadline_margin(remaining), execution.stop, error)

    async def _fail(self, error: BaseException, execution: Execution | None, context: GrpcContext) -> None:
        """Ends the call with this error; returns if there is nobody any more to tell it to."""
        if isinstance(error, asyncio.CancelledError):
            # Only gRPC cancels this task, and only when its call is over: the caller has gone, or its deadline has passed.
            if execution is not None:
                execution.stop(Cancelled("the caller has gone away", hop="sidecar"))
            return
        if isinstance(error, grpc.aio.AbortError) or not isinstance(error, Exception):
            return
        facts = self._sidecar.facts if execution is None else execution.facts
        await status.abort(context, error, hop="sidecar", metadata=facts)
