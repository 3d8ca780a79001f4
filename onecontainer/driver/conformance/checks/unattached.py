"""What holds before Attach: credentials, refusals, and methods that are not there."""

from __future__ import annotations

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.driver.conformance.expect import error_problem, refused, require
from onecontainer.driver.conformance.model import Skipped, check
from onecontainer.driver.conformance.session import DRIVER_SERVICE, SERVICE, Session
from onecontainer.errors import Code, Reason

INFO = f"{DRIVER_SERVICE}/GetDriverInfo"


@check(
    "credentials.required",
    "Without its token nothing answers",
    proves="Only the gateway that started a sidecar can use it.",
    todo="Compare every call's bearer token (but health checks') with the instance token: UNAUTHENTICATED / CREDENTIALS_INVALID.",
    attached=False,
    smoke=True,
)
async def credentials(session: Session) -> None:
    if session.wire.token is None:
        raise Skipped("the driver was started without a token; give one to both, --token-file tells it to the kit")
    claimed = [method.name for method in session.claimed]
    for told, metadata in (
        ("no token", ()),
        ("a wrong token", (("authorization", f"Bearer {session.wire.token}x"),)),
        ("a wrong scheme", (("authorization", f"Basic {session.wire.token}"),)),
    ):
        for method in (INFO, *claimed[:1]):
            answer = await session.call(method, b"", metadata=metadata)
            refused(answer, f"{method} with {told}", Code.UNAUTHENTICATED, Reason.CREDENTIALS_INVALID)


@check(
    "unattached.probe",
    "Probe before Attach is NOT_ATTACHED",
    proves="The gateway tells a sidecar that waits for it from one whose backend is broken.",
    todo="Answer FAILED_PRECONDITION / NOT_ATTACHED.",
    attached=False,
    smoke=True,
)
async def probe(session: Session) -> None:
    answer = await session.driver("Probe", driver_pb2.ProbeRequest())
    refused(answer, "Probe before Attach", Code.FAILED_PRECONDITION, Reason.NOT_ATTACHED)


@check(
    "unattached.calls",
    "Calls before Attach are refused",
    proves="No call meets a driver that does not know its settings.",
    todo="Answer FAILED_PRECONDITION / NOT_ATTACHED (a long-running method: NEEDS_GATEWAY is right too) to every method of the services.",
    needs=("identity.methods",),
    attached=False,
    smoke=True,
)
async def calls(session: Session) -> None:
    for method in session.claimed:
        answer = await session.call(method.name, method.empty(SERVICE))
        reasons = [Reason.NOT_ATTACHED, *([Reason.NEEDS_GATEWAY] if method.long_running else [])]
        refused(answer, f"{method.short} before Attach", Code.FAILED_PRECONDITION, *reasons)


@check(
    "unattached.run",
    "Run before Attach is refused",
    proves="No job is begun by a driver that does not know its settings.",
    todo="Answer FAILED_PRECONDITION / NOT_ATTACHED to Run.",
    needs=("identity.methods",),
    attached=False,
    smoke=True,
)
async def run(session: Session) -> None:
    runnable = [method for method in session.claimed if method.unary]
    if not runnable:
        raise Skipped("it has no method that can be run as a job")
    end = await session.run(session.grant(runnable[0].name, runnable[0].empty(SERVICE)))
    refused(end.answer, "Run before Attach", Code.FAILED_PRECONDITION, Reason.NOT_ATTACHED)


@check(
    "unattached.detach",
    "Detach before Attach is OK",
    proves="Detach is idempotent: a gateway that starts again may begin with it.",
    todo="Answer OK when there is nothing to release.",
    attached=False,
    smoke=True,
)
async def detach(session: Session) -> None:
    answer = await session.detach()
    require(answer.ok, "Detach before Attach", str(answer))


@check(
    "methods.unclaimed",
    "What it does not claim is CAPABILITY_MISSING",
    proves="Claims are true in both directions: a caller learns that the driver does not have the method, not that it is broken.",
    todo="Answer UNIMPLEMENTED / CAPABILITY_MISSING to every method of the services that GetDriverInfo does not list.",
    needs=("identity.methods",),
    smoke=True,
)
async def unclaimed(session: Session) -> None:
    if not session.unclaimed:
        raise Skipped("it claims all methods of its services")
    for method in session.unclaimed:
        answer = await session.call(method.name, method.empty(SERVICE))
        refused(answer, method.short, Code.UNIMPLEMENTED, Reason.CAPABILITY_MISSING)


@check(
    "methods.unknown",
    "A method of no service is UNIMPLEMENTED",
    proves="A caller with newer contracts learns that this driver is older.",
    todo="Answer UNIMPLEMENTED to every other name, which gRPC servers do by themselves.",
    smoke=True,
)
async def unknown(session: Session) -> None:
    method = f"{(*session.info.manifest.services, 'onecontainer.conformance.Nothing')[0]}/NoSuchMethod"
    answer = await session.call(method, b"")
    require(answer.code is Code.UNIMPLEMENTED, method, str(answer))


@check(
    "errors.unattached",
    "Errors before Attach are typed",
    proves="Programs can decide by an error: reason, code and the fields that are wrong.",
    todo="Put google.rpc.Status with ErrorInfo (domain onecontainer.dev, a reason of error.v1.Reason) into grpc-status-details-bin.",
    needs=("unattached.probe", "attach.fields"),
    attached=False,
    smoke=True,
)
async def typed(session: Session) -> None:
    broken = session.attach_request()
    broken.ClearField("service")
    for sent, method, request in (
        ("Attach without a service", "Attach", broken),
        ("Probe before Attach", "Probe", driver_pb2.ProbeRequest()),
    ):
        answer = await session.driver(method, request)
        require(not answer.ok, sent, str(answer))
        problem = error_problem(answer)
        require(not problem, sent, f"{answer}: {problem}")


@check(
    "instance.named",
    "After Attach it answers for its instance and service only",
    proves="An address that was given to another sidecar meanwhile cannot answer for this one.",
    todo="Refuse calls whose metadata onecontainer-instance or onecontainer-service is not its own: FAILED_PRECONDITION / WRONG_INSTANCE.",
    attached=True,
)
async def instance(session: Session) -> None:
    instance = session.place.instance
    own = (("onecontainer-instance", instance), ("onecontainer-service", SERVICE))
    answer = await session.call(INFO, b"", metadata=(*session.wire.credentials, *own))
    require(answer.ok, f"GetDriverInfo for {instance} and {SERVICE}", str(answer))
    methods = (INFO, *(method.name for method in session.claimed[:1]))
    for key, value in (("onecontainer-instance", f"{instance}-other"), ("onecontainer-service", f"{SERVICE}-other")):
        for name in methods:
            answer = await session.call(name, b"", metadata=(*session.wire.credentials, (key, value)))
            refused(answer, f"{name} with {key} {value}", Code.FAILED_PRECONDITION, Reason.WRONG_INSTANCE)


CHECKS = (credentials, probe, calls, run, detach, unclaimed, unknown, typed)
ATTACHED_CHECKS = (instance,)
