"""The one place that runs a handler: for direct calls, for DriverService.Run and for the worker's jobs."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import DecodeError, EncodeError, Message
from google.rpc import status_pb2

from onecontainer.driver.context import Context
from onecontainer.driver.isolation import InLoop, InThread, Isolation
from onecontainer.driver.methods import DriverMethod
from onecontainer.errors import (
    CapabilityMissing,
    DataInvalid,
    DriverExecutionFailed,
    DriverMisimplemented,
    MessageTooLarge,
    OneContainerError,
    Reason,
    WrongInstance,
)
from onecontainer.rpc import status

log = logging.getLogger(__name__)

IN_LOOP, IN_THREAD = InLoop(), InThread()
BACKEND_REASONS = frozenset(
    {Reason.BACKEND_EXECUTION_FAILED, Reason.BACKEND_UNREACHABLE, Reason.BACKEND_CAPABILITY_MISSING}
)


def isolation_of(method: DriverMethod) -> Isolation:
    """In the loop or in a thread, by what the handler is."""
    return IN_THREAD if method.threaded else IN_LOOP


class Execution:
    """One run of a handler, from its start to its real end, which for a thread may come long after it was told to stop."""

    def __init__(
        self, method: DriverMethod, context: Context, facts: dict[str, str], isolation: Isolation | None = None
    ) -> None:
        """`isolation` None: in the loop or in a thread, by what the handler is."""
        self.method = method
        self.context = context
        self.facts = facts
        """Metadata of its errors: service, driver, job, attempt."""
        self.stop_error: OneContainerError | None = None
        self._isolation: Isolation = isolation or isolation_of(method)
        self._task: asyncio.Task[Any] | None = None
        self._answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._handler_over = False
        self._ended = False

    def start(
        self,
        argument: Any,
        write: Callable[[bytes], Any] | None = None,
        on_end: Callable[[Execution], None] | None = None,
    ) -> None:
        """Starts the handler. `write` takes each serialised response of a stream."""
        self._task = asyncio.create_task(self._run(argument, write))
        self._task.add_done_callback(lambda task: self._end(task, on_end))

    async def _run(self, argument: Any, write: Callable[[bytes], Any] | None) -> Any:
        try:
            if write is None:
                return await self._isolation.run(self.method, argument, self.context, None)

            async def checked(response: Message) -> None:
                if self.stop_error is not None:
                    raise self.stop_error
                await write(self.encode(response))

            return await self._isolation.run(self.method, argument, self.context, checked)
        except SystemExit as error:
            # A library's sys.exit() would take the whole sidecar with it.
            raise DriverExecutionFailed(f"the handler called sys.exit({error.code!r})") from error
        finally:
            # From here on `stop` comes too late: it must not turn the handler's outcome into a cancellation.
            self._handler_over = True
            self.context._end_of_events()
            await self.context._close()

    def _end(self, task: asyncio.Task[Any], on_end: Callable[[Execution], None] | None) -> None:
        self._ended = True
        if not task.cancelled():
            # Looked at, even if nobody asks for the result any more: asyncio would log it as lost.
            task.exception()
        if not self._answer.done():
            self._answer.set_result(None)
        if on_end is not None:
            on_end(self)

    @property
    def ended(self) -> bool:
        return self._ended

    def stop(self, error: OneContainerError) -> None:
        """Tells the handler to stop; `error` is why, and what its caller gets. Again: without effect."""
        if self._handler_over or self._ended or self.stop_error is not None:
            return
        self.stop_error = error
        self.context._cancel()
        if self._isolation.cancellable and self._task is not None:
            self._task.cancel()
        if not self._answer.done():
            self._answer.set_result(None)

    def finish(self) -> None:
        """Tells the handler to end early and keep what is done."""
        self.context._finish()

    async def wait_answer(self) -> None:
        """Returns when there is something to answer: the handler has ended, or was told to stop. It may run on."""
        await asyncio.shield(self._answer)

    async def wait_end(self) -> None:
        """Returns when the handler has really ended."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    def result(self) -> Any:
        """What the handler returned. Raises the typed error that is to be answered with."""
        task = self._task
        assert task is not None
        if not task.done():
            assert self.stop_error is not None
            raise self.stop_error
        if task.cancelled():
            # Not told by us: the handler let out a CancelledError of its own, of a task or a client inside it.
            raise self.stop_error or DriverExecutionFailed("the handler was cancelled from within the driver")
        error = task.exception()
        if error is not None:
            raise self.typed(error)
        return task.result()

    def typed(self, error: BaseException) -> OneContainerError:
        """The typed error of what a handler raised. An unforeseen one goes to the log, under a reference, not to the caller."""
        if isinstance(error, OneContainerError):
            return with_hop(error)
        if self.stop_error is not None:
            # What breaks while it is being stopped is a consequence.
            log.info("%s ended with an error after it was told to stop", self.method.full_name, exc_info=error)
            return self.stop_error
        return unforeseen(error, self.method.full_name)

    def encode(self, response: object) -> bytes:
        """The response's bytes. Raises DriverMisimplemented if it is no response of this method."""
        return encode(self.method, response)


