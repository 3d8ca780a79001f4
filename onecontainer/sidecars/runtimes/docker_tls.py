"""Certificates for containers that are reached over TCP: an authority in the data folder, and what it signs."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from onecontainer.settings import private_folder

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.hashes import SHA256

VALID = timedelta(days=3650)
"""A container may run for long, and nobody renews its certificate while it does."""
SKEW = timedelta(minutes=5)


class Authority:
    """Signs the certificates of one installation: `ca.pem` and `ca.key` in a folder, made the first time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def ca_file(self) -> Path:
        """Its certificate; there once `issue` was called."""
        return self._folder / "ca.pem"

    def issue(self, folder: Path, names: Sequence[str]) -> tuple[Path, Path]:
        """Writes a new certificate for host names and addresses, and its key (0600): `cert.pem`, `key.pem`. Beside them `ca.pem`."""
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec

        ca, ca_key = self._load()
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_name(names[0]), ca.subject, key)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
            .sign(ca_key, _sha256())
        )
        private_folder(folder)
        _write(folder / "ca.pem", _pem(ca))
        _write(folder / "cert.pem", _pem(certificate))
        _write(folder / "key.pem", _key_pem(key))
        return folder / "cert.pem", folder / "key.pem"

    def _load(self) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        key_file = self._folder / "ca.key"
        if not self.ca_file.exists():
            made = ec.generate_private_key(ec.SECP256R1())
            subject = _name("oneContainer")
            certificate = (
                _builder(subject, subject, made)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(made.public_key()), critical=False)
                .sign(made, _sha256())
            )
            private_folder(self._folder)
            _write(key_file, _key_pem(made))
            _write(self.ca_file, _pem(certificate))
        key = load_pem_private_key(key_file.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return x509.load_pem_x509_certificate(self.ca_file.read_bytes()), key


def _builder(subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + VALID)
    )


def _name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _sha256() -> SHA256:
    from cryptography.hazmat.primitives.hashes import SHA256

    return SHA256()


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, data: bytes) -> None:
    draft = path.with_name(path.name + ".new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    draft.replace(path)
