"""For tests of TLS: certificates, and two streams that are joined in memory or over TCP."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import tcp_pair

from netkit.tls.context import TlsFiles, client_context, server_context
from netkit.tls.stream import TlsStream

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
each_version = pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)


def optional(name: str) -> Any:
    """A module. If it is not installed, the tests are skipped, or fail with CI=true.

    They are always skipped on free-threaded builds, for which some modules have no wheels.
    """
    with_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    if os.environ.get("CI") == "true" and with_gil:
        __import__(name)
    return pytest.importorskip(name)


trustme = optional("trustme")


class Files:
    """A folder with certificates, which is made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = authority = trustme.CA()
        stranger = trustme.CA()
        self.ca = self.write("ca.pem", authority.cert_pem)
        self.other_ca = self.write("other-ca.pem", stranger.cert_pem)
        server = authority.issue_cert("localhost", "127.0.0.1")
        self.server = self.write("server.pem", server.private_key_and_cert_chain_pem)
        self.cert = self.write("cert.pem", *server.cert_chain_pems)
        self.key = self.write("key.pem", server.private_key_pem)
        self.client = self.write(
            "client.pem", authority.issue_cert("me@example.org").private_key_and_cert_chain_pem
        )
        self.strange_client = self.write(
            "strange.pem", stranger.issue_cert("me@example.org").private_key_and_cert_chain_pem
        )
        self.named = {
            host: self.write(f"{number}.pem", issued.private_key_and_cert_chain_pem)
            for number, host in enumerate(("example.org", "*.example.org", "example.net"))
            for issued in [authority.issue_cert(host)]
        }

    def large_client(self) -> str:
        """A certificate of a client that does not fit into one record."""
        hosts = [f"{'x' * 50}{number}.example.org" for number in range(300)]
        issued = self.authority.issue_cert(*hosts)
        return self.write("large.pem", issued.private_key_and_cert_chain_pem)

    def write(self, name: str, *blobs: Any) -> str:
        path = self.folder / name
        path.touch(0o600)
        path.write_bytes(b"".join(blob.bytes() for blob in blobs))
        return str(path)


_folder = tempfile.TemporaryDirectory(prefix="netkit-tls-")
atexit.register(_folder.cleanup)


_first_use = threading.Lock()  # held while the files are made, which two threads may want at once


def files() -> Files:
    with _first_use:
        return _files()


@functools.cache
def _files() -> Files:
    return Files(Path(_folder.name))


@functools.cache
def contexts(version: ssl.TLSVersion | None = None) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The context of a server, and that of a client that trusts it, for this version of TLS."""
    server = server_context(TlsFiles(files().server))
    client = client_context(ca=files().ca)
    if version:
        client.minimum_version = client.maximum_version = version
    return server, client


class Starved(OSError):
    """Raised by a read while there is nothing to receive."""


class Pipe:
    """One direction of a connection in memory."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = False
        self.sent = b""
        """All that was sent."""

    def send(self, data: bytes) -> int:
        self.data += data
        self.sent += data
        return len(data)

    def receive(self, size: int) -> bytes:
        taken = bytes(self.data[:size])
        del self.data[:size]
        if not taken and not self.ended:
            raise Starved
        return taken


class Joined:
    """The streams of a server and of a client, joined in memory. Their reads raise `Starved`."""

    def __init__(
        self,
        server: ssl.SSLContext | ssl.TLSVersion | None = None,
        client: ssl.SSLContext | None = None,
        hostname: str | None = "localhost",
        shake: bool = True,
    ) -> None:
        if not isinstance(server, ssl.SSLContext):
            server, usual = contexts(server)
            client = client or usual
        client = client or contexts()[1]
        self.up, self.down = Pipe(), Pipe()  # from the client and to it
        self.server = TlsStream(self.up.receive, self.down.send, server, server_side=True)
        self.client = TlsStream(
            self.down.receive, self.up.send, client, server_side=False, server_hostname=hostname
        )
        if shake:
            self.shake_hands()

    def shake_hands(self) -> None:
        for stream in (self.client, self.server) * 3:
            with contextlib.suppress(Starved):
                stream.handshake()
        with contextlib.suppress(Starved, ValueError):  # the server's tickets
            self.client.recv(1)

    def refused(self) -> tuple[Exception | None, Exception | None]:
        """Do the handshake, and return what it raises at the server and at the client."""
        errors: dict[TlsStream, Exception] = {}
        for stream in (self.client, self.server) * 3:
            if stream not in errors:
                try:
                    stream.handshake()
                except Starved:
                    continue
                except Exception as error:
                    errors[stream] = error
        return errors.get(self.server), errors.get(self.client)


def received(stream: TlsStream) -> bytes:
    """All that can be read now."""
    data = b""
    with contextlib.suppress(Starved):
        while part := stream.recv(100_000):
            data += part
    return data


def everything(stream: TlsStream) -> bytes:
    """All that can be read, up to the peer's close_notify."""
    return b"".join(iter(lambda: stream.recv(65536), b""))


@contextlib.contextmanager
def over_tcp(
    version: ssl.TLSVersion | None = None,
) -> Iterator[tuple[TlsStream, TlsStream, socket.socket, socket.socket]]:
    """The streams of a server and of a client after the handshake, and their sockets."""
    server, client = contexts(version)
    with tcp_pair() as (ours, peer):
        ours.settimeout(peer.gettimeout())
        first = TlsStream(ours.recv, ours.send, server, server_side=True)
        second = TlsStream(
            peer.recv, peer.send, client, server_side=False, server_hostname="localhost"
        )
        thread = threading.Thread(target=first.handshake)
        thread.start()
        second.handshake()
        thread.join()
        yield first, second, ours, peer
