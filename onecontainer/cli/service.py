"""`oca service`: registered backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.api.management.v1 import management_service_pb2, resources_pb2
from onecontainer.cli.options import DURATION, JSON_PAIR, PAIR, SIZE
from onecontainer.cli.ready import wait_ready, wait_replaced
from onecontainer.cli.render import enum_name, in_a_line, moment
from onecontainer.cli.session import Session, connected
from onecontainer.client.management import state_name
from onecontainer.client.names import filter_of, full_name, seconds, short_name, struct
from onecontainer.errors import ResourceNotFound, StateInvalid

COLUMNS: dict[str, Callable[[Any], object]] = {
    "name": lambda s: short_name(s.name),
    "state": state_name,
    "app": lambda s: f"{s.app} {s.app_version}".strip(),
    "driver": lambda s: short_name(s.assigned_driver),
    "scope": lambda s: s.scope,
    "created": lambda s: moment(s.create_time),
    "error": lambda s: in_a_line(s.error.message),
}
RUNTIMES = {
    "process": resources_pb2.RUNTIME_KIND_PROCESS,
    "docker": resources_pb2.RUNTIME_KIND_DOCKER,
    "attached": resources_pb2.RUNTIME_KIND_ATTACHED,
}

LIMITS = ("max_running", "max_queued", "default_max_attempts", "drain_timeout")
"""Fields of `job_limits`, and the options of the same names."""


@click.group()
def service() -> None:
    """Register backends and look after them.

    \b
    Examples:
      oca service create cats --app onnx --wait
      oca service create orders --app sql --option url=secrets/orders-url
      oca service list
      oca service heartbeat cats
    """


def fields_options(function: Callable[..., None]) -> Callable[..., None]:
    """Options for what can be said of a service, at its creation and later."""
    for option in reversed(
        (
            click.option("--app-version", help="PEP 440 version of the app. Default: unknown, every driver fits."),
            click.option(
                "--endpoint", "endpoints", type=PAIR, multiple=True, help="NODE=HOST:PORT or NODE=URL; may be repeated."
            ),
            click.option(
                "--option",
                "options",
                type=JSON_PAIR,
                multiple=True,
                help="Option of the driver, KEY=VALUE; may be repeated. See `oca driver get`.",
            ),
            click.option("--label", "labels", type=PAIR, multiple=True, help="KEY=VALUE; may be repeated."),
            click.option("--description", help="For people."),
            click.option("--driver", help="Driver, NAME or NAME-VERSION. Default: the best match."),
            click.option(
                "--runtime",
                type=click.Choice(list(RUNTIMES)),
                help="Where its sidecar runs. Default: the gateway's (process).",
            ),
            click.option(
                "--runtime-endpoint",
                help="With --runtime attached: where the sidecar listens. Default: one registers itself.",
            ),
            click.option("--token-secret", help="With --runtime attached: secrets/NAME of its token."),
            click.option(
                "--device", "devices", multiple=True, help="With --runtime docker: /dev/dri, gpu; may be repeated."
            ),
            click.option(
                "--memory",
                type=SIZE,
                help="With --runtime docker: its memory, 512m or 2g. Default: the driver's, or 1g.",
            ),
            click.option(
                "--cpus",
                type=click.FloatRange(0.01),
                help="With --runtime docker: its processors. Default: the driver's, or 2.",
            ),
            click.option(
                "--private-network", is_flag=True, help="With --runtime docker: a network for this sidecar alone."
            ),
            click.option(
                "--max-running",
                type=click.IntRange(0, 1024),
                help="Jobs that run at once. Default, also by 0: the driver's job_slots.",
            ),
            click.option(
                "--max-queued", type=click.IntRange(0), help="Jobs that may wait. Default, also by 0: 1,000,000."
            ),
            click.option(
                "--default-max-attempts",
                type=click.IntRange(0, 100),
                help="Attempts of a job that does not say. Default, also by 0: 3.",
            ),
            click.option(
                "--drain-timeout",
                type=DURATION,
                help="What running attempts get to end when the sidecar is replaced. Default: 10m.",
            ),
        )
    ):
        function = option(function)
    return function


def record_of(values: dict[str, Any]) -> tuple[resources_pb2.Service, list[str]]:
    """A service record with the fields that were given, and their paths."""
    runtime = None
    if values["runtime"] != "docker":
        given = [name for name in ("devices", "memory", "cpus", "private_network") if values[name]]
        if given:
            raise click.UsageError(
                f"--{given[0].replace('_', '-').replace('devices', 'device')} is for --runtime docker"
            )
    if values["runtime"]:
        runtime = resources_pb2.Runtime(
            kind=RUNTIMES[values["runtime"]],
            endpoint=values["runtime_endpoint"] or "",
            token_secret=values["token_secret"] or "",
            devices=values["devices"],
            private_network=values["private_network"],
            resources=(
                driver_pb2.DriverResources(memory_bytes=values["memory"] or 0, cpus=values["cpus"] or 0)
                if values["memory"] or values["cpus"]
                else None
            ),
        )
    limits = {name: values[name] for name in LIMITS if values[name] is not None}
    record = resources_pb2.Service(
        description=values["description"] or "",
        app=values["app"] or "",
        app_version=values["app_version"] or "",
        endpoints=dict(values["endpoints"]),
        options=struct(dict(values["options"])) if values["options"] else None,
        labels=dict(values["labels"]),
        driver=full_name("drivers", values["driver"] or ""),
        runtime=runtime,
        job_limits=job_limits(limits) if limits else None,
    )
    paths = [
        name
        for name in ("description", "app", "app_version", "endpoints", "labels", "driver", "runtime")
        if values.get(name) not in (None, ())
    ]
    # One option or limit is changed, the others stay: that is what `--option threads=4` says.
    paths += [f"options.{key}" for key, _value in values["options"]]
    paths += [f"job_limits.{name}" for name in limits]
    return record, paths


def job_limits(limits: dict[str, Any]) -> resources_pb2.JobLimits:
    """JobLimits of the fields that were given."""
    return resources_pb2.JobLimits(
        max_running=limits.get("max_running", 0),
        max_queued=limits.get("max_queued", 0),
        default_max_attempts=limits.get("default_max_attempts", 0),
        drain_timeout=seconds(limits.get("drain_timeout")),
    )


@service.command()
@click.argument("name")
@click.option("--app", required=True, help="The software behind it: onnx, sql, ffmpeg, cassandra …")
@fields_options
@click.option("--request-id", default="", help="Idempotency key: the same one again answers with the same service.")
@click.option("--validate-only", is_flag=True, help="Check all, create nothing.")
@click.option("--wait", is_flag=True, help="Wait until it is READY.")
@connected
def create(session: Session, name: str, request_id: str, validate_only: bool, wait: bool, **values: Any) -> None:
    """Register the backend NAME; the driver that fits is started beside it.

    \b
    Examples:
      oca service create cats --app onnx --wait
      oca service create orders --app sql --endpoint db=db.internal:5432 --option database=orders
      oca service create films --app ffmpeg --max-running 4 --max-queued 1000
    """
    record, _paths = record_of(values)
    found = session.client.services.create(
        name,
        record.app,
        app_version=record.app_version,
        endpoints=record.endpoints,
        options=dict(values["options"]) or None,
        labels=record.labels,
        description=record.description,
        driver=record.driver,
        runtime=record.runtime if record.HasField("runtime") else None,
        job_limits=record.job_limits if record.HasField("job_limits") else None,
        request_id=request_id,
        validate_only=validate_only,
        timeout=session.timeout,
    )
    if wait and not validate_only:
        found = wait_ready(session, name)
    show(session, found)


def driver_of(session: Session, found: resources_pb2.Service) -> str:
    """The assigned driver, and another one that serves as long as that one's sidecar is not ready."""
    for name in found.sidecars[:1]:  # the serving one comes first
        try:
            serving = session.client.sidecars.get(name, timeout=session.timeout).driver
        except ResourceNotFound:
            continue  # it has gone meanwhile
        if serving != found.assigned_driver:
            return f"{found.assigned_driver} (until it is ready {serving} serves)"
    return found.assigned_driver


