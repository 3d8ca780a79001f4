"""The same client for code without asyncio. Each method is the asynchronous one, waited for: see portal.py."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, Self

from onecontainer.api.job.v1 import job_pb2
from onecontainer.client import ai, aio, artifacts, calls, db, jobs, management, media
from onecontainer.client.channel import DEFAULT_ADDRESS, Tls
from onecontainer.client.portal import Portal, blocking, iterating
from onecontainer.errors import OneContainerError

P = ParamSpec("P")


class _Group:
    """One group of calls.

    Attributes:
        inner: the asynchronous group; it belongs to the loop of `portal`.
    """

    def __init__(self, portal: Portal, inner: Any) -> None:
        self.portal = portal
        self.inner = inner


class Job(_Group):
    """A job, and what can be done with it. See `AsyncJob`."""

    inner: jobs.AsyncJob

    @property
    def record(self) -> job_pb2.Job:
        """The job as it was last seen."""
        return self.inner.record

    @property
    def name(self) -> str:
        """`jobs/{job}`."""
        return self.inner.name

    @property
    def done(self) -> bool:
        """Whether the record is terminal."""
        return self.inner.done

    def __repr__(self) -> str:
        return repr(self.inner).replace("AsyncJob", "Job")

    refresh = blocking(jobs.AsyncJob.refresh)
    watch = iterating(jobs.AsyncJob.watch)
    wait = blocking(jobs.AsyncJob.wait)
    result = blocking(jobs.AsyncJob.result)
    packed_result = blocking(jobs.AsyncJob.packed_result)
    cancel = blocking(jobs.AsyncJob.cancel)
    delete = blocking(jobs.AsyncJob.delete)

    def retry(self, *, timeout: float | None = None) -> Job:
        """Runs the same request as a new job, with the same options."""
        return Job(self.portal, self.portal.run(self.inner.retry, timeout=timeout))


def making_job(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, jobs.AsyncJob]],
) -> Callable[Concatenate[Any, P], Job]:
    """A method that waits and gives a Job, of one that is awaited and gives an AsyncJob."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Job:
        return Job(self.portal, self.portal.run(method, self.inner, *args, **kwargs))

    return call


