"""The status endpoint: its pages, its address, and clients that mean it no good."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import STATE, NoProgram, asked, check_by_promtool, page_of, samples_of, told
from support import PATIENCE, observed, receive_all, serving, wait_until

import netkit
from netkit.core.endpoint import status_endpoint
from netkit.ops import status
from netkit.ops.exposition import CONTENT_TYPE
from netkit.ops.metrics import of_process
from netkit.ops.status import Status
from netkit.process.channel import SentSocket
from netkit.process.program import Answer

CONNECTIONS = 'netkit_connections{state="serving"}'


@contextlib.contextmanager
def answering(program: NoProgram, address: str | int = 0) -> Iterator[Any]:
    """The address of an endpoint that answers for `program`."""
    endpoint = Status(address)
    endpoint.open()
    server = endpoint.serve(program)
    try:
        yield server.server_address
    finally:
        server.close()
        endpoint.close()
        endpoint.close()


def request(path: str, method: str = "GET", version: str = "1.1", end: str = "\r\n") -> bytes:
    return f"{method} {path} HTTP/{version}{end}Host: x{end}{end}".encode()


@contextlib.contextmanager
def idle(address: Any, count: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    """Clients that send `data` and wait."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(stack.enter_context(socket.create_connection(address, PATIENCE)))
            made[-1].sendall(data)
        yield made


# --- Pages ---


@pytest.mark.parametrize(
    ("sent", "line", "body"),
    [
        (request("/healthz"), "200 OK", "ok\n"),
        (request("/readyz", version="1.0"), "200 OK", "ready\n"),
        (request("/readyz?verbose", end="\n"), "200 OK", "ready\n"),
        (request("http://balancer:9101/readyz"), "200 OK", "ready\n"),
        (request("/readyz", "HEAD"), "200 OK", ""),
        (request("/"), "404 Not Found", "the pages are /metrics, /healthz and /readyz\n"),
        (request("/Metrics", "HEAD"), "404 Not Found", ""),
        (
            request("/metrics", "POST"),
            "405 Method Not Allowed",
            "only GET and HEAD are known here\n",
        ),
        (b"hello\r\n", "400 Bad Request", "this is no HTTP request\n"),
        (b"GET /metrics\r\n", "400 Bad Request", "this is no HTTP request\n"),
        (request("/healthz", version="2.0"), "400 Bad Request", "this is no HTTP request\n"),
        (b"GET /" + bytes(5000), "400 Bad Request", "this is no HTTP request\n"),
        (
            b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 1000,
            "400 Bad Request",
            "this is no HTTP request\n",
        ),
    ],
)
def test_each_request_has_its_answer(sent: bytes, line: str, body: str) -> None:
    with answering(NoProgram()) as address:
        head, _, content = asked(address, sent).decode().partition("\r\n\r\n")
    first, *fields = head.split("\r\n")
    assert first == f"HTTP/1.1 {line}"
    assert content == body
    named = dict(field.split(": ", 1) for field in fields)
    assert named["Content-Type"] == CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"
    assert named["Connection"] == "close"
    assert named.get("Allow") == ("GET, HEAD" if "405" in line else None)
    if "HEAD" not in sent.decode():
        assert named["Content-Length"] == str(len(body))


@pytest.mark.parametrize("phase", ["ready", "starting", "suspended", "stopping"])
def test_a_probe_and_an_agent_check_learn_whether_clients_are_wanted(phase: str) -> None:
    program = NoProgram()
    program.present = STATE._replace(phase=phase)
    is_ready = phase == "ready"
    with answering(program) as address:
        answer = asked(address, request("/readyz"))
        assert answer.startswith(b"HTTP/1.1 200 OK" if is_ready else b"HTTP/1.1 503 Service Unav")
        assert answer.endswith(f"\r\n\r\n{phase}\n".encode())
        assert asked(address, request("/healthz")).startswith(b"HTTP/1.1 200")
        for sent in (b"agent\n", b"agent\r\n", b"agent\nmore"):
            assert asked(address, sent) == (b"ready up\n" if is_ready else b"drain\n")
        with socket.create_connection(address, PATIENCE) as sock:
            sock.sendall(b"agent")
            sock.shutdown(socket.SHUT_WR)
            assert receive_all(sock) == (b"ready up\n" if is_ready else b"drain\n")


def test_a_request_may_come_in_pieces() -> None:
    with answering(NoProgram()) as address:
        with socket.create_connection(address, PATIENCE) as sock:
            for byte in request("/readyz"):
                sock.sendall(bytes([byte]))
            assert receive_all(sock).endswith(b"\r\n\r\nready\n")


def test_the_metrics_of_a_server_are_valid_and_its_own_clients_are_not_among_them() -> None:
    with serving(netkit.EchoHandler) as server:
        metrics = of_process([server])
        program = NoProgram(ask=lambda: [Answer(1, metrics.answer())])
        with answering(program) as address, observed() as seen:
            with idle(address, 5, b"GET"):
                page = page_of(address)
        metrics.close()
    check_by_promtool(page)
    found = samples_of(page)
    assert found["netkit_connections_accepted_total"] == found[CONNECTIONS] == 0
    assert [event for event in seen if event.server is not server] == []


def test_a_fault_is_an_answer_and_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> list[Answer]:
        raise LookupError("secret")

    caplog.set_level(logging.DEBUG, "netkit")
    with answering(NoProgram(ask=fail)) as address:
        answer = asked(address, request("/metrics"))
    assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert b"secret" not in answer
    assert [each for each in caplog.records if each.levelno > logging.INFO] == []
    assert "secret" in caplog.text


# --- Clients that mean no good ---


