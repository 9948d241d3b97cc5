"""Certificates for the SuperLink and keys for the nodes, in the formats that Flower reads."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography.x509 import GeneralName

CA, CERTIFICATE, KEY = "ca.crt", "server.pem", "server.key"
"""File names of the authority's certificate, the SuperLink's certificate and the SuperLink's key."""
VALID: Final = timedelta(days=365)


def make_certificates(folder: Path, hosts: Sequence[str]) -> None:
    """Write the certificate of a new authority, and a certificate for a SuperLink that the authority signs.

    The authority's private key is not stored, so it cannot sign anything else.

    Parameters
    ----------
    folder
        Where the files are written. Only the owner can read the SuperLink's key.
    hosts
        Names or addresses under which nodes reach the SuperLink.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    begin = datetime.now(UTC) - timedelta(minutes=5)  # the nodes' clocks may be behind

    def builder(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        name, issuer = (
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
            for text in (subject, "fedpisa authority")
        )
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + VALID)
        )

    authority, server = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    usage = x509.KeyUsage(
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
    ca = (
        builder("fedpisa authority", authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA384())
    )
    names = x509.SubjectAlternativeName([_host(host) for host in dict.fromkeys(hosts)])
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    certificate = (
        builder(hosts[0], server)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(signer, critical=False)
        .sign(authority, hashes.SHA384())
    )
    (folder / CA).write_bytes(ca.public_bytes(Encoding.PEM))
    (folder / CERTIFICATE).write_bytes(certificate.public_bytes(Encoding.PEM))
    _write_private(folder / KEY, server, ssh=False)


def make_node_key(file: Path) -> None:
    """Write a node's private key to ``file``, which only the owner can read, and the public key to ``file.pub``."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = ec.generate_private_key(ec.SECP384R1())
    _write_private(file, key, ssh=True)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    file.with_name(f"{file.name}.pub").write_bytes(public + b"\n")


def _write_private(file: Path, key: object, *, ssh: bool) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    assert isinstance(key, ec.EllipticCurvePrivateKey)
    form = PrivateFormat.OpenSSH if ssh else PrivateFormat.PKCS8
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(key.private_bytes(Encoding.PEM, form, NoEncryption()))


def _host(host: str) -> GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
