"""What `oca driver check` makes of its arguments, and which checks are chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from onecontainer.api.db.v1 import database_pb2
from onecontainer.cli.main import cli
from onecontainer.driver.conformance import CHECKS, Examples, Selection, read_examples
from onecontainer.driver.conformance.checks.calls import padded
from onecontainer.driver.conformance.command import Order
from onecontainer.driver.conformance.examples import Example
from onecontainer.driver.conformance.kit import needs_of
from onecontainer.driver.conformance.place import Endpoint, Folder
from onecontainer.errors import DataInvalid, FieldInvalid

ROOT = Path(__file__).parents[3]
IDS = [check.id for check in CHECKS]


def test_each_check_has_an_id_of_its_own_and_needs_what_comes_before_it() -> None:
    assert len(set(IDS)) == len(IDS)
    for number, check in enumerate(CHECKS):
        assert {*needs_of(check), *check.after} <= set(IDS[:number]), check.id


def test_the_smoke_checks_attach_to_nothing() -> None:
    chosen = Selection(smoke=True).of(CHECKS)
    assert {"identity.manifest", "health.serving", "methods.unclaimed", "errors.unattached"} <= {
        one.id for one in chosen
    }
    assert not any(check.attached for check in chosen)


def test_only_brings_what_its_checks_need_and_skip_leaves_out() -> None:
    chosen = [check.id for check in Selection(only=["run.cancelled"]).of(CHECKS)]
    assert chosen == [
        name
        for name in IDS
        if name in {"identity.answers", "attach.works", "probe.ready", "run.duplicate", "run.cancelled"}
    ]
    assert "run.abort" not in [check.id for check in Selection(skip=["run.*"]).of(CHECKS)]
    assert "jobs.polls" in [check.id for check in Selection(skip=["run.*"]).of(CHECKS)]


def test_examples_are_those_of_the_folder_unless_others_are_named(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text("{}")
    assert not Order(str(tmp_path)).kit().examples.calls
    (tmp_path / "examples.json").write_text('{"a.B/Own": {}}')
    other = tmp_path / "other.json"
    other.write_text('{"a.B/Other": {}}')
    assert list(Order(str(tmp_path)).kit().examples.calls) == ["a.B/Own"]
    assert list(Order(str(tmp_path), examples=other).kit().examples.calls) == ["a.B/Other"]


def test_the_service_file_and_what_is_laid_over_it(tmp_path: Path) -> None:
    file = tmp_path / "service.json"
    file.write_text(json.dumps({"app_version": "5", "options": {"a": 1, "b": 2}, "broken": {"options": {"a": 0}}}))
    spec = Order("x:1", service_file=file, options={"b": 3}, endpoints={"n": "h:1"}, app_version="6").spec()
    assert (spec.app_version, dict(spec.options), dict(spec.endpoints)) == ("6", {"a": 1, "b": 3}, {"n": "h:1"})
    assert spec.can_break
    file.write_text(json.dumps({"option": {}}))
    with pytest.raises(DataInvalid, match=r"service\.option"):
        Order("x:1", service_file=file).spec()


def test_a_folder_is_started_and_an_address_is_called(tmp_path: Path) -> None:
    assert isinstance(Order(str(ROOT / "drivers" / "sql")).starter(), Folder)
    assert isinstance(Order("127.0.0.1:1").starter(), Endpoint)
    for wrong in (str(tmp_path), "nothing"):
        with pytest.raises(FieldInvalid):
            Order(wrong).starter()


def test_examples_are_read_and_what_is_wrong_in_them_is_told(tmp_path: Path) -> None:
    (tmp_path / "mesh.bin").write_bytes(b"mesh")
    file = tmp_path / "examples.json"
    file.write_text(json.dumps({"a.S/M": {"request": {"x": 1}, "slow": True}, "artifacts": {"mesh": "mesh.bin"}}))
    found = read_examples(file)
    assert found == Examples({"a.S/M": [Example([{"x": 1}], slow=True)]}, {"mesh": tmp_path / "mesh.bin"})
    for wrong, what in (
        ({"a.S/M": {"requst": {}}}, "requst"),
        ({"a.S/M": {"error": "NO_SUCH"}}, "NO_SUCH"),
        ({"artifacts": {"mesh": "gone.bin"}}, "gone.bin"),
        ([], "object"),
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(DataInvalid, match=what):
            read_examples(file)


@pytest.mark.parametrize("size", [200, 300, 16_384 + 60, 128 * 1024])
def test_padding_makes_a_request_exactly_so_long(size: int) -> None:
    request = database_pb2.GetTableRequest(service="services/x", table="t")
    data = padded(request, size)
    assert len(data) == size
    assert database_pb2.GetTableRequest.FromString(data).table == "t"


def test_what_cannot_be_tested_is_exit_code_2() -> None:
    result = CliRunner().invoke(cli, ["driver", "check", "nothing"])
    assert result.exit_code == 2
    assert "neither a folder nor an address" in result.output


def test_the_smoke_report_of_a_bundled_driver_as_json() -> None:
    result = CliRunner().invoke(cli, ["driver", "check", str(ROOT / "drivers" / "sql"), "--smoke", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["passed"]
    assert report["driver"] == "sql 0.1.0"
    assert {"check", "title", "result", "seconds"} <= report["checks"][0].keys()


def test_a_choice_that_leaves_no_check_is_an_error() -> None:
    for selection, field in ((Selection(only=["zzz*"]), "only"), (Selection(skip=["*"]), "skip")):
        with pytest.raises(FieldInvalid, match="no check is left") as caught:
            selection.of(CHECKS)
        assert caught.value.violations[0].field == field
