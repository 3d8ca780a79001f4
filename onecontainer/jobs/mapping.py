"""Ledger rows ⇄ protos."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from google.protobuf import any_pb2, duration_pb2, timestamp_pb2
from google.rpc import status_pb2

from onecontainer.api.job.v1 import job_lease_service_pb2, job_pb2
from onecontainer.api.type.v1 import job_options_pb2
from onecontainer.jobs.ledger import Granted, JobView
from onecontainer.jobs.model import LEASED, SECOND, TERMINAL, NewJob, State, shown
from onecontainer.rpc.status import brief

ANY_PREFIX = "type.googleapis.com/"
_SHOWN = {int(state): job_pb2.JobState.ValueType(int(shown(state))) for state in State}


def timestamp(micros: int) -> timestamp_pb2.Timestamp | None:
    """A moment; None for 0."""
    return _moment(micros) if micros else None


def _moment(micros: int) -> timestamp_pb2.Timestamp:
    return timestamp_pb2.Timestamp(seconds=micros // SECOND, nanos=micros % SECOND * 1000)


def micros(value: int) -> duration_pb2.Duration:
    """A length of time, not negative."""
    return duration_pb2.Duration(seconds=value // SECOND, nanos=value % SECOND * 1000)


def job_to_proto(view: JobView, now: int = 0, *, summary: bool = False) -> job_pb2.Job:
    """A job; as a summary without result and attempts. ``now`` is for run_duration."""
    row = view.row
    state: int = row.state
    job = job_pb2.Job(
        name=f"jobs/{row.id}",
        service=row.service,
        method=row.method,
        state=_SHOWN[state],
        options=job_options_pb2.JobOptions.FromString(row.options),
        principal=row.principal,
        attempt_count=row.attempt if row.attempt_start_time else row.attempt - 1,
        sequence=row.sequence,
        create_time=timestamp(row.create_time),
    )
    if row.start_time:
        _started(job, row, now)
    if state in TERMINAL:
        _ended(job, row)
    if row.cancel_mode:
        job.cancel_mode = job_pb2.CancelMode.ValueType(row.cancel_mode)
    if row.retry_of:
        job.retry_of = f"jobs/{row.retry_of}"
    if state == State.RETRY_WAIT:
        job.next_attempt_time.CopyFrom(_moment(row.due_time))
    if row.error is not None and state not in (State.SUCCEEDED, State.QUEUED, State.RUNNING):
        job.error.ParseFromString(row.error)
    if summary:
        if job.HasField("error"):
            job.error.CopyFrom(brief(job.error))
        return job
    for attempt in view.attempts:
        job.attempts.append(_attempt_to_proto(attempt))
    if row.attempt_start_time and (state in LEASED or state == State.SUCCEEDED):
        job.attempts.append(_current_attempt(row, state))
    if row.result is not None:
        job.result.CopyFrom(any_pb2.Any(type_url=ANY_PREFIX + row.result_type, value=row.result))
    if row.result_artifact:
        job.result_artifact = row.result_artifact
    if view.artifacts:
        job.artifacts.extend(view.artifacts)
    if view.queue_position is not None:
        job.queue_position = view.queue_position
    return job


def _started(job: job_pb2.Job, row: Any, now: int) -> None:
    """What a job has that has begun at least once."""
    job.start_time.CopyFrom(_moment(row.start_time))
    if row.progress is not None:
        job.progress.ParseFromString(row.progress)
    end = row.end_time or now
    if row.attempt_start_time and end:
        job.run_duration.CopyFrom(micros(max(0, end - row.attempt_start_time)))


def _ended(job: job_pb2.Job, row: Any) -> None:
    """What a job has that is terminal."""
    job.end_time.CopyFrom(_moment(row.end_time))
    if row.expire_time:
        job.expire_time.CopyFrom(_moment(row.expire_time))
    job.ended_early = row.ended_early
    job.result_expired = row.result_expired


def update_to_proto(view: JobView, now: int) -> job_pb2.JobUpdate:
    """What WatchJob sends: the job without its attempts."""
    job = job_to_proto(view, now)
    job.ClearField("attempts")
    return job_pb2.JobUpdate(sequence=view.row.sequence, job=job)


def new_to_proto(new: NewJob) -> job_pb2.Job:
    """A job that was just made, or only checked."""
    return job_pb2.Job(
        name=f"jobs/{new.id}",
        service=new.service,
        method=new.method.full_name,
        state=job_pb2.JOB_STATE_QUEUED,
        options=job_options_pb2.JobOptions.FromString(new.options),
        principal=new.principal,
        retry_of=f"jobs/{new.retry_of}" if new.retry_of else "",
        sequence=1,
        create_time=timestamp(new.create_time),
    )


def _attempt_to_proto(row: Any) -> job_pb2.Attempt:
    attempt = job_pb2.Attempt(
        number=row.number,
        fence=row.fence,
        state=job_pb2.AttemptState.ValueType(row.state),
        sidecar=row.instance,
        start_time=timestamp(row.start_time),
        end_time=timestamp(row.end_time),
    )
    if row.error is not None:
        attempt.error.CopyFrom(status_pb2.Status.FromString(row.error))
    return attempt


def _current_attempt(row: Any, state: int) -> job_pb2.Attempt:
    ended = state in TERMINAL
    return job_pb2.Attempt(
        number=row.attempt,
        fence=row.fence,
        state=job_pb2.ATTEMPT_STATE_SUCCEEDED if ended else job_pb2.ATTEMPT_STATE_RUNNING,
        sidecar=row.instance,
        start_time=timestamp(row.attempt_start_time),
        end_time=timestamp(row.end_time) if ended else None,
    )


def grant_to_proto(granted: Granted, lease: float) -> job_lease_service_pb2.Grant:
    """A grant with a lease of so many seconds; heartbeats are asked for three times in it."""
    grant = job_lease_service_pb2.Grant(
        job=f"jobs/{granted.id}",
        attempt=granted.attempt,
        fence=granted.fence,
        service=granted.service,
        method=granted.method,
        lease_duration=_length(lease),
        heartbeat_interval=_length(lease / 3),
        principal=granted.principal,
        traceparent=granted.traceparent,
        request_id=granted.request_id,
        cancel_mode=granted.cancel_mode,  # type: ignore[arg-type] # numbered alike
    )
    if granted.payload is not None:
        grant.request = granted.payload
    else:
        grant.request_artifact = granted.payload_artifact
    if granted.run_timeout:
        grant.run_timeout.CopyFrom(micros(granted.run_timeout))
    if granted.stall_timeout:
        grant.stall_timeout.CopyFrom(micros(granted.stall_timeout))
    if granted.resume is not None:
        grant.resume_details.ParseFromString(granted.resume)
    return grant


@lru_cache(maxsize=8)
def _length(seconds: float) -> duration_pb2.Duration:
    return micros(int(seconds * SECOND))


def letter_to_proto(row: Any) -> job_pb2.DeadLetter:
    """A dead letter."""
    letter = job_pb2.DeadLetter(
        name=f"deadLetters/{row.id}",
        service=row.service,
        job=f"jobs/{row.job}" if row.job else "",
        error=status_pb2.Status.FromString(row.error),
        create_time=timestamp(row.create_time),
        redriven_as=f"jobs/{row.redriven_as}" if row.redriven_as else "",
    )
    if row.origin is not None:
        letter.origin.ParseFromString(row.origin)
    return letter
