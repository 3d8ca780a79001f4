"""Each public RPC has a route, the OpenAPI document has it, and a request to it comes to the gateway."""

from __future__ import annotations

import re
from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor import MethodDescriptor

from onecontainer.api.ai.v1 import inference_service_pb2
from onecontainer.api.db.v1 import database_pb2
from onecontainer.api.media.v1 import media_pb2
from onecontainer.gateway.servers import PUBLIC_SERVICES
from tests.fixtures.rest import RestProcess, problem

SERVICES = (
    *PUBLIC_SERVICES,
    inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"],
    database_pb2.DESCRIPTOR.services_by_name["DatabaseService"],
    media_pb2.DESCRIPTOR.services_by_name["MediaService"],
)
RAW = "/v1/artifacts/{artifact}:download"


def routes(method: MethodDescriptor) -> list[tuple[str, str]]:
    """HTTP method and path of a method's bindings, with plain variables: /v1/services/{service}."""
    rule: Any = method.GetOptions().Extensions[annotations_pb2.http]
    found = []
    for one in (rule, *rule.additional_bindings):
        kind = one.WhichOneof("pattern")
        assert kind is not None, f"{method.full_name} has no google.api.http"
        # {name=services/*} is services/{service} in the document.
        path = re.sub(r"\{[^}=]+=(\w+?)s/\*\}", lambda found: f"{found[1]}s/{{{found[1]}}}", getattr(one, kind))
        found.append((kind, path))
    return found


METHODS = [method for service in SERVICES for method in service.methods]


def test_all_six_services_are_looked_at() -> None:
    assert len(METHODS) >= 55


@pytest.fixture(scope="module")
def document(rest: RestProcess) -> Any:
    return rest("GET", "/openapi.json").json()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.containing_service.name}.{method.name}")
def test_a_public_rpc_is_reached(rest: RestProcess, document: Any, method: MethodDescriptor) -> None:
    for kind, path in routes(method):
        operation = document["paths"][path][kind]
        assert "default" in operation["responses"], "errors are not described"
        place = re.sub(r"\{\w+\}", "nobody", path)
        body = None if kind in {"get", "delete"} else "{}"
        # Streams that would go on for ever end with their time.
        headers = {"Grpc-Timeout": "3S", "Accept": "application/x-ndjson"}
        with rest(kind.upper(), place, data=body, headers=headers, stream=True) as answer:
            if answer.status_code != 200:
                told = problem(answer, answer.status_code, answer.json()["reason"])
                # The gateway itself has answered.
                assert told["domain"] == "onecontainer.dev", told
                assert answer.status_code in {400, 404, 409, 501}, told


def test_the_document_has_nothing_that_is_not_there(rest: RestProcess, document: Any) -> None:
    known = {(kind, path) for method in METHODS for kind, path in routes(method)}
    more = {(kind, path) for path, operations in document["paths"].items() for kind in operations} - known
    assert more == {
        ("post", "/v1/artifacts"),
        ("put", "/v1/artifacts"),
        ("post", "/v1/services/{service}:call/{contract}/{method}"),
    }
    assert document["openapi"].startswith("3.")
    old = rest("GET", "/openapi.v2.json").json()
    assert old["swagger"] == "2.0"
    assert set(old["paths"]) == set(document["paths"])


def test_what_is_no_route_is_a_problem(rest: RestProcess) -> None:
    problem(rest("GET", "/v1/nothing"), 404, "ROUTE_NOT_FOUND")
    problem(rest("GET", "/nothing"), 404, "ROUTE_NOT_FOUND")
    refused = rest("PUT", "/v1/services/echo", data="{}")
    problem(refused, 405, "METHOD_NOT_ALLOWED")
    assert refused.headers["allow"] == "DELETE, GET, HEAD, PATCH"
    problem(rest("GET", "/v1/services/echo:call/a.b.C/D"), 405, "METHOD_NOT_ALLOWED")


def test_a_slash_at_the_end_and_an_encoded_one_do_not_matter(rest: RestProcess) -> None:
    for path in ("/v1/services/echo", "/v1/services/echo/", "/v1/services%2Fecho"):
        assert rest("GET", path).json()["name"] == "services/echo"
    assert rest("HEAD", "/v1/services/echo").status_code == 200
