"""Plug-in drivers, as ManagementService installs and removes them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import shutil
import sqlite3
import subprocess
import tarfile
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from onecontainer.api.management.v1 import management_service_pb2 as pb
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.catalog.packing import digest_of, pack
from onecontainer.errors import BackendExecutionFailed, Code, Reason
from onecontainer.rpc.status import from_status
from onecontainer.sidecars.model import LIVE
from tests.fixtures.echo_folder import descriptors, write_driver

READY = resources_pb2.SERVICE_STATE_READY
PLUGIN = "drivers/plug-1.0.0"
LIMIT = 180.0


@pytest.fixture
def plug(tmp_path):
    """Makes a folder of the plug-in `plug`."""

    def make(folder: str = "plug", **changes: object) -> Path:
        return write_driver(tmp_path / "made", folder, **({"name": "plug", "app": "plug"} | changes))

    return make


@pytest.fixture
def install(station):
    """Uploads a folder (or an archive) and installs it."""

    async def run(source: Path | bytes, **more: object) -> resources_pb2.Driver:
        data = source if isinstance(source, bytes) else pack(source, 10_000_000)
        name = f"artifacts/{len(station.archives.uploaded)}"
        station.archives.uploaded[name] = data
        return await station.stub.InstallDriver(pb.InstallDriverRequest(artifact=name, **more))

    return run


async def listed(station) -> set[str]:
    return {driver.name for driver in (await station.stub.ListDrivers(pb.ListDriversRequest())).drivers}


def left(station) -> list[Path]:
    """Folders of plug-ins on the gateway's disk."""
    return sorted(path for path in (station.root / "data" / "drivers").glob("*/*") if any(path.iterdir()))


async def test_an_archive_is_installed_matched_run_and_kept_over_a_restart(station, install, plug) -> None:
    folder = plug()
    driver = await install(folder)
    assert (driver.name, driver.source, driver.state) == (
        PLUGIN,
        resources_pb2.DRIVER_SOURCE_PLUGIN,
        resources_pb2.DRIVER_STATE_READY,
    )
    assert (driver.digest, driver.origin) == (digest_of(folder), "artifacts/0")
    created = await station.create("p", app="plug")
    assert created.assigned_driver == PLUGIN
    await station.ready("services/p")
    await station.restart()
    again = await station.stub.GetDriver(pb.GetDriverRequest(name=PLUGIN))
    assert (again.digest, again.origin, again.create_time) == (driver.digest, driver.origin, driver.create_time)
    assert list(again.services) == ["services/p"]
    await station.ready("services/p")


async def test_what_was_damaged_on_the_disk_is_unpacked_again_from_the_database(station, install, plug) -> None:
    await install(plug())
    (place,) = left(station)
    (place / "metadata.json").write_text("{}")
    (place.parent / "0.9-abandoned" / "x").mkdir(parents=True)
    await station.restart()
    driver = await station.stub.GetDriver(pb.GetDriverRequest(name=PLUGIN))
    assert driver.state == resources_pb2.DRIVER_STATE_READY
    assert left(station) == [place]
    assert digest_of(place) == driver.digest


async def test_one_that_cannot_be_unpacked_is_broken_and_harms_no_other(station, install, plug) -> None:
    await install(plug())
    await station.stop()
    with contextlib.closing(sqlite3.connect(station.root / "catalog.db")) as database:
        database.execute("UPDATE plugins SET archive = ?", (b"\x1f\x8bno archive",))
        database.commit()
    shutil.rmtree(station.root / "data" / "drivers")
    await station.start()
    driver = await station.stub.GetDriver(pb.GetDriverRequest(name=PLUGIN))
    assert driver.state == resources_pb2.DRIVER_STATE_BROKEN
    assert "could not be unpacked" in driver.error.message
    await station.create("a", app="echo")
    await station.ready("services/a")
    await station.stub.UninstallDriver(pb.UninstallDriverRequest(name=PLUGIN))
    assert (await install(plug())).state == resources_pb2.DRIVER_STATE_READY


