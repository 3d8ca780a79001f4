"""Each public RPC has a route, the OpenAPI document has it, and a request to it comes to the gateway."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.api import annotations_pb2
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor

from onecontainer.api.ai.v1 import inference_pb2, inference_service_pb2
from onecontainer.api.db.v1 import database_pb2, query_pb2
from onecontainer.api.media.v1 import media_pb2, output_pb2
from onecontainer.gateway.servers import PUBLIC_SERVICES
from tests.fixtures.rest import RestProcess, in_front_of, problem

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
        # The document names the service of a stream of requests, which may be `-`.
        found.append((kind, path.replace("/services/-/", "/services/{service}/")))
    return found


METHODS = [method for service in SERVICES for method in service.methods]


def test_all_six_services_are_looked_at() -> None:
    assert len(METHODS) >= 55


@pytest.fixture(scope="module")
def document(rest: RestProcess) -> Any:
    return rest("GET", "/openapi.json").json()


class Recorder(grpc.GenericRpcHandler):
    """Any gRPC server: it keeps which methods were called, and implements none."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def service(self, details: Any) -> None:
        self.called.append(details.method)


@pytest.fixture(scope="module")
def recorded() -> Iterator[tuple[Recorder, RestProcess]]:
    recorder = Recorder()
    with in_front_of(recorder) as rest:
        yield recorder, rest


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.containing_service.name}.{method.name}")
def test_a_public_rpc_is_reached(
    recorded: tuple[Recorder, RestProcess], document: Any, method: MethodDescriptor
) -> None:
    recorder, rest = recorded
    for kind, path in routes(method):
        operation = document["paths"][path][kind]
        assert "default" in operation["responses"], "errors are not described"
        recorder.called.clear()
        place = re.sub(r"\{\w+\}", "some-id", path)
        body = None if kind in {"get", "delete"} else "{}"
        # Downloads are a file, by way of GetArtifact too, for those who do not ask for the stream of messages.
        answer = rest(kind.upper(), place, data=body, headers={"Accept": "application/x-ndjson"})
        problem(answer, 501, "METHOD_UNKNOWN")
        assert recorder.called == [f"/{method.containing_service.full_name}/{method.name}"]


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


def test_the_first_message_may_name_the_service(recorded: tuple[Recorder, RestProcess]) -> None:
    recorder, rest = recorded
    recorder.called.clear()
    problem(rest("POST", "/v1/services/-/ai:predictStream", data="{}{}"), 501, "METHOD_UNKNOWN")
    assert recorder.called == ["/onecontainer.api.ai.v1.InferenceService/PredictStream"]


def test_the_document_tells_what_grpc_gateways_own_does_not(document: Any) -> None:
    watch = document["paths"]["/v1/jobs/{job}:watch"]["get"]["responses"]["200"]["content"]
    message = {"$ref": "#/components/schemas/WatchJobResponse"}
    assert watch["text/event-stream"]["schema"] == message
    assert watch["application/x-ndjson"]["schema"]["properties"]["result"] == message
    change = document["paths"]["/v1/services/{service}"]["patch"]
    assert "updateMask" in [parameter["name"] for parameter in change["parameters"]]


def test_an_example_has_one_member_of_each_oneof(document: Any) -> None:
    schemas = document["components"]["schemas"]
    examples = {name: schema["example"] for name, schema in schemas.items() if "example" in schema}
    assert len(examples) > 20
    for name, kind in (
        ("ai.v1.Input", inference_pb2.Input),
        ("db.v1.Filter", query_pb2.Filter),
        ("Output", output_pb2.Output),
    ):
        assert set(examples[name]) <= set(schemas[name]["properties"])
        # Two members of a oneof are refused.
        json_format.ParseDict(examples[name], kind())


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
