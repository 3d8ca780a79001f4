"""REST on a real gateway: bodies, problems, streams, plug-ins, pages of other sites."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.fixtures.processes import GatewayProcess, free_port, running
from tests.fixtures.rest import RestProcess, problem, program

ROOT = Path(__file__).resolve().parents[2]
ECHO = "onecontainer.test.echo.v1.EchoService"
PHOTO = ROOT / "drivers/onnx/onecontainer_driver_onnx/assets/chelsea.png"
HELLO = base64.b64encode(b"hello").decode()


def call(rest: RestProcess, method: str, body: Any, **options: Any) -> requests.Response:
    return rest("POST", f"/v1/services/echo:call/{ECHO}/{method}", data=json.dumps(body), **options)


# --- bodies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["application/json", "text/plain", "application/x-www-form-urlencoded", "", "nonsense"]
)
def test_json_is_read_whatever_the_content_type(rest: RestProcess, kind: str) -> None:
    answer = rest(
        "POST",
        "/v1/deadLetters:redrive",
        data=json.dumps({"names": ["deadLetters/no"]}),
        headers={"Content-Type": kind},
    )
    assert answer.headers["content-type"] in {"application/json", "application/problem+json"}
    # The gateway has read it: what it says is about what is in it.
    assert answer.json().get("domain") in {None, "onecontainer.dev"}


def test_services_are_made_changed_and_deleted(rest: RestProcess) -> None:
    path = "/v1/services?serviceId=rest-crud"
    made = rest("POST", path, data=json.dumps({"app": "echo", "description": "one", "labels": {"a": "b"}}))
    assert made.status_code == 200, made.text
    assert made.json()["name"] == "services/rest-crud"
    problem(rest("POST", path, data=json.dumps({"app": "echo"})), 409, "RESOURCE_CONFLICT")
    # Only what the body has is changed.
    changed = rest("PATCH", "/v1/services/rest-crud", data=json.dumps({"description": "two"})).json()
    assert (changed["description"], changed["labels"]) == ("two", {"a": "b"})
    stale = rest("PATCH", "/v1/services/rest-crud", data=json.dumps({"description": "x", "etag": "old"}))
    problem(stale, 409, "ETAG_MISMATCH")
    assert "services/rest-crud" in {one["name"] for one in rest("GET", "/v1/services").json()["services"]}
    assert rest("DELETE", "/v1/services/rest-crud?force=true").json() == {}
    problem(rest("GET", "/v1/services/rest-crud"), 404, "RESOURCE_NOT_FOUND")


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ('{"inputs": [{"text": "a"}, {"imag": 1}]}', "inputs[1].imag", "unknown field"),
        ('{"inputs": [{"image": "%"}]}', "inputs[0].image", "invalid value for bytes"),
        ('{\n "output": {\n  "topK": "many"}}', "output.topK", "line 3"),
        ('{"inputs": {}}', "inputs", "unexpected token"),
        ("[]", None, "unexpected token"),
        ('{"inputs": [', None, "not JSON"),
        ("hello", None, "not JSON"),
    ],
)
def test_a_body_that_is_wrong_is_told_by_its_path(rest: RestProcess, body: str, field: str | None, words: str) -> None:
    told = problem(rest("POST", "/v1/services/echo/ai:predict", data=body), 400, "BODY_INVALID")
    assert [one["field"] for one in told.get("violations", [])] == ([field] if field else [])
    assert words in told["detail"]


def test_a_parameter_that_is_wrong_is_told_by_its_name(rest: RestProcess) -> None:
    for query, field in (("pageSize=many", "pageSize"), ("pagesize=1", "pagesize"), ("filter.x=1", "filter.x")):
        told = problem(rest("GET", f"/v1/services?{query}"), 400, "QUERY_INVALID")
        assert told["violations"][0]["field"] == field


def test_a_body_that_is_too_large_says_what_to_do(gateway: GatewayProcess) -> None:
    with running(RestProcess(gateway.address, "--max-message-bytes", str(4 * 1024 * 1024))) as small:
        assert isinstance(small, RestProcess)
        told = problem(call(small, "Echo", {"payload": "A" * 8_000_000}), 413, "BODY_TOO_LARGE")
        assert "artifact" in told["detail"]


# --- problems ----------------------------------------------------------------------------------------------------------


def test_an_error_of_a_driver_keeps_all_its_details(rest: RestProcess) -> None:
    told = problem(call(rest, "Echo", {"behaviour": "typed"}), 400, "DATA_INVALID")
    assert told["domain"] == "onecontainer.dev"
    assert told["code"] == "INVALID_ARGUMENT"
    assert told["violations"][0]["field"] == "payload"
    assert told["metadata"]["hop"] == "sidecar"
    assert told["metadata"]["legacy_code"] == "207"
    missing = problem(rest("GET", "/v1/services/nobody"), 404, "RESOURCE_NOT_FOUND")
    assert missing["resource"] == {"type": "onecontainer.dev/Service", "name": "services/nobody"}
    assert missing["type"] == "urn:onecontainer:reason:resource-not-found"
    problem(call(rest, "Missing", {}), 501, "CAPABILITY_MISSING")


def test_a_call_ends_with_its_time(rest: RestProcess) -> None:
    problem(call(rest, "Echo", {"behaviour": "hang"}, headers={"Grpc-Timeout": "300m"}), 504, "DEADLINE_EXCEEDED")
    problem(call(rest, "Echo", {}, headers={"Grpc-Timeout": "soon"}), 400, "REQUEST_INVALID")


# --- streams -----------------------------------------------------------------------------------------------------------


def lines(answer: requests.Response) -> list[Any]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def events(answer: requests.Response) -> list[tuple[str, Any]]:
    assert answer.headers["content-type"] == "text/event-stream"
    found = []
    for part in answer.text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in part.split("\n"))
        found.append((fields.get("event", "message"), json.loads(fields["data"])))
    return found


def job(rest: RestProcess, **work: Any) -> str:
    return str(call(rest, "Work", work).json()["name"])


@pytest.mark.parametrize("way", ["lines", "events"])
def test_a_job_is_watched_to_its_end(rest: RestProcess, way: str) -> None:
    name = job(rest, steps=3, stepSeconds=0.1)
    if way == "lines":
        updates = [line["result"] for line in lines(rest("GET", f"/v1/{name}:watch"))]
    else:
        told = events(rest("GET", f"/v1/{name}:watch", headers={"Accept": "text/event-stream"}))
        assert told[-1] == ("end", {})
        updates = [data for kind, data in told if kind == "message"]
    assert updates[-1]["update"]["job"]["state"] == "JOB_STATE_SUCCEEDED"
    # An Any of a plug-in's own type, which the program was not built with.
    result = updates[-1]["update"]["job"]["result"]
    assert result["@type"].endswith("onecontainer.test.echo.v1.WorkResult")
    assert result["steps"] == 3


def test_a_page_goes_on_where_its_connection_broke(rest: RestProcess) -> None:
    name = job(rest, steps=2, stepSeconds=0.1)
    path = f"/v1/{name}:watch"
    *_, last, end = rest("GET", path, headers={"Accept": "text/event-stream"}).text.strip().split("\n\n")
    assert end == "event: end\ndata: {}"
    identity, data = last.split("\n")
    sequence = json.loads(data.removeprefix("data: "))["update"]["sequence"]
    assert identity == f"id: {sequence}"
    again = {"Accept": "text/event-stream", "Last-Event-ID": sequence}
    assert events(rest("GET", path, headers=again)) == [("end", {})]
    assert events(rest("GET", f"{path}?fromSequence=0", headers=again))[-2][1]["update"]["sequence"] == sequence
    problem(rest("GET", path, headers={**again, "Last-Event-ID": "x"}), 400, "REQUEST_INVALID")


def test_a_stream_that_cannot_begin_is_an_ordinary_problem(rest: RestProcess) -> None:
    for accept in ("*/*", "text/event-stream"):
        problem(rest("GET", "/v1/jobs/nothing:watch", headers={"Accept": accept}), 404, "RESOURCE_NOT_FOUND")


def test_a_stream_that_ends_badly_says_so_in_its_last_part(rest: RestProcess) -> None:
    body = {"payload": HELLO, "count": 3, "behaviour": "typed"}
    *good, bad = lines(call(rest, "Down", body))
    assert good == [{"result": {"payload": HELLO}}] * 2
    assert bad["error"]["reason"] == "DATA_INVALID"
    *good_events, bad_event = events(call(rest, "Down", body, headers={"Accept": "text/event-stream"}))
    assert good_events == [("message", {"payload": HELLO})] * 2
    assert bad_event[0] == "error"
    assert bad_event[1]["reason"] == "DATA_INVALID"


def test_messages_come_when_they_are_sent(rest: RestProcess) -> None:
    name = job(rest, steps=100, stepSeconds=0.2)
    with rest("GET", f"/v1/{name}:watch", stream=True) as answer:
        told = answer.iter_lines(chunk_size=1)
        first = json.loads(next(told))
        assert first["result"]["update"]["job"]["state"] in {"JOB_STATE_QUEUED", "JOB_STATE_RUNNING"}
        cancelled = rest("POST", f"/v1/{name}:cancel", data="{}").json()
        assert cancelled["state"] in {"JOB_STATE_CANCELLING", "JOB_STATE_CANCELLED"}
        last = [json.loads(line) for line in told][-1]
    assert last["result"]["update"]["job"]["state"] == "JOB_STATE_CANCELLED"


@pytest.mark.usefixtures("rest_services")
def test_a_stream_of_requests_is_lines_too(rest: RestProcess) -> None:
    bad = {"inputs": [{"text": "no image"}]}
    body = "\n".join([json.dumps(bad), json.dumps(bad), '{"inputz": 1}'])
    first, second, last = lines(rest("POST", "/v1/services/rest-onnx/ai:predictStream", data=body))
    assert first["result"]["error"]["details"][0]["reason"] == "FIELD_INVALID"
    assert second["result"]["index"] == "1"
    assert second["result"]["error"] == first["result"]["error"]
    # A line that cannot be read does not end the stream as if all were well.
    assert last["error"]["reason"] == "BODY_INVALID"
    assert last["error"]["violations"][0]["field"] == "inputz"


# --- plug-ins ----------------------------------------------------------------------------------------------------------


def test_every_shape_of_a_plug_ins_method_is_called(rest: RestProcess) -> None:
    assert call(rest, "Echo", {"payload": HELLO}).json() == {"payload": HELLO}
    assert lines(call(rest, "Down", {"payload": HELLO, "count": 2})) == [{"result": {"payload": HELLO}}] * 2
    path = f"/v1/services/echo:call/{ECHO}"
    two = json.dumps({"payload": HELLO}) * 2
    assert rest("POST", f"{path}/Up", data=two).json() == {"payload": base64.b64encode(b"10").decode()}
    assert lines(rest("POST", f"{path}/Both", data=two)) == [{"result": {"payload": HELLO}}] * 2


def test_a_plug_ins_method_that_nobody_knows(rest: RestProcess) -> None:
    problem(call(rest, "Nothing", {}), 404, "METHOD_UNKNOWN")
    problem(rest("POST", "/v1/services/echo:call/no.such.Service/Method", data="{}"), 404, "METHOD_UNKNOWN")
    told = problem(call(rest, "Echo", {"payloads": 1}), 400, "BODY_INVALID")
    assert told["violations"][0]["field"] == "payloads"
    problem(rest("POST", f"/v1/services/nobody:call/{ECHO}/Echo", data="{}"), 404, "RESOURCE_NOT_FOUND")


def test_a_plug_ins_message_goes_into_an_any_as_well(rest: RestProcess) -> None:
    request = {
        "@type": "type.googleapis.com/onecontainer.test.echo.v1.EchoRequest",
        "service": "services/echo",
        "payload": HELLO,
    }
    created = rest(
        "POST", "/v1/jobs", data=json.dumps({"service": "services/echo", "method": f"{ECHO}/Echo", "request": request})
    )
    assert created.status_code == 200, created.text
    ended = rest("GET", f"/v1/{created.json()['name']}:wait").json()
    assert ended["result"]["payload"] == HELLO


# --- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("rest_services")
def test_an_image_is_asked_about_as_json_as_bytes_and_as_a_form(rest: RestProcess) -> None:
    image = PHOTO.read_bytes()
    path = "/v1/services/rest-onnx/ai:predict"
    body = {"inputs": [{"image": base64.b64encode(image).decode()}], "output": {"topK": 1}}
    asked = [
        rest("POST", path, data=json.dumps(body)),
        rest("POST", f"{path}?output.topK=1", data=image, headers={"Content-Type": "image/png"}),
        rest("POST", f"{path}?output.topK=1", data=image, headers={"Content-Type": "application/octet-stream"}),
        rest("POST", path, files={"image_file": ("cat.png", image)}, data={"output.topK": "1"}),
        rest("POST", path, files={"image": ("cat.png", image), "request": (None, '{"output": {"topK": 1}}')}),
    ]
    for answer in asked:
        assert answer.status_code == 200, answer.text
        (best,) = answer.json()["predictions"][0]["classification"]["classes"]
        assert "cat" in best["label"]
    both = rest("POST", path, files=[("image", ("a", image)), ("image", ("b", image))])
    assert len(both.json()["predictions"]) == 2
    problem(rest("POST", path, files={"text": (None, "x")}), 400, "BODY_INVALID")
    told = problem(rest("POST", path, data=b"\xff\xd8no", headers={"Content-Type": "image/jpeg"}), 400, "DATA_INVALID")
    assert told["violations"][0]["field"] == "inputs[0].image"


# --- who may call ------------------------------------------------------------------------------------------------------


def test_pages_of_other_sites_may_not_call(rest: RestProcess) -> None:
    problem(rest("POST", "/v1/jobs", data="{}", headers={"Origin": "https://evil.example"}), 403, "ORIGIN_REFUSED")
    untold = problem(
        rest("POST", "/v1/jobs", data="{}", headers={"Sec-Fetch-Site": "cross-site"}), 403, "ORIGIN_REFUSED"
    )
    assert "pages of other sites may not call" in untold["detail"]
    problem(rest("GET", "/v1/jobs", headers={"Host": "evil.example"}), 421, "HOST_REFUSED")
    plain = rest("GET", "/v1/jobs", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in plain.headers


def test_pages_of_allowed_sites_may_call(rest: RestProcess) -> None:
    origin = "https://console.example"
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    before = rest("OPTIONS", "/v1/jobs", headers=asked)
    assert before.headers["access-control-allow-origin"] == origin
    assert "POST" in before.headers["access-control-allow-methods"]
    after = rest("POST", "/v1/jobs", data="{}", headers={"Origin": origin})
    assert after.headers["access-control-allow-origin"] == origin
    assert "Retry-After" in after.headers["access-control-expose-headers"]


def test_credentials_are_passed_on(tmp_path: Path, echo_drivers: Path) -> None:
    process = GatewayProcess(tmp_path / "data", [echo_drivers], tokens='{"s3cret": "ann"}')
    with running(process), running(RestProcess(process.address)) as rest:
        assert isinstance(rest, RestProcess)
        wrong = rest("GET", "/v1/services", headers={"Authorization": "Bearer wrong"})
        problem(wrong, 401, "CREDENTIALS_INVALID")
        assert wrong.headers["www-authenticate"] == "Bearer"
        stored = rest("POST", "/v1/artifacts", data=b"x", headers={"Authorization": "Bearer s3cret"}).json()
        assert stored["principal"] == "ann"
        process.kill()
        problem(rest("GET", "/readyz"), 503, "GATEWAY_UNREACHABLE")
        down = rest("GET", "/v1/services")
        assert problem(down, 503, "GATEWAY_UNREACHABLE")["retryAfter"] > 0
        assert int(down.headers["retry-after"]) >= 1
        assert rest("GET", "/healthz").json()["status"] == "ok"


# --- the program -------------------------------------------------------------------------------------------------------


def refused(*options: str) -> str:
    done = subprocess.run([str(program()), *options], capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    return line


def test_what_cannot_be_served_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"cannot listen on {address}: somebody else listens there" in refused("--listen", address)
    # `oca up --rest` has no such flags: it hands on variables.
    needs = refused("--listen", "0.0.0.0:0")
    assert "needs TLS" in needs
    assert "ONECONTAINER_REST_TLS_CERT_FILE" in needs
    assert "ONECONTAINER_REST_BEHIND_PROXY=true" in needs
    assert "in the clear" in refused("--gateway", "gateway.example:50051")
    assert "no certificate" in refused("--ca-file", str(ROOT / "README.md"))


def test_it_can_be_asked_by_its_own_program(rest: RestProcess) -> None:
    address = rest.url.removeprefix("http://")
    asked = subprocess.run([str(program()), "--probe", "--listen", address], check=False, timeout=180)
    assert asked.returncode == 0
    assert "refused" in refused("--probe", "--listen", f"127.0.0.1:{free_port()}")


def test_beyond_loopback_nobody_is_anonymous(gateway: GatewayProcess) -> None:
    with running(RestProcess(gateway.address, "--listen", "0.0.0.0:0", "--behind-proxy")) as rest:
        assert isinstance(rest, RestProcess)
        rest.url = f"http://127.0.0.1:{rest.url.rpartition(':')[2]}"
        problem(rest("GET", "/v1/services"), 401, "CREDENTIALS_MISSING")
        assert rest("GET", "/healthz").status_code == 200


def test_it_lets_running_requests_end(gateway: GatewayProcess) -> None:
    rest = RestProcess(gateway.address)
    with running(rest):
        name = job(rest, steps=6, stepSeconds=0.3)
        with rest("GET", f"/v1/{name}:watch", stream=True) as answer:
            told = answer.iter_lines(chunk_size=1)
            next(told)  # under way
            assert rest.child is not None
            rest.child.send_signal(signal.SIGTERM)
            last = [json.loads(line) for line in told][-1]
        assert last["result"]["update"]["job"]["state"] == "JOB_STATE_SUCCEEDED"
        assert rest.ended() == 0
        assert rest.lines[-1] == "stopped"
