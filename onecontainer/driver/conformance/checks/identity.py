"""Who the driver says it is, before anybody attaches it."""

from __future__ import annotations

import re

from google.protobuf.message import DecodeError
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.driver.conformance.contract import ContractUnknown, own_methods
from onecontainer.driver.conformance.expect import require
from onecontainer.driver.conformance.model import Failed, Skipped, check
from onecontainer.driver.conformance.session import DRIVER_SERVICE, Session
from onecontainer.rpc.manifest import NAME_PATTERN, bare_app
from onecontainer.rpc.options import OPTION_NAME_PATTERN

SENT = "GetDriverInfo"
SCOPES = ("ai", "db", "media", "hpc")
LEAST_MESSAGE_BYTES = 64 * 1024
MOST_MESSAGE_BYTES = 1024 * 1024 * 1024
HEALTH = "grpc.health.v1.Health/Check"


@check(
    "identity.answers",
    "GetDriverInfo answers before Attach",
    proves="A gateway can ask a sidecar that has just started who it is.",
    todo="Serve onecontainer.api.driver.v1.DriverService on the address that the starter gives, and answer GetDriverInfo at once.",
    smoke=True,
)
async def answers(session: Session) -> None:
    answer = session.info_answer
    assert answer is not None
    require(answer.ok, SENT, str(answer))
    try:
        driver_pb2.GetDriverInfoResponse.FromString(answer.message)
    except DecodeError as error:
        raise Failed(SENT, f"no GetDriverInfoResponse: {error}") from error
    service = session.info.service
    require(
        not service,
        SENT,
        f"it is attached to {service!r} already",
        "Let the kit have a sidecar of its own: it attaches, detaches and drains the one that it tests.",
    )


@check(
    "identity.manifest",
    "The manifest is valid",
    proves="The driver can be matched with services, and people see what it is and which options it has.",
    todo="Correct the manifest; driver.proto tells what each field may be.",
    smoke=True,
)
async def manifest(session: Session) -> None:
    problems = list(_manifest_problems(session.info.manifest))
    require(not problems, SENT, "; ".join(problems))


def _manifest_problems(told: driver_pb2.DriverManifest) -> list[str]:
    problems = []
    if not re.fullmatch(NAME_PATTERN, told.name):
        problems.append(f"name {told.name!r} does not match {NAME_PATTERN}")
    try:
        Version(told.version)
    except InvalidVersion:
        problems.append(f"version {told.version!r} is no PEP 440 version")
    if not told.app or bare_app(told.app) != told.app:
        problems.append(f"app {told.app!r} is empty or has an image tag")
    try:
        SpecifierSet(told.app_version)
    except InvalidSpecifier:
        problems.append(f"app_version {told.app_version!r} is no PEP 440 specifier")
    if told.scope not in SCOPES:
        problems.append(f"scope {told.scope!r} is none of {', '.join(SCOPES)}")
    if not told.services or len(set(told.services)) != len(told.services):
        problems.append("services is empty, or names one twice")
    if told.job_slots < 0:
        problems.append(f"job_slots {told.job_slots} is negative")
    names = [option.name for option in told.options]
    problems += [f"option {name!r} is declared twice" for name in sorted({n for n in names if names.count(n) > 1})]
    for option in told.options:
        if not re.fullmatch(OPTION_NAME_PATTERN, option.name):
            problems.append(f"option name {option.name!r} does not match {OPTION_NAME_PATTERN}")
        if option.type == driver_pb2.OPTION_TYPE_UNSPECIFIED:
            problems.append(f"option {option.name!r} has no type")
        if not option.description:
            problems.append(f"option {option.name!r} has no description")
        if option.required and option.HasField("default_value"):
            problems.append(f"option {option.name!r} is required, and has a default")
    return problems


@check(
    "identity.methods",
    "Its methods are methods of its services",
    proves="What the driver claims can be called: the gateway routes by these names.",
    todo="List full names, `package.Service/Method`, each once, of services that the manifest names.",
    smoke=True,
)
async def methods(session: Session) -> None:
    known = {method.name for method in session.methods}
    claimed = list(session.info.methods)
    strange = [name for name in claimed if name not in known]
    require(not strange, SENT, f"methods that its services do not have: {', '.join(strange)}")
    require(len(set(claimed)) == len(claimed), SENT, "a method that is listed twice")
    require(claimed, SENT, "no methods: the driver can do nothing")


@check(
    "identity.contract",
    "Contract version and message limit are told",
    proves="A gateway knows what it may send, and how large.",
    todo="Answer contract_version `1.x`, and max_message_bytes between 64 KiB and 1 GiB.",
    smoke=True,
)
async def contract(session: Session) -> None:
    info = session.info
    require(re.fullmatch(r"1\.[0-9]+", info.contract_version), SENT, f"contract_version {info.contract_version!r}")
    limit = info.max_message_bytes
    require(LEAST_MESSAGE_BYTES <= limit <= MOST_MESSAGE_BYTES, SENT, f"max_message_bytes {limit}")


@check(
    "health.serving",
    "Health says SERVING without a token",
    proves="Whoever probes a container, without credentials, sees that it serves.",
    todo="Serve grpc.health.v1.Health without a token, and set SERVING for the empty name, DriverService and each service.",
    smoke=True,
)
async def health(session: Session) -> None:
    from grpc_health.v1 import health_pb2

    for name in ("", DRIVER_SERVICE, *session.info.manifest.services):
        request = health_pb2.HealthCheckRequest(service=name)
        answer = await session.call(HEALTH, request, metadata=())
        sent = f"Health/Check of {name!r}"
        require(answer.ok, sent, str(answer))
        state = health_pb2.HealthCheckResponse.FromString(answer.message).status
        told = health_pb2.HealthCheckResponse.ServingStatus.Name(state)
        require(state == health_pb2.HealthCheckResponse.SERVING, sent, told)


@check(
    "reflection.services",
    "Reflection tells its services, with all they import",
    proves="grpcurl, the CLI and this kit can call a service that they have never seen.",
    todo="Serve grpc.reflection.v1alpha.ServerReflection with the files of DriverService and of each service.",
    smoke=True,
)
async def reflection(session: Session) -> None:
    require(not session.reflection_problem, "reflection", session.reflection_problem)
    missing = {DRIVER_SERVICE, *session.info.manifest.services} - set(session.reflected)
    require(not missing, "reflection: list_services", f"without {', '.join(sorted(missing))}")


@check(
    "reflection.contract",
    "Services of oneContainer are as their contract has them",
    proves="Callers with stubs of oneContainer understand the driver.",
    todo="Generate the driver's code from protos/ as they are; never change a message or a method there.",
    needs=("reflection.services",),
    smoke=True,
)
async def same_contract(session: Session) -> None:
    compared = False
    for service in session.info.manifest.services:
        try:
            ours = {method.name: method for method in own_methods(service)}
        except ContractUnknown:
            continue
        compared = True
        for name in session.info.methods:
            if name not in ours or name not in session.contract:
                continue
            told = session.contract[name].signature
            require(
                told == ours[name].signature,
                f"reflection of {name}",
                f"{told}; the contract has {ours[name].signature}",
            )
    if not compared:
        raise Skipped("all of its services are its own")


CHECKS = (answers, manifest, methods, contract, health, reflection, same_contract)
