"""Certificates for tests, made on the spot."""

from __future__ import annotations

import ssl
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from mitmproxy import certs


def write_certificate(folder: Path, name: str = "localhost") -> tuple[Path, Path]:
    """(chain, key) in `folder` for this name and 127.0.0.1, by an authority of the folder's own."""
    folder.mkdir(parents=True, exist_ok=True)
    store = certs.CertStore.from_store(folder, "test", 2048)
    entry = store.get_cert(name, [])
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(entry.cert.to_pem() + store.default_ca.to_pem())
    key.write_bytes(
        entry.privatekey.private_bytes(  # type: ignore[union-attr]
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return cert, key


def trusting(folder: Path) -> ssl.SSLContext:
    """A client that believes the authority of `folder`."""
    context = ssl.create_default_context(cafile=str(folder / "test-ca-cert.pem"))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def subject(port: int, folder: Path, name: str = "localhost") -> bytes:
    """The certificate (DER) that a server on this port shows to who asks for `name`."""
    import socket

    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        trusting(folder).wrap_socket(raw, server_hostname=name) as tls,
    ):
        return tls.getpeercert(binary_form=True) or b""
