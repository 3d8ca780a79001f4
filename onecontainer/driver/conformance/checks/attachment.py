"""Attach, Detach and Probe."""

from __future__ import annotations

from google.protobuf import json_format

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.driver.conformance.expect import names_field, refused, require
from onecontainer.driver.conformance.model import Skipped, check
from onecontainer.driver.conformance.session import OTHER_SERVICE, PROMPT_SECONDS, SERVICE, Session, as_json
from onecontainer.driver.conformance.wire import Answer
from onecontainer.errors import Code, Reason

UNKNOWN_OPTION = "conformance_no_such_option"
OPTIONS_TODO = "Check all options in Attach, before anything is connected, and answer INVALID_ARGUMENT with BadRequest: `options.NAME`."
REFUSALS = (Reason.FIELD_REQUIRED, Reason.FIELD_INVALID)


@check(
    "attach.fields",
    "Attach refuses a request with missing fields",
    proves="A defect of the caller is told at once, with the field.",
    todo="Answer INVALID_ARGUMENT / FIELD_REQUIRED with the field in BadRequest.",
    attached=False,
    smoke=True,
)
async def fields(session: Session) -> None:
    for field in ("service", "instance"):
        request = session.attach_request()
        request.ClearField(field)
        answer = await session.attach(request)
        sent = f"Attach without {field}"
        refused(answer, sent, Code.INVALID_ARGUMENT, *REFUSALS)
        names_field(answer, sent, field)


@check(
    "attach.unknown-option",
    "Attach refuses an option that is not declared",
    proves="A misspelt option is an error, not something that is silently without effect.",
    todo=OPTIONS_TODO,
    attached=False,
    smoke=True,
)
async def unknown_option(session: Session) -> None:
    answer = await _attach_with(session, {UNKNOWN_OPTION: "x"})
    sent = f"Attach with the option {UNKNOWN_OPTION}"
    refused(answer, sent, Code.INVALID_ARGUMENT, *REFUSALS)
    names_field(answer, sent, f"options.{UNKNOWN_OPTION}")


async def _attach_with(session: Session, options: dict[str, object]) -> Answer:
    return await session.attach(session.attach_request(options={**session.spec.options, **options}))


# A value that is right for no option of the type.
_WRONG: dict[driver_pb2.OptionType.ValueType, object] = {
    driver_pb2.OPTION_TYPE_STRING: ["a list"],
    driver_pb2.OPTION_TYPE_INT: "a word",
    driver_pb2.OPTION_TYPE_FLOAT: "a word",
    driver_pb2.OPTION_TYPE_BOOL: "a word",
    driver_pb2.OPTION_TYPE_DURATION: "a word",
    driver_pb2.OPTION_TYPE_LIST: "a word",
    driver_pb2.OPTION_TYPE_MAP: "a word",
}


@check(
    "attach.option-types",
    "Attach refuses options of the wrong type",
    proves="A wrong setting is told when it is made, not by the first call that meets it.",
    todo=OPTIONS_TODO,
    attached=False,
    smoke=True,
)
async def option_types(session: Session) -> None:
    if not session.info.manifest.options:
        raise Skipped("it has no options")
    for option in session.info.manifest.options:
        wrong = _WRONG[option.type]
        answer = await _attach_with(session, {option.name: wrong})
        sent = f"Attach with {option.name}={as_json({option.name: wrong})}"
        refused(answer, sent, Code.INVALID_ARGUMENT, *REFUSALS)
        names_field(answer, sent, f"options.{option.name}")


@check(
    "attach.option-values",
    "Attach refuses missing and disallowed options",
    proves="What the manifest says of options is what Attach holds them to.",
    todo=OPTIONS_TODO,
    attached=False,
    smoke=True,
)
async def option_values(session: Session) -> None:
    tried = False
    for option in session.info.manifest.options:
        if option.required:
            tried = True
            others = {name: value for name, value in session.spec.options.items() if name != option.name}
            answer = await session.attach(session.attach_request(options=others))
            sent = f"Attach without the required option {option.name}"
            refused(answer, sent, Code.INVALID_ARGUMENT, *REFUSALS)
            names_field(answer, sent, f"options.{option.name}")
        allowed = [json_format.MessageToDict(value) for value in option.allowed_values]
        if option.allowed_values and option.type == driver_pb2.OPTION_TYPE_STRING:
            tried = True
            value = "x".join(map(str, allowed)) + "x"
            answer = await _attach_with(session, {option.name: value})
            sent = f"Attach with {option.name}={value!r}, which is none of {allowed}"
            refused(answer, sent, Code.INVALID_ARGUMENT, *REFUSALS)
            names_field(answer, sent, f"options.{option.name}")
    if not tried:
        raise Skipped("it has no option that is required or has allowed values")