def with_hop(error: OneContainerError) -> OneContainerError:
    """The same error; one that tells of the backend arose there unless it says otherwise."""
    if error.hop is None and error.reason in BACKEND_REASONS:
        error.hop = "backend"
    return error


def to_status(error: BaseException) -> status_pb2.Status:
    """The status of an error, for methods that answer with one per row or item. An unforeseen error goes to the log, not into it."""
    return failure(error, "an item")


def failure(
    error: BaseException, where: str, facts: Mapping[str, str] | None = None, most: int = status.MAX_STATUS_BYTES
) -> status_pb2.Status:
    """The status of a failure, whatever it is: an unforeseen error, or a typed one that a driver made in a way that breaks.

    At most `most` bytes: a job's error has more room than that of a call. It does not raise. It is called where nobody is left to take
    an error, and an attempt without an outcome would never end.
    """
    typed = with_hop(error) if isinstance(error, OneContainerError) else unforeseen(error, where)
    metadata = dict(facts or {})
    try:
        return status.to_status(typed, hop="sidecar", metadata=metadata, most=most)
    except Exception as defect:  # noqa: BLE001 - a number that is none, say, as the driver's own `retry_after`
        defect.__cause__ = typed
        broken = unforeseen(defect, f"{where}, in the making of its {type(typed).__name__},")
        return status.to_status(broken, hop="sidecar", metadata=metadata)


def kept_of(error: BaseException) -> tuple[str, ...]:
    """Names of the artifacts that stay after this error."""
    return error.kept_artifacts if isinstance(error, OneContainerError) else ()


def unforeseen(error: BaseException, where: str) -> DriverExecutionFailed:
    """The error for an exception that the driver did not foresee: with a reference, under which the log has all of it."""
    reference = secrets.token_hex(6)
    log.error("%s failed, reference %s", where, reference, exc_info=error)
    return DriverExecutionFailed(
        f"the driver failed in {where} with an unforeseen {type(error).__name__}; its log has it under the reference {reference}",
        metadata={"log_reference": reference},
    )


def encode(method: DriverMethod, response: object) -> bytes:
    """A response's bytes. Raises DriverMisimplemented if the handler returned something else than the method's message."""
    if not isinstance(response, method.result_class):
        raise DriverMisimplemented(
            f"{method.full_name} must return {method.result_class.DESCRIPTOR.full_name}, but the driver returned {_kind(response)}"
        )
    try:
        return response.SerializeToString()
    except (EncodeError, ValueError) as error:
        raise DriverMisimplemented(f"the response of {method.full_name} cannot be serialised: {error}") from error


def _kind(response: object) -> str:
    return response.DESCRIPTOR.full_name if isinstance(response, Message) else type(response).__name__


def decode(method: DriverMethod, data: bytes, service: str) -> Message:
    """The request. Raises DataInvalid if the bytes are none, WrongInstance if it names another service."""
    try:
        request = method.request_class.FromString(data)
    except DecodeError as error:
        raise DataInvalid("", f"the request is no {method.request_class.DESCRIPTOR.full_name}: {error}") from error
    if method.has_service_field:
        named: str = request.service  # type: ignore[attr-defined]
        if named and named != service:
            raise WrongInstance(f"the request names {named!r}, but this sidecar serves {service!r}")
    return request


def check_size(size: int, limit: int, what: str) -> None:
    """Raises MessageTooLarge, which names the limit and the way around it."""
    if size > limit:
        raise MessageTooLarge(
            f"{what} has {size} bytes, more than the limit of {limit}: upload it as an artifact and pass its name",
            metadata={"limit_bytes": str(limit), "size_bytes": str(size)},
        )


def missing(method: str, driver: str) -> CapabilityMissing:
    return CapabilityMissing(f"the driver {driver} does not implement {method}", metadata={"method": method})
