"""What the REST front refuses before it asks the gateway: what gRPC cannot carry, more than was asked for, callers without credentials."""

from __future__ import annotations

import base64
import hashlib
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from tests.fixtures.processes import GatewayProcess, running
from tests.fixtures.rest import RestProcess, problem

EVENTS = {"Accept": "text/event-stream"}


def raw(rest: RestProcess, request: bytes) -> requests.Response:
    """The answer to bytes that no HTTP library would send."""
    place = urlsplit(rest.url)
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=60) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    answer = requests.Response()
    answer.status_code = int(status.split()[1])
    answer.headers.update(dict(line.split(": ", 1) for line in lines))
    answer._content = body
    return answer


@pytest.fixture(scope="module")
def strangers(gateway: GatewayProcess) -> Iterator[RestProcess]:
    """The front of strangers, before the gateway that trusts its own machine."""
    with running(RestProcess(gateway.address, "--listen", "0.0.0.0:0", "--behind-proxy")) as rest:
        assert isinstance(rest, RestProcess)
        rest.url = f"http://127.0.0.1:{rest.url.rpartition(':')[2]}"
        yield rest


CALLS: list[tuple[str, str, bytes | None]] = [
    ("GET", "/v1/services", None),
    ("POST", "/v1/artifacts", b"bytes"),
    ("POST", "/v1/services/echo:call/onecontainer.test.echo.v1.EchoService/Echo", b"{}"),
    ("POST", "/v1/services/echo/ai:predict", b"\xff\xd8"),
]


@pytest.mark.parametrize("sent", [b"Bearer \xe9", "Bearer é".encode(), b"Bearer\tx", b"Bearer x\x01"])
@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_credentials_that_grpc_cannot_carry_are_none(
    strangers: RestProcess, sent: bytes, method: str, path: str, body: bytes | None
) -> None:
    data = body or b""
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\nConnection: close\r\nAuthorization: "
    answer = raw(strangers, head.encode() + sent + b"\r\n\r\n" + data)
    # A control character is refused before it comes to a handler.
    assert answer.status_code == (400 if b"\x01" in sent else 401), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_strangers_are_not_of_this_machine(strangers: RestProcess, gateway: GatewayProcess) -> None:
    problem(strangers("GET", "/v1/services"), 401, "CREDENTIALS_MISSING")
    problem(strangers("GET", "/v1/services", headers={"Authorization": "Bearer wrong"}), 401, "CREDENTIALS_INVALID")
    # Behind a proxy on the same machine it is on loopback, its callers are not.
    with running(RestProcess(gateway.address, "--behind-proxy")) as near:
        assert isinstance(near, RestProcess)
        problem(near("GET", "/v1/services", headers={"Host": "api.example"}), 401, "CREDENTIALS_MISSING")


@pytest.mark.parametrize("path", ["/v1/services/%E0%A4%A", "/%zz", "/ /"])
def test_what_is_no_request_is_a_problem_too(rest: RestProcess, path: str) -> None:
    problem(raw(rest, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()), 400, "REQUEST_INVALID")
    problem(raw(rest, b"GET / HTTP/1.1\r\n\r\n"), 400, "REQUEST_INVALID")
    long = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 2_000_000 + b"\r\n\r\n"
    problem(raw(rest, long), 431, "REQUEST_INVALID")


@pytest.mark.parametrize(
    ("method", "path", "reason"),
    [
        ("GET", "/v1/services/%ff", "REQUEST_INVALID"),
        ("GET", "/v1/jobs?filter=%ff", "QUERY_INVALID"),
        ("GET", "/v1/jobs?%ff=1", "QUERY_INVALID"),
        ("POST", "/v1/services?serviceId=%ff", "QUERY_INVALID"),
        ("POST", "/v1/artifacts?filename=%ff", "QUERY_INVALID"),
    ],
)
def test_text_is_utf_8(rest: RestProcess, method: str, path: str, reason: str) -> None:
    problem(rest(method, path, data=None if method == "GET" else b"{}"), 400, reason)
    problem(raw(rest, b"GET /v1/jobs?filter=%f HTTP/1.1\r\nHost: localhost\r\n\r\n"), 400, "QUERY_INVALID")


def test_so_are_bodies_forms_and_headers(rest: RestProcess) -> None:
    broken: Any = b"\xff"
    problem(rest("POST", "/v1/jobs", data=b'{"service": "\xff"}'), 400, "BODY_INVALID")
    problem(rest("POST", "/v1/artifacts", data=b"x", headers={"Idempotency-Key": broken}), 400, "REQUEST_INVALID")
    problem(rest("GET", "/v1/jobs", headers={"X-Request-Id": broken}), 400, "REQUEST_INVALID")
    for path in ("/v1/artifacts", "/v1/services/echo/ai:predict"):
        fields = [("model", (None, b"\xff")), ("image", ("x.png", b"x"))]
        told = problem(rest("POST", path, files=fields), 400, "BODY_INVALID")
        assert told["violations"][0]["field"] == "model"
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="\xff"\r\n\r\nx\r\n--b--\r\n'
    problem(rest("POST", "/v1/artifacts", data=form, headers=kind), 400, "BODY_INVALID")