def show(session: Session, found: resources_pb2.Service) -> None:
    options = session.screen.to_json(found).get("options", {})
    session.screen.message(
        found,
        {
            "name": found.name,
            "state": state_name(found),
            "error": found.error.message,
            "description": found.description,
            "app": f"{found.app} {found.app_version}".strip(),
            "driver": found.assigned_driver if session.screen.is_json else driver_of(session, found),
            "sidecars": list(found.sidecars),
            "endpoints": dict(found.endpoints),
            "options": options,
            "labels": dict(found.labels),
            "job limits": session.screen.to_json(found).get("job_limits", {}),
            "created": found.create_time,
            "etag": found.etag,
        },
    )


@service.command("list")
@click.option("--app", default="", help="Only of this app.")
@click.option("--scope", default="", help="Only of this scope: ai, db, media, hpc.")
@click.option("--state", default="", help="Only in this state: READY, STARTING, FAILED …")
@connected
def list_(session: Session, app: str, scope: str, state: str) -> None:
    """List services."""
    terms = filter_of({"app": app, "scope": scope, "state": state.upper()})
    found = session.client.services.list(filter=terms, timeout=session.timeout)
    session.screen.messages(found, COLUMNS, empty="No services. Register one: `oca service create --help`.")


@service.command()
@click.argument("name")
@connected
def get(session: Session, name: str) -> None:
    """Show a service, with the cause if it is not READY."""
    show(session, session.client.services.get(name, timeout=session.timeout))


