"""Clients of other projects: netcats, socat, Node's net and curl."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import (
    PATIENCE,
    Cli,
    in_thread,
    needs_ipv6,
    observed,
    serving,
    silent_log,
    tool,
    wait_until,
)

import netkit
from netkit.core import events

BINARY = random.Random(2).randbytes(1_000_000) + bytes(range(256)) * 100

# node -e NODE HOST PORT MODE: talk (as nc does), listen (and say nothing), reset (once it hears)
NODE = """
const [host, port, mode] = process.argv.slice(1)
const socket = require('net').connect({host, port: Number(port), allowHalfOpen: true})
socket.on('error', (error) => console.error(error.code))
socket.on('close', (hadError) => { process.exitCode = hadError ? 1 : 0 })
socket.pipe(process.stdout)
if (mode === 'talk') process.stdin.pipe(socket)
if (mode === 'listen') socket.on('end', () => socket.end())
if (mode === 'reset') socket.once('data', () => socket.resetAndDestroy())
"""

Command = Callable[[str, int], list[str]]


def in_brackets(host: str) -> str:
    return f"[{host}]" if ":" in host else host


# Each sends its standard input, ends its side, and reads until the server ends its own side.
TALKERS: dict[str, Command] = {
    "nc": lambda host, port: ["nc", "-N", host, str(port)],
    "ncat": lambda host, port: ["ncat", host, str(port)],
    "socat": lambda host, port: ["socat", "-t", "15", "-", f"TCP:{in_brackets(host)}:{port}"],
    "node": lambda host, port: ["node", "-e", NODE, host, str(port), "talk"],
}
# Each sends nothing, and reads until the server ends its side.
LISTENERS: dict[str, Command] = {
    "nc": lambda host, port: ["nc", "-d", host, str(port)],
    "ncat": lambda host, port: ["ncat", "--recv-only", host, str(port)],
    "socat": lambda host, port: ["socat", "-u", f"TCP:{in_brackets(host)}:{port}", "-"],
    "node": lambda host, port: ["node", "-e", NODE, host, str(port), "listen"],
}

each_talker = pytest.mark.parametrize("name", TALKERS)
each_listener = pytest.mark.parametrize("name", LISTENERS)


def port_of(server: netkit.Server) -> int:
    return int(server.server_address[1])


def talk(name: str, port: int, data: bytes, host: str = "127.0.0.1") -> bytes:
    """What the program receives for `data`. It must succeed."""
    tool(name)
    return run(TALKERS[name](host, port), data)


def listen(name: str, port: int, host: str = "127.0.0.1") -> bytes:
    tool(name)
    return run(LISTENERS[name](host, port), b"")


def run(command: list[str], data: bytes) -> bytes:
    result = subprocess.run(command, input=data, capture_output=True, timeout=PATIENCE)
    assert (result.returncode, result.stderr) == (0, b"")
    return result.stdout


class Session:
    """A program whose input is typed, and whose output is read line by line."""

    def __init__(self, command: list[str]) -> None:
        tool(command[0])
        self.process = subprocess.Popen(
            command,
            bufsize=0,  # since `communicate` does not know what `readline` has buffered
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def type(self, text: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def readline(self) -> bytes:
        assert self.process.stdout
        return self.process.stdout.readline()

    def end(self) -> bytes:
        """End its input, and return the rest of its output."""
        output, errors = self.process.communicate(timeout=PATIENCE)
        assert (self.process.returncode, errors) == (0, b"")
        return output

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        with contextlib.suppress(ValueError):  # it has been communicated with already
            self.process.communicate()


# Echo


@needs_ipv6
@each_talker
def test_a_megabyte_comes_back_byte_for_byte_over_ipv4_and_ipv6(name: str) -> None:
    with netkit.create_server(netkit.EchoHandler).listen() as server:
        for host in ("::1", "127.0.0.1"):
            assert talk(name, port_of(server), BINARY, host) == BINARY


def test_the_command_line_echoes_a_megabyte_for_each_of_them() -> None:
    with Cli("echo") as server:
        for name in TALKERS:
            assert talk(name, server.port, BINARY) == BINARY, name
        server.send_signal()
        assert server.wait() == 0
        assert server.lines[-1] in ("stopped: 0 finished, 0 cut", "stopped: 1 finished, 0 cut")


@pytest.mark.parametrize("name", ["ncat", "socat"])
def test_lines_that_are_typed_come_back_one_by_one(name: str) -> None:
    with serving(netkit.EchoHandler) as server:
        with Session(TALKERS[name]("localhost", port_of(server))) as session:
            for line in (b"hello\n", b"\n", "grüße\n".encode(), b"bye\n"):
                session.type(line)
                assert session.readline() == line
            assert session.end() == b""


def test_ctrl_c_at_the_server_ends_a_session_at_both_ends() -> None:
    with Cli("echo") as server, Session([tool("nc"), "localhost", str(server.port)]) as session:
        for line in (b"hello\n", b"hello again\n"):
            session.type(line)
            assert session.readline() == line
        server.send_signal(signal.SIGINT)
        assert server.wait() == 0
        assert server.lines[1:] == [
            "stopping: 1 connected, up to 7 s to finish",
            "stopped: 1 finished, 0 cut",
        ]
        assert session.end() == b""


# Half-close


@each_talker
def test_a_client_that_has_ended_its_side_still_gets_a_long_answer(name: str) -> None:
    def handler(conn: netkit.Connection) -> None:
        request = conn.read()  # to its end: the answer begins only then
        conn.write(request * 3)

    with serving(handler) as server:
        assert talk(name, port_of(server), BINARY) == BINARY * 3


# Newer versions of ncat leave once the server has ended its side.
@pytest.mark.parametrize("name", [name for name in TALKERS if name != "ncat"])
def test_a_server_that_has_ended_its_side_still_gets_what_the_client_sends(name: str) -> None:
    got: list[bytes] = []

    def handler(conn: netkit.Connection) -> None:
        conn.end("your turn\n")
        got.append(conn.read())

    with serving(handler) as server:
        with Session(TALKERS[name]("127.0.0.1", port_of(server))) as session:
            assert session.readline() == b"your turn\n"
            session.type(b"thank you, ")
            session.type(b"good night\n")
            assert session.end() == b""
        wait_until(lambda: got, "the rest")
    assert got == [b"thank you, good night\n"]


# Greeter and logger


def test_the_command_line_greets_each_of_them() -> None:
    with Cli("greeter", "--greeting", "hi, {address}") as server:
        for name in LISTENERS:
            assert listen(name, server.port) == b"hi, 127.0.0.1\n", name
        assert run([tool("curl"), "-sS", f"telnet://127.0.0.1:{server.port}"], b"") == (
            b"hi, 127.0.0.1\n"
        )


def test_the_command_line_logs_raw_bytes_of_each_of_them_to_a_file(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with Cli("logger", "--raw", "--output", str(file)) as server:
        for name in TALKERS:
            assert talk(name, server.port, BINARY) == b"", name
        server.send_signal()
        assert server.wait() == 0
    assert file.read_bytes() == BINARY * len(TALKERS)
    ends = [line for line in server.lines if f" closed: {len(BINARY)} bytes received" in line]
    assert len(ends) == len(TALKERS)


# curl


def http(conn: netkit.Connection) -> None:
    """Replies to any request without reading its body, and closes."""
    conn.readuntil(b"\r\n\r\n")
    conn.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(BINARY)}\r\nConnection: close\r\n\r\n")
    conn.write(BINARY)


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_curl_gets_a_whole_reply(host: str) -> None:
    with netkit.create_server(http).listen(0, host) as server:
        url = f"http://{in_brackets(host)}:{port_of(server)}/"
        assert run([tool("curl"), "-sS", url], b"") == BINARY


def test_curl_gets_a_whole_reply_to_an_upload_that_is_not_read() -> None:
    with serving(http) as server:
        url = f"http://127.0.0.1:{port_of(server)}/"
        command = [tool("curl"), "-sS", "-H", "Expect:", "--data-binary", "@-", url]
        assert run(command, BINARY * 3) == BINARY


def test_curl_as_telnet_talks_and_is_answered() -> None:
    """It ends when the server does, and not when its input does."""

    def shout(conn: netkit.Connection) -> None:
        conn.write(conn.readline().upper())

    with serving(shout) as server:
        url = f"telnet://127.0.0.1:{port_of(server)}"
        assert run([tool("curl"), "-sS", url], b"hello\n") == b"HELLO\n"


# Unix sockets

NODE_UNIX = """
const socket = require('net').connect({path: process.argv[1], allowHalfOpen: true})
socket.on('error', (error) => { console.error(error.code); process.exitCode = 1 })
process.stdin.pipe(socket).pipe(process.stdout)
"""
UNIX_TALKERS: dict[str, Callable[[str], list[str]]] = {
    "nc": lambda path: ["nc", "-N", "-U", path],
    "ncat": lambda path: ["ncat", "-U", path],
    "socat": lambda path: ["socat", "-t", "15", "-", f"UNIX-CONNECT:{path}"],
    "node": lambda path: ["node", "-e", NODE_UNIX, path],
}


@pytest.mark.parametrize("name", UNIX_TALKERS)
def test_a_megabyte_through_a_unix_socket_comes_back_byte_for_byte(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tool(name)
    with netkit.create_server(netkit.EchoHandler).listen(path="x.sock"):
        assert run(UNIX_TALKERS[name]("x.sock"), BINARY) == BINARY


def test_a_dead_node_servers_socket_is_replaced_and_a_live_ones_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = "require('net').createServer().listen('x.sock', () => console.log('ready'))"
    server = netkit.create_server(netkit.EchoHandler)
    with subprocess.Popen([tool("node"), "-e", program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            with pytest.raises(OSError, match="another server listens there"):
                server.listen(path="x.sock")
        finally:
            process.kill()
    with server.listen(path="x.sock"):
        tool("nc")
        assert run(UNIX_TALKERS["nc"]("x.sock"), b"hello") == b"hello"


# Ends that are not nice


@contextlib.contextmanager
def only_clients_fail() -> Iterator[list[Any]]:
    """The failures of clients in the block. There must be no failures of another kind."""
    kinds = (events.ClientFailed, events.HandlerFailed, events.HookFailed, events.AcceptFailed)
    with silent_log(), observed(*kinds) as seen:
        yield seen
    assert {type(event) for event in seen} <= {events.ClientFailed}


def test_a_reset_by_node_is_a_reset_and_harms_no_other_client() -> None:
    def handler(conn: netkit.Connection) -> None:
        conn.write("?" * 5000)  # more than a health check waits for
        conn.read()

    command = [tool("node"), "-e", NODE, "127.0.0.1"]
    with only_clients_fail() as failures, serving(handler) as server:
        assert run([*command, str(port_of(server)), "reset"], b"").strip(b"?") == b""
        wait_until(lambda: failures, "the report")
        assert talk("nc", port_of(server), b"next") == b"?" * 5000
    (failure,) = failures
    assert isinstance(failure.error, ConnectionResetError)


@each_talker
def test_a_client_that_is_killed_in_the_middle_harms_no_other(name: str) -> None:
    with only_clients_fail() as failures, serving(netkit.EchoHandler) as server:
        with Session(TALKERS[name]("127.0.0.1", port_of(server))) as session:
            session.type(b"hello\n")
            assert session.readline() == b"hello\n"
            (conn,) = server.connections
            with in_thread(feed, session):  # and nobody reads what comes back
                wait_until(lambda: conn.bytes_read > 10_000, "the flood")
                session.process.kill()
        wait_until(lambda: server.connection_count == 0, "the end")
        assert talk(name, port_of(server), b"next") == b"next"
    assert len(failures) <= 1  # none, if all it had received was read: then it is an end as others


def feed(session: Session) -> None:
    with contextlib.suppress(BrokenPipeError):
        for _ in range(1000):
            session.type(b"x" * 10_000)


# Stopping


@each_listener
def test_a_stop_is_a_clean_end_for_a_client_that_only_listens(name: str) -> None:
    def handler(conn: netkit.Connection) -> None:
        conn.write("hello\n")
        conn.read()

    with serving(handler) as server:
        with Session(LISTENERS[name]("127.0.0.1", port_of(server))) as session:
            assert session.readline() == b"hello\n"
            assert server.stop() == (1, 0)
            assert session.readline() == b""  # without its input having ended
            assert session.end() == b""


@each_talker
def test_a_stop_is_a_clean_end_for_a_client_that_could_send_more(name: str) -> None:
    with serving(netkit.EchoHandler) as server:
        with Session(TALKERS[name]("127.0.0.1", port_of(server))) as session:
            session.type(b"hello\n")
            assert session.readline() == b"hello\n"
            assert server.stop() == (1, 0)
            assert session.end() == b""


@each_listener
def test_a_stopping_server_lets_a_long_reply_arrive_whole(name: str) -> None:
    def handler(conn: netkit.Connection) -> None:
        conn.write("hello\n")
        conn.write(BINARY * 8)  # more than the kernel's buffers hold: the client is slow

    with serving(handler) as server:
        with Session(LISTENERS[name]("127.0.0.1", port_of(server))) as session:
            assert session.readline() == b"hello\n"
            with in_thread(server.stop):
                wait_until(lambda: not server.listening, "stopping")
                assert session.end() == BINARY * 8
        assert server.stop().cut == 0


# The other way round


# Echoes, once it has printed its port.
NODE_SERVER = """
const net = require('net')
const server = net.createServer({allowHalfOpen: true}, (socket) => socket.pipe(socket))
server.listen(0, '127.0.0.1', () => console.log(server.address().port))
"""


def test_connect_talks_to_a_server_that_is_no_netkit() -> None:
    program = [tool("node"), "-e", NODE_SERVER]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            port = process.stdout.readline().decode().strip()
            with netkit.connect(port, "127.0.0.1") as conn:
                with in_thread(conn.end, BINARY):
                    assert conn.read() == BINARY
        finally:
            process.kill()
