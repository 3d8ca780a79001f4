"""JobService over a real socket."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.job.v1 import job_service_pb2 as pb
from onecontainer.api.type.v1 import job_options_pb2, route_pb2
from onecontainer.errors import BackendUnreachable, Code, FieldInvalid, LimitExceeded, OneContainerError, Reason
from onecontainer.jobs.model import Limits
from onecontainer.rpc.pages import page_token
from onecontainer.rpc.status import from_status, to_status
from tests.fixtures.jobs_gateway import (
    LONG_ROUTE,
    PIPE,
    ROUTE,
    RUN,
    SAY,
    JobsGateway,
    create_request,
    failure,
    report,
    succeeded,
    token,
)
from tests.fixtures.ledger_desk import SERVICE

Gateway = JobsGateway
ZERO = duration_pb2.Duration()


async def finish(gateway: Gateway, result: bytes = b"", **fields: Any) -> None:
    """A worker takes the next job and returns."""
    (grant,) = await gateway.poll(1)
    stream = gateway.reports()
    await stream.send(report(1, grant, succeeded=succeeded(result, **fields)))
    await stream.acknowledged(1)
    await stream.close()


async def fail(gateway: Gateway, error: OneContainerError) -> None:
    (grant,) = await gateway.poll(1)
    stream = gateway.reports()
    await stream.send(report(1, grant, failed=to_status(error, hop="sidecar")))
    await stream.acknowledged(1)
    await stream.close()


async def get(gateway: Gateway, name: str) -> job_pb2.Job:
    job: job_pb2.Job = await gateway.jobs.GetJob(pb.GetJobRequest(name=name))
    return job


async def test_a_call_becomes_a_job_and_its_answer_can_be_read(gateway: Gateway) -> None:
    job = await gateway.jobs.CreateJob(create_request(labels={"team": "red"}), metadata=token("bob"))
    assert job.name.startswith("jobs/")
    assert (job.service, job.method, job.principal, job.state) == (SERVICE, SAY, "bob", job_pb2.JOB_STATE_QUEUED)
    assert job.options.labels == {"team": "red"}
    assert job.options.total_timeout.seconds == 86400
    assert job.attempt_count == 0
    answer = route_pb2.Route(service="answer")
    await finish(gateway, answer.SerializeToString())
    done = await get(gateway, job.name)
    assert done.state == job_pb2.JOB_STATE_SUCCEEDED
    unpacked = route_pb2.Route()
    assert done.result.Unpack(unpacked)
    assert unpacked == answer
    assert [(a.number, a.fence, a.state) for a in done.attempts] == [(1, 1, job_pb2.ATTEMPT_STATE_SUCCEEDED)]
    assert (done.attempt_count, done.sequence > job.sequence) == (1, True)


async def test_the_request_gets_the_service_it_is_for(gateway: Gateway) -> None:
    await gateway.jobs.CreateJob(create_request(value=b""))
    (grant,) = await gateway.poll()
    assert route_pb2.Route.FromString(grant.request).service == SERVICE


async def test_a_large_request_waits_in_the_artifact_store(gateway: Gateway) -> None:
    value = route_pb2.Route(service=SERVICE).SerializeToString() + b"\x7a\x80\x10" + bytes(2048)
    await gateway.jobs.CreateJob(create_request(value=value))
    (grant,) = await gateway.poll()
    assert not grant.HasField("request")
    assert gateway.payloads.kept[grant.request_artifact] == value
    assert await gateway.desk.ledger.user_of(grant.request_artifact) == grant.job.removeprefix("jobs/")


async def test_validate_only_creates_nothing(gateway: Gateway) -> None:
    request = create_request(value=b"\x7a\x80\x10" + bytes(2048))
    request.validate_only = True
    job = await gateway.jobs.CreateJob(request)
    assert (job.name, job.state) == ("", job_pb2.JOB_STATE_QUEUED)
    assert await gateway.poll() == []
    assert not gateway.payloads.kept


def without(field: str) -> pb.CreateJobRequest:
    request = create_request()
    request.ClearField(field)
    return request


def with_inner_options() -> pb.CreateJobRequest:
    inner = route_pb2.LongRunningRoute(job_options=job_options_pb2.JobOptions(request_id="i"))
    return create_request(RUN, value=inner.SerializeToString(), request_id="o")


@pytest.mark.parametrize(
    ("request_", "reason", "code", "path"),
    [
        (without("service"), Reason.FIELD_REQUIRED, Code.INVALID_ARGUMENT, "service"),
        (without("method"), Reason.FIELD_REQUIRED, Code.INVALID_ARGUMENT, "method"),
        (without("request"), Reason.FIELD_REQUIRED, Code.INVALID_ARGUMENT, "request"),
        (create_request(value=b"\xff\xff"), Reason.DATA_INVALID, Code.INVALID_ARGUMENT, "request"),
        (
            create_request(value=route_pb2.Route(service="services/x").SerializeToString()),
            *(Reason.DATA_INVALID, Code.INVALID_ARGUMENT, "request.service"),
        ),
        (create_request(request_id="x" * 200), Reason.FIELD_INVALID, Code.INVALID_ARGUMENT, "options.request_id"),
        (with_inner_options(), Reason.FIELD_INVALID, Code.INVALID_ARGUMENT, "options"),
        (create_request("test.Echo/Nope"), Reason.METHOD_UNKNOWN, Code.UNIMPLEMENTED, None),
        (create_request("test.Echo/Later"), Reason.CAPABILITY_MISSING, Code.UNIMPLEMENTED, None),
        (create_request(PIPE), Reason.CAPABILITY_MISSING, Code.UNIMPLEMENTED, None),
        (create_request(service="services/x"), Reason.RESOURCE_NOT_FOUND, Code.NOT_FOUND, None),
        (create_request(service="services/bare"), Reason.DRIVER_NOT_AVAILABLE, Code.FAILED_PRECONDITION, None),
    ],
)
async def test_what_cannot_be_run_is_refused_with_its_reason(
    gateway: Gateway, request_: pb.CreateJobRequest, reason: Reason, code: Code, path: str | None
) -> None:
    error = await failure(gateway.jobs.CreateJob(request_))
    assert (error.reason, error.code, error.hop) == (reason, code, "gateway")
    assert [violation.field for violation in error.violations] == ([path] if path else [])
    assert await gateway.poll() == []


async def test_options_inside_a_long_running_request_have_their_own_path(gateway: Gateway) -> None:
    inner = route_pb2.LongRunningRoute(job_options=job_options_pb2.JobOptions(request_id="x" * 200))
    error = await failure(gateway.jobs.CreateJob(create_request(RUN, value=inner.SerializeToString())))
    assert [violation.field for violation in error.violations] == ["request.job_options.request_id"]


async def test_a_request_of_another_type_is_refused(gateway: Gateway) -> None:
    request = create_request()
    request.request.type_url = "type.googleapis.com/" + LONG_ROUTE
    error = await failure(gateway.jobs.CreateJob(request))
    assert error.reason is Reason.DATA_INVALID
    assert ROUTE in error.message


async def test_a_replay_is_the_first_job_as_it_is_now(gateway: Gateway) -> None:
    first = await gateway.jobs.CreateJob(create_request(request_id="r"))
    await finish(gateway)
    again = await gateway.jobs.CreateJob(create_request(request_id="r"))
    assert (again.name, again.state) == (first.name, job_pb2.JOB_STATE_SUCCEEDED)
    gateway.directory.limits = Limits(max_running=9, default_max_attempts=7)
    assert (await gateway.jobs.CreateJob(create_request(request_id="r"))).name == first.name
    error = await failure(gateway.jobs.CreateJob(create_request(request_id="r", labels={"a": "b"})))
    assert (error.reason, error.code) == (Reason.REQUEST_ID_REUSED, Code.ALREADY_EXISTS)


async def test_a_full_queue_says_when_to_come_again(gateway: Gateway) -> None:
    gateway.directory.limits = Limits(max_running=1, max_queued=2)
    for _ in range(2):
        await gateway.jobs.CreateJob(create_request())
    error = await failure(gateway.jobs.CreateJob(create_request()))
    assert isinstance(error, LimitExceeded)
    assert (error.code, error.retry_after) == (Code.RESOURCE_EXHAUSTED, 5.0)
    assert error.metadata["limit"] == "2"


async def test_a_batch_is_answered_item_by_item(gateway: Gateway) -> None:
    gateway.directory.limits = Limits(max_running=9, max_queued=3)
    batch = pb.BatchCreateJobsRequest(
        requests=[
            create_request(request_id="a"),
            create_request("test.Echo/Nope"),
            create_request(request_id="a"),
            create_request(request_id="a", labels={"x": "y"}),
            create_request(),
        ]
    )
    results = (await gateway.jobs.BatchCreateJobs(batch)).results
    kinds = [r.job.name if r.HasField("job") else from_status(r.error).reason.name for r in results]
    assert kinds == [kinds[0], "METHOD_UNKNOWN", kinds[0], "REQUEST_ID_REUSED", "LIMIT_EXCEEDED"]
    assert [grant.job for grant in await gateway.poll()] == [kinds[0]]


async def test_an_item_with_a_nul_harms_no_other_of_its_batch(gateway: Gateway) -> None:
    batch = pb.BatchCreateJobsRequest(
        requests=[create_request(), create_request(labels={"a": "\0"}), create_request(labels={"a": "b"})]
    )
    first, middle, last = (await gateway.jobs.BatchCreateJobs(batch)).results
    error = from_status(middle.error)
    assert (error.reason, error.code) == (Reason.FIELD_INVALID, Code.INVALID_ARGUMENT)
    assert [violation.field for violation in error.violations] == ["options.labels['a']"]
    listed = (await gateway.jobs.ListJobs(pb.ListJobsRequest())).jobs
    assert {job.name for job in listed} == {first.job.name, last.job.name}


@pytest.mark.parametrize(
    "text", ['labels.a = "\0"', 'service = "services/\0"', 'principal = "\0"'], ids=["label", "service", "principal"]
)
async def test_a_filter_with_a_nul_is_refused(gateway: Gateway, text: str) -> None:
    error = await failure(gateway.jobs.ListJobs(pb.ListJobsRequest(filter=text)))
    assert (error.reason, error.violations[0].field) == (Reason.FIELD_INVALID, "filter")


@pytest.mark.parametrize("count", [0, 1001])
async def test_a_batch_has_a_size(gateway: Gateway, count: int) -> None:
    batch = pb.BatchCreateJobsRequest(requests=[create_request()] * count)
    error = await failure(gateway.jobs.BatchCreateJobs(batch))
    assert error.violations[0].field == "requests"


@pytest.mark.parametrize("name", ["", "jobs/", "services/x", "jobs/a/b", "jobs/../x"])
async def test_names_are_checked(gateway: Gateway, name: str) -> None:
    for call in (
        gateway.jobs.GetJob(pb.GetJobRequest(name=name)),
        gateway.jobs.CancelJob(pb.CancelJobRequest(name=name)),
        gateway.jobs.DeleteJob(pb.DeleteJobRequest(name=name)),
        gateway.jobs.WaitJob(pb.WaitJobRequest(name=name)),
        gateway.jobs.RetryJob(pb.RetryJobRequest(name=name)),
        gateway.jobs.WatchJob(pb.WatchJobRequest(name=name)).read(),
    ):
        error = await failure(call)
        assert error.reason is (Reason.FIELD_INVALID if name else Reason.FIELD_REQUIRED)
        assert error.violations[0].field == "name"


async def test_a_job_that_is_not_there(gateway: Gateway) -> None:
    for call in (
        gateway.jobs.GetJob(pb.GetJobRequest(name="jobs/nope")),
        gateway.jobs.CancelJob(pb.CancelJobRequest(name="jobs/nope")),
        gateway.jobs.DeleteJob(pb.DeleteJobRequest(name="jobs/nope")),
        gateway.jobs.WaitJob(pb.WaitJobRequest(name="jobs/nope")),
        gateway.jobs.RetryJob(pb.RetryJobRequest(name="jobs/nope")),
        gateway.jobs.WatchJob(pb.WatchJobRequest(name="jobs/nope")).read(),
    ):
        error = await failure(call)
        assert (error.code, error.resource) == (Code.NOT_FOUND, ("onecontainer.dev/Job", "jobs/nope"))


async def test_wait_answers_when_the_job_has_ended(gateway: Gateway) -> None:
    job = await gateway.jobs.CreateJob(create_request())
    waiting = asyncio.ensure_future(gateway.jobs.WaitJob(pb.WaitJobRequest(name=job.name)))
    await finish(gateway)
    assert (await waiting).state == job_pb2.JOB_STATE_SUCCEEDED


async def test_wait_answers_with_the_job_as_it_is_when_the_time_is_over(gateway: Gateway) -> None:
    job = await gateway.jobs.CreateJob(create_request())
    request = pb.WaitJobRequest(name=job.name, timeout=ZERO)
    assert (await gateway.jobs.WaitJob(request)).state == job_pb2.JOB_STATE_QUEUED
    request.timeout.seconds = -1
    assert (await failure(gateway.jobs.WaitJob(request))).violations[0].field == "timeout"


async def test_wait_for_many_tells_each_end_once_and_what_is_not_there(gateway: Gateway) -> None:
    made = [await gateway.jobs.CreateJob(create_request()) for _ in range(3)]
    await finish(gateway, b"")
    names = [job.name for job in made]
    call = gateway.jobs.WaitJobs(pb.WaitJobsRequest(names=[*names, names[0], "jobs/nope"]))
    told = aiter(call)
    first = [result for _ in range(2) for result in (await anext(told)).results]
    assert [(result.name, result.WhichOneof("result")) for result in first] == [
        (names[0], "job"),
        ("jobs/nope", "error"),
    ]
    assert first[0].job == await get(gateway, names[0])
    assert from_status(first[1].error).reason is Reason.RESOURCE_NOT_FOUND
    await fail(gateway, FieldInvalid("x", "bad"))
    await gateway.desk.ledger.cancel(names[2].removeprefix("jobs/"), 1)
    gateway.changes.touch(names[2].removeprefix("jobs/"))
    rest = {result.name: result.job async for response in told for result in response.results}
    assert {name: job.state for name, job in rest.items()} == {
        names[1]: job_pb2.JOB_STATE_FAILED,
        names[2]: job_pb2.JOB_STATE_CANCELLED,
    }
    assert rest[names[1]].attempts[0].state == job_pb2.ATTEMPT_STATE_FAILED


async def test_wait_for_many_sends_large_results_apart(gateway: Gateway) -> None:
    made = [await gateway.jobs.CreateJob(create_request()) for _ in range(5)]
    for _ in made:
        await finish(gateway, bytes(1_000_000))
    responses = [
        response async for response in gateway.jobs.WaitJobs(pb.WaitJobsRequest(names=[job.name for job in made]))
    ]
    assert [len(response.results) for response in responses] == [2, 2, 1]


@pytest.mark.parametrize("names", [[], ["jobs/a"] * 1001, ["jobs/a", "a"]])
async def test_wait_for_many_checks_its_names(gateway: Gateway, names: list[str]) -> None:
    error = await failure(gateway.jobs.WaitJobs(pb.WaitJobsRequest(names=names)).read())
    assert error.code is Code.INVALID_ARGUMENT
    assert error.violations[0].field == ("names[1]" if len(names) == 2 else "names")


async def test_wait_for_many_ends_when_the_gateway_stops(gateway: Gateway) -> None:
    job = await gateway.jobs.CreateJob(create_request())
    reading = asyncio.ensure_future(gateway.jobs.WaitJobs(pb.WaitJobsRequest(names=[job.name])).read())
    (grant,) = await gateway.poll(1)
    gateway.changes.close()
    assert (await failure(reading)).reason is Reason.DRAINING
    assert grant.job == job.name


async def test_watch_sends_each_change_and_ends_with_the_job(gateway: Gateway) -> None:
    job = await gateway.jobs.CreateJob(create_request())
    call = gateway.jobs.WatchJob(pb.WatchJobRequest(name=job.name))
    updates = aiter(call)
    first = (await anext(updates)).update
    assert (first.sequence, first.job.state) == (job.sequence, job_pb2.JOB_STATE_QUEUED)
    await finish(gateway)
    rest = [response.update async for response in updates]
    assert rest[-1].job.state == job_pb2.JOB_STATE_SUCCEEDED
    sequences = [first.sequence, *(update.sequence for update in rest)]
    assert sequences == sorted(set(sequences))


async def test_watch_goes_on_from_a_sequence(gateway: Gateway) -> None:
    job = await gateway.jobs.CreateJob(create_request())
    call = gateway.jobs.WatchJob(pb.WatchJobRequest(name=job.name, from_sequence=job.sequence))
    reading = asyncio.ensure_future(call.read())
    await finish(gateway)
    update = (await reading).update
    assert update.sequence > job.sequence, "what was seen is not sent again"
    last = (await get(gateway, job.name)).sequence
    again = gateway.jobs.WatchJob(pb.WatchJobRequest(name=job.name, from_sequence=last))
    assert await again.read() is grpc.aio.EOF, "there is nothing more to come"


async def test_watch_tells_of_a_deletion(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    next_of = gateway.changes.next_of
    # By its bell only: a look of its own, every few seconds, might find the job ended before it is gone.
    monkeypatch.setattr(gateway.changes, "next_of", lambda bell, _timeout: next_of(bell, 600.0))
    job = await gateway.jobs.CreateJob(create_request())
    call = gateway.jobs.WatchJob(pb.WatchJobRequest(name=job.name))
    await call.read()
    await gateway.desk.ledger.cancel(job.name.removeprefix("jobs/"), 1)
    await gateway.jobs.DeleteJob(pb.DeleteJobRequest(name=job.name))
    assert (await failure(call.read())).code is Code.NOT_FOUND


async def test_a_result_without_a_time_to_live_is_delivered_once(gateway: Gateway) -> None:
    job = await gateway.jobs.CreateJob(create_request(result_ttl=ZERO))
    await finish(gateway, b"")
    assert (await get(gateway, job.name)).HasField("result")
    gone = await get(gateway, job.name)
    assert (gone.HasField("result"), gone.result_expired, gone.state) == (False, True, job_pb2.JOB_STATE_SUCCEEDED)


async def test_a_result_that_is_an_artifact_stays_to_be_fetched(gateway: Gateway) -> None:
    job = await gateway.jobs.CreateJob(create_request(result_ttl=ZERO))
    (grant,) = await gateway.poll(1)
    stream = gateway.reports()
    event = succeeded()
    event.result_artifact = "artifacts/" + "0" * 32
    await stream.send(report(1, grant, succeeded=event))
    await stream.acknowledged(1)
    for _ in range(2):
        assert (await get(gateway, job.name)).result_artifact == event.result_artifact
    gateway.desk.clock.advance(61)
    await gateway.sweep()
    assert (await get(gateway, job.name)).result_expired


async def test_finish_is_for_methods_that_can(gateway: Gateway) -> None:
    job = await gateway.jobs.CreateJob(create_request(SAY))
    grants = await gateway.poll()
    request = pb.CancelJobRequest(name=job.name, mode=job_pb2.CANCEL_MODE_FINISH)
    error = await failure(gateway.jobs.CancelJob(request))
    assert (error.reason, error.code) == (Reason.NOT_FINISHABLE, Code.FAILED_PRECONDITION)
    assert (await get(gateway, job.name)).state == job_pb2.JOB_STATE_RUNNING
    able = await gateway.jobs.CreateJob(create_request(RUN))
    await gateway.poll(held=tuple(grants))
    cancelled = await gateway.jobs.CancelJob(pb.CancelJobRequest(name=able.name, mode=job_pb2.CANCEL_MODE_FINISH))
    assert (cancelled.state, cancelled.cancel_mode) == (job_pb2.JOB_STATE_CANCELLING, job_pb2.CANCEL_MODE_FINISH)
    request = pb.CancelJobRequest(name=job.name, mode=job_pb2.CancelMode.ValueType(9))
    assert (await failure(gateway.jobs.CancelJob(request))).violations[0].field == "mode"


async def test_a_finished_job_is_cancelled_without_effect(gateway: Gateway) -> None:
    job = await gateway.jobs.CreateJob(create_request())
    await finish(gateway)
    for mode in (0, 1, 2):
        answer = await gateway.jobs.CancelJob(
            pb.CancelJobRequest(name=job.name, mode=job_pb2.CancelMode.ValueType(mode))
        )
        assert answer.state == job_pb2.JOB_STATE_SUCCEEDED


async def test_retry_makes_another_job_of_the_same_request(gateway: Gateway) -> None:
    value = route_pb2.Route(service=SERVICE).SerializeToString() + b"\x7a\x80\x10" + bytes(2048)
    job = await gateway.jobs.CreateJob(create_request(value=value, request_id="r", labels={"a": "b"}))
    error = await failure(gateway.jobs.RetryJob(pb.RetryJobRequest(name=job.name)))
    assert (error.reason, error.code) == (Reason.STATE_INVALID, Code.FAILED_PRECONDITION)
    await finish(gateway)
    again = await gateway.jobs.RetryJob(pb.RetryJobRequest(name=job.name))
    assert again.name != job.name
    assert (again.retry_of, again.state) == (job.name, job_pb2.JOB_STATE_QUEUED)
    assert (again.options.labels, again.options.request_id) == ({"a": "b"}, "")
    (grant,) = await gateway.poll()
    assert gateway.payloads.kept[grant.request_artifact] == value
    # With a request_id of its own it can be sent twice.
    request = pb.RetryJobRequest(name=job.name, options=job_options_pb2.JobOptions(request_id="again"))
    assert (await gateway.jobs.RetryJob(request)).name == (await gateway.jobs.RetryJob(request)).name


async def test_a_failure_is_told_with_all_its_details(gateway: Gateway) -> None:
    job = await gateway.jobs.CreateJob(create_request())
    await fail(gateway, FieldInvalid("tensor.shape", "has four dimensions"))
    failed = await get(gateway, job.name)
    assert failed.state == job_pb2.JOB_STATE_FAILED
    error = from_status(failed.error)
    assert (error.reason, error.hop) == (Reason.FIELD_INVALID, "sidecar")
    assert error.violations[0].field == "tensor.shape"
    assert [attempt.state for attempt in failed.attempts] == [job_pb2.ATTEMPT_STATE_FAILED]


async def test_dead_letters_are_listed_and_run_again_once(gateway: Gateway) -> None:
    job = await gateway.jobs.CreateJob(create_request(request_id="mine"))
    await fail(gateway, FieldInvalid("x", "is wrong"))
    (letter,) = (await gateway.jobs.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters
    assert (letter.job, letter.service, letter.redriven_as) == (job.name, SERVICE, "")
    request = pb.RedriveDeadLettersRequest(names=[letter.name, "deadLetters/nope", "bad", letter.name])
    results = (await gateway.jobs.RedriveDeadLetters(request)).results
    assert results[0].job.name == results[3].job.name != job.name
    assert results[0].job.retry_of == job.name
    assert from_status(results[1].error).code is Code.NOT_FOUND
    assert from_status(results[2].error).violations[0].field == "names[2]"
    (letter,) = (await gateway.jobs.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters
    assert letter.redriven_as == results[0].job.name
    error = await failure(gateway.jobs.RedriveDeadLetters(pb.RedriveDeadLettersRequest()))
    assert error.violations[0].field == "names"


async def test_lists_page_and_filter(gateway: Gateway) -> None:
    made = [(await gateway.jobs.CreateJob(create_request(labels={"n": str(n % 2)}))).name for n in range(5)]
    seen: list[str] = []
    request = pb.ListJobsRequest(page_size=2)
    while True:
        page = await gateway.jobs.ListJobs(request)
        seen += [job.name for job in page.jobs]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert seen == made[::-1]
    odd = await gateway.jobs.ListJobs(pb.ListJobsRequest(filter='labels.n = "1" AND state = "QUEUED"'))
    assert [job.name for job in odd.jobs] == [made[3], made[1]]
    assert not odd.jobs[0].HasField("result")
    for wrong, path in (
        ({"filter": "colour = red"}, "filter"),
        ({"page_size": -1}, "page_size"),
        ({"page_token": "x"}, "page_token"),
        ({"page_token": page_token("ListJobs", "", "newest")}, "page_token"),
        ({"page_token": page_token("ListJobs", "", "9" * 30)}, "page_token"),
        ({"filter": 'state = "ALIVE"'}, "filter"),
    ):
        error = await failure(gateway.jobs.ListJobs(pb.ListJobsRequest(**wrong)))  # type: ignore[arg-type]
        assert (error.code, error.violations[0].field) == (Code.INVALID_ARGUMENT, path)


async def test_the_last_error_is_shown_while_the_next_attempt_waits(gateway: Gateway) -> None:
    job = await gateway.jobs.CreateJob(create_request())
    await fail(gateway, BackendUnreachable("away"))
    waiting = await get(gateway, job.name)
    assert waiting.state == job_pb2.JOB_STATE_RETRY_WAIT
    assert from_status(waiting.error).reason is Reason.BACKEND_UNREACHABLE
    assert waiting.next_attempt_time.ToMicroseconds() > gateway.desk.clock.now()
    assert waiting.attempt_count == 1


async def test_the_place_in_the_queue_is_told_while_it_waits(gateway: Gateway) -> None:
    names = [(await gateway.jobs.CreateJob(create_request())).name for _ in range(2)]
    assert (await get(gateway, names[1])).queue_position == 1
    await gateway.poll(1)
    assert (await get(gateway, names[1])).queue_position == 0
    assert not (await get(gateway, names[0])).HasField("queue_position")


async def test_any_is_passed_on_as_bytes(gateway: Gateway) -> None:
    """The gateway knows no vertical: fields that it has never heard of arrive as they were sent."""
    value = route_pb2.Route(service=SERVICE).SerializeToString() + b"\xfa\x06\x03abc"
    request = create_request(value=value)
    assert isinstance(request.request, any_pb2.Any)
    await gateway.jobs.CreateJob(request)
    (grant,) = await gateway.poll()
    assert grant.request == value
