"""Drivers and sidecars as ManagementService shows them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from onecontainer.api.management.v1 import management_service_pb2 as pb
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.errors import Code, Reason
from onecontainer.rpc.status import from_status

READY = resources_pb2.SERVICE_STATE_READY


async def test_drivers_are_listed_broken_ones_too(station, add_driver, failure) -> None:
    add_driver("newer", version="1.10.0")
    add_driver("older", version="1.9.0")
    (add_driver("broken", name="broken", app="echo") / "descriptors.binpb").write_bytes(b"\xff")
    await station.restart()
    listed = await station.stub.ListDrivers(pb.ListDriversRequest())
    assert [driver.name.removeprefix("drivers/") for driver in listed.drivers] == [
        "broken-1.0.0",
        "echo-1.0.0",
        "echo-1.9.0",
        "echo-1.10.0",
        "other-1.0.0",
    ]
    broken = listed.drivers[0]
    assert broken.state == resources_pb2.DRIVER_STATE_BROKEN
    assert from_status(broken.error).reason is Reason.DATA_INVALID
    only = await station.stub.ListDrivers(pb.ListDriversRequest(filter="state = READY AND app = echo", page_size=2))
    assert len(only.drivers) == 2
    rest = await station.stub.ListDrivers(
        pb.ListDriversRequest(filter="state = READY AND app = echo", page_token=only.next_page_token)
    )
    assert [driver.name for driver in rest.drivers] == ["drivers/echo-1.10.0"]
    created = await station.create()
    assert created.assigned_driver == "drivers/echo-1.10.0"
    driver = await station.stub.GetDriver(pb.GetDriverRequest(name="drivers/echo-1.10.0"))
    assert list(driver.services) == ["services/a"]
    assert driver.digest.startswith("sha256:")
    assert [(method.name, method.idempotent) for method in driver.methods] == [("test.v1.EchoService/Echo", True)]
    assert [option.name for option in driver.manifest.options if option.sensitive] == ["password"]
    seen = driver.create_time
    await station.restart()
    assert (await station.stub.GetDriver(pb.GetDriverRequest(name=driver.name))).create_time == seen
    assert (await failure(station.stub.GetDriver(pb.GetDriverRequest(name="drivers/x")))).code is Code.NOT_FOUND


async def test_matches_come_with_the_causes_of_the_others(station, add_driver, failure) -> None:
    add_driver("narrow", name="narrow", app_version="<1")
    await station.restart()
    match = await station.stub.MatchDrivers(pb.MatchDriversRequest(app="echo:2", app_version="1.5"))
    assert [driver.name for driver in match.candidates] == ["drivers/echo-1.0.0"]
    assert {rejection.driver: rejection.cause for rejection in match.rejections} == {
        "drivers/narrow-1.0.0": 'app_version is "<1", the service has "1.5"',
        "drivers/other-1.0.0": 'app is "other", the service has "echo"',
    }
    await station.create()
    of_service = await station.stub.MatchDrivers(pb.MatchDriversRequest(service="services/a"))
    assert [driver.name for driver in of_service.candidates] == ["drivers/echo-1.0.0"]
    error = await failure(station.stub.MatchDrivers(pb.MatchDriversRequest()))
    assert (error.reason, error.violations[0].field) == (Reason.FIELD_REQUIRED, "app")
    error = await failure(station.stub.MatchDrivers(pb.MatchDriversRequest(app="echo", app_version="latest")))
    assert error.violations[0].field == "app_version"


async def test_assigning_restarts_and_keeps_what_is_named(station, add_driver, failure) -> None:
    add_driver("two", name="two", version="2.0")
    await station.restart()
    created = await station.create()
    assert created.assigned_driver == "drivers/two-2.0"
    first = await station.ready()
    error = await failure(
        station.stub.AssignDriver(pb.AssignDriverRequest(service="services/a", driver="drivers/other"))
    )
    assert error.reason is Reason.DRIVER_NOT_AVAILABLE
    error = await failure(station.stub.AssignDriver(pb.AssignDriverRequest(service="services/a", etag="old")))
    assert error.reason is Reason.ETAG_MISMATCH
    assigned = await station.stub.AssignDriver(
        pb.AssignDriverRequest(service="services/a", driver="drivers/echo", etag=first.etag)
    )
    assert (assigned.driver, assigned.assigned_driver) == ("drivers/echo", "drivers/echo-1.0.0")
    second = await station.until(lambda service: service.sidecars[0] != first.sidecars[0] and service.state == READY)
    sidecar = await station.stub.GetSidecar(pb.GetSidecarRequest(name=second.sidecars[0]))
    assert (sidecar.driver, sidecar.service) == ("drivers/echo-1.0.0", "services/a")
    # The same again is the way to redeploy.
    await station.stub.AssignDriver(pb.AssignDriverRequest(service="services/a"))
    await station.until(lambda service: service.sidecars[0] != second.sidecars[0] and service.state == READY)


async def test_sidecars_are_listed_newest_first(station, failure) -> None:
    await station.create("a")
    await station.ready("services/a")
    await station.create("b")
    await station.ready("services/b")
    listed = await station.stub.ListSidecars(pb.ListSidecarsRequest(page_size=1))
    assert [sidecar.service for sidecar in listed.sidecars] == ["services/b"]
    [sidecar] = listed.sidecars
    assert sidecar.state == resources_pb2.SIDECAR_STATE_READY
    assert sidecar.runtime == resources_pb2.RUNTIME_KIND_PROCESS
    assert sidecar.target.startswith("unix:")
    rest = await station.stub.ListSidecars(pb.ListSidecarsRequest(page_token=listed.next_page_token))
    assert [sidecar.service for sidecar in rest.sidecars] == ["services/a"]
    found = await station.stub.ListSidecars(pb.ListSidecarsRequest(filter='service = "services/a" AND state = READY'))
    assert len(found.sidecars) == 1
    assert (await failure(station.stub.GetSidecar(pb.GetSidecarRequest(name="sidecars/x")))).code is Code.NOT_FOUND


async def test_logs_are_streamed_to_the_sidecars_end(station, failure) -> None:
    await station.create()
    name = (await station.ready()).sidecars[0]
    texts: list[str] = []
    told = asyncio.Event()

    async def follow() -> None:
        request = pb.StreamSidecarLogsRequest(name=name, follow=True)
        async for response in station.stub.StreamSidecarLogs(request):
            texts.extend(line.text for line in response.lines)
            told.set()

    async with asyncio.timeout(180), asyncio.TaskGroup() as tasks:
        tasks.create_task(follow())
        await told.wait()
        os.kill(int(station.supervisor.sidecar(name).runtime_id), signal.SIGKILL)
    assert "listening" in texts
    last = [
        line.text
        async for response in station.stub.StreamSidecarLogs(pb.StreamSidecarLogsRequest(name=name, tail_lines=1))
        for line in response.lines
    ]
    assert last == texts[-1:]
    for request, reason in (
        (pb.StreamSidecarLogsRequest(name="sidecars/x"), Reason.RESOURCE_NOT_FOUND),
        (pb.StreamSidecarLogsRequest(name=name, tail_lines=-1), Reason.FIELD_INVALID),
        (pb.StreamSidecarLogsRequest(), Reason.FIELD_REQUIRED),
    ):
        assert (await failure(station.stub.StreamSidecarLogs(request).read())).reason is reason


async def test_a_driver_that_is_gone_leaves_its_service_to_the_next_best(station, add_driver) -> None:
    folder: Path = add_driver("two", name="two", version="2.0")
    await station.restart()
    assert (await station.create()).assigned_driver == "drivers/two-2.0"
    await station.ready()
    (folder / "metadata.json").unlink()
    await station.restart()
    assert (await station.ready()).assigned_driver == "drivers/echo-1.0.0"


async def test_a_driver_that_breaks_is_not_used_any_more(station, add_driver) -> None:
    folder: Path = add_driver("two", name="two", version="2.0")
    await station.restart()
    await station.create()
    (folder / "descriptors.binpb").write_bytes(b"\xff")
    await station.restart()
    assert (await station.ready()).assigned_driver == "drivers/echo-1.0.0"
