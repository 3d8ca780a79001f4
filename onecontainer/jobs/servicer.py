"""JobService: proto to calls, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence, Sized

from google.protobuf import empty_pb2

from onecontainer.api.job.v1 import job_pb2, job_service_pb2
from onecontainer.clock import Clock
from onecontainer.errors import FieldInvalid, FieldRequired, OneContainerError
from onecontainer.jobs import mapping
from onecontainer.jobs.jobs import Jobs
from onecontainer.jobs.ledger import JobView, not_found
from onecontainer.jobs.model import CancelMode, NewJob
from onecontainer.jobs.sql_reads import JOB_FIELDS, JOB_TIMES, LETTER_FIELDS
from onecontainer.rpc.filters import parse_filter
from onecontainer.rpc.pages import page_position, page_size, page_token
from onecontainer.rpc.server import Context, current_call
from onecontainer.rpc.status import to_status

MAX_BATCH = 1000
MAX_MESSAGE_BYTES = 2 * 1024 * 1024
"""Results in one message of WaitJobs, below what gRPC clients take by default (4 MiB)."""
MARGIN = 0.5
"""Seconds before its deadline at which WaitJob answers, a fifth of the time at the most."""


class JobServicer:
    """Serves `onecontainer.api.job.v1.JobService`."""

    def __init__(self, jobs: Jobs, clock: Clock) -> None:
        self._jobs = jobs
        self._clock = clock

    def _proto(self, job: JobView | NewJob) -> job_pb2.Job:
        if isinstance(job, NewJob):
            return mapping.new_to_proto(job)
        return mapping.job_to_proto(job, self._clock.now())

    async def CreateJob(self, request: job_service_pb2.CreateJobRequest, context: Context) -> job_pb2.Job:
        call = current_call()
        if request.validate_only:
            planned = mapping.new_to_proto(await self._jobs.check(request, call.principal))
            planned.ClearField("name")
            return planned
        return self._proto(await self._jobs.create(request, call.principal, call.traceparent))

    async def BatchCreateJobs(
        self, request: job_service_pb2.BatchCreateJobsRequest, context: Context
    ) -> job_service_pb2.BatchCreateJobsResponse:
        call = current_call()
        _check_count(request.requests, "requests")
        created = await self._jobs.create_batch(request.requests, call.principal, call.traceparent)
        return job_service_pb2.BatchCreateJobsResponse(
            results=[
                job_service_pb2.BatchCreateJobsResult(error=to_status(answer))
                if isinstance(answer, OneContainerError)
                else job_service_pb2.BatchCreateJobsResult(job=self._proto(answer))
                for answer in created
            ]
        )

    async def GetJob(self, request: job_service_pb2.GetJobRequest, context: Context) -> job_pb2.Job:
        return self._proto(await self._jobs.get(job_id(request.name)))

    async def ListJobs(
        self, request: job_service_pb2.ListJobsRequest, context: Context
    ) -> job_service_pb2.ListJobsResponse:
        terms = parse_filter(request.filter, JOB_FIELDS, times=JOB_TIMES, labels=True)
        before = _before(page_position(request.page_token, "ListJobs", request.filter))
        page = await self._jobs.ledger.page(terms, page_size(request.page_size), before)
        return job_service_pb2.ListJobsResponse(
            jobs=[mapping.job_to_proto(JobView(row), self._clock.now(), summary=True) for row in page.rows],
            next_page_token=_token("ListJobs", request.filter, page.next_position),
        )

    async def CancelJob(self, request: job_service_pb2.CancelJobRequest, context: Context) -> job_pb2.Job:
        if request.mode not in job_pb2.CancelMode.values():
            raise FieldInvalid("mode", f"{request.mode} is not a CancelMode")
        mode = CancelMode(request.mode or CancelMode.ABORT)
        return self._proto(await self._jobs.cancel(job_id(request.name), mode))

    async def RetryJob(self, request: job_service_pb2.RetryJobRequest, context: Context) -> job_pb2.Job:
        call = current_call()
        options = request.options if request.HasField("options") else None
        view = await self._jobs.retry(job_id(request.name), options, call.principal, call.traceparent)
        return self._proto(view)

    async def DeleteJob(self, request: job_service_pb2.DeleteJobRequest, context: Context) -> empty_pb2.Empty:
        await self._jobs.delete(job_id(request.name))
        return empty_pb2.Empty()

    async def WaitJob(self, request: job_service_pb2.WaitJobRequest, context: Context) -> job_pb2.Job:
        timeout = request.timeout.ToMicroseconds() / 1e6 if request.HasField("timeout") else None
        if timeout is not None and timeout < 0:
            raise FieldInvalid("timeout", "must not be negative")
        left = context.time_remaining()
        if left is not None:
            # Answer before the deadline: the job as it is tells more than DEADLINE_EXCEEDED.
            left = max(0.0, left - min(MARGIN, left / 5))
            timeout = left if timeout is None else min(timeout, left)
        return self._proto(await self._jobs.wait(job_id(request.name), timeout))

    async def WaitJobs(
        self, request: job_service_pb2.WaitJobsRequest, context: Context
    ) -> AsyncIterator[job_service_pb2.WaitJobsResponse]:
        _check_count(request.names, "names")
        names = [job_id(name, f"names[{index}]") for index, name in enumerate(request.names)]
        async for views, missing in self._jobs.wait_all(names):
            now = self._clock.now()
            for part in _parts(views):
                yield job_service_pb2.WaitJobsResponse(
                    results=[
                        job_service_pb2.WaitJobsResult(name=f"jobs/{view.row.id}", job=mapping.job_to_proto(view, now))
                        for view in part
                    ]
                )
            if missing:
                yield job_service_pb2.WaitJobsResponse(
                    results=[
                        job_service_pb2.WaitJobsResult(name=f"jobs/{job}", error=to_status(not_found(job)))
                        for job in missing
                    ]
                )

    async def WatchJob(
        self, request: job_service_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[job_service_pb2.WatchJobResponse]:
        async for view in self._jobs.watch(job_id(request.name), request.from_sequence):
            yield job_service_pb2.WatchJobResponse(update=mapping.update_to_proto(view, self._clock.now()))

    async def ListDeadLetters(
        self, request: job_service_pb2.ListDeadLettersRequest, context: Context
    ) -> job_service_pb2.ListDeadLettersResponse:
        terms = parse_filter(request.filter, LETTER_FIELDS)
        before = _before(page_position(request.page_token, "ListDeadLetters", request.filter))
        page = await self._jobs.ledger.dead_letters(terms, page_size(request.page_size), before)
        return job_service_pb2.ListDeadLettersResponse(
            dead_letters=[mapping.letter_to_proto(row) for row in page.rows],
            next_page_token=_token("ListDeadLetters", request.filter, page.next_position),
        )

    async def RedriveDeadLetters(
        self, request: job_service_pb2.RedriveDeadLettersRequest, context: Context
    ) -> job_service_pb2.RedriveDeadLettersResponse:
        call = current_call()
        _check_count(request.names, "names")
        response = job_service_pb2.RedriveDeadLettersResponse()
        for index, name in enumerate(request.names):
            result = response.results.add()
            try:
                letter = _id(name, "deadLetters/", f"names[{index}]")
                result.job.CopyFrom(self._proto(await self._jobs.redrive(letter, call.principal, call.traceparent)))
            except OneContainerError as error:
                result.error.CopyFrom(to_status(error))
        return response


def _check_count(items: Sized, path: str) -> None:
    if not items:
        raise FieldRequired(path)
    if len(items) > MAX_BATCH:
        raise FieldInvalid(path, f"has {len(items)} items; at most {MAX_BATCH} are allowed")


def _parts(views: Sequence[JobView]) -> Iterator[Sequence[JobView]]:
    """Splits what has ended into messages: results are up to 1 MiB each, and a message must stay below the limit."""
    part: list[JobView] = []
    size = 0
    for view in views:
        more = len(view.row.result or b"")
        if part and size + more > MAX_MESSAGE_BYTES:
            yield part
            part, size = [], 0
        part.append(view)
        size += more
    if part:
        yield part


def _id(name: str, collection: str, path: str) -> str:
    if not name:
        raise FieldRequired(path)
    if not name.startswith(collection) or not name.removeprefix(collection).isalnum():
        raise FieldInvalid(path, f"{name!r} is not a name such as {collection}…")
    return name.removeprefix(collection)


def job_id(name: str, path: str = "name") -> str:
    """The id of ``jobs/{job}``. Raises FieldRequired or FieldInvalid."""
    return _id(name, "jobs/", path)


def _before(position: str | None) -> int:
    if not position:
        return 0
    # As long as a position of a table can be.
    if not (position.isascii() and position.isdigit() and len(position) < 19):
        raise FieldInvalid("page_token", "is not a token of ours: pass the last page's next_page_token")
    return int(position)


def _token(method: str, filter_text: str, position: int) -> str:
    return page_token(method, filter_text, str(position)) if position else ""
