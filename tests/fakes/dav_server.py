"""A WebDAV server on loopback, in this process: wsgidav, basic auth, real sockets; TLS if asked.

    with serve(dav_app(directory)) as url:
        open_filesystem(f"{url}/run-1", USER, SecretStr(PASSWORD))

A killed upload leaves a truncated file under its final name, the worst that any server does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from cheroot import wsgi
from cheroot.ssl.builtin import BuiltinSSLAdapter
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from wsgidav.wsgidav_app import WsgiDAVApp

from tests.fakes.sentinels import sentinel

USER, PASSWORD = "me", sentinel("webdav")
MACHINES_USER, MACHINES_PASSWORD = "machines", sentinel("exchange")

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def dav_app(
    directory: Path,
    password: str | None = PASSWORD,
    *,
    readonly: bool = False,
    digest: bool = False,
    machines: Path | None = None,
) -> App:
    """Serves a directory to `USER`; to everybody if the password is None.

    With `digest`, by that kind of authentication only. `machines` is another directory, which is
    served below `/machines` to `MACHINES_USER` alone.
    """
    users = True if password is None else {USER: {"password": password}}
    shares: dict[str, Any] = {"/": {"root": str(directory), "readonly": readonly}}
    accounts: dict[str, Any] = {"*": users}
    if machines is not None:
        shares["/machines"] = {"root": str(machines), "readonly": False}
        accounts["/machines"] = {MACHINES_USER: {"password": MACHINES_PASSWORD}}
    return WsgiDAVApp(
        {
            "provider_mapping": shares,
            "simple_dc": {"user_mapping": accounts},
            "http_authenticator": {
                "accept_basic": not digest,
                "accept_digest": digest,
                "default_to_digest": digest,
            },
            "verbose": 0,
            "logging": {"enable": False},
        }
    )


def refusing(app: App, status: str, larger_than: int) -> App:
    """The same app, which answers `status` to every upload of more bytes than that."""

    def refuse(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if environ["REQUEST_METHOD"] == "PUT" and length > larger_than:
            environ["wsgi.input"].read(length)
            start(status, [("Content-Length", "0")])
            return [b""]
        return app(environ, start)

    return refuse


@contextmanager
def serve(app: App, certificate: Path | None = None) -> Iterator[str]:
    """Run an app on a free port; yields the URL of its root.

    Args:
        app: what answers.
        certificate: a PEM file with certificate and key; without it there is no TLS.
    """
    server = wsgi.Server(("127.0.0.1", 0), app, numthreads=4)
    if certificate is not None:
        server.ssl_adapter = BuiltinSSLAdapter(str(certificate), str(certificate))
    server.error_log = lambda *_args, **_more: None  # clients that hang up are the point here
    server.prepare()
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        scheme = "http" if certificate is None else "https"
        yield f"{scheme}://127.0.0.1:{server.bind_addr[1]}"
    finally:
        server.stop()
        thread.join()


def self_signed(directory: Path) -> Path:
    """A PEM file with a fresh key and a certificate for 127.0.0.1 that nobody else vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tsgb test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    pem = directory / "self-signed.pem"
    pem.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return pem
