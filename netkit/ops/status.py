"""The status endpoint (``--status ADDRESS``): metrics, probes, and HAProxy's agent-check.

It is a small HTTP server of netkit's own, beside the servers of the program. Rules:

1. It shows nothing secret: no address of a client, no option, no stack.
2. A client has little of everything: two seconds, 4 KiB, one request. Only some clients may be
   about to send their request. When one more comes, the one that has waited longest is closed, so
   that clients that send nothing keep nobody out.
3. Whatever its clients do is no event of the program, and its own faults are logged for debugging
   only. So nobody can fill the log through it.
"""

from __future__ import annotations

import errno
import re
import socket
import threading
from collections.abc import Iterable

from ..core.addresses import SocketAddress
from ..core.endpoint import Endpoint, status_endpoint
from ..net.connection import Connection
from ..process.program import Program
from ..server import log
from ..server.server import Server
from .exposition import CONTENT_TYPE
from .internal import InternalEndpoint, InternalServer, Placing, unchanged
from .scrape import Scraper

MOST_CLIENTS = 16  # at once; further ones wait in the kernel's queue
MOST_READING = 8  # of these, without a whole request
MOST_BYTES = 4096  # of a request
SECONDS = 2.0  # to send the request, and to take the answer
LINGER_SECONDS = 1.0

_FIRST_LINE = re.compile(rb"[^\n]*\n")
_REQUEST_LINE = re.compile(rb"([A-Z]+) ([!-~]+) HTTP/1\.[01]\r?\n")
_END_OF_REQUEST = re.compile(rb"\n\r?\n")
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

_Reply = tuple[int, str]  # the status and the body


class Status(InternalEndpoint):
    """The status endpoint of one program."""

    def __init__(self, address: str | int, *listeners: socket.socket) -> None:
        """TypeError or ValueError if the address is invalid."""
        super().__init__(address, status_endpoint(address), listeners)

    def open(self, servers: Iterable[Server] = (), place: Placing = unchanged) -> None:
        """Listen where `place` says. `servers` are those of the program.

        OSError if the address cannot be had; ValueError if it is an address of `servers`.
        """
        try:
            where = self.listen(place)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and _is_own(self.endpoint, servers):
                raise ValueError(
                    f"the status endpoint cannot have {self._address}, which is the server's own"
                ) from None
            raise
        log.logger.info("status on %s", where)

    def serve(self, program: Program, suspended: bool = False) -> Server:
        """Answer for `program` in the background, as `InternalEndpoint.start` says."""
        server = InternalServer(
            None,
            _Pages(program).serve,
            max_connections=MOST_CLIENTS,
            drain_timeout=SECONDS,
        )
        return self.start(server, suspended)


def _is_own(endpoint: Endpoint, servers: Iterable[Server]) -> bool:
    """Whether a server that listens already has taken the address of `endpoint`."""
    return any(_overlaps(endpoint, address) for server in servers for address in server.addresses)


def _overlaps(endpoint: Endpoint, address: SocketAddress | str) -> bool:
    if isinstance(address, str):
        return endpoint.kind == "unix" and endpoint.path == address
    if endpoint.kind != "tcp" or endpoint.port != address.port:
        return False
    every = ("*", "0.0.0.0", "::")
    return endpoint.host in (*every, address.address, "localhost") or address.address in every


class _Pages:
    """Answers the requests of clients, each in its own thread."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._scraper = Scraper(program)
        self._lock = threading.Lock()  # guards `_reading`
        self._reading: set[Connection] = set()  # those without a whole request

    def serve(self, conn: Connection) -> None:
        """Answer one request. The connection is closed afterwards."""
        conn.linger_seconds, conn.linger_bytes = LINGER_SECONDS, 1024 * 1024
        self._make_room(conn)
        try:
            with conn.deadline(SECONDS):
                request = _read_request(conn)
        finally:
            with self._lock:
                self._reading.discard(conn)
        answer = self._answer(request)
        with conn.deadline(SECONDS):
            conn.write(answer)

    def _make_room(self, conn: Connection) -> None:
        oldest = None
        with self._lock:
            self._reading.add(conn)
            if len(self._reading) > MOST_READING:
                # Threads may come here in another order than that in which clients were accepted.
                oldest = min(self._reading, key=lambda each: each.id)
                self._reading.remove(oldest)
        if oldest is not None:
            oldest.destroy()

    def _answer(self, request: bytes) -> bytes:
        if request.partition(b"\n")[0].rstrip(b"\r") == b"agent":
            return b"ready up\n" if self._program.state().phase == "ready" else b"drain\n"
        parsed = _REQUEST_LINE.match(request)
        if parsed is None or not _END_OF_REQUEST.search(request):
            return _response(400, "this is no HTTP request\n") if request else b""
        method, target = parsed[1].decode(), parsed[2].decode()
        if method not in ("GET", "HEAD"):
            return _response(405, "only GET and HEAD are known here\n")
        try:
            status, body = self._page(target)
        except Exception as error:
            log.logger.debug("a page of the status endpoint: %r", error)
            status, body = 500, "the page could not be made\n"
        return _response(status, body, with_body=method == "GET")

    def _page(self, target: str) -> _Reply:
        path = re.sub(r"^https?://[^/]*", "", target).partition("?")[0]  # RFC 9112 section 3.2.2
        if path == "/metrics":
            return 200, self._scraper.text()
        if path == "/healthz":
            return 200, "ok\n"
        if path == "/readyz":
            phase = self._program.state().phase
            return 200 if phase == "ready" else 503, f"{phase}\n"
        return 404, "the pages are /metrics, /healthz and /readyz\n"


def _read_request(conn: Connection) -> bytes:
    """Read until the request is whole, is none, or is too long. May be followed by more."""
    request = b""
    while len(request) < MOST_BYTES and not _is_whole(request):
        chunk = conn.read(MOST_BYTES - len(request))
        if not chunk:
            break
        request += chunk
    return request


def _is_whole(request: bytes) -> bool:
    if not _FIRST_LINE.match(request):
        return False
    return not _REQUEST_LINE.match(request) or bool(_END_OF_REQUEST.search(request))


def _response(status: int, body: str, with_body: bool = True) -> bytes:
    from email.utils import formatdate  # here because most programs have no endpoint

    content = body.encode()
    allow = "Allow: GET, HEAD\r\n" if status == 405 else ""
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nDate: {formatdate(usegmt=True)}\r\n"
        f"Content-Type: {CONTENT_TYPE}\r\nContent-Length: {len(content)}\r\n{allow}"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (content if with_body else b"")
