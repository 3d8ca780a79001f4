"""Services: created, shown, changed, watched, deleted, and there again after a restart."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from google.protobuf import duration_pb2, struct_pb2

from onecontainer.api.management.v1 import management_service_pb2 as pb
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.errors import Code, Reason
from onecontainer.rpc.status import from_status

READY = resources_pb2.SERVICE_STATE_READY
UNASSIGNED = resources_pb2.SERVICE_STATE_UNASSIGNED


def struct(**values: object) -> struct_pb2.Struct:
    message = struct_pb2.Struct()
    message.update(values)
    return message


async def test_create_matches_starts_and_survives_a_restart(station) -> None:
    created = await station.create(
        description="d",
        endpoints={"b": "h:2", "a": "h:1"},
        labels={"team": "x"},
        options=struct(password="secrets/password"),
    )
    assert created.name == "services/a"
    assert created.assigned_driver == "drivers/echo-1.0.0"
    assert created.scope == "hpc"
    assert created.state == resources_pb2.SERVICE_STATE_STARTING
    assert created.create_time.ToNanoseconds() > 0
    ready = await station.ready()
    assert len(ready.sidecars) == 1
    await station.restart()
    again = await station.ready()
    assert (again.uid, again.etag, again.options["password"]) == (created.uid, created.etag, "secrets/password")
    assert again.sidecars != ready.sidecars


async def test_all_that_is_wrong_is_told_at_once(station, failure) -> None:
    service = resources_pb2.Service(
        app="echo",
        endpoints={"n": "nowhere"},
        options=struct(colour="red", password="secrets/none"),
        runtime=resources_pb2.Runtime(kind=resources_pb2.RUNTIME_KIND_DOCKER),
    )
    error = await failure(station.stub.CreateService(pb.CreateServiceRequest(service=service, service_id="Bad Id")))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, Reason.FIELD_INVALID)
    assert {violation.field for violation in error.violations} == {
        "service_id",
        "service.endpoints.n",
        "service.options.colour",
        "service.options.password",
        "service.runtime.kind",
    }
    error = await failure(station.stub.CreateService(pb.CreateServiceRequest()))
    assert error.reason is Reason.FIELD_REQUIRED
    assert {violation.field for violation in error.violations} == {"service_id", "service.app"}


async def test_a_name_is_taken_once(station, failure) -> None:
    await station.create()
    error = await failure(station.create())
    assert (error.code, error.reason, error.resource) == (
        Code.ALREADY_EXISTS,
        Reason.RESOURCE_CONFLICT,
        ("onecontainer.dev/Service", "services/a"),
    )


async def test_a_request_id_gives_the_first_answer_again(station, failure) -> None:
    request = pb.CreateServiceRequest(service=resources_pb2.Service(app="echo"), service_id="a", request_id="r1")
    first, twin = await asyncio.gather(station.stub.CreateService(request), station.stub.CreateService(request))
    assert first == twin
    await station.restart()
    assert await station.stub.CreateService(request) == first
    request.service.description = "another"
    error = await failure(station.stub.CreateService(request))
    assert error.reason is Reason.REQUEST_ID_REUSED
    # Another principal's ids are its own.
    error = await failure(station.stub.CreateService(request, metadata=(("authorization", "Bearer bob"),)))
    assert error.reason is Reason.RESOURCE_CONFLICT


async def test_validate_only_keeps_and_starts_nothing(station, failure) -> None:
    request = pb.CreateServiceRequest(
        service=resources_pb2.Service(app="echo"), service_id="a", validate_only=True, request_id="r1"
    )
    assert (await station.stub.CreateService(request)).assigned_driver == "drivers/echo-1.0.0"
    assert (await failure(station.get())).reason is Reason.RESOURCE_NOT_FOUND
    assert not station.supervisor.sidecars()
    await station.create()
    update = pb.UpdateServiceRequest(service=resources_pb2.Service(name="services/a", app="other"), validate_only=True)
    assert (await station.stub.UpdateService(update)).assigned_driver == "drivers/other-1.0.0"
    assert (await station.get()).app == "echo:latest"


async def test_without_a_match_the_service_is_kept_with_the_reasons(station, failure) -> None:
    created = await station.create(app="nothing", options=struct(secret="plain"))
    assert created.state == UNASSIGNED
    assert 'app is "echo", the service has "nothing"' in created.error.message
    assert created.options["secret"] == "***"
    heartbeat = await failure(station.stub.CheckHeartbeat(pb.CheckHeartbeatRequest(name="services/a")))
    assert (heartbeat.code, heartbeat.reason) == (Code.FAILED_PRECONDITION, Reason.DRIVER_NOT_AVAILABLE)
    assign = await failure(station.stub.AssignDriver(pb.AssignDriverRequest(service="services/a")))
    assert assign.reason is Reason.DRIVER_NOT_AVAILABLE


async def test_a_driver_that_appears_takes_the_service_at_the_next_start(station, add_driver) -> None:
    await station.create(app="late")
    add_driver("late", name="late", app="late")
    await station.restart()
    assert (await station.ready()).assigned_driver == "drivers/late-1.0.0"


async def test_a_named_driver_is_checked_like_a_match(station, failure) -> None:
    error = await failure(station.create(driver="drivers/none"))
    assert error.reason is Reason.RESOURCE_NOT_FOUND
    error = await failure(station.create(driver="drivers/other"))
    assert error.reason is Reason.DRIVER_NOT_AVAILABLE
    assert 'app is "other"' in error.message
    error = await failure(station.create(driver="drivers/echo", app_version="0.9"))
    assert 'app_version is ">=1", the service has "0.9"' in error.message


async def test_an_update_replaces_the_sidecar_only_where_it_must(station, failure) -> None:
    created = await station.create()
    first = await station.ready()

    async def update(mask: str, etag: str = "", **fields: object) -> resources_pb2.Service:
        request = pb.UpdateServiceRequest(service=resources_pb2.Service(name="services/a", etag=etag, **fields))
        request.update_mask.paths.extend(mask.split())
        return await station.stub.UpdateService(request)

    described = await update("description labels", created.etag, description="new", labels={"a": "b"})
    assert (described.description, described.sidecars) == ("new", first.sidecars)
    error = await failure(update("description", created.etag, description="newer"))
    assert (error.code, error.reason) == (Code.ABORTED, Reason.ETAG_MISMATCH)
    await update("endpoints", described.etag, endpoints={"n": "h:1"})
    moved = await station.until(lambda service: service.sidecars[0] != first.sidecars[0] and service.state == READY)
    assert dict(moved.endpoints) == {"n": "h:1"}
    rejected = await failure(update("options.colour", options=struct(colour="x")))
    assert [violation.field for violation in rejected.violations] == ["service.options.colour"]
    error = await failure(update("uid scope"))
    assert len(error.violations) == 2
    gone = await update("app", app="nothing")
    assert (gone.state, gone.assigned_driver) == (UNASSIGNED, "")
    assert not station.supervisor.sidecars()
    back = await update("app", app="echo")
    assert back.assigned_driver == "drivers/echo-1.0.0"
    await station.ready()


async def test_sensitive_values_are_never_shown_and_not_lost(station) -> None:
    created = await station.create(options=struct(password="hunter2", linger="x"))
    assert dict(created.options) == {"password": "***", "linger": "x"}
    created.options["linger"] = "y"
    request = pb.UpdateServiceRequest(service=created)
    request.update_mask.paths.append("options")
    shown = await station.stub.UpdateService(request)
    assert dict(shown.options) == {"password": "***", "linger": "y"}
    assert station.catalog.service("services/a").options == {"password": "hunter2", "linger": "y"}
    listed = await station.stub.ListServices(pb.ListServicesRequest())
    assert "hunter2" not in str(listed)


async def test_lists_have_filters_and_pages(station, failure) -> None:
    for number in range(5):
        await station.create(f"s{number}", app="nothing", labels={"even": str(number % 2 == 0)})
    await station.create("one")
    names, token = [], ""
    while True:
        page = await station.stub.ListServices(
            pb.ListServicesRequest(page_size=2, page_token=token, filter='labels.even = "True" AND state = UNASSIGNED')
        )
        names.append([service.name for service in page.services])
        token = page.next_page_token
        if not token:
            break
    assert names == [["services/s0", "services/s2"], ["services/s4"]]
    found = await station.stub.ListServices(pb.ListServicesRequest(filter='scope = "hpc"'))
    assert [service.name for service in found.services] == ["services/one"]
    page = await station.stub.ListServices(pb.ListServicesRequest(page_size=1))
    for bad in (
        pb.ListServicesRequest(page_token=page.next_page_token, filter="app = x"),
        pb.ListServicesRequest(page_size=-1),
        pb.ListServicesRequest(filter="colour = red"),
        pb.ListServicesRequest(page_token="forged"),
    ):
        error = await failure(station.stub.ListServices(bad))
        assert error.reason is Reason.FIELD_INVALID


async def test_deleting_waits_for_no_jobs_unless_forced(station, failure) -> None:
    created = await station.create()
    ready = await station.ready()
    pid = int(station.supervisor.sidecar(ready.sidecars[0]).runtime_id)
    state = station.root / "data" / "state" / created.uid
    assert state.is_dir()
    station.jobs.live[created.uid] = 2
    error = await failure(station.stub.DeleteService(pb.DeleteServiceRequest(name="services/a")))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, Reason.RESOURCE_IN_USE)
    assert "2 live jobs" in error.message
    assert (await station.get()).state == READY
    error = await failure(station.stub.DeleteService(pb.DeleteServiceRequest(name="services/a", etag="x")))
    assert error.reason is Reason.ETAG_MISMATCH
    await station.stub.DeleteService(pb.DeleteServiceRequest(name="services/a", force=True))
    assert station.jobs.cancelled == [created.uid]
    assert not state.exists()
    assert not Path(f"/proc/{pid}").exists()
    for call in (station.get(), station.stub.DeleteService(pb.DeleteServiceRequest(name="services/a"))):
        assert (await failure(call)).reason is Reason.RESOURCE_NOT_FOUND
    reborn = await station.create()
    assert reborn.uid != created.uid
    assert reborn.etag != created.etag


async def test_a_watch_tells_what_is_there_then_each_change(station, failure) -> None:
    await station.create("a", app="nothing", labels={"x": "1"})
    await station.create("b", app="nothing")
    call = station.stub.WatchServices(pb.WatchServicesRequest(filter='labels.x = "1"'))
    first, second = await call.read(), await call.read()
    assert first.service.name == "services/a"
    assert second.WhichOneof("event") == "synchronized"
    await station.create("c", app="nothing", labels={"x": "1"})
    assert (await call.read()).service.name == "services/c"
    update = pb.UpdateServiceRequest(service=resources_pb2.Service(name="services/a"))
    update.update_mask.paths.append("labels")
    await station.stub.UpdateService(update)
    left = await call.read()
    assert (left.service.name, dict(left.service.labels)) == ("services/a", {})
    await station.stub.DeleteService(pb.DeleteServiceRequest(name="services/c"))
    # That it is being deleted may be told before that it is.
    while (response := await call.read()).WhichOneof("event") == "service":
        assert response.service.state == resources_pb2.SERVICE_STATE_DELETING
    assert response.deleted == "services/c"
    station.catalog.close()
    error = await failure(call.read())
    assert (error.code, error.reason) == (Code.UNAVAILABLE, Reason.DRAINING)


async def test_refused_settings_are_told_in_the_service(station) -> None:
    await station.create(options=struct(refuse="no such file"))
    failed = await station.until(lambda service: service.state == resources_pb2.SERVICE_STATE_FAILED)
    assert from_status(failed.error).violations[0].field == "options.refuse"


async def test_the_heartbeat_names_the_layer_that_failed(station, tmp_path) -> None:
    broken = tmp_path / "broken"
    await station.create(options=struct(broken_file=str(broken)))
    ready = await station.ready()

    async def beat(seconds: int = 60) -> pb.CheckHeartbeatResponse:
        return await station.stub.CheckHeartbeat(
            pb.CheckHeartbeatRequest(name="services/a", timeout=duration_pb2.Duration(seconds=seconds))
        )

    whole = await beat()
    assert whole.state == resources_pb2.HEARTBEAT_STATE_OK
    assert whole.sidecar == ready.sidecars[0]
    assert [layer.state for layer in whole.layers] == [resources_pb2.HEARTBEAT_STATE_OK] * 3
    broken.touch()
    sick = await beat()
    assert sick.state == resources_pb2.HEARTBEAT_STATE_UNAVAILABLE
    assert [layer.state for layer in sick.layers][:2] == [resources_pb2.HEARTBEAT_STATE_OK] * 2
    assert from_status(sick.layers[2].error).reason is Reason.BACKEND_UNREACHABLE
    broken.unlink()
    pid = int(station.supervisor.sidecar(ready.sidecars[0]).runtime_id)
    os.kill(pid, signal.SIGSTOP)
    hung = await beat(2)
    assert hung.state == resources_pb2.HEARTBEAT_STATE_UNAVAILABLE
    assert hung.layers[1].state == resources_pb2.HEARTBEAT_STATE_SKIPPED
    os.kill(pid, signal.SIGKILL)


async def test_an_unknown_service_is_not_found_everywhere(station, failure) -> None:
    stub = station.stub
    name = "services/none"
    for call in (
        stub.GetService(pb.GetServiceRequest(name=name)),
        stub.UpdateService(pb.UpdateServiceRequest(service=resources_pb2.Service(name=name, app="x"))),
        stub.DeleteService(pb.DeleteServiceRequest(name=name)),
        stub.CheckHeartbeat(pb.CheckHeartbeatRequest(name=name)),
        stub.MatchDrivers(pb.MatchDriversRequest(service=name)),
        stub.AssignDriver(pb.AssignDriverRequest(service=name)),
    ):
        error = await failure(call)
        assert (error.code, error.resource) == (Code.NOT_FOUND, ("onecontainer.dev/Service", name))
    error = await failure(stub.GetService(pb.GetServiceRequest()))
    assert error.reason is Reason.FIELD_REQUIRED
