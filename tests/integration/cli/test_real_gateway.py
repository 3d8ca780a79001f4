"""The command line with a real gateway: its life, a service, jobs, rows, any method by reflection."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from onecontainer.cli.process import is_alive, note_of


class Oca:
    """Runs commands with a data folder of their own."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir

    def __call__(self, *arguments: str, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [sys.executable, "-m", "onecontainer.cli", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=os.environ | {"ONECONTAINER_DATA_DIR": str(self.data_dir)},
        )
        assert result.returncode == code, f"{arguments}: {result.stdout}\n{result.stderr}"
        return result

    def json(self, *arguments: str, stdin: str = "") -> object:
        return json.loads(self(*arguments, "-o", "json", stdin=stdin).stdout)


@pytest.fixture(scope="module")
def oca() -> Iterator[Oca]:
    with tempfile.TemporaryDirectory(prefix="oca-") as folder:
        run = Oca(Path(folder) / "data")
        run("up", "--detach", "--listen", "127.0.0.1:0")
        try:
            run("service", "create", "rows", "--app", "sql", "--wait")
            yield run
        finally:
            run("down")


def test_status_finds_the_gateway_of_the_data_folder(oca: Oca) -> None:
    shown = oca("status").stdout
    assert "1 of 1 services READY" in shown
    assert "0 QUEUED" in shown
    assert "sql-0.1.0" in shown


def test_up_again_tells_that_it_runs_and_in_the_foreground_refuses(oca: Oca) -> None:
    assert "already running" in oca("up", "--detach").stdout
    assert "oca down" in oca("up", "--listen", "127.0.0.1:0", code=1).stderr


def test_rows_there_and_back(oca: Oca) -> None:
    oca("db", "create-table", "rows", "items", "-c", "id=int64", "-c", "price=decimal(10,2)", "--key", "id")
    oca("db", "insert", "rows", "items", "-", stdin='{"id": 1, "price": "9.90"}\n{"id": 2, "price": 5}')
    assert oca.json("db", "select", "rows", "items", "--order-by", "-id") == [
        {"id": 2, "price": "5.00"},
        {"id": 1, "price": "9.90"},
    ]
    assert "changed  1" in oca("db", "update", "rows", "items", "--set", "price=7", "--where", "id=1").stdout
    oca("db", "drop-table", "rows", "items", "--yes")
    missing = oca("db", "select", "rows", "items", code=3)
    assert "RESOURCE_NOT_FOUND" in missing.stderr


def test_any_method_by_reflection(oca: Oca) -> None:
    assert "onecontainer.api.db.v1.DatabaseService" in oca("call").stdout
    assert "stream onecontainer.api.db.v1.StreamRecordsResponse" in oca("call", "DatabaseService").stdout
    assert json.loads(oca("call", "DatabaseService/ListTables", '{"service": "services/rows"}').stdout) == {}
    unknown = oca("call", "DatabaseService/Explode", "{}", code=1)
    assert "ListTables" in unknown.stderr
    wrong = oca("call", "DatabaseService/ListTables", '{"servce": "x"}', code=2)
    assert "servce" in wrong.stderr


def test_streams_by_reflection(oca: Oca) -> None:
    oca("db", "create-table", "rows", "streamed", "-c", "id=int64", "--key", "id")
    head = '{"service": "services/rows", "table": "streamed", "batch": {"columns": ["id"], "rows": {"rows": [%s]}}}'
    row = '{"values": [{"int64_value": "%d"}]}'
    inserted = oca(
        "call",
        "DatabaseService/BulkInsert",
        "-",
        stdin=head % (row % 1) + '{"batch": {"columns": ["id"], "rows": {"rows": [' + row % 2 + "]}}}",
    )
    assert json.loads(inserted.stdout)["inserted"] == "2"
    request = '{"service": "services/rows", "table": "streamed"}'
    answers = [json.loads(line) for line in oca("call", "DatabaseService/StreamRecords", request).stdout.splitlines()]
    assert sum(len(answer["batch"]["rows"]["rows"]) for answer in answers if "batch" in answer) == 2
    oca("db", "drop-table", "rows", "streamed", "--yes")


def test_any_call_as_a_job(oca: Oca) -> None:
    shown = oca("job", "create", "rows", "DatabaseService/ListTables", "{}", "--wait").stdout
    assert "SUCCEEDED" in shown
    (job,) = oca.json("job", "list", "--service", "rows", "--limit", "1")  # type: ignore[misc]
    assert oca.json("job", "result", job["name"]) == {
        "@type": "type.googleapis.com/onecontainer.api.db.v1.ListTablesResponse"
    }
    again = oca.json("job", "retry", job["name"], "--wait")
    assert again["retry_of"] == job["name"]  # type: ignore[index]
    oca("job", "delete", job["name"])
    oca("job", "get", job["name"], code=3)


def test_an_any_in_a_request_is_resolved_by_reflection(oca: Oca) -> None:
    inner = '{"@type": "type.googleapis.com/onecontainer.api.db.v1.ListTablesRequest", "page_size": 5}'
    method = "onecontainer.api.db.v1.DatabaseService/ListTables"
    request = f'{{"service": "services/rows", "method": "{method}", "request": {inner}, "validate_only": true}}'
    assert json.loads(oca("call", "JobService/CreateJob", request).stdout)["method"] == method


def test_drivers_say_why_they_do_not_fit(oca: Oca) -> None:
    shown = oca("driver", "match", "--app", "cassandra").stdout
    assert 'the service has "cassandra"' in shown
    assert "yes, best" in oca("service", "match", "rows").stdout
    assert "statement_timeout" in oca("driver", "get", "sql-0.1.0").stdout


def test_each_layer_answers_and_logs_can_be_read(oca: Oca) -> None:
    layers = oca("service", "heartbeat", "rows").stdout
    assert layers.count("OK") == 3
    assert "services/rows" in oca("sidecar", "logs", "rows").stdout


def test_down_ends_all_and_is_quiet_the_second_time() -> None:
    with tempfile.TemporaryDirectory(prefix="oca-") as folder:
        run = Oca(Path(folder) / "data")
        run("up", "--detach", "--listen", "127.0.0.1:0")
        note = note_of(run.data_dir)
        assert note is not None
        assert "stopped" in run("down").stdout
        assert not is_alive(note.pid)
        assert note_of(run.data_dir) is None
        assert "no gateway runs" in run("down").stdout
        assert "no gateway answers" in run("status", "-a", note.address, code=4).stderr


def test_a_start_that_fails_shows_the_end_of_its_log() -> None:
    with tempfile.TemporaryDirectory(prefix="oca-") as folder:
        data = Path(folder) / "data"
        data.mkdir(mode=0o700)
        (data / "onecontainer.db").write_bytes(b"this is no database at all" * 100)
        result = Oca(data)("up", "--detach", "--listen", "127.0.0.1:0", code=1)
        assert "did not start" in result.stderr
        assert "not a database" in result.stderr


@pytest.mark.slow
def test_the_demo_checks_all_three_and_leaves_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="oca-") as folder:
        data = Path(folder) / "data"
        shown = Oca(data)("demo").stdout
        assert "chelsea.png is a cat" in shown
        assert "SUCCEEDED" in shown
        assert "rows came back" in shown
        assert note_of(data) is None
