"""Who may reach a gateway: loopback, TLS with bearer tokens elsewhere, and sidecars alone on the internal listener."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from onecontainer.api.job.v1 import job_lease_service_pb2, job_lease_service_pb2_grpc
from onecontainer.client import Client, Tls
from onecontainer.errors import CredentialsInvalid, DriverUnreachable
from onecontainer.rpc.status import from_rpc_error
from tests.fixtures.processes import GatewayProcess, free_port, running
from tests.fixtures.stalls import stalls


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a self-signed certificate of localhost: tls.crt and tls.key."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt"), "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return folder


def tls_settings(folder: Path) -> dict[str, str]:
    return {
        "tls_cert_file": str(folder / "tls.crt"),
        "tls_key_file": str(folder / "tls.key"),
        "tokens": '{"s3cret": "alice"}',
    }


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[GatewayProcess]:
    """A gateway on all addresses of the machine, with TLS and one token."""
    data = tmp_path_factory.mktemp("secured") / "data"
    port = free_port()
    process = GatewayProcess(data, listen=f"0.0.0.0:{port}", **tls_settings(certificate))
    process.address = f"localhost:{port}"
    process._ready = "listening on"
    with running(process):
        yield process


def test_with_a_token_over_tls(secured: GatewayProcess, certificate: Path) -> None:
    with Client(secured.address, token="s3cret", tls=Tls(ca_file=certificate / "tls.crt")) as client:
        assert client.drivers.list()
        made = client.artifacts.upload(b"whose is it")
        assert made.principal == "alice"


@pytest.mark.parametrize("token", [None, "wrong"])
def test_without_the_right_token(secured: GatewayProcess, certificate: Path, token: str | None) -> None:
    with (
        Client(secured.address, token=token, tls=Tls(ca_file=certificate / "tls.crt")) as client,
        pytest.raises(CredentialsInvalid),
    ):
        client.drivers.list()


def test_without_tls(secured: GatewayProcess) -> None:
    with Client(secured.address, token="s3cret") as client, pytest.raises(DriverUnreachable):
        client.drivers.list(timeout=30)


@pytest.mark.parametrize("missing", ["tls_cert_file", "tokens"])
def test_elsewhere_than_on_loopback_both_are_needed(tmp_path: Path, certificate: Path, missing: str) -> None:
    settings = tls_settings(certificate)
    del settings[missing]
    process = GatewayProcess(tmp_path / "data", listen=f"0.0.0.0:{free_port()}", **settings)
    with pytest.raises(RuntimeError, match="tls_cert_file and tls_key_file"):
        process.start()


def test_a_taken_address_is_told(gateway: GatewayProcess, tmp_path: Path) -> None:
    process = GatewayProcess(tmp_path / "data", listen=gateway.address)
    with pytest.raises(
        RuntimeError, match=f"cannot listen on {gateway.address}: somebody else listens there"
    ) as raised:
        process.start()
    # Told before anything is made, and nothing but that is told.
    assert not process.data_dir.exists()
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer guessed"),)], ids=["no-token", "wrong-token"])
def test_the_internal_listener_needs_the_token_of_an_instance(
    gateway: GatewayProcess, metadata: tuple[tuple[str, str], ...]
) -> None:
    with grpc.insecure_channel(
        f"unix:{gateway.data_dir}/internal.sock", options=[("grpc.default_authority", "localhost")]
    ) as channel:
        stub = job_lease_service_pb2_grpc.JobLeaseServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.PollJobs(job_lease_service_pb2.PollJobsRequest(max_grants=1), metadata=metadata, timeout=60)
    assert isinstance(from_rpc_error(raised.value), CredentialsInvalid)


def test_the_internal_listener_is_the_owners_alone(gateway: GatewayProcess) -> None:
    assert (gateway.data_dir / "internal.sock").stat().st_mode & 0o077 == 0
    assert gateway.data_dir.stat().st_mode & 0o077 == 0


def test_a_gateway_starts_soon_also_the_second_time(tmp_path: Path) -> None:
    """The goal is 3 s on a quiet machine; here only that nothing waits for long."""
    process = GatewayProcess(tmp_path / "data")
    for _ in range(2):
        with stalls() as still:
            begin = time.monotonic()
            process.start()
            took = time.monotonic() - begin - still.seconds
        assert process.stop() == 0
        assert took < 30
