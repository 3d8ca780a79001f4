"""Jobs: created, watched to their end, and their results."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from google.protobuf import any_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message

from onecontainer.api.artifact.v1 import artifact_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.job.v1 import job_service_pb2 as pb
from onecontainer.api.job.v1.job_service_pb2_grpc import JobServiceStub
from onecontainer.api.options.v1 import options_pb2
from onecontainer.api.type.v1 import job_options_pb2
from onecontainer.client.artifacts import Artifacts
from onecontainer.client.calls import Caller
from onecontainer.client.names import all_pages, full_name
from onecontainer.errors import (
    Cancelled,
    DeadlineExceeded,
    DriverMisimplemented,
    OneContainerError,
    QueueJobFailed,
    ResultExpired,
)
from onecontainer.rpc.status import from_status

M = TypeVar("M", bound=Message)
OnProgress = Callable[[job_pb2.Job], object]
"""Is told the job after each change."""

TERMINAL = frozenset(
    {
        job_pb2.JOB_STATE_SUCCEEDED,
        job_pb2.JOB_STATE_FAILED,
        job_pb2.JOB_STATE_CANCELLED,
        job_pb2.JOB_STATE_EXPIRED,
    }
)


class AsyncJob:
    """A job, and what can be done with it.

    Attributes:
        record: the job as it was last seen; `refresh`, `watch` and `wait` renew it.
    """

    def __init__(self, jobs: Jobs, record: job_pb2.Job) -> None:
        self._jobs = jobs
        self.record = record

    @property
    def name(self) -> str:
        """`jobs/{job}`."""
        return self.record.name

    @property
    def done(self) -> bool:
        """Whether the record is terminal: it will not change again."""
        return self.record.state in TERMINAL

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {job_state(self.record)}>"

    async def refresh(self, *, timeout: float | None = None) -> job_pb2.Job:
        """Gets the record anew, with its attempts."""
        self.record = await self._jobs.get(self.name, timeout=timeout)
        return self.record

    async def watch(self, *, timeout: float | None = None) -> AsyncGenerator[job_pb2.Job]:
        """The job now and after each change, until it is terminal. A broken stream is resumed from the last sequence."""
        async with aclosing(self._jobs.watch(self.name, timeout=timeout)) as records:
            async for record in records:
                self.record = record
                yield record

    async def wait(self, *, on_progress: OnProgress | None = None, timeout: float | None = None) -> job_pb2.Job:
        """Waits for the end, whatever it is: look at `state` and `error`. Raises DeadlineExceeded after `timeout` seconds."""
        if not self.done:
            try:
                async with aclosing(self.watch(timeout=timeout)) as records:
                    async for record in records:
                        if on_progress is not None:
                            on_progress(record)
            except DeadlineExceeded:
                raise DeadlineExceeded(
                    f"{self.name} is still {job_state(self.record)} after {timeout:g} s; it goes on",
                    metadata={"job": self.name},
                ) from None
        return self.record

    async def result(
        self, message_type: type[M], *, on_progress: OnProgress | None = None, timeout: float | None = None
    ) -> M:
        """Waits, and returns the result as that message, fetched from its artifact if it is large.

        Raises the job's own error if it did not succeed, ResultExpired after its `result_ttl`, and TypeError if the method's
        result is another message.
        """
        packed = await self.packed_result(on_progress=on_progress, timeout=timeout)
        answer = message_type()
        wanted = answer.DESCRIPTOR.full_name
        if packed.TypeName() != wanted:
            raise TypeError(f"the result of {self.name} is a {packed.TypeName()}, not a {wanted}")
        try:
            packed.Unpack(answer)
        except DecodeError as error:
            raise DriverMisimplemented(f"the result of {self.name} does not decode: {error}") from error
        return answer

    async def packed_result(
        self, *, on_progress: OnProgress | None = None, timeout: float | None = None
    ) -> any_pb2.Any:
        """Waits, and returns the result with its type. Raises as `result` does."""
        record = await self.wait(on_progress=on_progress, timeout=timeout)
        if record.state != job_pb2.JOB_STATE_SUCCEEDED:
            raise job_error(record)
        if record.HasField("result"):
            return record.result
        if record.result_artifact:
            return await self._jobs.fetch_result(record)
        raise ResultExpired(f"the result of {self.name} has expired; run it again", resource=("job", self.name))

    async def cancel(self, *, finish: bool = False, timeout: float | None = None) -> job_pb2.Job:
        """Asks it to stop at once, or with `finish` to end early and keep what is done. It may take a moment: `wait`."""
        self.record = await self._jobs.cancel(self.name, finish=finish, timeout=timeout)
        return self.record

    async def retry(
        self, *, options: job_options_pb2.JobOptions | None = None, timeout: float | None = None
    ) -> AsyncJob:
        """Runs the same request as a new job."""
        return await self._jobs.retry(self.name, options=options, timeout=timeout)

    async def delete(self, *, timeout: float | None = None) -> None:
        """Deletes the ended job with its result and artifacts."""
        await self._jobs.delete(self.name, timeout=timeout)


class Jobs:
    """Jobs of all services.

    Attributes:
        stub: the generated JobService stub.
    """

    def __init__(self, caller: Caller, artifacts: Artifacts) -> None:
        self._caller = caller
        self._artifacts = artifacts
        self.stub = caller.stub(JobServiceStub, pb.DESCRIPTOR.services_by_name["JobService"])

    def handle(self, job: str | job_pb2.Job) -> AsyncJob:
        """A handle on a job that is known by its name or record. Asks nobody."""
        record = job_pb2.Job(name=full_name("jobs", job)) if isinstance(job, str) else job
        return AsyncJob(self, record)

    async def create(
        self,
        service: str,
        method: str | MethodDescriptor,
        request: Message,
        *,
        options: job_options_pb2.JobOptions | None = None,
        validate_only: bool = False,
        timeout: float | None = None,
    ) -> AsyncJob:
        """Runs any unary method of a service API as a job. `method` is `package.Service/Method`, or its descriptor."""
        create = create_request(service, method, request, options=options, validate_only=validate_only)
        record = await self._caller.unary(self.stub.CreateJob, create, timeout=timeout)
        return self.handle(record)

    async def create_many(
        self, requests: Sequence[pb.CreateJobRequest], *, timeout: float | None = None
    ) -> Sequence[AsyncJob | OneContainerError]:
        """Creates up to 1000 jobs at once: for each its handle, or why it was refused. See `create_request`."""
        batch = pb.BatchCreateJobsRequest(requests=requests)
        answer = await self._caller.unary(self.stub.BatchCreateJobs, batch, timeout=timeout)
        return [
            self.handle(result.job) if result.HasField("job") else from_status(result.error)
            for result in answer.results
        ]

    async def get(self, name: str, *, timeout: float | None = None) -> job_pb2.Job:
        """A job with its attempts and its result; raises ResourceNotFound."""
        return await self._caller.unary(
            self.stub.GetJob, pb.GetJobRequest(name=full_name("jobs", name)), timeout=timeout
        )

    async def list(
        self,
        *,
        filter: str = "",  # noqa: A002 - the contract's word
        limit: int | None = None,
        timeout: float | None = None,
    ) -> Sequence[job_pb2.Job]:
        """Jobs that the filter takes, newest first, without results."""

        async def fetch(size: int, token: str) -> tuple[Sequence[job_pb2.Job], str]:
            request = pb.ListJobsRequest(page_size=size, page_token=token, filter=filter)
            page = await self._caller.unary(self.stub.ListJobs, request, timeout=timeout)
            return page.jobs, page.next_page_token

        return [job async for job in all_pages(fetch, limit)]

    async def watch(
        self, name: str, *, from_sequence: int = 0, timeout: float | None = None
    ) -> AsyncGenerator[job_pb2.Job]:
        """The job now and after each change, until it is terminal. A broken stream is resumed from the last sequence."""
        last = from_sequence

        def start(left: float | None) -> AsyncGenerator[pb.WatchJobResponse]:
            request = pb.WatchJobRequest(name=full_name("jobs", name), from_sequence=last)
            return self._caller.stream(self.stub.WatchJob, request, timeout=left)

        async with aclosing(self._caller.resumed(start, timeout=timeout)) as answers:
            async for answer in answers:
                last = answer.update.sequence
                yield answer.update.job
                if answer.update.job.state in TERMINAL:
                    return

    async def wait_all(
        self, names: Sequence[str], *, timeout: float | None = None
    ) -> AsyncGenerator[tuple[str, job_pb2.Job | OneContainerError]]:
        """Each of up to 1000 jobs once it has ended, whatever the end, in the order in which they do; or why it cannot be waited for.

        A broken stream is taken up again with those that are left.
        """
        left = dict.fromkeys(full_name("jobs", name) for name in names)

        def start(remaining: float | None) -> AsyncGenerator[pb.WaitJobsResponse]:
            return self._caller.stream(self.stub.WaitJobs, pb.WaitJobsRequest(names=left), timeout=remaining)

        async with aclosing(self._caller.resumed(start, timeout=timeout)) as answers:
            async for answer in answers:
                for result in answer.results:
                    if result.name in left:
                        del left[result.name]
                        yield result.name, result.job if result.HasField("job") else from_status(result.error)
                if not left:
                    return

    async def cancel(self, name: str, *, finish: bool = False, timeout: float | None = None) -> job_pb2.Job:
        """Asks a job to stop at once, or with `finish` to end early and keep what is done."""
        mode = job_pb2.CANCEL_MODE_FINISH if finish else job_pb2.CANCEL_MODE_ABORT
        request = pb.CancelJobRequest(name=full_name("jobs", name), mode=mode)
        return await self._caller.unary(self.stub.CancelJob, request, timeout=timeout)

    async def retry(
        self, name: str, *, options: job_options_pb2.JobOptions | None = None, timeout: float | None = None
    ) -> AsyncJob:
        """Runs an ended job's request again, as a new job."""
        request = pb.RetryJobRequest(name=full_name("jobs", name), options=options)
        record = await self._caller.unary(self.stub.RetryJob, request, timeout=timeout)
        return self.handle(record)

    async def delete(self, name: str, *, timeout: float | None = None) -> None:
        """Deletes an ended job with its result and artifacts."""
        await self._caller.unary(
            self.stub.DeleteJob, pb.DeleteJobRequest(name=full_name("jobs", name)), timeout=timeout
        )

    async def dead_letters(
        self,
        *,
        filter: str = "",  # noqa: A002 - the contract's word
        limit: int | None = None,
        timeout: float | None = None,
    ) -> Sequence[job_pb2.DeadLetter]:
        """Jobs that failed for good, and records that were no jobs, newest first."""

        async def fetch(size: int, token: str) -> tuple[Sequence[job_pb2.DeadLetter], str]:
            request = pb.ListDeadLettersRequest(page_size=size, page_token=token, filter=filter)
            page = await self._caller.unary(self.stub.ListDeadLetters, request, timeout=timeout)
            return page.dead_letters, page.next_page_token

        return [letter async for letter in all_pages(fetch, limit)]

    async def redrive(
        self, names: Sequence[str], *, timeout: float | None = None
    ) -> Sequence[AsyncJob | OneContainerError]:
        """Makes a new job of each dead letter: its handle, or why there is none."""
        request = pb.RedriveDeadLettersRequest(names=[full_name("deadLetters", name) for name in names])
        answer = await self._caller.unary(self.stub.RedriveDeadLetters, request, timeout=timeout)
        return [
            self.handle(result.job) if result.HasField("job") else from_status(result.error)
            for result in answer.results
        ]

    async def fetch_result(self, record: job_pb2.Job) -> any_pb2.Any:
        """The result of a job that keeps it as an artifact."""
        artifact = await self._artifacts.get(record.result_artifact)
        content = await self._artifacts.read_all(record.result_artifact)
        return any_pb2.Any(type_url=f"type.googleapis.com/{result_type(artifact, record)}", value=content)