@pytest.mark.parametrize("more", ['{"app": "onnx"}', "x", ",", "]", "\n1"])
def test_one_request_is_one_value(rest: RestProcess, more: str) -> None:
    body = '{"app": "sql"} ' + more
    problem(rest("POST", "/v1/services?serviceId=two", data=body), 400, "BODY_INVALID")
    problem(rest("GET", "/v1/services/two"), 404, "RESOURCE_NOT_FOUND")
    problem(rest("PATCH", "/v1/services/echo", data='{"description": "x"}' + more), 400, "BODY_INVALID")
    path = "/v1/services/echo:call/onecontainer.test.echo.v1.EchoService/Echo"
    problem(rest("POST", path, data="{}" + more), 400, "BODY_INVALID")
    assert rest("POST", path, data="{} \r\n\t ").status_code == 200


@pytest.mark.parametrize("time", ["0S", "000m", "soon", "5", "-1S", "1.5S", "5 S"])
def test_a_time_is_a_time(rest: RestProcess, time: str) -> None:
    told = problem(rest("GET", "/v1/services", headers={"Grpc-Timeout": time}), 400, "REQUEST_INVALID")
    assert told["violations"][0]["field"] == "Grpc-Timeout"


@pytest.mark.parametrize("time", ["99999999999S", "99999999H", f"{'9' * 30}n", "1H"])
def test_a_long_time_does_not_end_at_once(rest: RestProcess, time: str) -> None:
    assert rest("GET", "/v1/services", headers={"Grpc-Timeout": time}).status_code == 200
    path = "/v1/services/echo:call/onecontainer.test.echo.v1.EchoService/Echo"
    assert rest("POST", path, data="{}", headers={"Grpc-Timeout": time}).status_code == 200


def test_a_digest_is_base64_or_hexadecimal(rest: RestProcess) -> None:
    digest = hashlib.sha256(b"x")
    for text in (digest.hexdigest(), digest.hexdigest().upper(), base64.b64encode(digest.digest()).decode()):
        assert rest("POST", "/v1/artifacts", params={"sha256": text}, data=b"x").status_code == 201
    wrong = hashlib.sha256(b"y").hexdigest()
    problem(rest("POST", "/v1/artifacts", params={"sha256": wrong}, data=b"x"), 400, "DATA_INVALID")


def test_the_last_no_bytes_are_none(rest: RestProcess) -> None:
    place = rest("POST", "/v1/artifacts", data=b"0123456789").headers["location"]
    for asked in ("bytes=-0", "bytes=-00, -0"):
        refused = rest("GET", f"{place}:download", headers={"Range": asked})
        problem(refused, 416, "RANGE_NOT_SATISFIABLE")
        assert refused.headers["content-range"] == "bytes */10"
    one = rest("GET", f"{place}:download", headers={"Range": "bytes=-0,2-3"})
    assert (one.status_code, one.content) == (206, b"23")


def test_a_mask_has_names_as_json_or_the_contracts_have_them(rest: RestProcess) -> None:
    rest("POST", "/v1/services?serviceId=masked", data='{"app": "nothing-here", "appVersion": "1.0"}')
    try:
        for version, mask in (("2.0", "appVersion"), ("3.0", "app_version"), ("4.0", "description,appVersion")):
            body = {"appVersion": version}
            changed = rest("PATCH", f"/v1/services/masked?updateMask={mask}", json=body)
            assert changed.json()["appVersion"] == version, changed.text
        limits = {"jobLimits": {"maxQueued": 7}}
        changed = rest("PATCH", "/v1/services/masked?updateMask=jobLimits.maxQueued", json=limits)
        assert changed.json()["jobLimits"]["maxQueued"] == 7, changed.text
        kept = rest("PATCH", "/v1/services/masked?update_mask=options.someKey", json={"options": {"someKey": "x"}})
        assert kept.json()["options"] == {"someKey": "***"}, kept.text
        whole = rest("GET", "/v1/services/masked").json()
        told = problem(rest("PATCH", "/v1/services/masked", json=whole), 400, "FIELD_INVALID")
        assert "send only what changes" in told["violations"][0]["description"]
    finally:
        rest("DELETE", "/v1/services/masked")


def test_the_callers_id_comes_back(rest: RestProcess) -> None:
    for path in ("/v1/services", "/v1/services/nobody"):
        assert rest("GET", path, headers={"X-Request-Id": "r-1"}).headers["x-request-id"] == "r-1"


def test_a_page_may_send_every_header_that_is_passed_on(rest: RestProcess) -> None:
    asked = "authorization,baggage,grpc-timeout,idempotency-key,last-event-id,traceparent,tracestate,x-request-id"
    before = {"Origin": "https://console.example", "Access-Control-Request-Method": "POST"}
    answer = rest("OPTIONS", "/v1/jobs", headers={**before, "Access-Control-Request-Headers": asked})
    assert answer.headers["access-control-allow-headers"] == asked
