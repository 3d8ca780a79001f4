"""`oca job`: calls that the system keeps until they have ended."""

from __future__ import annotations

from typing import Any

import click
from google.protobuf import any_pb2, json_format, message_factory

from onecontainer.api.job.v1 import job_pb2
from onecontainer.cli.bars import JobBar, amount, duration
from onecontainer.cli.options import JSON, job_options
from onecontainer.cli.render import enum_name, moment
from onecontainer.cli.session import Session, connected
from onecontainer.cli.waiting import OnChange, wait_job
from onecontainer.client import Job, job_error, job_state
from onecontainer.client import job_options as make_job_options
from onecontainer.client.names import filter_of, full_name, short_name
from onecontainer.client.reflection import Reflection
from onecontainer.errors import OneContainerError

COLUMNS = {
    "name": lambda j: short_name(j.name),
    "state": job_state,
    "service": lambda j: short_name(j.service),
    "method": lambda j: short_name(j.method),
    "progress": lambda j: amount(j.progress),
    "attempts": lambda j: j.attempt_count,
    "created": lambda j: moment(j.create_time),
    "error": lambda j: j.error.message.partition("\n")[0],
}


@click.group()
def job() -> None:
    """Create, watch, cancel and repeat jobs.

    \b
    Examples:
      oca job list --state RUNNING
      oca job watch 01jd…
      oca job cancel 01jd… --finish
      oca job create cats onecontainer.api.ai.v1.InferenceService/GetUsage '{}'
    """


def options_of(values: dict[str, Any]) -> Any:
    """Takes the values of `job_options` out of a command's, and makes JobOptions of them."""
    return make_job_options(
        request_id=values.pop("request_id"),
        priority=values.pop("priority"),
        queue_timeout=values.pop("queue_timeout"),
        attempt_timeout=values.pop("attempt_timeout"),
        total_timeout=values.pop("total_timeout"),
        stall_timeout=values.pop("stall_timeout"),
        max_attempts=values.pop("max_attempts") or 0,
        initial_backoff=values.pop("initial_backoff"),
        max_backoff=values.pop("max_backoff"),
        backoff_multiplier=values.pop("backoff_multiplier") or 0.0,
        retry_unsafe=values.pop("retry_unsafe"),
        result_ttl=values.pop("result_ttl"),
        keep_result=values.pop("keep_result"),
        labels=dict(values.pop("labels")),
    )


def follow(session: Session, running: Job, *, title: str = "") -> job_pb2.Job:
    """Shows a job until it ends, and why it waits, and returns its last record. In JSON mode, nothing is shown. Ctrl-C leaves the job
    running.

    Raises the error of its service if the job waits for one that cannot work as it is.
    """
    try:
        if session.screen.is_json:
            return wait_for(session, running)
        with JobBar(session.screen.console, title) as bar:
            return wait_for(session, running, bar)
    except KeyboardInterrupt:
        click.echo(f"{running.name} goes on; `oca job cancel {short_name(running.name)}` ends it.", err=True)
        raise


def wait_for(session: Session, running: Job, on_progress: OnChange | None = None) -> job_pb2.Job:
    """The job's last record. Raises as `follow` does."""
    client = session.client
    return client.portal.run(wait_job, client.inner, running.inner, on_progress=on_progress, timeout=session.timeout)


def end_of(session: Session, record: job_pb2.Job) -> None:
    """Shows how a job ended. Raises its error if it did not succeed."""
    if record.state != job_pb2.JOB_STATE_SUCCEEDED:
        raise job_error(record)
    show(session, record)


def show(session: Session, record: job_pb2.Job) -> None:
    session.screen.message(
        record,
        {
            "name": record.name,
            "state": job_state(record),
            "error": record.error.message,
            "service": record.service,
            "method": record.method,
            "progress": amount(record.progress),
            "queue position": record.queue_position if record.HasField("queue_position") else None,
            "created": record.create_time,
            "ran": duration(record.run_duration) if record.HasField("run_duration") else None,
            "attempts": [
                f"{attempt.number} {enum_name(job_pb2.AttemptState, attempt.state)} {attempt.error.message}".rstrip()
                for attempt in record.attempts
            ],
            "ended early": record.ended_early or None,
            "retry of": record.retry_of,
            "artifacts": list(record.artifacts),
            "result": session.screen.pretty(record.result) if record.HasField("result") else record.result_artifact,
        },
    )


@job.command()
@click.argument("service")
@click.argument("method")
@click.argument("request", type=JSON, default="{}")
@job_options
@click.option("--wait", "wait_", is_flag=True, help="Wait for its end, with a live bar.")
@connected
def create(session: Session, service: str, method: str, request: list[Any], wait_: bool, **values: Any) -> None:
    """Run METHOD with the JSON REQUEST as a job: any unary method of the service's API.

    REQUEST is JSON, `@FILE`, or `-` for stdin.

    \b
    Example:
      oca job create cats InferenceService/GetUsage '{}' --wait
    """
    if len(request) != 1:
        raise click.UsageError("REQUEST must be one JSON object")
    client = session.client
    found = client.portal.run(Reflection(client.inner.caller).method, method)
    message = message_factory.GetMessageClass(found.input_type)()
    try:
        json_format.ParseDict(request[0], message)
    except json_format.ParseError as error:
        raise click.UsageError(f"REQUEST is no {found.input_type.full_name}: {error}") from None
    created = client.jobs.create(service, found, message, options=options_of(values), timeout=session.timeout)
    if wait_:
        end_of(session, follow(session, created))
    else:
        show(session, created.record)


