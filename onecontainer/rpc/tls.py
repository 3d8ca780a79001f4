"""Certificates and keys as gRPC takes them: one place for both sides of a TLS connection."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate chain and its private key, both PEM."""

    cert: bytes
    key: bytes = field(repr=False)

    @classmethod
    def read(cls, cert_file: Path, key_file: Path) -> KeyPair:
        """Raises OSError if one of the files cannot be read, ValueError if they are no certificate and its key."""
        pair = cls(cert_file.read_bytes(), key_file.read_bytes())
        try:
            # gRPC would say no more than that it cannot listen.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert_file, key_file, lambda: "")
        except ssl.SSLError as error:
            raise ValueError(
                f"{cert_file} and {key_file} are no PEM certificate and its private key: {error.reason or error}"
            ) from None
        return pair

    def server_credentials(self) -> grpc.ServerCredentials:
        """What a listener serves with; its clients need no certificate, their tokens tell who they are."""
        return grpc.ssl_server_credentials([(self.key, self.cert)])


def system_roots() -> bytes:
    """The authorities that this machine trusts, PEM; empty if it has none."""
    path = ssl.get_default_verify_paths().cafile  # None if the file is not there
    return Path(path).read_bytes() if path else b""


async def handshake_problem(address: str, roots: bytes | None, seconds: float) -> str:
    """Why TLS with a `HOST:PORT` fails, in words: gRPC says no more than that it has no connection. Empty: it does not fail, or nobody
    listens there. ``roots`` are authorities, PEM; None: those of this machine."""
    host, _, port = address.rpartition(":")
    # Comments of a bundle may be in any encoding.
    context = ssl.create_default_context(cadata=None if roots is None else roots.decode("ascii", "ignore"))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # nor is gRPC so strict
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=context)
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except ssl.SSLError as error:
        return error.reason or str(error)
    except (OSError, TimeoutError, ValueError):
        return ""
    writer.close()
    return ""