async def test_an_installation_whose_caller_did_not_wait_is_taken_up_by_the_next(station, install, plug) -> None:
    first = await install(plug())
    # As if it had been kept, and the call cancelled before the catalog had it.
    station.catalog.change_drivers((), [PLUGIN])
    assert (await install(plug())).digest == first.digest
    assert PLUGIN in await listed(station)


async def test_the_same_content_is_the_same_driver_and_another_needs_another_version(
    station, install, plug, failure
) -> None:
    first = await install(plug())
    assert await install(plug("elsewhere")) == first
    error = await failure(install(plug("changed", description="It does more.")))
    assert (error.reason, error.code) == (Reason.RESOURCE_CONFLICT, Code.ALREADY_EXISTS)
    assert "raise `version`" in error.message
    bundled_name = await failure(install(plug("taken", name="echo", description="Another one.")))
    assert bundled_name.reason is Reason.RESOURCE_CONFLICT
    assert await listed(station) == {PLUGIN, "drivers/echo-1.0.0", "drivers/other-1.0.0"}


async def test_a_higher_version_waits_for_its_assignment(station, install, plug, failure) -> None:
    await install(plug())
    await station.create("p", app="plug")
    await station.ready("services/p")
    second = await install(plug("second", version="1.1", description="It does more."))
    match = await station.stub.MatchDrivers(pb.MatchDriversRequest(app="plug"))
    assert [driver.name for driver in match.candidates] == ["drivers/plug-1.1", PLUGIN]
    assert (await station.stub.GetService(pb.GetServiceRequest(name="services/p"))).assigned_driver == PLUGIN
    await station.stub.AssignDriver(pb.AssignDriverRequest(service="services/p"))
    service = await station.ready("services/p")
    assert service.assigned_driver == second.name
    async with asyncio.timeout(LIMIT):
        while any(one.driver == PLUGIN and one.state in LIVE for one in station.supervisor.sidecars()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await station.stub.UninstallDriver(pb.UninstallDriverRequest(name=PLUGIN))
    assert PLUGIN not in await listed(station)


async def test_one_whose_sidecar_still_drains_stays(station, install, plug, failure) -> None:
    await install(plug())
    service = resources_pb2.Service(app="plug")
    service.options.update({"linger": "yes"})
    await station.stub.CreateService(pb.CreateServiceRequest(service=service, service_id="p"))
    first = await station.ready("services/p")
    await install(plug("second", version="1.1"))
    await station.stub.AssignDriver(pb.AssignDriverRequest(service="services/p"))
    await station.until(lambda found: found.sidecars[:1] != first.sidecars[:1] and found.state == READY, "services/p")
    assert (await station.stub.GetDriver(pb.GetDriverRequest(name=PLUGIN))).services == []
    error = await failure(station.stub.UninstallDriver(pb.UninstallDriverRequest(name=PLUGIN)))
    assert (error.reason, error.metadata["services"]) == (Reason.RESOURCE_IN_USE, "services/p")


async def test_one_in_use_stays_and_is_removed_when_it_is_free(station, install, plug, failure) -> None:
    await install(plug())
    for service in ("p", "q"):
        await station.create(service, app="plug")
    await station.ready("services/p")
    error = await failure(station.stub.UninstallDriver(pb.UninstallDriverRequest(name=PLUGIN)))
    assert (error.reason, error.code) == (Reason.RESOURCE_IN_USE, Code.FAILED_PRECONDITION)
    assert "services/p, services/q" in error.message
    for service in ("p", "q"):
        await station.stub.DeleteService(pb.DeleteServiceRequest(name=f"services/{service}", force=True))
    await station.stub.UninstallDriver(pb.UninstallDriverRequest(name=PLUGIN))
    assert left(station) == []
    error = await failure(station.stub.UninstallDriver(pb.UninstallDriverRequest(name=PLUGIN)))
    assert error.reason is Reason.RESOURCE_NOT_FOUND
    # Its name and version are free again, for other content too.
    assert (await install(plug("anew", description="Another one."))).name == PLUGIN
    await station.restart()
    assert PLUGIN in await listed(station)


async def test_what_was_not_installed_is_not_uninstalled(station, failure) -> None:
    error = await failure(station.stub.UninstallDriver(pb.UninstallDriverRequest(name="drivers/echo-1.0.0")))
    assert (error.reason, error.code) == (Reason.STATE_INVALID, Code.FAILED_PRECONDITION)
    assert "ONECONTAINER_DRIVER_PATHS" in error.message
    error = await failure(station.stub.UninstallDriver(pb.UninstallDriverRequest()))
    assert (error.reason, error.violations[0].field) == (Reason.FIELD_REQUIRED, "name")


async def test_a_broken_one_is_refused_with_all_that_is_wrong_and_harms_no_other(
    station, install, plug, failure
) -> None:
    await station.create("a", app="echo")
    await station.ready("services/a")
    bad = plug(
        version="one",
        scope="games",
        entry_point="nowhere",
        colour="red",
        options=[
            {"name": "good", "type": "string", "description": "Good."},
            {"name": "typed", "type": "colour", "description": "Bad."},
            {"name": "valued", "type": "int", "default": "four", "allowed_values": [1, "two"], "description": "Bad."},
        ],
    )
    error = await failure(install(bad))
    assert (error.reason, error.code) == (Reason.DATA_INVALID, Code.INVALID_ARGUMENT)
    assert {violation.field for violation in error.violations} == {
        "metadata.version",
        "metadata.scope",
        "metadata.entry_point",
        "metadata.colour",
        "metadata.options[1].type",
        "metadata.options[2].default",
        "metadata.options[2].allowed_values[1]",
    }
    no_descriptors = plug("bare")
    (no_descriptors / "descriptors.binpb").write_bytes(b"\xff\xff")
    assert (await failure(install(no_descriptors))).violations[0].field == "descriptor_set"
    missing = await failure(install(plug("other-service", services=["test.v1.EchoService", "test.v1.Nothing"])))
    assert "test.v1.Nothing" in missing.message
    assert await listed(station) == {"drivers/echo-1.0.0", "drivers/other-1.0.0"}
    assert left(station) == []
    assert (await station.ready("services/a")).state == READY


async def test_validate_only_tells_and_keeps_nothing(station, install, plug, failure) -> None:
    driver = await install(plug(), validate_only=True)
    assert (driver.name, driver.methods[0].name) == (PLUGIN, "test.v1.EchoService/Echo")
    assert (await failure(install(plug("bad", scope="x"), validate_only=True))).reason is Reason.DATA_INVALID
    assert PLUGIN not in await listed(station)
    assert left(station) == []


def other_descriptors(*, streams: bool) -> bytes:
    """The same method, which streams, or with another message."""
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptors())
    files.file[0].service[0].method[0].server_streaming = streams
    files.file[0].message_type[1].field.add(name="more", number=1, type=9, label=1)
    return files.SerializeToString()


