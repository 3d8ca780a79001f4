"""Ledger rows ⇄ protos."""

from __future__ import annotations

from typing import Any

from google.protobuf import any_pb2, duration_pb2, timestamp_pb2
from google.rpc import status_pb2

from onecontainer.api.job.v1 import job_lease_service_pb2, job_pb2
from onecontainer.api.type.v1 import job_options_pb2, progress_pb2
from onecontainer.jobs.ledger import Granted, JobView
from onecontainer.jobs.model import LEASED, TERMINAL, AttemptState, NewJob, State, shown

ANY_PREFIX = "type.googleapis.com/"


def timestamp(micros: int) -> timestamp_pb2.Timestamp | None:
    """A moment; None for 0."""
    if not micros:
        return None
    result = timestamp_pb2.Timestamp()
    result.FromMicroseconds(micros)
    return result


def micros(value: int) -> duration_pb2.Duration:
    """A length of time."""
    result = duration_pb2.Duration()
    result.FromMicroseconds(value)
    return result


def job_to_proto(view: JobView, now: int = 0, *, summary: bool = False) -> job_pb2.Job:
    """A job; as a summary without result and attempts. ``now`` is for run_duration."""
    row = view.row
    state = State(row.state)
    job = job_pb2.Job(
        name=f"jobs/{row.id}",
        service=row.service,
        method=row.method,
        state=job_pb2.JobState.ValueType(int(shown(state))),
        options=job_options_pb2.JobOptions.FromString(row.options),
        principal=row.principal,
        attempt_count=row.attempt if row.attempt_start_time else row.attempt - 1,
        ended_early=row.ended_early,
        cancel_mode=job_pb2.CancelMode.ValueType(row.cancel_mode),
        retry_of=f"jobs/{row.retry_of}" if row.retry_of else "",
        sequence=row.sequence,
        create_time=timestamp(row.create_time),
        start_time=timestamp(row.start_time),
        end_time=timestamp(row.end_time),
        next_attempt_time=timestamp(row.due_time) if state == State.RETRY_WAIT else None,
        expire_time=timestamp(row.expire_time),
        result_expired=row.result_expired,
    )
    if row.progress is not None:
        job.progress.CopyFrom(progress_pb2.Progress.FromString(row.progress))
    if row.error is not None and state not in (State.SUCCEEDED, State.QUEUED, State.RUNNING):
        job.error.CopyFrom(status_pb2.Status.FromString(row.error))
    if row.attempt_start_time:
        end = row.end_time or now
        if end:
            job.run_duration.CopyFrom(micros(max(0, end - row.attempt_start_time)))
    if summary:
        return job
    if row.result is not None:
        job.result.CopyFrom(any_pb2.Any(type_url=ANY_PREFIX + row.result_type, value=row.result))
    if row.result_artifact:
        job.result_artifact = row.result_artifact
    for attempt in view.attempts:
        job.attempts.append(_attempt_to_proto(attempt))
    if row.attempt_start_time and (state in LEASED or state == State.SUCCEEDED):
        job.attempts.append(_current_attempt(row, state))
    job.artifacts.extend(view.artifacts)
    if view.queue_position is not None:
        job.queue_position = view.queue_position
    return job


def update_to_proto(view: JobView, now: int) -> job_pb2.JobUpdate:
    """What WatchJob sends: the job without its attempts."""
    job = job_to_proto(view, now)
    job.ClearField("attempts")
    return job_pb2.JobUpdate(sequence=view.row.sequence, job=job)


def planned_to_proto(new: NewJob) -> job_pb2.Job:
    """A job that was only checked."""
    return job_pb2.Job(
        service=new.service,
        method=new.method.full_name,
        state=job_pb2.JOB_STATE_QUEUED,
        options=job_options_pb2.JobOptions.FromString(new.options),
        principal=new.principal,
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


def _current_attempt(row: Any, state: State) -> job_pb2.Attempt:
    ended = state in TERMINAL
    return job_pb2.Attempt(
        number=row.attempt,
        fence=row.fence,
        state=job_pb2.AttemptState.ValueType(int(AttemptState.SUCCEEDED if ended else AttemptState.RUNNING)),
        sidecar=row.instance,
        start_time=timestamp(row.attempt_start_time),
        end_time=timestamp(row.end_time) if ended else None,
    )


def grant_to_proto(granted: Granted, lease: float) -> job_lease_service_pb2.Grant:
    """A grant with a lease of so many seconds; heartbeats are asked for three times in it."""
    length = int(lease * 1_000_000)
    grant = job_lease_service_pb2.Grant(
        job=f"jobs/{granted.id}",
        attempt=granted.attempt,
        fence=granted.fence,
        service=granted.service,
        method=granted.method,
        lease_duration=micros(length),
        heartbeat_interval=micros(length // 3),
        principal=granted.principal,
        traceparent=granted.traceparent,
        request_id=granted.request_id,
        cancel_mode=job_pb2.CancelMode.ValueType(granted.cancel_mode),
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
