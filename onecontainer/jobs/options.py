"""``type.v1.JobOptions``: checked with full field paths, defaults filled in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from google.protobuf import duration_pb2

from onecontainer.api.type.v1 import job_options_pb2
from onecontainer.errors import FieldInvalid, FieldViolation
from onecontainer.jobs.model import SECOND, RetryPolicy
from onecontainer.rpc.labels import label_violations, request_id_violations

DEFAULT_TOTAL_TIMEOUT = 24 * 3600 * SECOND
DEFAULT_RESULT_TTL = 3600 * SECOND
MAX_DURATION = 315_576_000_000 * SECOND
"""What ``google.protobuf.Duration`` allows."""


@dataclass(frozen=True, slots=True)
class Checked:
    """Options as the ledger uses them; microseconds, 0 = no limit. Shared: nobody changes the message."""

    message: job_options_pb2.JobOptions
    serialized: bytes
    policy: RetryPolicy
    priority: int
    queue_timeout: int
    total_timeout: int
    labels: dict[str, str]


def check(options: job_options_pb2.JobOptions, path: str, *, default_max_attempts: int = 3) -> Checked:
    """The options with their defaults.

    Args:
        options: as sent; not changed.
        path: path of the field that they came in, for violations.
        default_max_attempts: of the service.

    Raises:
        FieldInvalid: with every violation.
    """
    return _check(options.SerializeToString(deterministic=True), path, default_max_attempts)


@lru_cache(maxsize=1024)
def _check(sent: bytes, path: str, default_max_attempts: int) -> Checked:
    """Most callers send the same options with each of their jobs."""
    options = job_options_pb2.JobOptions.FromString(sent)
    found: list[FieldViolation] = []

    def wrong(name: str, text: str) -> None:
        found.append(FieldViolation(f"{path}.{name}", text))

    result = job_options_pb2.JobOptions()
    result.CopyFrom(options)
    found.extend(request_id_violations(options.request_id, f"{path}.request_id"))
    if options.priority not in job_options_pb2.Priority.values():
        wrong("priority", f"{options.priority} is not a Priority")
    if result.priority == job_options_pb2.PRIORITY_UNSPECIFIED:
        result.priority = job_options_pb2.PRIORITY_NORMAL

    def micros(message: duration_pb2.Duration, name: str, default: int = 0) -> int:
        value = message.ToMicroseconds()
        if value < 0:
            wrong(name, "must not be negative")
        elif value > MAX_DURATION:
            wrong(name, "must not be longer than 10,000 years")
        return value or default

    queue_timeout = micros(options.queue_timeout, "queue_timeout")
    micros(options.attempt_timeout, "attempt_timeout")
    micros(options.stall_timeout, "stall_timeout")
    total_timeout = micros(options.total_timeout, "total_timeout", DEFAULT_TOTAL_TIMEOUT)
    result.total_timeout.FromMicroseconds(total_timeout)
    micros(options.result_ttl, "result_ttl")
    if options.keep_result and options.HasField("result_ttl"):
        wrong("keep_result", "must not be set together with result_ttl")
    if not options.keep_result and not options.HasField("result_ttl"):
        result.result_ttl.FromMicroseconds(DEFAULT_RESULT_TTL)
    found.extend(label_violations(options.labels, f"{path}.labels"))
    policy = _policy(options.retry_policy, wrong, default_max_attempts)
    if found:
        raise FieldInvalid(violations=found)
    result.retry_policy.max_attempts = policy.max_attempts
    result.retry_policy.initial_backoff.FromMicroseconds(policy.initial_backoff)
    result.retry_policy.max_backoff.FromMicroseconds(policy.max_backoff)
    result.retry_policy.backoff_multiplier = policy.multiplier
    return Checked(
        *(result, result.SerializeToString(), policy, int(result.priority), queue_timeout, total_timeout),
        labels=dict(result.labels),
    )


def _policy(message: job_options_pb2.RetryPolicy, wrong: object, default_max_attempts: int) -> RetryPolicy:
    assert callable(wrong)
    max_attempts = message.max_attempts or default_max_attempts
    if not 1 <= max_attempts <= 100:
        wrong("retry_policy.max_attempts", "must be 1 to 100")
    initial = message.initial_backoff.ToMicroseconds() if message.HasField("initial_backoff") else SECOND
    if not 0 < initial <= 3600 * SECOND:
        wrong("retry_policy.initial_backoff", "must be more than 0 s and at most 1 h")
    longest = message.max_backoff.ToMicroseconds() if message.HasField("max_backoff") else max(60 * SECOND, initial)
    if not initial <= longest <= 24 * 3600 * SECOND:
        wrong("retry_policy.max_backoff", "must not be below initial_backoff, and at most 24 h")
    multiplier = message.backoff_multiplier or 2.0
    if not 1.0 <= multiplier <= 10.0:
        wrong("retry_policy.backoff_multiplier", "must be 1.0 to 10.0")
    return RetryPolicy(max_attempts, initial, longest, multiplier, message.retry_unsafe)


def policy_of(options: job_options_pb2.JobOptions) -> RetryPolicy:
    """The policy in options that were checked before."""
    message = options.retry_policy
    return RetryPolicy(
        message.max_attempts,
        message.initial_backoff.ToMicroseconds(),
        message.max_backoff.ToMicroseconds(),
        message.backoff_multiplier,
        message.retry_unsafe,
    )