def making_jobs(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, Sequence[jobs.AsyncJob | OneContainerError]]],
) -> Callable[Concatenate[Any, P], Sequence[Job | OneContainerError]]:
    """The same for one that gives several."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Sequence[Job | OneContainerError]:
        found = self.portal.run(method, self.inner, *args, **kwargs)
        return [Job(self.portal, item) if isinstance(item, jobs.AsyncJob) else item for item in found]

    return call


class Services(_Group):
    """See `management.Services`."""

    create = blocking(management.Services.create)
    get = blocking(management.Services.get)
    list = blocking(management.Services.list)
    update = blocking(management.Services.update)
    delete = blocking(management.Services.delete)
    check_heartbeat = blocking(management.Services.check_heartbeat)
    match_drivers = blocking(management.Services.match_drivers)
    assign_driver = blocking(management.Services.assign_driver)
    watch = iterating(management.Services.watch)
    wait_ready = blocking(management.Services.wait_ready)


class Drivers(_Group):
    """See `management.Drivers`."""

    get = blocking(management.Drivers.get)
    list = blocking(management.Drivers.list)
    install = blocking(management.Drivers.install)
    uninstall = blocking(management.Drivers.uninstall)


class Sidecars(_Group):
    """See `management.Sidecars`."""

    get = blocking(management.Sidecars.get)
    list = blocking(management.Sidecars.list)
    logs = iterating(management.Sidecars.logs)


class Jobs(_Group):
    """See `jobs.Jobs`."""

    inner: jobs.Jobs

    def handle(self, job: str | job_pb2.Job) -> Job:
        """A handle on a job that is known by its name or record. Asks nobody."""
        return Job(self.portal, self.inner.handle(job))

    create = making_job(jobs.Jobs.create)
    create_many = making_jobs(jobs.Jobs.create_many)
    get = blocking(jobs.Jobs.get)
    list = blocking(jobs.Jobs.list)
    watch = iterating(jobs.Jobs.watch)
    wait_all = iterating(jobs.Jobs.wait_all)
    cancel = blocking(jobs.Jobs.cancel)
    retry = making_job(jobs.Jobs.retry)
    delete = blocking(jobs.Jobs.delete)
    dead_letters = blocking(jobs.Jobs.dead_letters)
    redrive = making_jobs(jobs.Jobs.redrive)


class Artifacts(_Group):
    """See `artifacts.Artifacts`."""

    upload = blocking(artifacts.Artifacts.upload)
    download = blocking(artifacts.Artifacts.download)
    read = iterating(artifacts.Artifacts.read)
    read_all = blocking(artifacts.Artifacts.read_all)
    get = blocking(artifacts.Artifacts.get)
    list = blocking(artifacts.Artifacts.list)
    delete = blocking(artifacts.Artifacts.delete)


class Ai(_Group):
    """See `ai.Ai`."""

    usage = blocking(ai.Ai.usage)
    predict = blocking(ai.Ai.predict)
    predict_stream = iterating(ai.Ai.predict_stream)
    serve_model = making_job(ai.Ai.serve_model)
    batch_predict = making_job(ai.Ai.batch_predict)
    get_model = blocking(ai.Ai.get_model)
    list_models = blocking(ai.Ai.list_models)
    unload_model = blocking(ai.Ai.unload_model)
    statistics = blocking(ai.Ai.statistics)


class Db(_Group):
    """See `db.Db`."""

    create_table = blocking(db.Db.create_table)
    get_table = blocking(db.Db.get_table)
    list_tables = blocking(db.Db.list_tables)
    drop_table = blocking(db.Db.drop_table)
    insert = blocking(db.Db.insert)
    update = blocking(db.Db.update)
    delete = blocking(db.Db.delete)
    select = blocking(db.Db.select)
    select_page = blocking(db.Db.select_page)
    stream = iterating(db.Db.stream)
    bulk_insert = blocking(db.Db.bulk_insert)


class Media(_Group):
    """See `media.Media`."""

    probe = blocking(media.Media.probe)
    capabilities = blocking(media.Media.capabilities)
    capture_frame = blocking(media.Media.capture_frame)
    run_pipeline = making_job(media.Media.run_pipeline)


class Client:
    """A connection to a gateway; use it as a context manager. Threads may share it. Arguments: see `AsyncClient`.

    with Client("127.0.0.1:50051") as client:
        answer = client.ai.predict("cat-classifier", Path("cat.jpg"), top_k=3)

    Attributes:
        services, drivers, sidecars, jobs, artifacts, ai, db, media: the calls, by what they are about.
        portal: runs anything of the asynchronous client `inner`: `client.portal.run(client.inner.caller.unary, method, request)`.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        timeout: float = 60.0,
        retry: calls.RetryPolicy | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.address = address
        self.portal = Portal()

        async def connect() -> aio.AsyncClient:
            # grpc.aio binds a channel to the loop in which it is made.
            return aio.AsyncClient(address, token=token, tls=tls, timeout=timeout, retry=retry, metadata=metadata)

        try:
            self.inner = self.portal.run(connect)
        except BaseException:
            self.portal.close()
            raise
        self.services = Services(self.portal, self.inner.services)
        self.drivers = Drivers(self.portal, self.inner.drivers)
        self.sidecars = Sidecars(self.portal, self.inner.sidecars)
        self.jobs = Jobs(self.portal, self.inner.jobs)
        self.artifacts = Artifacts(self.portal, self.inner.artifacts)
        self.ai = Ai(self.portal, self.inner.ai)
        self.db = Db(self.portal, self.inner.db)
        self.media = Media(self.portal, self.inner.media)

    def close(self) -> None:
        """Ends all calls, the connection and its thread. Idempotent."""
        if not self.portal.closed:
            self.portal.run(self.inner.close)
            self.portal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