def test_clients_that_send_nothing_half_a_line_or_a_megabyte_keep_no_scrape_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "netkit")
    program = NoProgram(told(1, {"netkit_sent_bytes_total": 7}))
    with answering(program) as address, contextlib.ExitStack() as stack:
        caplog.clear()
        stack.enter_context(idle(address, 100))
        stack.enter_context(idle(address, 100, b"GET /met"))
        for sock in stack.enter_context(idle(address, 10)):
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.send(b"x" * 1_000_000)
        began = time.monotonic()
        assert samples_of(page_of(address))["netkit_sent_bytes_total"] == 7
        assert time.monotonic() - began < status.SECONDS * 5
    assert caplog.records == []


def test_clients_that_never_read_keep_no_scrape_out() -> None:
    program = NoProgram(told(1, {"netkit_sent_bytes_total": 7}))
    with answering(program) as address, idle(address, 60, request("/metrics")):
        assert samples_of(page_of(address))["netkit_sent_bytes_total"] == 7


def test_a_client_that_says_no_more_is_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "SECONDS", 0.05)
    with answering(NoProgram()) as address, idle(address, 1, b"GET /metr") as (sock,):
        assert b"HTTP" not in receive_all_or_reset(sock)


def receive_all_or_reset(sock: socket.socket) -> bytes:
    try:
        return receive_all(sock)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("late", [0, 1, status.MOST_READING])
def test_of_many_clients_without_a_request_the_one_that_waits_longest_is_closed(
    late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of their threads is the last to run."""
    ids: list[int] = []
    make_room = status._Pages._make_room

    def make_room_late(pages: status._Pages, conn: netkit.Connection) -> None:
        ids.append(conn.id)
        wait_until(lambda: len(ids) > status.MOST_READING)
        if conn.id == sorted(ids)[late]:
            wait_until(lambda: len(pages._reading) == status.MOST_READING)
        make_room(pages, conn)

    monkeypatch.setattr(status._Pages, "_make_room", make_room_late)
    monkeypatch.setattr(status, "SECONDS", PATIENCE)
    with answering(NoProgram()) as address:
        with idle(address, status.MOST_READING + 1, b"GET") as (oldest, *others):
            assert receive_all_or_reset(oldest) == b""
            others[0].sendall(request("/readyz")[3:])
            assert receive_all(others[0]).endswith(b"ready\n")


# --- Addresses ---


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("9101", "127.0.0.1:9101"),
        (9101, "127.0.0.1:9101"),
        ("*:9101", "*:9101"),
        ("[::1]:9101", "::1:9101"),
    ],
)
def test_a_port_alone_is_on_loopback(address: str | int, expected: str) -> None:
    endpoint = status_endpoint(address)
    assert f"{endpoint.host}:{endpoint.port}" == expected


@pytest.mark.parametrize("setting", ["reuse_port=on", "tls=on", "proxy=on"])
def test_an_address_has_only_settings_that_make_sense(setting: str) -> None:
    with pytest.raises(ValueError, match=f"the status endpoint cannot have {setting}"):
        Status(f"127.0.0.1:9101?{setting}")
    with pytest.raises(ValueError, match="must be PORT, HOST:PORT or unix:PATH, not 'nonsense'"):
        Status("nonsense")


def test_a_unix_socket_has_its_mode_and_is_removed_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "status"
    with answering(NoProgram(), f"unix:{path}?mode=600") as address:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert address == str(path)
        assert page_of(address, "/readyz") == "ready\n"
    assert not path.exists()


def test_the_address_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "netkit")
    with answering(NoProgram()) as address:
        pass
    assert caplog.messages == [f"status on 127.0.0.1:{address[1]}"]


@pytest.mark.parametrize("host", ["127.0.0.1", "*", "localhost", "0.0.0.0"])
def test_an_address_of_the_server_itself_is_an_error_that_says_so(host: str) -> None:
    with serving(netkit.EchoHandler) as server:
        address = f"{host}:{server.address.port}"
        with pytest.raises(ValueError, match=f"cannot have {address.replace('*', '.')}, which is"):
            Status(address).open([server])


def test_a_path_of_the_server_itself_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with netkit.create_server(netkit.EchoHandler).listen(path=path) as server:
        with pytest.raises(ValueError, match="which is the server's own"):
            Status(f"unix:{path}").open([server])


def test_an_address_that_another_program_has_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, serving(netkit.EchoHandler) as server:
        endpoint = Status(taken.getsockname()[1])
        with pytest.raises(OSError, match="address already in use"):
            endpoint.open([server])
        endpoint.close()
    with pytest.raises(OSError, match="the folder does not exist"):
        Status(f"unix:{tmp_path}/missing/socket").open()


def test_another_process_can_serve_on_the_listeners_of_the_one_that_has_opened_them(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "status")
    opened = Status(f"unix:{path}")
    opened.open()
    kind, (address, sent) = opened.__reduce__()
    assert isinstance(sent, SentSocket)  # which becomes a socket in a process that is being started
    elsewhere = kind(address, socket.socket(fileno=os.dup(opened.listeners[0].fileno())))
    server = elsewhere.serve(NoProgram())
    assert asked(path, b"agent\n") == b"ready up\n"
    server.close()
    elsewhere.close()
    assert os.path.exists(path)  # the one that has made it removes it
    again = opened.serve(NoProgram())
    assert asked(path, b"agent\n") == b"ready up\n"
    again.close()
    opened.close()
    assert not os.path.exists(path)


def test_the_server_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Status(0)
    endpoint.open()
    server = endpoint.serve(NoProgram())
    with idle(server.server_address, 5, b"GET"):
        wait_until(lambda: server.connection_count == 5)
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < status.SECONDS
    endpoint.close()
