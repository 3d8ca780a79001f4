"""The installation's certificate authority, with real TLS: who is trusted, for which names, and who may read the key."""

from __future__ import annotations

import datetime
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from onecontainer.errors import FieldInvalid, StateInvalid
from onecontainer.gateway.listeners import internal_names
from onecontainer.rpc.channel import open_channel
from onecontainer.rpc.tls import KeyPair
from onecontainer.settings import Settings
from onecontainer.sidecars.authority import Authority


async def is_trusted(pair: KeyPair, roots: bytes, host: str) -> bool:
    """Whether a client with these roots, who means this host, talks to a server with this certificate."""

    class Echo(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:  # type: ignore[type-arg]
            async def answer(request: bytes, _context: object) -> bytes:
                return request

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.aio.server(handlers=(Echo(),))
    port = server.add_secure_port("localhost:0", pair.server_credentials())
    await server.start()
    try:
        async with open_channel(f"{host}:{port}", roots=roots) as channel:
            call = channel.unary_unary("/a/b")
            return await call(b"x", timeout=60) == b"x"
    except grpc.aio.AioRpcError:
        return False
    finally:
        await server.stop(None)


async def test_its_certificates_are_trusted_by_those_who_have_its_own_and_for_their_names_only(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    named, addressed = authority.issue(["localhost"]), authority.issue(["127.0.0.1", "::1"])
    assert await is_trusted(named, authority.ca_pem(), "localhost")
    assert await is_trusted(addressed, authority.ca_pem(), "127.0.0.1")
    assert not await is_trusted(named, authority.ca_pem(), "127.0.0.1")
    assert not await is_trusted(named, other.ca_pem(), "localhost")
    # Roots may be several, one after the other.
    assert await is_trusted(named, other.ca_pem() + authority.ca_pem(), "localhost")


def test_it_is_made_once_and_its_key_is_the_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "ca"
    made = Authority(folder).ca_pem()
    assert Authority(folder).ca_pem() == made
    assert stat.S_IMODE((folder / "ca.key").stat().st_mode) == 0o600
    assert [path.name for path in folder.parent.iterdir()] == ["ca"]
    (folder / "ca.key").chmod(0o640)
    with pytest.raises(StateInvalid, match="chmod 600"):
        Authority(folder).issue(["x"])
    (folder / "ca.key").chmod(0o600)
    (folder / "ca.key").write_text("rubbish")
    with pytest.raises(StateInvalid):
        Authority(folder).issue(["x"])


def test_of_several_that_make_it_at_once_one_makes_it(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(lambda _: Authority(tmp_path / "ca").ca_pem(), range(8)))
    assert len(found) == 1


@pytest.mark.parametrize("names", [[], ["not a host"], ["a..b"], ["-"], ["x" * 64]])
def test_what_is_no_host_is_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(FieldInvalid):
        Authority(tmp_path / "ca").issue(names)


def test_a_certificate_does_not_outlive_its_authority(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    root = x509.load_pem_x509_certificate(authority.ca_pem())
    leaf = x509.load_pem_x509_certificate(authority.issue(["a.b"], days=100_000).cert)
    assert leaf.not_valid_after_utc == root.not_valid_after_utc
    short = x509.load_pem_x509_certificate(authority.issue(["a.b"], days=1).cert)
    assert short.not_valid_after_utc - short.not_valid_before_utc < datetime.timedelta(days=2)
    assert "PRIVATE" not in repr(authority.issue(["a.b"]))


@pytest.mark.parametrize(
    ("listen", "advertise", "names"),
    [
        ("10.0.0.5:1", "", ["10.0.0.5"]),
        ("[fd00::5]:1", "gateway.internal:2", ["gateway.internal", "fd00::5"]),
        ("0.0.0.0:1", "gateway.internal:2", ["gateway.internal", "localhost", "127.0.0.1", "::1"]),
    ],
)
def test_the_internal_listener_has_a_certificate_for_all_its_names(
    tmp_path: Path, listen: str, advertise: str, names: list[str]
) -> None:
    settings = Settings(data_dir=tmp_path, internal_listen=listen, internal_advertise=advertise)
    found = internal_names(settings)
    assert set(names) <= set(found)
    Authority(tmp_path / "ca").issue(found)
