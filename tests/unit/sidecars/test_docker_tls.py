"""The authority of containers: what it signs is trusted for its names, by whoever has its certificate, and by nobody else."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from onecontainer.sidecars.runtimes.docker_tls import Authority


def handshake(ca_file: Path, cert: Path, key: Path, name: str) -> None:
    """A TLS handshake in memory. Raises ssl.SSLError if the client does not trust the server."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(cert, key)
    client_context = ssl.create_default_context(cafile=str(ca_file))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    for side in (client, server) * 4:
        if side in waiting:
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
    assert not waiting


def test_it_signs_for_names_and_stays_the_same(tmp_path: Path) -> None:
    cert, key = Authority(tmp_path / "tls").issue(tmp_path / "one", ["one.example", "127.0.0.1"])
    again = Authority(tmp_path / "tls")
    for name in ("one.example", "127.0.0.1"):
        handshake(again.ca_file, cert, key, name)
    # Another start of the gateway signs with the same authority.
    other = again.issue(tmp_path / "two", ["two.example"])
    handshake(tmp_path / "one" / "ca.pem", *other, "two.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(again.ca_file, *other, "one.example")
    stranger = Authority(tmp_path / "stranger")
    stranger.issue(tmp_path / "three", ["one.example"])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(stranger.ca_file, cert, key, "one.example")


def test_keys_are_private(tmp_path: Path) -> None:
    _, key = Authority(tmp_path / "tls").issue(tmp_path / "one", ["one.example"])
    for path in (key, tmp_path / "tls" / "ca.key"):
        assert path.stat().st_mode & 0o777 == 0o600