@job.command("list")
@click.option("--service", default="", help="Only of this service.")
@click.option("--state", default="", help="Only in this state: QUEUED, RUNNING, FAILED …")
@click.option("--method", default="", help="Only of this method, by its full name.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only with this label; may be repeated.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
@connected
def list_(session: Session, service: str, state: str, method: str, labels: tuple[str, ...], limit: int) -> None:
    """List jobs, newest first."""
    terms: dict[str, str | None] = {
        "service": full_name("services", service),
        "state": state.upper(),
        "method": method,
    }
    terms |= {f"labels.{key}": value for key, _, value in (label.partition("=") for label in labels)}
    found = session.client.jobs.list(filter=filter_of(terms), limit=limit, timeout=session.timeout)
    session.screen.messages(found, COLUMNS)


@job.command()
@click.argument("name")
@connected
def get(session: Session, name: str) -> None:
    """Show a job with its attempts and its result."""
    show(session, session.client.jobs.get(name, timeout=session.timeout))


@job.command()
@click.argument("name")
@connected
def watch(session: Session, name: str) -> None:
    """Show a job as it goes, until it ends. Fails if the job does."""
    running = session.client.jobs.handle(name)
    if session.screen.is_json:
        for record in running.watch(timeout=session.timeout):
            session.screen.data(session.screen.to_json(record))
        if running.record.state != job_pb2.JOB_STATE_SUCCEEDED:
            raise job_error(running.record)
    else:
        end_of(session, follow(session, running))


@job.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@connected
def wait(session: Session, names: tuple[str, ...]) -> None:
    """Wait for the end of jobs (at most --timeout) without showing their way. Fails if one of them does.

    Of several, up to 1000, each is told as it ends.
    """
    if len(names) == 1:
        end_of(session, wait_for(session, session.client.jobs.handle(names[0])))
        return
    failure: OneContainerError | None = None
    for name, ended in session.client.jobs.wait_all(names, timeout=session.timeout):
        if isinstance(ended, OneContainerError):
            failure = ended
            session.screen.say(f"{name}: {ended.message}")
            continue
        if ended.state != job_pb2.JOB_STATE_SUCCEEDED:
            failure = job_error(ended)
        show(session, ended)
    if failure is not None:
        raise failure


@job.command()
@click.argument("name")
@click.option("--finish", is_flag=True, help="End early and keep what is done. Default: stop at once, keep nothing.")
@connected
def cancel(session: Session, name: str, finish: bool) -> None:
    """Ask a job to end."""
    show(session, session.client.jobs.cancel(name, finish=finish, timeout=session.timeout))


@job.command()
@click.argument("name")
@click.option("--wait", "wait_", is_flag=True, help="Wait for the new job's end, with a live bar.")
@connected
def retry(session: Session, name: str, wait_: bool) -> None:
    """Run an ended job's request again, as a new job."""
    again = session.client.jobs.retry(name, timeout=session.timeout)
    if wait_:
        end_of(session, follow(session, again))
    else:
        show(session, again.record)


@job.command()
@click.argument("name")
@connected
def delete(session: Session, name: str) -> None:
    """Delete an ended job, its result and the artifacts it made."""
    session.client.jobs.delete(name, timeout=session.timeout)
    session.screen.say(f"deleted {full_name('jobs', name)}")


@job.command()
@click.argument("name")
@connected
def result(session: Session, name: str) -> None:
    """Print the result of a job as JSON, wherever it is kept; waits for it."""
    packed: any_pb2.Any = session.client.jobs.handle(name).packed_result(timeout=session.timeout)
    session.screen.data(session.screen.to_json(packed))


@job.command("dead-letters")
@click.option("--service", default="", help="Only of this service.")
@connected
def dead_letters(session: Session, service: str) -> None:
    """List jobs that failed for good, and records that were no jobs."""
    found = session.client.jobs.dead_letters(
        filter=filter_of({"service": full_name("services", service)}), limit=200, timeout=session.timeout
    )
    session.screen.messages(
        found,
        {
            "name": lambda d: short_name(d.name),
            "service": lambda d: short_name(d.service),
            "job": lambda d: short_name(d.job),
            "since": lambda d: moment(d.create_time),
            "redriven as": lambda d: short_name(d.redriven_as),
            "error": lambda d: d.error.message.partition("\n")[0],
        },
    )


@job.command()
@click.argument("names", nargs=-1, required=True)
@connected
def redrive(session: Session, names: tuple[str, ...]) -> None:
    """Make a new job of each dead letter."""
    answers = session.client.jobs.redrive(names, timeout=session.timeout)
    session.screen.rows(
        [
            {
                "dead letter": name,
                "job": answer.name if isinstance(answer, Job) else "",
                "error": "" if isinstance(answer, Job) else answer.message,
            }
            for name, answer in zip(names, answers, strict=True)
        ]
    )
    for answer in answers:
        if not isinstance(answer, Job):
            raise answer
