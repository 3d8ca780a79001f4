"""JobOptions: what is refused, by the path of its field, and what is filled in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration

from onecontainer.api.type.v1.job_options_pb2 import PRIORITY_HIGH, PRIORITY_NORMAL, JobOptions, RetryPolicy
from onecontainer.errors import FieldInvalid
from onecontainer.jobs.model import SECOND
from onecontainer.jobs.options import check, policy_of

MINUS = Duration(seconds=-1)


def test_the_empty_message_is_a_good_default() -> None:
    sent = JobOptions()
    checked = check(sent, "options")
    assert sent == JobOptions(), "what was sent stays as it is"
    message = checked.message
    assert (checked.priority, message.priority) == (PRIORITY_NORMAL, PRIORITY_NORMAL)
    assert (checked.queue_timeout, checked.total_timeout) == (0, 86400 * SECOND)
    assert message.total_timeout == Duration(seconds=86400)
    assert message.result_ttl == Duration(seconds=3600)
    policy = checked.policy
    assert (policy.max_attempts, policy.initial_backoff, policy.max_backoff) == (3, SECOND, 60 * SECOND)
    assert (policy.multiplier, policy.retry_unsafe) == (2.0, False)
    assert policy_of(message) == policy


def test_what_is_filled_in_passes_again_as_the_same() -> None:
    sent = JobOptions(priority=PRIORITY_HIGH, keep_result=True, labels={"a": "b"})
    sent.retry_policy.CopyFrom(RetryPolicy(max_attempts=7, initial_backoff=Duration(seconds=90), retry_unsafe=True))
    first = check(sent, "options")
    assert not first.message.HasField("result_ttl")
    assert first.policy.max_backoff == 90 * SECOND, "never below the first wait"
    assert check(first.message, "options") == first


def test_the_services_own_default_of_attempts() -> None:
    assert check(JobOptions(), "o", default_max_attempts=9).policy.max_attempts == 9


def test_a_ttl_of_zero_is_not_the_default() -> None:
    message = check(JobOptions(result_ttl=Duration()), "o").message
    assert message.HasField("result_ttl")
    assert message.result_ttl == Duration()


WRONG: list[tuple[str, JobOptions]] = [
    ("request_id", JobOptions(request_id="x" * 129)),
    ("request_id", JobOptions(request_id="a\0b")),
    ("request_id", JobOptions(request_id="a\x1f")),
    ("labels['k']", JobOptions(labels={"k": "\0"})),
    ("labels['k']", JobOptions(labels={"k": "two\nlines"})),
    *((name, JobOptions(**{name: MINUS})) for name in ("queue_timeout", "attempt_timeout", "total_timeout")),
    *((name, JobOptions(**{name: MINUS})) for name in ("stall_timeout", "result_ttl")),
    ("total_timeout", JobOptions(total_timeout=Duration(seconds=2**62))),
    ("keep_result", JobOptions(keep_result=True, result_ttl=Duration())),
    ("labels", JobOptions(labels={f"k{number}": "" for number in range(33)})),
    ("labels['Upper']", JobOptions(labels={"Upper": ""})),
    ("labels['']", JobOptions(labels={"": ""})),
    (f"labels['{'k' * 64}']", JobOptions(labels={"k" * 64: ""})),
    ("labels['k']", JobOptions(labels={"k": "v" * 257})),
    ("retry_policy.max_attempts", JobOptions(retry_policy=RetryPolicy(max_attempts=101))),
    ("retry_policy.max_attempts", JobOptions(retry_policy=RetryPolicy(max_attempts=-1))),
    ("retry_policy.initial_backoff", JobOptions(retry_policy=RetryPolicy(initial_backoff=Duration()))),
    ("retry_policy.initial_backoff", JobOptions(retry_policy=RetryPolicy(initial_backoff=Duration(seconds=3601)))),
    (
        "retry_policy.max_backoff",
        JobOptions(retry_policy=RetryPolicy(initial_backoff=Duration(seconds=9), max_backoff=Duration(seconds=8))),
    ),
    ("retry_policy.max_backoff", JobOptions(retry_policy=RetryPolicy(max_backoff=Duration(seconds=86401)))),
    ("retry_policy.backoff_multiplier", JobOptions(retry_policy=RetryPolicy(backoff_multiplier=0.5))),
    ("retry_policy.backoff_multiplier", JobOptions(retry_policy=RetryPolicy(backoff_multiplier=float("nan")))),
]


@pytest.mark.parametrize(("path", "sent"), WRONG)
def test_what_is_wrong_is_named_by_its_full_path(path: str, sent: JobOptions) -> None:
    with pytest.raises(FieldInvalid) as caught:
        check(sent, "requests[3].options")
    assert [violation.field for violation in caught.value.violations] == [f"requests[3].options.{path}"]


def test_an_unknown_priority_is_refused() -> None:
    with pytest.raises(FieldInvalid) as caught:
        check(JobOptions.FromString(b"\x10\x63"), "options")
    assert caught.value.violations[0].field == "options.priority"


def test_all_that_is_wrong_is_told_at_once() -> None:
    sent = JobOptions(request_id="x" * 200, queue_timeout=MINUS)
    sent.retry_policy.max_attempts = 1000
    with pytest.raises(FieldInvalid) as caught:
        check(sent, "options")
    assert len(caught.value.violations) == 3


@pytest.mark.parametrize(
    "limit", [lambda: JobOptions(request_id="x" * 128), lambda: JobOptions(labels={"k" * 63: "v" * 256})]
)
def test_the_limits_themselves_are_allowed(limit: Callable[[], JobOptions]) -> None:
    check(limit(), "options")