@service.command()
@click.argument("name")
@click.option("--app", help="The software behind it.")
@fields_options
@click.option("--etag", default="", help="Change it only if it still has this version.")
@connected
def update(session: Session, name: str, etag: str, **values: Any) -> None:
    """Change what is given, and nothing else. `--option KEY=VALUE` changes that one option; each limit of its jobs stands for itself."""
    record, paths = record_of(values)
    if not paths:
        raise click.UsageError("nothing to change: give at least one option")
    record.etag = etag
    show(session, session.client.services.update(name, record, paths=paths, timeout=session.timeout))


@service.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="End its live jobs.")
@click.option("--etag", default="", help="Delete it only if it still has this version.")
@connected
def delete(session: Session, name: str, force: bool, etag: str) -> None:
    """Delete a service and stop its sidecar."""
    session.client.services.delete(name, force=force, etag=etag, timeout=session.timeout)
    session.screen.say(f"deleted {full_name('services', name)}")


@service.command()
@click.argument("name")
@click.option("--layer-timeout", type=DURATION, help="Longest wait for each layer. Default: 5s.")
@connected
def heartbeat(session: Session, name: str, layer_timeout: float | None) -> None:
    """Ask sidecar, driver and backend now. Fails if one of them does not work."""
    answer = session.client.services.check_heartbeat(name, layer_timeout=layer_timeout, timeout=session.timeout)
    if session.screen.is_json:
        session.screen.message(answer)
    else:
        session.screen.rows(
            [
                {
                    "layer": enum_name(resources_pb2.HeartbeatLayer, layer.layer).lower(),
                    "state": enum_name(resources_pb2.HeartbeatState, layer.state),
                    "latency": layer.latency if layer.HasField("latency") else None,
                    "says": layer.error.message or layer.message,
                }
                for layer in answer.layers
            ]
        )
    if answer.state != resources_pb2.HEARTBEAT_STATE_OK:
        raise StateInvalid(
            f"services/{short_name(name)} is not well: {enum_name(resources_pb2.HeartbeatState, answer.state)}"
        )


@service.command()
@click.option("--filter", "terms", default="", help='As in the contract: state = "READY" AND app = "onnx".')
@connected
def watch(session: Session, terms: str) -> None:
    """Show services, and each change of one, until Ctrl-C."""
    for event in session.client.services.watch(filter=terms):
        kind = event.WhichOneof("event")
        if session.screen.is_json:
            session.screen.data(session.screen.to_json(event))
        elif kind == "service":
            cause = f"  {event.service.error.message}" if event.service.error.message else ""
            session.screen.say(f"{event.service.name}  {state_name(event.service)}{cause}")
        elif kind == "deleted":
            session.screen.say(f"{event.deleted}  deleted")


@service.command()
@click.argument("name")
@click.argument("driver", default="")
@click.option("--wait", is_flag=True, help="Wait until the new sidecar serves.")
@connected
def assign(session: Session, name: str, driver: str, wait: bool) -> None:
    """Give a service a driver (default: the best match), and start its sidecar anew.

    The old sidecar serves until the new one is READY.
    """
    services = session.client.services
    old = list(services.get(name, timeout=session.timeout).sidecars[:1]) if wait else []
    found = services.assign_driver(name, driver, timeout=session.timeout)
    show(session, wait_replaced(session, found.name, old) if wait else found)


@service.command()
@click.argument("names", nargs=-1, required=True)
@connected
def wait(session: Session, names: tuple[str, ...]) -> None:
    """Wait until all these services are READY; tell why one cannot be."""
    wait_ready(session, *names)
    session.screen.say(f"ready: {', '.join(names)}")


@service.command()
@click.argument("name")
@connected
def match(session: Session, name: str) -> None:
    """Show which drivers fit a service, and why the others do not."""
    show_match(session, session.client.services.match_drivers(name, timeout=session.timeout))


def show_match(session: Session, answer: management_service_pb2.MatchDriversResponse) -> None:
    if session.screen.is_json:
        session.screen.message(answer)
        return
    fitting = [(found.name, "yes", found.manifest.description) for found in answer.candidates]
    if fitting:
        fitting[0] = (fitting[0][0], "yes, best", fitting[0][2])
    others = [(found.driver, "no", found.cause) for found in answer.rejections]
    session.screen.rows(
        [{"driver": short_name(name), "fits": fits, "why": why} for name, fits, why in fitting + others]
    )