def create_request(
    service: str,
    method: str | MethodDescriptor,
    request: Message,
    *,
    options: job_options_pb2.JobOptions | None = None,
    validate_only: bool = False,
) -> pb.CreateJobRequest:
    """A request of CreateJob, with its inner request packed."""
    if not isinstance(method, str):
        method = f"{method.containing_service.full_name}/{method.name}"
    packed = any_pb2.Any()
    packed.Pack(request)
    return pb.CreateJobRequest(
        service=full_name("services", service),
        method=method,
        request=packed,
        options=options,
        validate_only=validate_only,
    )


def job_state(record: job_pb2.Job) -> str:
    """QUEUED, RUNNING …"""
    return job_pb2.JobState.Name(record.state).removeprefix("JOB_STATE_")


def job_error(record: job_pb2.Job) -> OneContainerError:
    """Why a job did not succeed."""
    if record.error.code:
        return from_status(record.error)
    kind = Cancelled if record.state == job_pb2.JOB_STATE_CANCELLED else QueueJobFailed
    return kind(f"{record.name} is {job_state(record)}", metadata={"job": record.name})


def unpack(packed: any_pb2.Any) -> Message:
    """The message in an Any whose type is among the stubs that are imported. Raises KeyError for others."""
    message = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(packed.TypeName()))()
    packed.Unpack(message)
    return message


def result_type(artifact: artifact_pb2.Artifact, record: job_pb2.Job) -> str:
    """Full name of the message that a result artifact holds: what its media type says, else what the method's contract says."""
    parameter = re.search(r"""(?:messageType|message|type)="?([A-Za-z_][\w.]*)"?""", artifact.media_type)
    if parameter is not None:
        return parameter[1]
    try:
        method = descriptor_pool.Default().FindMethodByName(record.method.lstrip("/").replace("/", "."))
    except KeyError:
        raise DriverMisimplemented(
            f"{artifact.name} does not say which message it holds: its media type is {artifact.media_type!r}"
        ) from None
    long_running: options_pb2.LongRunning = method.GetOptions().Extensions[options_pb2.long_running]
    return long_running.result_type or str(method.output_type.full_name)