async def test_contracts_that_contradict_those_of_another_driver_are_refused(station, install, plug, failure) -> None:
    folder = plug()
    (folder / "descriptors.binpb").write_bytes(other_descriptors(streams=False))
    error = await failure(install(folder))
    assert (error.reason, error.code) == (Reason.RESOURCE_CONFLICT, Code.ALREADY_EXISTS)
    assert "test.v1.EchoResponse" in error.message
    assert "drivers/echo-1.0.0" in error.message
    (folder / "descriptors.binpb").write_bytes(other_descriptors(streams=True))
    error = await failure(install(folder))
    assert "test.v1.EchoService/Echo streams otherwise" in error.message
    # A new version of the same driver may say more than the old one, as long as it streams alike.
    shutil.rmtree(station.root / "drivers" / "other")
    await station.restart()
    newer = plug("newer", name="echo", version="1.1")
    (newer / "descriptors.binpb").write_bytes(other_descriptors(streams=True))
    assert (await failure(install(newer))).reason is Reason.RESOURCE_CONFLICT
    (newer / "descriptors.binpb").write_bytes(other_descriptors(streams=False))
    assert (await install(newer)).name == "drivers/echo-1.1"


async def test_a_failed_check_puts_a_driver_into_quarantine_for_good(station, install, plug) -> None:
    async def check(record):
        assert (record.folder / "metadata.json").is_file()
        return BackendExecutionFailed(f"{record.name} answers nonsense")

    station.check = check
    await station.restart()
    driver = await install(plug())
    assert driver.state == resources_pb2.DRIVER_STATE_QUARANTINED
    assert from_status(driver.error).message == f"{PLUGIN} answers nonsense"
    await station.restart()
    assert await station.stub.GetDriver(pb.GetDriverRequest(name=PLUGIN)) == driver
    created = await station.create("p", app="plug")
    assert created.state == resources_pb2.SERVICE_STATE_UNASSIGNED
    assert "answers nonsense" in created.error.message


