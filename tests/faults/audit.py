"""What is looked for after a fault run: jobs that are lost, that have two effective outcomes, or that are wrong otherwise.

Four witnesses are heard: the ledger (the job and its attempts), the driver (a line at the begin and at the end of each
attempt), the caller (what was asked, and the result) and, over Kafka, the topic of events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from google.protobuf import text_format

from onecontainer.api.event.v1 import event_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.client.jobs import TERMINAL, job_state
from onecontainer.errors import Reason
from onecontainer.rpc.status import from_status
from tests.faults.load import Order

LOST, DOUBLED, WRONG = "lost", "doubled", "wrong"


class Marks:
    """The driver's lines: which attempts of which job began, and which came to their end."""

    def __init__(self, text: str) -> None:
        self.begun: dict[str, list[int]] = {}
        self.ended: dict[str, list[int]] = {}
        for line in text.splitlines():
            kind, job, attempt = line.split()
            (self.begun if kind == "begin" else self.ended).setdefault(job, []).append(int(attempt))


@dataclass(frozen=True, slots=True)
class Case:
    """All that is known of one job. ``record`` None: the gateway does not know it. ``events`` None: there is no topic."""

    order: Order
    record: job_pb2.Job | None
    begun: Sequence[int] = ()
    ended: Sequence[int] = ()
    events: Sequence[event_pb2.JobEvent] | None = None

    def history(self) -> str:
        """For whoever has to find out what went wrong."""
        lines = [f"{self.order}", f"begun: {list(self.begun)}, ended: {list(self.ended)}"]
        if self.record is not None:
            shown = job_pb2.Job()
            shown.CopyFrom(self.record)
            shown.ClearField("result")  # it may be long, and it was compared
            lines.append(text_format.MessageToString(shown))
        for event in self.events or ():
            change = f"{job_pb2.JobState.Name(event.old_state)} → {job_pb2.JobState.Name(event.new_state)}"
            lines.append(f"event {event.sequence}: {change}, attempt {event.attempt}, {event.time.ToJsonString()}")
        return "\n".join(lines)


@dataclass(slots=True)
class Finding:
    """What is wrong with a job: ``kind`` is lost, doubled or wrong."""

    kind: str
    what: str
    case: Case = field(repr=False)


def audit(case: Case) -> list[Finding]:
    """Everything that is wrong with one job."""
    return [Finding(kind, what, case) for kind, what in _findings(case)]


def _findings(case: Case) -> Iterator[tuple[str, str]]:
    record = case.record
    if record is None:
        yield LOST, "it was accepted, and is not there"
        return
    if record.state not in TERMINAL:
        yield LOST, f"it is still {job_state(record)}"
        return
    yield from _ended_right(case, record)
    yield from _ran_right(case, record)
    if case.events is not None:
        yield from _told_right(record, case.events)


def _ended_right(case: Case, record: job_pb2.Job) -> Iterator[tuple[str, str]]:
    """The state, its reason and its result."""
    succeeded = [one for one in record.attempts if one.state == job_pb2.ATTEMPT_STATE_SUCCEEDED]
    if len(succeeded) > 1:
        yield DOUBLED, f"{len(succeeded)} attempts succeeded"
    if record.state == job_pb2.JOB_STATE_SUCCEEDED:
        if not succeeded:
            yield WRONG, "it succeeded, and no attempt did"
        elif succeeded[0].number not in case.ended:
            yield WRONG, f"attempt {succeeded[0].number} succeeded without having come to its end"
        yield from _result_right(case.order, record)
        return
    if succeeded:
        yield DOUBLED, f"an attempt succeeded, and the job is {job_state(record)}"
    if not record.error.code:
        yield LOST, f"it is {job_state(record)} without a reason"
        return
    reason = from_status(record.error).reason
    if record.state == job_pb2.JOB_STATE_CANCELLED:
        if not case.order.cancel:
            yield WRONG, "it is CANCELLED, and nobody asked for it"
    elif case.order.idempotent or reason is not Reason.OUTCOME_UNKNOWN:
        yield LOST, f"it is {job_state(record)} / {reason}"


def _result_right(order: Order, record: job_pb2.Job) -> Iterator[tuple[str, str]]:
    from onecontainer_driver_echo import echo_pb2  # built for this run

    result = echo_pb2.WorkResult()
    if not record.HasField("result"):
        yield LOST, "it succeeded without a result"
    elif not record.result.Unpack(result) or (len(result.payload), result.steps) != (order.result_bytes, order.steps):
        yield WRONG, f"its result is another's: {len(result.payload)} bytes, {result.steps} steps"


def _ran_right(case: Case, record: job_pb2.Job) -> Iterator[tuple[str, str]]:
    """What the driver saw, against what the ledger knows."""
    for number, times in Counter(case.begun).items():
        if times > 1:
            yield DOUBLED, f"attempt {number} began {times} times"
    if not case.order.idempotent and len(case.begun) > 1:
        yield DOUBLED, f"its method must not be repeated, and began {len(case.begun)} times"
    strangers = set(case.begun) - {attempt.number for attempt in record.attempts}
    if strangers:
        yield DOUBLED, f"the ledger knows nothing of the attempts {sorted(strangers)}"
    fences = [attempt.fence for attempt in record.attempts]
    if len(set(fences)) < len(fences):
        yield DOUBLED, f"two attempts have one fence: {fences}"


def _told_right(record: job_pb2.Job, events: Sequence[event_pb2.JobEvent]) -> Iterator[tuple[str, str]]:
    """The events, each of which may be there more than once, are one unbroken chain from the creation to the one end."""
    by_sequence: dict[int, event_pb2.JobEvent] = {}
    for event in events:
        known = by_sequence.setdefault(event.sequence, event)
        if known.new_state != event.new_state:
            yield DOUBLED, f"two events have the sequence {event.sequence}"
    first_seen = list(dict.fromkeys(event.sequence for event in events))
    if first_seen != sorted(first_seen):
        yield WRONG, f"its events are out of order: {first_seen}"
    chain = [by_sequence[sequence] for sequence in sorted(by_sequence)]
    ends = [event for event in chain if event.new_state in TERMINAL]
    if len(ends) > 1:
        yield DOUBLED, f"{len(ends)} events tell of its end"
    if not chain or chain[-1].new_state != record.state or chain[0].new_state != job_pb2.JOB_STATE_QUEUED:
        yield WRONG, "its events do not lead from its creation to its end"
    for before, after in pairwise(chain):
        if after.old_state != before.new_state:
            yield WRONG, f"no event tells what came between {before.sequence} and {after.sequence}"
