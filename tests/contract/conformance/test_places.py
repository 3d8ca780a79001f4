"""Where the driver under test is: at an address that somebody else runs, or in a folder that the kit starts."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from onecontainer_driver_sql import SqlDriver

from onecontainer.driver.conformance import DriverAbsent, Endpoint, Folder, Kit, Selection, render
from onecontainer.driver.serve import serving
from onecontainer.driver.settings import SidecarSettings
from onecontainer.rpc.manifest import load_manifest

SQL = Path(__file__).parents[3] / "drivers" / "sql"
PROBES = Selection(only=["attach.works", "probe.ready", "jobs.polls", "works.*"])


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short temporary folder: the path of a UNIX socket has at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="oc-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


async def test_an_address_with_a_token_and_the_kits_own_listener_on_tcp(folder: Path) -> None:
    (folder / "token").write_text("s3cret")
    settings = SidecarSettings(
        listen="127.0.0.1:0", token_file=folder / "token", state_dir=folder / "state", stop_timeout=0.0
    )
    async with serving(SqlDriver(), load_manifest(SQL), settings) as server:
        kit = Kit(Endpoint(server.target, token="s3cret", listen="127.0.0.1:0"), selection=PROBES)
        report = await kit.run()
        assert report.passed, render.text(report)
        assert not [result for result in report.results if result.reason]
        wrong = await Kit(Endpoint(server.target, token="wrong"), selection=PROBES).run()
    assert [result.id for result in wrong.failures] == ["identity.answers"]
    assert "CREDENTIALS_INVALID" in wrong.failures[0].came


async def test_a_folder_that_does_not_start_is_told_with_its_last_lines(tmp_path: Path) -> None:
    manifest = json.loads((SQL / "metadata.json").read_text()) | {"entry_point": "nowhere_to_be_found:Driver"}
    (tmp_path / "metadata.json").write_text(json.dumps(manifest))
    with pytest.raises(DriverAbsent, match=r"it has ended.*nowhere_to_be_found"):
        await Kit(Folder(tmp_path)).run()