async def test_a_folder_has_to_be_below_an_allowed_one(station, plug, failure, tmp_path) -> None:
    allowed = station.root / "allowed" / "plug"
    allowed.parent.mkdir()
    plug().rename(allowed)

    async def install(folder: object) -> resources_pb2.Driver:
        return await station.stub.InstallDriver(pb.InstallDriverRequest(folder=str(folder)))

    outside = plug("outside", version="2")
    (station.root / "allowed" / "link").symlink_to(outside)
    for folder in (outside, station.root / "allowed" / ".." / "drivers" / "echo", station.root / "allowed" / "link"):
        error = await failure(install(folder))
        assert (error.reason, error.code) == (Reason.SOURCE_NOT_ALLOWED, Code.PERMISSION_DENIED), folder
        assert error.violations[0].field == "folder"
    assert (await failure(install("relative"))).reason is Reason.FIELD_INVALID
    error = await failure(install(station.root / "allowed"))
    assert (error.reason, error.violations[0].field) == (Reason.DATA_INVALID, "folder")
    (allowed / "passwords").symlink_to("/etc/passwd")
    assert "link" in (await failure(install(allowed))).message
    (allowed / "passwords").unlink()
    driver = await install(allowed)
    assert (driver.name, driver.origin) == (PLUGIN, str(allowed))
    error = await failure(station.stub.InstallDriver(pb.InstallDriverRequest()))
    assert (error.reason, error.violations[0].field) == (Reason.FIELD_REQUIRED, "source")


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(station, plug) -> Path:
    """A repository below the allowed URL, with the driver in the folder `drivers/plug`."""
    top = station.root / "git" / "plug"
    (top / "drivers").mkdir(parents=True)
    plug().rename(top / "drivers" / "plug")
    git(top, "init", "--quiet", "--initial-branch=main")
    git(top, "add", ".")
    git(top, "commit", "--quiet", "--message=one")
    return top


async def test_a_git_repository_is_installed_by_ref_and_folder(station, repository, failure) -> None:
    async def install(**source: str) -> resources_pb2.Driver:
        url = source.pop("url", f"file://{repository}")
        return await station.stub.InstallDriver(pb.InstallDriverRequest(git=pb.GitSource(url=url, **source)))

    first = git(repository, "rev-parse", "HEAD")
    git(repository, "tag", "v1")
    metadata = repository / "drivers" / "plug" / "metadata.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"version": "2.0"}))
    git(repository, "commit", "--quiet", "--all", "--message=two")
    second = git(repository, "rev-parse", "HEAD")
    by_tag = await install(ref="v1", folder="drivers/plug")
    assert (by_tag.name, by_tag.origin) == (PLUGIN, f"git+file://{repository}@{first}#drivers/plug")
    assert await install(ref=first, folder="drivers/plug/") == by_tag
    newest = await install(folder="drivers/plug")
    assert (newest.name, newest.origin) == ("drivers/plug-2.0", f"git+file://{repository}@{second}#drivers/plug")
    error = await failure(install(ref="v9", folder="drivers/plug"))
    assert (error.reason, error.violations[0].field) == (Reason.DATA_INVALID, "git.ref")
    error = await failure(install())
    assert (error.reason, error.violations[0].field) == (Reason.DATA_INVALID, "git.folder")
    error = await failure(install(url=f"file://{repository}-gone"))
    assert error.reason is Reason.SOURCE_NOT_ALLOWED or error.reason is Reason.BACKEND_UNREACHABLE


