"""The same client without asyncio: waits, callbacks in the caller's thread, and a clean way out."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.client import Client, Job
from onecontainer.errors import DriverUnreachable, ResourceNotFound


def test_calls_wait_and_raise_typed_errors(blocking, elsewhere) -> None:
    client, world = blocking
    elsewhere.run(world.put_service, "a", resources_pb2.SERVICE_STATE_READY)
    assert client.services.get("a").name == "services/a"
    assert [service.name for service in client.services.list()] == ["services/a"]
    with pytest.raises(ResourceNotFound):
        client.services.get("b")


def test_progress_is_told_in_the_thread_that_called(blocking, tmp_path: Path) -> None:
    client, _world = blocking
    threads: set[int] = set()
    (tmp_path / "a").write_bytes(bytes(3_000_000))
    client.artifacts.upload(tmp_path / "a", on_progress=lambda _done, _total: threads.add(threading.get_ident()))
    assert threads == {threading.get_ident()}


def test_a_callback_may_call_the_client_again(blocking) -> None:
    client, _world = blocking
    sizes: list[int] = []
    first = client.artifacts.upload(b"x")
    client.artifacts.upload(
        b"y", on_progress=lambda _done, _total: sizes.append(client.artifacts.get(first.name).size_bytes)
    )
    assert sizes == [1]


def test_an_interrupt_in_a_callback_ends_the_call_and_comes_out(blocking, elsewhere) -> None:
    client, world = blocking
    elsewhere.run(world.put_job, job_pb2.Job(name="jobs/1", state=job_pb2.JOB_STATE_RUNNING))

    def interrupt(_record: job_pb2.Job) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.jobs.handle("1").wait(on_progress=interrupt)
    assert client.jobs.get("1").state == job_pb2.JOB_STATE_RUNNING


def test_an_iteration_that_is_given_up_ends_its_stream(blocking, elsewhere) -> None:
    client, world = blocking
    elsewhere.run(world.put_service, "a", resources_pb2.SERVICE_STATE_READY)
    events = client.services.watch()
    assert next(events).service.name == "services/a"
    events.close()
    elsewhere.run(world.until, lambda: world.watchers == 0)


def test_jobs_come_as_blocking_handles(blocking, elsewhere) -> None:
    client, world = blocking
    job = client.jobs.create("cat", "a.B/C", job_pb2.Job())
    assert isinstance(job, Job)
    elsewhere.run(world.put_job, job_pb2.Job(name=job.name, state=job_pb2.JOB_STATE_SUCCEEDED))
    assert job.wait().state == job_pb2.JOB_STATE_SUCCEEDED
    assert job.done
    assert [record.sequence for record in client.jobs.watch(job.name)] == [2]


def test_threads_may_share_a_client(blocking) -> None:
    client, world = blocking
    threads = [threading.Thread(target=client.artifacts.upload, args=(bytes([number]),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(world.blobs) == 8


def test_a_closed_client_says_that_it_is() -> None:
    with Client("127.0.0.1:1") as client:
        watched = client.services.watch()
    for use in (client.services.list, lambda: next(watched), lambda: client.ai.predict("cats", b"x")):
        with pytest.raises(RuntimeError, match="this client is closed"):
            use()


def test_a_closed_client_leaves_no_thread() -> None:
    with Client("127.0.0.1:1", timeout=60) as client, pytest.raises(DriverUnreachable):
        client.services.list()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("onecontainer")]
