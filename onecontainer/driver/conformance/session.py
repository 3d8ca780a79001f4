"""One driver under test: what is known of it, and how it is called."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import DecodeError, Message

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.driver.conformance.contract import ContractUnknown, Method, Reflection, methods_from_set, own_methods
from onecontainer.driver.conformance.model import Failed, Skipped
from onecontainer.driver.conformance.place import Place
from onecontainer.driver.conformance.servicer import Desk
from onecontainer.driver.conformance.wire import Answer, Talk, Wire
from onecontainer.errors import Code
from onecontainer.rpc.status import duration
from onecontainer.rpc.structs import struct_from_dict

if TYPE_CHECKING:
    from onecontainer.driver.conformance.examples import Examples

M = TypeVar("M", bound=Message)
DRIVER_SERVICE = "onecontainer.api.driver.v1.DriverService"
SERVICE, OTHER_SERVICE = "services/conformance", "services/conformance-other"
TERMINAL = frozenset({"succeeded", "failed", "stopped"})
"""Events of Run that tell how the attempt ended."""
PROMPT_SECONDS = 5.0
"""What "at once" means: an end that was told, an answer that needs no backend."""


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """The service that the kit attaches the driver to.

    Attributes:
        app: empty: the app of the driver's manifest.
        broken_endpoints, broken_options: what makes the backend unreachable, laid over the others. Both empty: not tested.
    """

    app: str = ""
    app_version: str = ""
    endpoints: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    broken_endpoints: Mapping[str, str] = field(default_factory=dict)
    broken_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def can_break(self) -> bool:
        return bool(self.broken_endpoints or self.broken_options)


def same_message(message: Message) -> object:
    """What of an answer is compared: all of it."""
    return message.SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class Sample:
    """A unary call without side effects, which gives the same answer each time. `normal` leaves out what may differ, a time taken, say."""

    method: Method
    request: Message
    normal: Callable[[Message], object] = same_message


@dataclass(frozen=True, slots=True)
class Slow:
    """A request that keeps its method busy for longer than the kit waits; with `held` as long as the desk holds downloads back."""

    method: Method
    request: Message
    held: bool = False
    finishes: bool = True
    """Whether it can come to an early end with what is done."""


@dataclass(frozen=True, slots=True)
class RunEnd:
    """All events of a Run, and how its stream ended."""

    events: tuple[driver_pb2.RunResponse, ...]
    answer: Answer

    @property
    def terminal(self) -> driver_pb2.RunResponse:
        """The event that tells the outcome: the first that does. Empty if there is none."""
        return next((event for event in self.events if event.WhichOneof("event") in TERMINAL), driver_pb2.RunResponse())

    @property
    def kinds(self) -> list[str]:
        return [str(event.WhichOneof("event")) for event in self.events]

    def __str__(self) -> str:
        told = ", ".join(self.kinds) or "no events"
        kind = self.terminal.WhichOneof("event")
        if kind in ("failed", "stopped"):
            error = self.terminal.failed if kind == "failed" else self.terminal.stopped.error
            told += f" ({Answer(self.answer.method, Code(error.code), error.message, status=error)})"
        return f"{told}; the stream ended with {self.answer}"


class Session:
    """State of one run of the kit. Everything in the loop's thread."""

    def __init__(
        self, wire: Wire, place: Place, desk: Desk, spec: ServiceSpec, examples: Examples, timeout: float
    ) -> None:
        self.wire = wire
        self.place = place
        self.desk = desk
        self.spec = spec
        self.examples = examples
        self.timeout = timeout
        """Seconds that a call gets."""
        self.info = driver_pb2.GetDriverInfoResponse()
        self.info_answer: Answer | None = None
        self.contract: Mapping[str, Method] = {}
        self.contract_problem = ""
        """Why the methods are not known."""
        self.reflection_problem = ""
        self.reflected: Sequence[str] = ()
        self.attached = False
        self.samples: list[Sample] = []
        self.slow: list[Slow] = []
        self.jobs: list[tuple[Method, Message]] = []
        """Requests that succeed as jobs."""
        self.failing: list[tuple[Method, Message]] = []
        """Requests that get an error."""
        self.run_ends: dict[str, RunEnd] = {}
        """By method: how a Run of it with a request that works ended."""
        self.cleaning: list[tuple[str, Message]] = []
        """Calls that remove what the kit has made; before the driver is detached for the last time."""
        self.holding: dict[str, bytes] = {}
        """By client-streaming method: the first message of a stream that is then held open."""
        self._number = 0

    # --- what it is ----------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Asks who the driver is and what methods its services have. What goes wrong is for the checks to tell."""
        answer = self.info_answer = await self.driver("GetDriverInfo", driver_pb2.GetDriverInfoRequest())
        if answer.ok:
            try:
                self.info = driver_pb2.GetDriverInfoResponse.FromString(answer.message)
            except DecodeError:
                return
        reflection = Reflection(self.wire, self.timeout)
        methods: Iterable[Method] | None = None
        services = list(self.info.manifest.services)
        try:
            self.reflected = await reflection.services()
            methods = await reflection.methods(services)
        except (ContractUnknown, DecodeError, TypeError, KeyError) as error:
            # TypeError: a descriptor pool's word for files that do not fit each other.
            self.reflection_problem = str(error)
        if methods is None:
            methods = self._methods_otherwise(services)
        self.contract = {method.name: method for method in methods}

    def _methods_otherwise(self, services: Sequence[str]) -> list[Method]:
        try:
            if self.place.descriptors is not None:
                return methods_from_set(self.place.descriptors, services)
            return [method for service in services for method in own_methods(service)]
        except ContractUnknown as error:
            self.contract_problem = f"neither by reflection ({self.reflection_problem}) nor otherwise: {error}"
            return []

    @property
    def methods(self) -> list[Method]:
        """All methods of its services. Raises Skipped if they are not known."""
        if not self.contract:
            raise Skipped(f"its methods are not known {self.contract_problem}")
        return list(self.contract.values())

    @property
    def claimed(self) -> list[Method]:
        named = set(self.info.methods)
        return [method for method in self.methods if method.name in named]

    @property
    def unclaimed(self) -> list[Method]:
        named = set(self.info.methods)
        return [method for method in self.methods if method.name not in named]

    def claims(self, name: str) -> bool:
        return name in self.info.methods

    # --- calls ---------------------------------------------------------------------------------------------------------

    async def driver(self, method: str, request: Message, *, timeout: float | None = None) -> Answer:
        """A call of DriverService."""
        return await self.call(f"{DRIVER_SERVICE}/{method}", request, timeout=timeout)

    async def call(
        self,
        method: str,
        request: Message | bytes | Sequence[Message],
        *,
        timeout: float | None = None,
        metadata: Iterable[tuple[str, str]] | None = None,
    ) -> Answer:
        """A call with the credentials, or with other metadata instead."""
        data: bytes | list[bytes]
        if isinstance(request, bytes):
            data = request
        elif isinstance(request, Message):
            data = request.SerializeToString()
        else:
            data = [one.SerializeToString() for one in request]
        return await self.wire.call(
            method, data, timeout=self.timeout if timeout is None else timeout, metadata=metadata
        )

    async def ask(self, method: Method, request: Message | Sequence[Message], *, sent: str = "") -> list[Message]:
        """The responses of a call that has to work. Raises Failed."""
        what = sent or self.told(method, request)
        answer = await self.call(method.name, request)
        if not answer.ok:
            raise Failed(what, str(answer))
        try:
            return [method.response.FromString(message) for message in answer.messages]
        except DecodeError as error:
            raise Failed(what, f"a response that is no {method.response.DESCRIPTOR.full_name}: {error}") from error

    async def ask_one(self, method: Method, request: Message | Sequence[Message], *, sent: str = "") -> Message:
        """The response of a call that has to work and has one."""
        messages = await self.ask(method, request, sent=sent)
        if len(messages) != 1:
            raise Failed(sent or self.told(method, request), f"{len(messages)} responses instead of one")
        return messages[0]

    async def ask_as(self, name: str, request: Message | Sequence[Message], kind: type[M]) -> list[M]:
        """The responses of a call that has to work, as messages of our own stubs. Raises Failed."""
        method = self.contract[name]
        sent = self.told(method, request)
        answer = await self.call(name, request)
        if not answer.ok:
            raise Failed(sent, str(answer))
        try:
            return [kind.FromString(message) for message in answer.messages]
        except DecodeError as error:
            raise Failed(sent, f"a response that is no {kind.DESCRIPTOR.full_name}: {error}") from error

    async def one_as(self, name: str, request: Message | Sequence[Message], kind: type[M]) -> M:
        """The only response of a call that has to work. Raises Failed."""
        found = await self.ask_as(name, request, kind)
        if len(found) != 1:
            raise Failed(self.told(self.contract[name], request), f"{len(found)} responses instead of one")
        return found[0]

    def told(self, method: Method, request: Message | Sequence[Message]) -> str:
        """For people: what was sent."""
        if isinstance(request, Message):
            return f"{method.short} {{{request}}}"
        return f"{method.short} with {len(request)} messages"

    # --- life ----------------------------------------------------------------------------------------------------------

    def attach_request(
        self,
        service: str = SERVICE,
        *,
        endpoints: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> driver_pb2.AttachRequest:
        """Attach as a gateway sends it."""
        manifest, spec = self.info.manifest, self.spec
        return driver_pb2.AttachRequest(
            service=service,
            service_uid=f"uid-of-{service}",
            instance=self.place.instance,
            app=spec.app or manifest.app,
            app_version=spec.app_version,
            endpoints=spec.endpoints if endpoints is None else endpoints,
            options=struct_from_dict(spec.options if options is None else options),
            job_source=driver_pb2.JobSource(
                internal_target=self.place.desk_target or self.desk.target,
                embedded=driver_pb2.EmbeddedDispatch(),
                slots=max(2, manifest.job_slots),
            ),
        )

    async def attach(self, request: driver_pb2.AttachRequest | None = None) -> Answer:
        answer = await self.driver("Attach", self.attach_request() if request is None else request)
        self.attached = self.attached or answer.ok
        return answer

    async def detach(self, timeout: float | None = None) -> Answer:
        answer = await self.driver("Detach", driver_pb2.DetachRequest(), timeout=timeout)
        self.attached = self.attached and not answer.ok
        return answer

    async def bring(self, attached: bool) -> None:
        """Attaches or detaches the driver if it is not as a check needs it. Raises Failed."""
        if attached is self.attached:
            return
        answer = await (self.attach() if attached else self.detach())
        if not answer.ok:
            raise Failed("Attach" if attached else "Detach", str(answer))
        if attached:
            await self.wait_ready()

    async def wait_ready(self) -> driver_pb2.ProbeResponse:
        """Probe's answer once it says ready. Raises Failed."""
        from onecontainer.driver.conformance.waiting import until

        async def ready() -> driver_pb2.ProbeResponse | None:
            answer = await self.driver("Probe", driver_pb2.ProbeRequest())
            if not answer.ok:
                raise Failed(
                    "Probe", str(answer), "give the service's endpoints and options, and see that its backend runs"
                )
            told = driver_pb2.ProbeResponse.FromString(answer.message)
            return told if told.ready else None

        found = await until(ready, self.timeout)
        if found is None:
            raise Failed(
                f"Probe, again and again for {self.timeout:g} s",
                "ready=false",
                "wait longer (--timeout), or look into its log",
            )
        return found

    # --- attempts ------------------------------------------------------------------------------------------------------

    def grant(self, method: str, request: bytes | Message, **more: Any) -> lease_pb2.Grant:
        """The right to run an attempt of a new job; the desk knows of it."""
        self._number += 1
        return lease_pb2.Grant(
            job=f"jobs/kit-{self._number}",
            attempt=1,
            fence=100 + self._number,
            service=SERVICE,
            method=method,
            request=request if isinstance(request, bytes) else request.SerializeToString(),
            lease_duration=duration(30),
            heartbeat_interval=duration(0.2),
            principal="conformance",
            **more,
        )

    def open_run(self, grant: lease_pb2.Grant, timeout: float | None = None) -> Run:
        """Begins DriverService.Run of an attempt."""
        self.desk.leases[grant.job, grant.fence] = grant
        request = driver_pb2.RunRequest(grant=grant).SerializeToString()
        return Run(self, grant, self.wire.open(f"{DRIVER_SERVICE}/Run", request, timeout=timeout or self.timeout))

    async def run(self, grant: lease_pb2.Grant) -> RunEnd:
        """A whole Run."""
        run = self.open_run(grant)
        try:
            return await run.end()
        finally:
            run.close()

    async def result(self, method: Method, request: Message) -> Message:
        """The result of a Run that has to succeed. Raises Failed."""
        end = await self.run(self.grant(method.name, request))
        return self.result_of(method, end, f"Run of {self.told(method, request)}")

    def result_of(self, method: Method, end: RunEnd, sent: str) -> Message:
        """The result of an attempt that has to have succeeded. Raises Failed."""
        if end.terminal.WhichOneof("event") != "succeeded":
            raise Failed(sent, str(end))
        return self.decoded(method, end.terminal.succeeded, sent)

    def decoded(self, method: Method, succeeded: lease_pb2.Succeeded, sent: str) -> Message:
        """The message of a success. Raises Failed."""
        data = succeeded.result
        if succeeded.WhichOneof("outcome") == "result_artifact":
            stored = self.desk.artifacts.get(succeeded.result_artifact)
            if stored is None:
                raise Failed(sent, f"the result is {succeeded.result_artifact}, which was never uploaded")
            data = stored[1]
        try:
            return method.result.FromString(data)
        except DecodeError as error:
            raise Failed(sent, f"a result that is no {method.result.DESCRIPTOR.full_name}: {error}") from error

    async def stop_run(self, grant: lease_pb2.Grant, mode: job_pb2.CancelMode.ValueType) -> Answer:
        request = driver_pb2.StopRunRequest(job=grant.job, attempt=grant.attempt, fence=grant.fence, mode=mode)
        return await self.driver("StopRun", request)


class Run:
    """An attempt that runs over DriverService.Run."""

    def __init__(self, session: Session, grant: lease_pb2.Grant, talk: Talk) -> None:
        self.grant = grant
        self.ending: asyncio.Task[RunEnd] | None = None
        """Reads its events, where somebody does beside it."""
        self._session = session
        self._talk = talk

    async def end(self) -> RunEnd:
        """All its events, once its stream has ended."""
        answer = await self._talk.end()
        return RunEnd(tuple(driver_pb2.RunResponse.FromString(message) for message in answer.messages), answer)

    def cancel(self) -> None:
        self._talk.cancel()

    def close(self) -> None:
        self._talk.cancel()
        self._session.desk.take_back(self.grant.job)


def as_json(values: Mapping[str, Any]) -> str:
    """For people."""
    return json.dumps(values, ensure_ascii=False)
