"""What requests are made of: resource names, durations, job options, structs, masks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf import duration_pb2, json_format, struct_pb2

from onecontainer.api.type.v1 import job_options_pb2

T = TypeVar("T")

PRIORITIES = {
    "low": job_options_pb2.PRIORITY_LOW,
    "normal": job_options_pb2.PRIORITY_NORMAL,
    "high": job_options_pb2.PRIORITY_HIGH,
}
PAGE_SIZE = 500


def full_name(collection: str, name: str) -> str:
    """`services/x` of either `x` or `services/x`."""
    return name if not name or "/" in name else f"{collection}/{name}"


def short_name(name: str) -> str:
    """The last part of a resource name."""
    return name.rsplit("/", 1)[-1]


def seconds(value: float | None) -> duration_pb2.Duration | None:
    """A Duration of so many seconds. None stays absent."""
    if value is None:
        return None
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(round(value * 1_000_000_000))
    return duration


def struct(values: Mapping[str, Any] | None) -> struct_pb2.Struct | None:
    """A Struct of JSON values. None stays absent."""
    if values is None:
        return None
    return json_format.ParseDict(dict(values), struct_pb2.Struct())


def json_value(value: Any) -> struct_pb2.Value:
    """A Value of a JSON value."""
    return json_format.Parse(json.dumps(value), struct_pb2.Value())


def filter_of(terms: Mapping[str, str | None]) -> str:
    """A filter of the contract's form, of the terms that are set: `service = "services/x" AND state = "QUEUED"`."""
    found = []
    for field, value in terms.items():
        if value:
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            found.append(f'{field} = "{escaped}"')
    return " AND ".join(found)


def job_options(
    *,
    request_id: str = "",
    priority: str = "",
    queue_timeout: float | None = None,
    attempt_timeout: float | None = None,
    total_timeout: float | None = None,
    stall_timeout: float | None = None,
    max_attempts: int = 0,
    initial_backoff: float | None = None,
    max_backoff: float | None = None,
    backoff_multiplier: float = 0.0,
    retry_unsafe: bool = False,
    result_ttl: float | None = None,
    keep_result: bool = False,
    labels: Mapping[str, str] | None = None,
) -> job_options_pb2.JobOptions:
    """JobOptions; all times in seconds, `priority` one of low, normal, high. What is left out has the contract's default."""
    if priority and priority not in PRIORITIES:
        raise ValueError(f"priority {priority!r} is none of {', '.join(PRIORITIES)}")
    options = job_options_pb2.JobOptions(
        request_id=request_id,
        priority=PRIORITIES.get(priority, job_options_pb2.PRIORITY_UNSPECIFIED),
        queue_timeout=seconds(queue_timeout),
        attempt_timeout=seconds(attempt_timeout),
        total_timeout=seconds(total_timeout),
        stall_timeout=seconds(stall_timeout),
        result_ttl=seconds(result_ttl),
        keep_result=keep_result,
        labels=labels or {},
    )
    policy = job_options_pb2.RetryPolicy(
        max_attempts=max_attempts,
        initial_backoff=seconds(initial_backoff),
        max_backoff=seconds(max_backoff),
        backoff_multiplier=backoff_multiplier,
        retry_unsafe=retry_unsafe,
    )
    if policy != job_options_pb2.RetryPolicy():
        options.retry_policy.CopyFrom(policy)
    return options


async def all_pages(
    fetch: Callable[[int, str], Awaitable[tuple[Sequence[T], str]]], limit: int | None
) -> AsyncIterator[T]:
    """Items of all pages, at most `limit`. `fetch` takes a page size and a page token, and gives items and the next token."""
    token = ""
    left = limit
    while left is None or left > 0:
        items, token = await fetch(PAGE_SIZE if left is None else min(PAGE_SIZE, left), token)
        for item in items[:left]:
            yield item
        if not token:
            return
        left = None if left is None else left - len(items)
