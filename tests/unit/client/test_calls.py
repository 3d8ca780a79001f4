"""When a call is tried again, and when not."""

from __future__ import annotations

import pytest

from onecontainer.api.job.v1 import job_service_pb2
from onecontainer.client.calls import Backoff, Deadline, RetryPolicy, is_idempotent, iterate
from onecontainer.errors import DriverUnreachable, QueueUnreachable, ResourceNotFound

POLICY = RetryPolicy(max_attempts=4, initial_backoff=1.0, max_backoff=3.0, multiplier=2.0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def backoff(timeout: float | None = None, *, draw: float = 1.0, clock: Clock | None = None) -> Backoff:
    return Backoff(POLICY, POLICY.max_attempts, Deadline(timeout, clock or Clock()), draw=lambda: draw)


def test_waits_grow_up_to_their_bound_and_end_after_the_last_attempt() -> None:
    waits = backoff()
    assert [waits.wait_for(DriverUnreachable()) for _ in range(4)] == [1.0, 2.0, 3.0, None]


def test_jitter_draws_between_half_of_the_wait_and_the_whole() -> None:
    assert backoff(draw=0.0).wait_for(DriverUnreachable()) == 0.5


def test_what_worked_in_between_starts_the_count_anew() -> None:
    waits = backoff()
    for _ in range(3):
        waits.wait_for(DriverUnreachable())
    waits.reset()
    assert waits.wait_for(DriverUnreachable()) == 1.0


def test_only_unavailable_is_tried_again() -> None:
    assert backoff().wait_for(ResourceNotFound()) is None


def test_retry_info_is_never_undercut_and_has_no_bound_but_the_deadline() -> None:
    waits = backoff(draw=0.0)
    error = QueueUnreachable(retry_after=7.0)
    assert [waits.wait_for(error) for _ in range(10)] == [7.0] * 10


def test_a_wait_that_would_pass_the_deadline_is_not_begun() -> None:
    clock = Clock()
    waits = backoff(10.0, draw=0.0, clock=clock)
    error = QueueUnreachable(retry_after=4.0)
    assert waits.wait_for(error) == 4.0
    clock.now = 7.0
    assert waits.wait_for(error) is None


def test_who_wants_to_know_is_told_of_each_next_try_and_not_of_the_end() -> None:
    told: list[tuple[str, float]] = []
    policy = RetryPolicy(on_retry=lambda error, wait: told.append((error.message, wait)))
    waits = Backoff(policy, 2, Deadline(None), draw=lambda: 1.0)
    error = DriverUnreachable("starting")
    assert [waits.wait_for(error), waits.wait_for(error)] == [0.1, None]
    assert told == [("starting", 0.1)]


def test_deadline_counts_down_to_zero_and_infinity_is_none() -> None:
    clock = Clock()
    deadline = Deadline(2.0, clock)
    clock.now = 1.5
    assert deadline.remaining() == 0.5
    clock.now = 9.0
    assert deadline.remaining() == 0.0
    assert Deadline(float("inf"), clock).remaining() is None
    assert Deadline(None, clock).remaining() is None


@pytest.mark.parametrize(("method", "expected"), [("GetJob", True), ("CancelJob", True), ("CreateJob", False)])
def test_idempotency_is_read_from_the_contract(method: str, expected: bool) -> None:
    service = job_service_pb2.DESCRIPTOR.services_by_name["JobService"]
    assert is_idempotent(service.methods_by_name[method]) is expected


async def test_iterate_takes_lists_lazy_and_asynchronous_iterables() -> None:
    async def asynchronous():  # type: ignore[no-untyped-def]
        yield 1
        yield 2

    for items in ([1, 2], iter([1, 2]), asynchronous()):
        assert [item async for item in iterate(items)] == [1, 2]
