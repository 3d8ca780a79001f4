"""JobLeaseService over a real socket: what a worker can rely on."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf import any_pb2

from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.job.v1 import job_service_pb2 as pb
from onecontainer.api.type.v1 import progress_pb2, route_pb2
from onecontainer.errors import BackendUnreachable, Cancelled, Code, Reason, RecordInvalid
from onecontainer.jobs.dispatch import embedded
from onecontainer.jobs.ledger import Granted, Outcome, Worker
from onecontainer.jobs.model import Limits
from onecontainer.rpc.status import from_status, to_status
from tests.fixtures.jobs_gateway import RUN, SAY, JobsGateway, create_request, failure, report, succeeded, token
from tests.fixtures.ledger_desk import LEASE, OTHER, SERVICE, STRANGER, WORKER

Gateway = JobsGateway


async def create(gateway: Gateway, method: str = SAY, **options: object) -> str:
    return str((await gateway.jobs.CreateJob(create_request(method, **options))).name)


async def state(gateway: Gateway, name: str) -> str:
    job = await gateway.jobs.GetJob(pb.GetJobRequest(name=name))
    return job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_")


async def cancel(gateway: Gateway, name: str, mode: job_pb2.CancelMode.ValueType) -> None:
    await gateway.jobs.CancelJob(pb.CancelJobRequest(name=name, mode=mode))


async def test_a_grant_has_all_that_is_needed(gateway: Gateway) -> None:
    request = create_request(request_id="r")
    request.options.attempt_timeout.seconds = 60
    request.options.stall_timeout.seconds = 20
    job = await gateway.jobs.CreateJob(request, metadata=(*token("bob"), ("traceparent", "00-a-b-01")))
    (grant,) = await gateway.poll()
    assert (grant.job, grant.attempt, grant.fence, grant.service, grant.method) == (job.name, 1, 1, SERVICE, SAY)
    assert grant.request == request.request.value
    assert (grant.lease_duration.seconds, grant.heartbeat_interval.seconds) == (LEASE, LEASE / 3)
    assert (grant.run_timeout.seconds, grant.stall_timeout.seconds) == (60, 20)
    assert (grant.principal, grant.request_id, grant.cancel_mode) == ("bob", "r", 0)
    assert not grant.HasField("resume_details")


async def test_a_poll_that_waits_is_answered_when_a_job_comes(gateway: Gateway) -> None:
    with gateway.changes.of_queue("uid-s"):
        waiting = asyncio.ensure_future(gateway.poll(wait=600))
        # The poll looks once in vain before the job comes, or finds it at once: both must answer.
        await asyncio.sleep(0)
        name = await create(gateway)
        assert [grant.job for grant in await waiting] == [name]


async def test_a_slot_that_gets_free_wakes_a_poll(gateway: Gateway) -> None:
    gateway.directory.limits = Limits(max_running=1)
    for _ in range(2):
        await create(gateway)
    (grant,) = await gateway.poll()
    waiting = asyncio.ensure_future(gateway.poll(held=(grant,), wait=600))
    stream = gateway.reports()
    await stream.send(report(1, grant, succeeded=succeeded()))
    (second,) = await waiting
    assert second.job != grant.job


async def test_a_queue_that_is_known_to_be_empty_is_not_looked_at(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = 0
    claim = gateway.desk.ledger.claim

    async def counted(worker: Worker, limit: int, max_running: int) -> tuple[list[Granted], Outcome]:
        nonlocal claims
        claims += 1
        return await claim(worker, limit, max_running)

    monkeypatch.setattr(gateway.desk.ledger, "claim", counted)
    monkeypatch.setattr(embedded, "LOOK_AGAIN", 600.0)
    assert await gateway.poll() == await gateway.poll() == []
    assert claims == 1
    name = await create(gateway)
    (grant,) = await gateway.poll(5)
    assert (grant.job, claims) == (name, 2)
    # It could have had five, so that was all.
    assert await gateway.poll(held=(grant,)) == []
    assert claims == 2
    # What goes back comes again.
    stream = gateway.reports()
    await stream.send(report(1, grant, released=lease_pb2.Released()))
    (again,) = await gateway.poll(wait=600)
    assert (again.job, again.fence) == (name, grant.fence + 1)


async def test_a_job_that_nobody_told_of_is_found_a_little_later(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "LOOK_AGAIN", 0.05)
    assert await gateway.poll() == []
    job = await gateway.desk.create()
    assert [grant.job for grant in await gateway.poll(wait=600)] == [f"jobs/{job}"]


@pytest.mark.parametrize("most", [0, -1, 1001])
async def test_slots_are_bounded(gateway: Gateway, most: int) -> None:
    error = await failure(gateway.poll(most))
    assert (error.code, error.violations[0].field) == (Code.INVALID_ARGUMENT, "max_grants")


async def test_only_instances_may_poll_claim_and_report(gateway: Gateway) -> None:
    for metadata, code in ((token("wrong"), Code.UNAUTHENTICATED), (token("nobody"), Code.PERMISSION_DENIED)):
        request = lease_pb2.PollJobsRequest(max_grants=1)
        assert (await failure(gateway.lease.PollJobs(request, metadata=metadata))).code is code
        claim = lease_pb2.ClaimJobsRequest()
        assert (await failure(gateway.lease.ClaimJobs(claim, metadata=metadata))).code is code
        assert (await failure(gateway.lease.ReportJobs(metadata=metadata).read())).code is code
    assert await gateway.poll(worker=STRANGER) == []


async def test_jobs_can_be_claimed_by_their_names(gateway: Gateway) -> None:
    first, second = await create(gateway), await create(gateway)
    claims = [
        lease_pb2.Claim(job=second, attempt=1, fence=1),
        lease_pb2.Claim(job=second, attempt=1, fence=1),
        lease_pb2.Claim(job=first, attempt=2, fence=2),
        lease_pb2.Claim(job="jobs/unknown", attempt=1, fence=1),
    ]
    request = lease_pb2.ClaimJobsRequest(claims=claims, best_queued=5)
    answer = await gateway.lease.ClaimJobs(request, metadata=token(WORKER.instance))
    granted, skip = lease_pb2.CLAIM_DECISION_GRANTED, lease_pb2.CLAIM_DECISION_SKIP
    assert [result.decision for result in answer.results] == [granted, skip, skip, skip]
    assert answer.results[0].grant.job == second
    # Whatever was published, the best of what is queued.
    assert [grant.job for grant in answer.grants] == [first]
    # The same instance and fence again: the answer may have been lost.
    held = [lease_pb2.HeldLease(job=first, fence=1)]
    request = lease_pb2.ClaimJobsRequest(claims=claims[:1], held=held)
    again = await gateway.lease.ClaimJobs(request, metadata=token(WORKER.instance))
    assert again.results[0].grant == answer.results[0].grant
    assert not again.grants


async def test_a_lost_answer_to_claims_is_given_again_alone(gateway: Gateway) -> None:
    names = [await create(gateway) for _ in range(3)]

    async def ask(best_queued: int = 0, claim: str = "", held: tuple[str, ...] = ()) -> lease_pb2.ClaimJobsResponse:
        request = lease_pb2.ClaimJobsRequest(
            best_queued=best_queued,
            claims=[lease_pb2.Claim(job=claim, attempt=1, fence=1)] if claim else [],
            held=[lease_pb2.HeldLease(job=name, fence=1) for name in held],
        )
        answer: lease_pb2.ClaimJobsResponse = await gateway.lease.ClaimJobs(request, metadata=token(WORKER.instance))
        return answer

    lost = await ask(best_queued=1)
    assert [grant.job for grant in lost.grants] == names[:1]
    # It does not know of it: it gets it again, and nothing more than that; the record of its claim has to wait.
    again = await ask(best_queued=2, claim=names[1])
    assert list(again.grants) == list(lost.grants)
    assert [result.decision for result in again.results] == [lease_pb2.CLAIM_DECISION_RETRY_LATER]
    # Neither does one that claims nothing.
    assert list((await ask()).grants) == list(lost.grants)
    more = await ask(best_queued=1, claim=names[1], held=(names[0],))
    assert [result.decision for result in more.results] == [lease_pb2.CLAIM_DECISION_GRANTED]
    assert [grant.job for grant in more.grants] == names[2:]
    assert not (await ask(held=tuple(names))).grants


async def test_a_claim_whose_caller_has_gone_is_not_lost(gateway: Gateway) -> None:
    name = await create(gateway)
    request = lease_pb2.ClaimJobsRequest(best_queued=1)
    gone = asyncio.ensure_future(gateway.lease.ClaimJobs(request, metadata=token(WORKER.instance)))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    # Whether the cancelled call got it or not, a later one does.
    grants: list[lease_pb2.Grant] = []
    while not grants:
        grants = list((await gateway.lease.ClaimJobs(request, metadata=token(WORKER.instance))).grants)
    assert [grant.job for grant in grants] == [name]


async def test_a_lost_answer_is_given_again(gateway: Gateway) -> None:
    names = [await create(gateway) for _ in range(3)]
    lost = await gateway.poll()
    assert [grant.job for grant in lost] == names
    # It asks for fewer this time: the rest is not forgotten.
    first = await gateway.poll(2)
    assert first == list(lost[:2])
    second = await gateway.poll(2, held=tuple(first))
    assert second == list(lost[2:])
    assert await gateway.poll(held=tuple(lost)) == []
    # And what another instance holds is not given to this one.
    assert await gateway.poll(worker=OTHER) == []


async def test_what_ended_meanwhile_is_not_given_again(gateway: Gateway) -> None:
    await create(gateway)
    (grant,) = await gateway.poll()
    stream = gateway.reports()
    await stream.send(report(1, grant, succeeded=succeeded()))
    await stream.acknowledged(1)
    assert await gateway.poll() == []


async def test_a_poll_whose_caller_has_gone_loses_nothing(gateway: Gateway) -> None:
    waiting = asyncio.ensure_future(gateway.poll(wait=600))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    name = await create(gateway)
    # Whether the cancelled poll got it or not, the next one does.
    assert [grant.job for grant in await gateway.poll(wait=600)] == [name]


async def test_a_poll_of_an_instance_that_has_ended_gets_nothing_more(gateway: Gateway) -> None:
    """That its connection has gone may be noticed later, and what it were granted then would be lost with a lease."""
    waiting = asyncio.ensure_future(gateway.poll(wait=600))
    async with asyncio.timeout(120):
        while not gateway.changes.waited_for():  # noqa: ASYNC110 - it has no event of its own
            await asyncio.sleep(0)
    gateway.dispatch.forget(WORKER.instance)
    name = await create(gateway)
    assert await waiting == []
    assert [grant.job for grant in await gateway.poll(worker=OTHER)] == [name]
    # One of the same name may come again, where somebody else starts it.
    name = await create(gateway)
    assert [grant.job for grant in await gateway.poll(wait=600)] == [name]


async def test_reports_are_acknowledged_in_the_ledger(gateway: Gateway) -> None:
    name = await create(gateway)
    (grant,) = await gateway.poll()
    stream = gateway.reports()
    details = any_pb2.Any()
    details.Pack(route_pb2.Route(service="half"))
    await stream.send(
        report(3, grant, heartbeat=lease_pb2.Heartbeat()),
        report(7, grant, progress=progress_pb2.Progress(done=5, total=10, unit="frames")),
        report(8, grant, checkpoint=details),
    )
    assert (await stream.acknowledged(8)).acknowledged_sequence == 8
    job = await gateway.jobs.GetJob(pb.GetJobRequest(name=name))
    assert (job.state, job.progress.done, job.progress.unit) == (job_pb2.JOB_STATE_RUNNING, 5, "frames")
    await stream.send(report(9, grant, failed=to_status(BackendUnreachable("away"), hop="sidecar")))
    await stream.acknowledged(9)
    gateway.desk.clock.advance(2)
    await gateway.sweep()
    (again,) = await gateway.poll()
    assert (again.attempt, again.fence, again.resume_details) == (2, 2, details)
    await stream.send(report(10, again, succeeded=succeeded(b"")))
    await stream.acknowledged(10)
    assert await state(gateway, name) == "SUCCEEDED"
    await stream.close()


async def test_an_old_fence_is_refused_and_the_rest_is_taken(gateway: Gateway) -> None:
    await create(gateway)
    await create(gateway)
    old, good = await gateway.poll()
    await gateway.desk.ledger.lose(instance=OTHER.instance)
    outcome = await gateway.desk.ledger.lose(instance=WORKER.instance)
    assert len(outcome.changed) == 2
    gateway.desk.clock.advance(2)
    await gateway.sweep()
    first, second = await gateway.poll()
    stream = gateway.reports()
    await stream.send(report(1, old, succeeded=succeeded()), report(2, second, succeeded=succeeded()))
    response = await stream.acknowledged(2)
    (refused,) = response.refused
    assert (refused.sequence, refused.job, refused.fence) == (1, old.job, old.fence)
    assert from_status(refused.error).reason is Reason.LEASE_LOST
    assert await state(gateway, good.job) == "SUCCEEDED"
    assert await state(gateway, first.job) == "RUNNING"


@pytest.mark.parametrize("mode", [job_pb2.CANCEL_MODE_ABORT, job_pb2.CANCEL_MODE_FINISH])
async def test_a_cancel_is_pushed_at_once(gateway: Gateway, mode: job_pb2.CancelMode.ValueType) -> None:
    name = await create(gateway, RUN)
    (grant,) = await gateway.poll()
    stream = gateway.reports()
    await stream.send(report(1, grant, heartbeat=lease_pb2.Heartbeat()))
    await stream.acknowledged(1)
    await cancel(gateway, name, mode)
    command = await stream.told()
    assert (command.job, command.attempt, command.fence) == (name, 1, grant.fence)
    assert command.cancel == mode
    # Progress on the way to the end is acknowledged and not answered with another command: above all not with ABORT.
    await stream.send(report(2, grant, progress=progress_pb2.Progress(done=9)))
    assert not (await stream.acknowledged(2)).commands
    if mode == job_pb2.CANCEL_MODE_FINISH:
        await stream.send(report(3, grant, succeeded=succeeded(ended_early=True)))
    else:
        await stream.send(report(3, grant, stopped=lease_pb2.Stopped(error=to_status(Cancelled()))))
    await stream.acknowledged(3)
    expected = "SUCCEEDED" if mode == job_pb2.CANCEL_MODE_FINISH else "CANCELLED"
    assert await state(gateway, name) == expected


async def test_a_cancel_while_no_stream_is_open_is_told_to_the_next_one(gateway: Gateway) -> None:
    name = await create(gateway, RUN)
    await gateway.poll()
    await cancel(gateway, name, job_pb2.CANCEL_MODE_FINISH)
    stream = gateway.reports()
    await stream.send()
    command = await stream.told()
    assert (command.job, command.cancel) == (name, job_pb2.CANCEL_MODE_FINISH)


async def test_a_total_timeout_aborts_with_its_reason(gateway: Gateway) -> None:
    request = create_request()
    request.options.total_timeout.seconds = 10
    name = (await gateway.jobs.CreateJob(request)).name
    (grant,) = await gateway.poll()
    stream = gateway.reports()
    await stream.send(report(1, grant, heartbeat=lease_pb2.Heartbeat()))
    await stream.acknowledged(1)
    gateway.desk.clock.advance(10)
    await gateway.sweep()
    command = await stream.told()
    assert (command.job, command.fence) == (name, grant.fence)
    assert from_status(command.abort).reason is Reason.TOTAL_TIMEOUT
    await stream.send(report(2, grant, failed=command.abort))
    await stream.acknowledged(2)
    assert await state(gateway, name) == "EXPIRED"


async def test_a_lost_lease_is_told_to_the_worker_that_lost_it(gateway: Gateway) -> None:
    name = await create(gateway)
    (grant,) = await gateway.poll()
    stream = gateway.reports()
    await stream.send(report(1, grant, heartbeat=lease_pb2.Heartbeat()))
    await stream.acknowledged(1)
    for _ in range(4):
        gateway.desk.clock.advance(LEASE / 3)
        await gateway.sweep()
    command = await stream.told()
    assert command.WhichOneof("command") == "lease_lost"
    assert (command.job, command.attempt, command.fence) == (name, grant.attempt, grant.fence)


async def test_a_newer_stream_replaces_the_older(gateway: Gateway) -> None:
    name = await create(gateway, RUN)
    (grant,) = await gateway.poll()
    old = gateway.reports()
    await old.send(report(1, grant, heartbeat=lease_pb2.Heartbeat()))
    await old.acknowledged(1)
    new = gateway.reports()
    await new.send(report(2, grant, heartbeat=lease_pb2.Heartbeat()))
    await new.acknowledged(2)
    error = await failure(old.call.read())
    assert (error.reason, error.code) == (Reason.STATE_INVALID, Code.ABORTED)
    await cancel(gateway, name, job_pb2.CANCEL_MODE_ABORT)
    assert (await new.told()).job == name
    # Another instance's stream is not touched by it.
    other = gateway.reports(OTHER)
    await other.send()
    await new.send(report(3, grant, heartbeat=lease_pb2.Heartbeat()))
    await new.acknowledged(3)


async def test_what_was_not_acknowledged_is_sent_again_without_harm(gateway: Gateway) -> None:
    name = await create(gateway)
    (grant,) = await gateway.poll()
    reports = [
        report(1, grant, progress=progress_pb2.Progress(done=1)),
        report(2, grant, succeeded=succeeded(b"")),
    ]
    broken = gateway.reports()
    await broken.send(*reports)
    await broken.next()
    broken.call.cancel()
    before = await gateway.jobs.GetJob(pb.GetJobRequest(name=name))
    stream = gateway.reports()
    await stream.send(*reports)
    response = await stream.acknowledged(2)
    assert not response.refused
    assert await gateway.jobs.GetJob(pb.GetJobRequest(name=name)) == before


@pytest.mark.parametrize("second", [5, 4])
async def test_sequences_that_do_not_rise_close_the_stream(gateway: Gateway, second: int) -> None:
    name = await create(gateway)
    (grant,) = await gateway.poll()
    stream = gateway.reports()
    await stream.send(report(5, grant, heartbeat=lease_pb2.Heartbeat()))
    await stream.send(report(second, grant, succeeded=succeeded()))
    while True:
        try:
            response = await stream.call.read()
        except grpc.aio.AioRpcError:
            break
        assert response is not grpc.aio.EOF
        assert response.acknowledged_sequence == 5, "what came before is taken"
    error = await failure(stream.call.read())
    assert (error.code, error.violations[0].field) == (Code.INVALID_ARGUMENT, "reports.sequence")
    assert await state(gateway, name) == "RUNNING"


async def test_a_report_without_an_event_is_refused(gateway: Gateway) -> None:
    await create(gateway)
    (grant,) = await gateway.poll()
    stream = gateway.reports()
    await stream.send(report(1, grant))
    error = await failure(stream.call.read())
    assert (error.code, error.violations[0].field) == (Code.INVALID_ARGUMENT, "reports.event")


async def test_a_result_that_is_too_large_for_a_report_is_refused_and_the_attempt_goes_on(gateway: Gateway) -> None:
    name = await create(gateway)
    (grant,) = await gateway.poll()
    stream = gateway.reports()
    await stream.send(report(1, grant, succeeded=succeeded(bytes(1024 * 1024 + 1))))
    (refused,) = (await stream.acknowledged(1)).refused
    error = from_status(refused.error)
    assert (refused.job, error.reason) == (name, Reason.MESSAGE_TOO_LARGE)
    assert error.metadata["limit_bytes"] == str(1024 * 1024)
    assert await state(gateway, name) == "RUNNING"
    await stream.send(report(2, grant, succeeded=succeeded(bytes(1024 * 1024))))
    assert not (await stream.acknowledged(2)).refused
    assert await state(gateway, name) == "SUCCEEDED"


async def test_records_that_are_no_jobs_become_dead_letters(gateway: Gateway) -> None:
    stream = gateway.reports()
    origin = job_pb2.RecordOrigin(topic="t", partition=1, offset=7, sha256=bytes(32), size_bytes=3, head=b"abc")
    rejected = lease_pb2.Rejected(origin=origin, error=to_status(RecordInvalid("garbage"), hop="sidecar"))
    await stream.send(lease_pb2.Report(sequence=1, rejected=rejected))
    assert (await stream.acknowledged(1)).acknowledged_sequence == 1
    # Read again, by whomever: it has its letter.
    other = gateway.reports(OTHER)
    await other.send(lease_pb2.Report(sequence=1, rejected=rejected))
    await other.acknowledged(1)
    (letter,) = (await gateway.jobs.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters
    assert (letter.origin, letter.job) == (origin, "")
    assert from_status(letter.error).reason is Reason.RECORD_INVALID
    request = pb.RedriveDeadLettersRequest(names=[letter.name])
    (result,) = (await gateway.jobs.RedriveDeadLetters(request)).results
    assert from_status(result.error).reason is Reason.STATE_INVALID


async def test_a_worker_is_told_to_claim_no_more(gateway: Gateway) -> None:
    stream = gateway.reports()
    await create(gateway)
    (grant,) = await gateway.poll()
    await stream.send(report(1, grant, heartbeat=lease_pb2.Heartbeat()))
    await stream.acknowledged(1)
    gateway.leases.stop_claiming(WORKER.instance)
    assert (await stream.told()).WhichOneof("command") == "stop_claiming"


async def test_many_reports_at_once_are_one_acknowledgement_each_time(gateway: Gateway) -> None:
    names = [await create(gateway) for _ in range(50)]
    grants = await gateway.poll(100)
    stream = gateway.reports()
    await stream.send(*(report(n, grant, succeeded=succeeded()) for n, grant in enumerate(grants, start=1)))
    assert (await stream.next()).acknowledged_sequence == 50
    assert {await state(gateway, name) for name in names} == {"SUCCEEDED"}