@check(
    "attach.works",
    "Attach binds it to a service",
    proves="The driver can be used at all; and it does not wait for its backend.",
    todo="Answer at once, and name service and instance in GetDriverInfo from then on. The settings: --option, --endpoint, --service-file.",
    attached=False,
)
async def works(session: Session) -> None:
    answer = await session.attach()
    require(answer.ok, f"Attach with the options {as_json(session.spec.options)}", str(answer))
    info = await session.driver("GetDriverInfo", driver_pb2.GetDriverInfoRequest())
    told = driver_pb2.GetDriverInfoResponse.FromString(info.message) if info.ok else driver_pb2.GetDriverInfoResponse()
    require(
        (told.service, told.instance) == (SERVICE, session.place.instance),
        "GetDriverInfo after Attach",
        f"service {told.service!r} and instance {told.instance!r} instead of {SERVICE!r} and {session.place.instance!r}",
    )


@check(
    "attach.again",
    "The same Attach again is OK",
    proves="A gateway that did not get the answer may ask again.",
    todo="Compare the request with the one it is attached by, and change nothing if they are the same.",
    needs=("attach.works",),
)
async def again(session: Session) -> None:
    answer = await session.attach()
    require(answer.ok, "the same Attach again", str(answer))


@check(
    "attach.other-settings",
    "Attach with other settings is refused",
    proves="Nobody changes the settings under running calls.",
    todo="Answer FAILED_PRECONDITION / STATE_INVALID until Detach.",
    needs=("attach.works",),
)
async def other_settings(session: Session) -> None:
    request = session.attach_request(endpoints={**session.spec.endpoints, "conformance": "127.0.0.1:1"})
    answer = await session.attach(request)
    refused(answer, "Attach again with one more endpoint", Code.FAILED_PRECONDITION, Reason.STATE_INVALID)


@check(
    "attach.other-service",
    "Attach to another service is refused",
    proves="One sidecar serves exactly one service.",
    todo="Answer FAILED_PRECONDITION / STATE_INVALID until Detach.",
    needs=("attach.works",),
)
async def other_service(session: Session) -> None:
    answer = await session.attach(session.attach_request(OTHER_SERVICE))
    refused(answer, f"Attach to {OTHER_SERVICE}", Code.FAILED_PRECONDITION, Reason.STATE_INVALID, Reason.WRONG_INSTANCE)


@check(
    "probe.ready",
    "Probe becomes ready",
    proves="The backend is asked, and works.",
    todo="Answer ready=false while it starts, ready=true when it works, an error when it is broken. Are backend and settings right?",
    needs=("attach.works",),
)
async def ready(session: Session) -> None:
    await session.wait_ready()


@check(
    "detach.works",
    "Detach releases it, and again is OK",
    proves="A sidecar can be given to another service; a gateway that did not get the answer may ask again.",
    todo="Close the backend, forget the service (GetDriverInfo, Probe), and answer OK also when there is nothing to release.",
    needs=("attach.works", "probe.ready"),
)
async def detach(session: Session) -> None:
    for sent in ("Detach", "Detach again"):
        answer = await session.detach()
        require(answer.ok, sent, str(answer))
    answer = await session.driver("Probe", driver_pb2.ProbeRequest())
    refused(answer, "Probe after Detach", Code.FAILED_PRECONDITION, Reason.NOT_ATTACHED)


@check(
    "detach.other-service",
    "After Detach it can be attached to another service",
    proves="Detach is complete.",
    todo="Let Attach start anew after Detach, whatever the service.",
    needs=("detach.works",),
    attached=False,
)
async def attach_other(session: Session) -> None:
    for service in (OTHER_SERVICE, SERVICE):
        answer = await session.attach(session.attach_request(service))
        require(answer.ok, f"Attach to {service} after Detach", str(answer))
        await session.wait_ready()
        answer = await session.detach()
        require(answer.ok, f"Detach from {service}", str(answer))


@check(
    "probe.broken",
    "Probe tells a broken backend by an error, and Attach does not wait for it",
    proves="Of the three answers the gateway gets the right one: broken, not starting for ever.",
    todo="Connect lazily in Attach, really ask in Probe, and answer BACKEND_UNREACHABLE or BACKEND_EXECUTION_FAILED.",
    needs=("detach.works",),
    attached=False,
)
async def broken(session: Session) -> None:
    spec = session.spec
    if not spec.can_break:
        raise Skipped(
            "say what makes its backend unreachable: --broken-endpoint, --broken-option, or `broken` in the service file"
        )
    request = session.attach_request(
        endpoints={**spec.endpoints, **spec.broken_endpoints}, options={**spec.options, **spec.broken_options}
    )
    answer = await session.attach(request)
    sent = "Attach with a backend that does not answer"
    require(answer.ok and answer.seconds <= PROMPT_SECONDS, sent, f"{answer} after {answer.seconds:.1f} s")
    try:
        probe = await session.driver("Probe", driver_pb2.ProbeRequest())
        backend = (Reason.BACKEND_UNREACHABLE.value, Reason.BACKEND_EXECUTION_FAILED.value)
        require(not probe.ok and probe.reason in backend, "Probe of a backend that does not answer", str(probe))
    finally:
        await session.detach()


CHECKS = (fields, unknown_option, option_types, option_values, works, again, other_settings, other_service, ready)
DETACH_CHECKS = (detach, attach_other, broken)
