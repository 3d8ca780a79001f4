"""The installation's certificate authority: it signs what serves TLS inside of it, the internal listener and sidecars on TCP.

A folder with `ca.pem`, which whoever connects needs, and `ca.key`, which is its owner's alone. It is made at its first use.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from onecontainer.errors import FieldInvalid, StateInvalid
from onecontainer.rpc.tls import KeyPair
from onecontainer.settings import private_folder

CA_FILE, KEY_FILE = "ca.pem", "ca.key"
CA_DAYS = 3650
CERTIFICATE_DAYS = 730
"""The internal listener gets a new one at each start of the gateway."""
_SKEW = datetime.timedelta(hours=1)
_HOST = re.compile(
    r"(?=.{1,253}$)(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Authority:
    """The authority in a folder; several gateways may share it."""

    def __init__(self, folder: Path, now: Callable[[], datetime.datetime] = _now) -> None:
        self._folder = folder
        self._now = now

    @property
    def ca_file(self) -> Path:
        """Where `ca.pem` is, or will be."""
        return self._folder / CA_FILE

    def ca_pem(self) -> bytes:
        """The authority's own certificate; it is made if it is not there. Raises StateInvalid if the folder is not usable."""
        return self._load()[0]

    def issue(self, names: Iterable[str], *, days: int = CERTIFICATE_DAYS) -> KeyPair:
        """A certificate for a server that is reached by these names or IP addresses, and its key.

        Raises FieldInvalid for what is no host name, or if there is none, and StateInvalid if the folder is not usable.
        """
        hosts = list(dict.fromkeys(names))
        if not hosts:
            raise FieldInvalid("names", "a certificate needs at least one host name or IP address")
        ca_pem, ca_key = self._load()
        authority = x509.load_pem_x509_certificate(ca_pem)
        key = ec.generate_private_key(ec.SECP256R1())
        now = self._now()
        # A common name has at most 64 characters; nobody looks at it, the alternative names count.
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
        certificate = (
            _builder(subject, authority.subject, key.public_key(), now)
            .not_valid_after(min(now + datetime.timedelta(days=days), authority.not_valid_after_utc))
            .add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        return KeyPair(certificate.public_bytes(serialization.Encoding.PEM), _private(key))

    def hand_out(self, folder: Path, names: Iterable[str], *, days: int = CERTIFICATE_DAYS) -> None:
        """Makes a folder for a server: `cert.pem`, `key.pem` (its owner's alone) and `ca.pem`.

        Raises as `issue` does, and FileExistsError if there is a key already.
        """
        pair = self.issue(names, days=days)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_key(folder / "key.pem", pair.key)
        (folder / "cert.pem").write_bytes(pair.cert)
        (folder / CA_FILE).write_bytes(self.ca_pem())

    def _load(self) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
        path = self._folder / KEY_FILE
        if not path.exists():
            self._make()
        try:
            if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise StateInvalid(f"{path} can be read by others than its owner: chmod 600")
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
            pem = self.ca_file.read_bytes()
        except (OSError, ValueError) as error:
            raise StateInvalid(f"the certificate authority in {self._folder} cannot be used: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise StateInvalid(f"{path} is no key of an elliptic curve: remove {self._folder}, and a new one is made")
        return pem, key

    def _make(self) -> None:
        """As a whole, by a rename: of two gateways that make it at once, one finds that of the other."""
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        making = private_folder(self._folder.with_name(f".{self._folder.name}-{secrets.token_hex(6)}"))
        try:
            key = ec.generate_private_key(ec.SECP256R1())
            now = self._now()
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"oneContainer {secrets.token_hex(4)}")])
            certificate = (
                _builder(name, name, key.public_key(), now)
                .not_valid_after(now + datetime.timedelta(days=CA_DAYS))
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(_signs_certificates(), critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
                .sign(key, hashes.SHA256())
            )
            (making / CA_FILE).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
            write_key(making / KEY_FILE, _private(key))
            with contextlib.suppress(FileExistsError, OSError):
                making.rename(self._folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)


def write_key(path: Path, key: bytes) -> None:
    """Writes a private key for its owner only. Raises FileExistsError if there is one already."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # Clocks differ.
        .not_valid_before(now - _SKEW)
    )


def _signs_certificates() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        raise FieldInvalid("names", f"{host!r} is neither a host name nor an IP address")
    return x509.DNSName(host)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
