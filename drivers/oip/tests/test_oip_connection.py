"""Where the server is, how it is reached, and what is told when it is not."""

from __future__ import annotations

import datetime
import ipaddress
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from onecontainer_driver_oip.settings import read_settings

from drivers.oip.tests.asking import Attached, call, question, tensor
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.api.third_party.inference import grpc_service_pb2 as oip
from onecontainer.api.third_party.inference import grpc_service_pb2_grpc
from onecontainer.driver import errors
from tests.fixtures.processes import free_port

DEFAULTS: Mapping[str, Any] = {"request_timeout": 60.0, "probe_timeout": 5.0, "max_message_bytes": 1 << 20}
ONE = {"one": "127.0.0.1:8001"}


class Server(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    """A server that is live and says what it was sent; ready if `ready`; its index is UNIMPLEMENTED, as KServe's runtimes have it."""

    def __init__(self, *, ready: bool = True) -> None:
        self.ready = ready
        self.seen: dict[str, str | bytes] = {}

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        self.seen = dict(context.invocation_metadata())
        return oip.ServerReadyResponse(ready=self.ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        return oip.ServerMetadataResponse(name="fake", version="1")

    async def ModelReady(self, request: Any, context: Any) -> Any:
        return oip.ModelReadyResponse(ready=request.name == "there")

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        return oip.ModelMetadataResponse(name=request.name)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Of another model than it was asked about."""
        return oip.ModelInferResponse(model_name="another")


@asynccontextmanager
async def serving(servicer: Server | None, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[str]:
    server = grpc.aio.server()
    if servicer is not None:
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    address = "127.0.0.1:0"
    port = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_a_server_that_is_away_is_unreachable(attached: Attached) -> None:
    async with attached(f"127.0.0.1:{free_port()}") as driver:
        for asked in (driver.probe(), driver.predict(question("double", tensor((1, 2, 3))), call())):
            with pytest.raises(errors.BackendUnreachable, match="cannot be reached") as caught:
                await asked
            assert caught.value.hop == "backend"
            assert caught.value.code == errors.Code.UNAVAILABLE
            assert caught.value.retry_after


async def test_a_server_that_hangs_is_unreachable(attached: Attached) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        async with attached(address, probe_timeout="1s") as driver:
            with pytest.raises(errors.BackendUnreachable, match=address):
                await driver.probe()


async def test_another_kind_of_server_is_told_as_such(attached: Attached) -> None:
    async with serving(None) as address, attached(address) as driver:
        with pytest.raises(errors.BackendExecutionFailed, match="not the Open Inference Protocol"):
            await driver.probe()


async def test_a_server_that_starts_is_not_ready(attached: Attached) -> None:
    servicer = Server(ready=False)
    async with serving(servicer) as address, attached(address) as driver:
        found = await driver.probe()
        assert (found.ready, found.message) == (False, "the inference server is live, but not ready")
        servicer.ready = True
        assert (await driver.probe()).ready


async def test_metadata_and_token_go_with_every_call(attached: Attached) -> None:
    servicer = Server()
    async with serving(servicer) as address, attached(address, token="t0p", metadata={"x-tenant": "a b"}) as driver:
        await driver.probe()
    assert servicer.seen["authorization"] == "Bearer t0p"
    assert servicer.seen["x-tenant"] == "a b"


async def test_models_of_a_server_without_an_index_are_named_in_the_options(attached: Attached) -> None:
    async with serving(Server()) as address, attached(address, models=["there", "gone"]) as driver:
        listed = await driver.list_models(pb.ListModelsRequest(), call())
        states = {model.name.rpartition("/")[2]: model.state for model in listed.models}
        assert states == {"gone": 4, "there": 2}


async def test_an_answer_of_another_model_is_no_answer(attached: Attached) -> None:
    async with serving(Server()) as address, attached(address) as driver:
        with pytest.raises(errors.BackendExecutionFailed, match="'another' has answered for 'there'"):
            await driver.predict(question("there", tensor((1, 2, 3))), call())


def certificate() -> tuple[bytes, bytes]:
    """A key and a certificate for `models.test` that signs itself, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "models.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("models.test"), x509.IPAddress(ipaddress.ip_address("127.0.0.2"))]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain), made.public_bytes(pem)


async def test_tls_checks_the_server_and_shows_our_certificate(attached: Attached) -> None:
    key, made = certificate()
    credentials = grpc.ssl_server_credentials([(key, made)], root_certificates=made, require_client_auth=True)
    tls = {"tls": True, "tls_ca": made.decode()}
    ours = {"tls_certificate": made.decode(), "tls_key": key.decode()}
    async with serving(Server(), credentials) as address:
        async with attached(address, **tls, **ours, tls_server_name="models.test") as driver:
            assert (await driver.probe()).ready
        for missing in (tls, tls | ours, ours | {"tls": True, "tls_server_name": "models.test"}):
            name = {} if missing != tls else {"tls_server_name": "models.test"}
            async with attached(address, **missing, **name) as driver:
                with pytest.raises(errors.BackendUnreachable):
                    await driver.probe()


@pytest.mark.parametrize(
    ("options", "endpoints", "field"),
    [
        ({}, {}, "endpoints"),
        ({}, {"one": "a:1", "two": "b:1"}, "endpoints"),
        ({}, {"one": "http://a:1"}, "endpoints"),
        ({}, {"one": "a"}, "endpoints"),
        ({}, {"one": "a:99999"}, "endpoints"),
        ({"request_timeout": 0}, ONE, "options.request_timeout"),
        ({"models": ["a", 1]}, ONE, "options.models[1]"),
        ({"metadata": {"Upper": "a"}}, ONE, "options.metadata"),
        ({"metadata": {"grpc-x": "a"}}, ONE, "options.metadata"),
        ({"metadata": {"x": "new\nline"}}, ONE, "options.metadata.x"),
        ({"metadata": {"authorization": "a"}, "token": "b"}, ONE, "options.token"),
        ({"tls_ca": "-----BEGIN "}, ONE, "options.tls_ca"),
        ({"tls": True, "tls_ca": "no PEM"}, ONE, "options.tls_ca"),
        ({"tls": True, "tls_certificate": "-----BEGIN "}, ONE, "options.tls_key"),
    ],
)
def test_wrong_settings(options: dict[str, Any], endpoints: dict[str, str], field: str) -> None:
    with pytest.raises((errors.FieldInvalid, errors.FieldRequired)) as caught:
        read_settings({**DEFAULTS, **options}, endpoints)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_secrets_are_in_no_representation() -> None:
    settings = read_settings({**DEFAULTS, "token": "t0p-secret", "metadata": {"x": "hidden"}}, ONE)
    assert "t0p" not in repr(settings)
    assert "hidden" not in repr(settings)