async def test_links_and_submodules_of_a_repository_are_refused_where_they_are_of_the_driver(
    station, repository, failure
) -> None:
    source = pb.GitSource(url=f"file://{repository}", folder="drivers/plug")
    (repository / "elsewhere").symlink_to("/etc/passwd")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message=beside it")
    await station.stub.InstallDriver(pb.InstallDriverRequest(git=source, validate_only=True))
    (repository / "drivers" / "plug" / "passwords").symlink_to("/etc/passwd")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message=in it")
    error = await failure(station.stub.InstallDriver(pb.InstallDriverRequest(git=source)))
    assert error.reason is Reason.DATA_INVALID
    assert "'drivers/plug/passwords' is a symbolic link" in error.message
    head = git(repository, "rev-parse", "HEAD")
    git(repository, "rm", "--quiet", "drivers/plug/passwords")
    git(repository, "update-index", "--add", "--cacheinfo", f"160000,{head},drivers/plug/more")
    git(repository, "commit", "--quiet", "--message=a submodule")
    error = await failure(station.stub.InstallDriver(pb.InstallDriverRequest(git=source)))
    assert "'drivers/plug/more' is a submodule" in error.message


async def test_what_a_repository_brings_is_not_run(station, repository, tmp_path) -> None:
    driver = repository / "drivers" / "plug"
    evidence = tmp_path / "evidence"
    (driver / ".gitattributes").write_text("*.json filter=evil\n")
    git(repository, "config", "filter.evil.smudge", f"touch {evidence}")
    hook = repository / ".git" / "hooks" / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {evidence}\n")
    hook.chmod(0o755)
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message=evil")
    url = f"file://{repository}"
    await station.stub.InstallDriver(pb.InstallDriverRequest(git=pb.GitSource(url=url, folder="drivers/plug")))
    assert not evidence.exists()


@pytest.mark.parametrize(
    ("source", "field"),
    [
        ({"url": "ext::sh -c touch% /tmp/x"}, "git.url"),
        ({"url": "ssh://git@example.org/x"}, "git.url"),
        ({"url": "--upload-pack=/bin/sh"}, "git.url"),
        ({"url": "https://name:password@example.org/x"}, "git.url"),
        ({"url": "file://HERE/git/../secrets"}, "git.url"),
        ({"url": "file://HERE/git/%2e%2e/secrets"}, "git.url"),
        ({"url": "file://HERE/git/plug", "ref": "--upload-pack=/bin/sh"}, "git.ref"),
        ({"url": "file://HERE/git/plug", "ref": "a..b"}, "git.ref"),
        ({"url": "file://HERE/git/plug", "ref": "HEAD:refs/heads/x"}, "git.ref"),
        ({"url": "file://HERE/git/plug", "folder": "../.."}, "git.folder"),
        ({"url": "file://HERE/git/plug", "folder": "/etc"}, "git.folder"),
        ({"url": ""}, "git.url"),
    ],
)
async def test_a_git_source_that_is_none_is_refused(station, failure, source, field) -> None:
    source = {name: value.replace("HERE", str(station.root)) for name, value in source.items()}
    error = await failure(station.stub.InstallDriver(pb.InstallDriverRequest(git=pb.GitSource(**source))))
    assert (error.code, error.violations[0].field) == (Code.INVALID_ARGUMENT, field)


@pytest.mark.parametrize("url", ["https://example.org/driver", "file://HERE/gitlab/x", "file:///etc"])
async def test_a_repository_that_is_not_on_the_allow_list_is_refused(station, failure, url) -> None:
    source = pb.GitSource(url=url.replace("HERE", str(station.root)))
    error = await failure(station.stub.InstallDriver(pb.InstallDriverRequest(git=source)))
    assert (error.reason, error.code) == (Reason.SOURCE_NOT_ALLOWED, Code.PERMISSION_DENIED)
    assert "ONECONTAINER_PLUGIN_GIT_URLS" in error.message


async def test_an_archive_may_have_the_driver_in_its_only_folder(station, install, plug, failure) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(plug(), "plug-1.0.0")
    driver = await install(buffer.getvalue())
    assert driver.name == PLUGIN
    empty = io.BytesIO()
    with tarfile.open(fileobj=empty, mode="w"):
        pass
    assert "metadata.json" in (await failure(install(empty.getvalue()))).message
    assert (await failure(install(b"no archive"))).reason is Reason.DATA_INVALID
    assert (await failure(install(b"x" * 2_000_000))).reason is Reason.LIMIT_EXCEEDED
