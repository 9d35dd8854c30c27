"""netkit connect, also together with nc, ncat and socat."""

from __future__ import annotations

import contextlib
import filecmp
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import (
    PATIENCE,
    ROOT,
    Cli,
    Program,
    full_listener,
    in_thread,
    needs_ipv6,
    receive_exactly,
    serving,
    tool,
    wait_until,
)

import netkit
from netkit.cli import connect
from netkit.cli.conversation import Crlf
from netkit.core import events

from .commands import Result, Run

BINARY = random.Random(3).randbytes(700_000) + bytes(range(256)) * 100


@pytest.fixture
def run(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs `connect` in this process, with these bytes as its standard input."""

    def call(*argv: object, data: bytes = b"") -> Result:
        (tmp_path / "input").write_bytes(data)
        with open(tmp_path / "input", "rb") as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            return run("connect", *map(str, argv))

    return call


@contextlib.contextmanager
def port_of(handler: Any, **options: Any) -> Iterator[int]:
    """Serve with `handler` at a port, which is returned."""
    with serving(handler, **options) as server:
        yield int(server.server_address[1])


def greet(conn: netkit.Connection) -> None:
    conn.write("hi\n")


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends everything back."""
    with port_of(netkit.EchoHandler) as port:
        yield port


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def start(*arguments: object) -> Program:
    return Cli("connect", *map(str, arguments), listening=False)


def listening(*arguments: object) -> Program:
    """A `connect --listen` at a port of its own, whose number is `port`."""
    return Cli("connect", "--listen", *map(str, arguments))


def send(program: Program, data: bytes) -> None:
    """Write to its standard input."""
    assert program.process.stdin
    program.process.stdin.write(data)
    program.process.stdin.flush()


def output(program: Program, size: int = -1) -> bytes:
    """Read its standard output."""
    assert program.process.stdout
    return program.process.stdout.read(size)


# Both ways


def test_an_echo_is_the_same_byte_for_byte(run: Run, echo: int) -> None:
    assert run("127.0.0.1", echo, data=BINARY) == (0, BINARY, [])


def test_it_connects_to_this_machine_by_default_and_v_reports_each_step(run: Run) -> None:
    with port_of(greet) as port:
        status, out, lines = run("-v", port)
    assert (status, out) == (0, b"hi\n")
    assert lines[-2:] == [f"connected to 127.0.0.1:{port}", "0 bytes sent, 3 bytes received"]
    assert lines[-3] == f"trying 127.0.0.1:{port}"
    tried_before = [f"trying [::1]:{port}", f"[::1]:{port}: connection refused"]
    assert lines[:-3] in ([], tried_before)


@pytest.mark.parametrize("half_close", [True, False])
def test_the_end_of_input_is_passed_on_unless_an_option_forbids_it(
    run: Run, half_close: bool
) -> None:
    ended = []

    def handler(conn: netkit.Connection) -> None:
        conn.readexactly(5)
        conn.set_timeout(0.1)
        with contextlib.suppress(TimeoutError):
            ended.append(conn.read() == b"")
        conn.write("done")

    with port_of(handler) as port:
        options = [] if half_close else ["--no-half-close"]
        assert run(port, *options, data=b"hello") == (0, b"done", [])
    assert ended == ([True] if half_close else [])


def test_a_file_is_sent_to_its_end_although_the_server_has_ended_its_side(run: Run) -> None:
    got = []

    def handler(conn: netkit.Connection) -> None:
        conn.end()
        got.append(conn.read())

    with port_of(handler) as port:
        assert run(port, data=BINARY) == (0, b"", [])
        wait_until(lambda: got)
    assert got == [BINARY]


def test_crlf_does_not_depend_on_where_the_pieces_begin() -> None:
    convert = Crlf()
    assert [convert(piece) for piece in (b"a\r", b"\n\n", b"\r", b"\r\n", b"x")] == [
        *(b"a\r", b"\n\r\n", b"\r", b"\r\n", b"x"),
    ]


def test_an_option_dumps_the_input_in_hex(run: Run, echo: int) -> None:
    _, out, _ = run("--hex", echo, data=b"hello\x00")
    assert out == f"00000000  {'68 65 6c 6c 6f 00':47}  |hello.|\n".encode()


def test_files_are_sent_and_received(run: Run, echo: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(BINARY)
    arguments = ("--send", tmp_path / "a", "--receive", tmp_path / "b", echo)
    assert run(*arguments, data=b"this is not") == (0, b"", [])
    assert (tmp_path / "b").read_bytes() == BINARY
    run("--hex", "--receive", tmp_path / "b", echo, data=b"x")
    assert (tmp_path / "b").read_bytes().endswith(b"|x|\n")


def test_a_listener_replaces_the_file_of_a_dead_one_and_removes_only_its_own(
    run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with start("--listen", f"unix:{path}") as listener:
        listener.wait_for_line(f"^listening on unix:{path}$")
        path.unlink()
        path.write_text("somebody else's")
        listener.send_signal(signal.SIGINT)
        assert listener.wait() == 130
    assert path.read_text() == "somebody else's"


@pytest.mark.parametrize("name", ["unix:PATH", "@NAME"])
def test_a_unix_socket_has_a_path_or_an_abstract_name(run: Run, name: str, tmp_path: Path) -> None:
    if name == "@NAME" and sys.platform != "linux":
        pytest.skip("Linux only")
    name = name.replace("PATH", f"{tmp_path}/s").replace("NAME", f"netkit-{os.getpid()}")
    with start("--listen", name) as listener:
        listener.wait_for_line(f"^listening on {name}$")
        assert run(name, data=b"hello") == (0, b"", [])
        assert output(listener) == b"hello"
        assert listener.wait() == 0
    assert not (tmp_path / "s").exists()


def test_the_addresses_of_a_name_are_tried_in_turn(
    run: Run, echo: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, "127.0.0.2", "127.0.0.1")
    assert run("-v", "two.example", echo, data=b"x") == (
        0,
        b"x",
        [
            *(f"trying 127.0.0.2:{echo}", f"127.0.0.2:{echo}: connection refused"),
            *(f"trying 127.0.0.1:{echo}", f"connected to 127.0.0.1:{echo}"),
            "1 byte sent, 1 byte received",
        ],
    )


def test_a_thread_that_cannot_start_is_one_line(
    run: Run, echo: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        if thread.name == "netkit-sender":
            raise RuntimeError("can't start new thread")
        real(thread)

    real = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", start)
    line = "netkit: error: cannot start a thread: can't start new thread"
    assert run("127.0.0.1", echo) == (1, b"", [line])


# One client


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6), "*"])
def test_it_listens_for_one_client_and_then_no_more(host: str) -> None:
    with listening("-v", host, "0") as program:
        address = ("127.0.0.1" if host == "*" else host, program.port)
        with socket.create_connection(address, PATIENCE) as sock:
            program.wait_for_line(" connected$")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, PATIENCE)
            send(program, b"hello")
            assert receive_exactly(sock, 5) == b"hello"
            sock.sendall(b"bye")
        assert output(program) == b"bye"
        assert program.wait() == 0
        assert program.lines[2:] == ["5 bytes sent, 3 bytes received"]


def test_a_port_in_use_cannot_be_listened_on(run: Run, echo: int) -> None:
    line = f"netkit: error: cannot listen on 127.0.0.1:{echo}: address already in use (EADDRINUSE)"
    assert run("--listen", echo) == (1, b"", [line])


# Failures


def test_a_probe_tells_whether_the_port_is_open_with_the_exit_status_of_nc(
    run: Run, echo: int
) -> None:
    assert run("--probe", "127.0.0.1", echo) == (0, b"", [])
    assert nc_probe(echo) == 0
    port = free_port()
    line = f"netkit: error: connect to 127.0.0.1:{port} failed: connection refused"
    assert run("--probe", "127.0.0.1", port) == (1, b"", [line])
    assert nc_probe(port) == 1


def nc_probe(port: int) -> int:
    command = [tool("nc"), "-z", "127.0.0.1", str(port)]
    # Some versions write the result to standard error, where `run` would find it.
    return subprocess.run(command, stderr=subprocess.DEVNULL, timeout=PATIENCE).returncode


def test_an_unknown_name_is_named_in_the_error(run: Run) -> None:
    status, _, (line,) = run("nobody.invalid", "80")
    assert status == 1
    assert line.startswith("netkit: error: cannot connect to nobody.invalid:80: ")
    assert run("x" * 70, "80").status == 1


def test_an_option_repeats_the_attempts(run: Run) -> None:
    server = netkit.create_server(netkit.EchoHandler)
    port = free_port()
    unsubscribe = netkit.subscribe(
        lambda event: (
            isinstance(event, events.AttemptFailed) and server.listen(port, "127.0.0.1").start()
        )
    )
    try:
        assert run("--retry", "1", "127.0.0.1", port, data=b"x") == (0, b"x", [])
    finally:
        unsubscribe()
        server.close()


def test_connecting_has_a_time_limit(run: Run) -> None:
    with full_listener() as (host, port):
        line = f"netkit: error: connect to {host}:{port} timed out: no answer in time"
        assert run("--timeout", "0.1", host, port) == (1, b"", [line])


def test_silence_has_a_time_limit(run: Run, echo: int) -> None:
    options = ("--idle-timeout", "0.05", "--no-half-close")
    text = f"idle_timeout: nothing received from 127.0.0.1:{echo} for 0.05 seconds"
    line = f"netkit: error: {text}"
    assert run(*options, "127.0.0.1", echo, data=b"x") == (1, b"x", [line])
    with listening("--idle-timeout", "50ms", "0") as program, program.connect():
        assert program.wait() == 1
    assert program.lines[-1].endswith("for 0.05 seconds")


@pytest.mark.parametrize(
    ("limit", "text"), [(("--timeout", "10ms"), "0.01 seconds"), (("-w", "1"), "1 second")]
)
def test_waiting_for_a_client_has_a_time_limit(run: Run, limit: tuple[str, str], text: str) -> None:
    status, _, lines = run("--listen", *limit, "0")
    assert (status, lines[1:]) == (1, [f"netkit: error: nobody connected within {text}"])


def test_w_limits_connecting_and_silence_unless_a_long_option_does() -> None:
    def limits(*argv: str) -> tuple[float | None, float | None]:
        found, _ = connect.parser().read(argv)
        connect._settle(found)
        return found.timeout, found.idle_timeout

    assert limits() == (30, None)
    assert limits("--listen") == (None, None)
    assert limits("-w", "3") == (3, 3)
    assert limits("-w3", "--timeout", "off") == (None, 3)
    assert limits("--idle-timeout", "5m", "-w", "500ms") == (0.5, 300)


@needs_ipv6
@pytest.mark.parametrize(
    ("option", "address", "shown"), [("-4", "127.0.0.1", "127.0.0.1:"), ("-6", "::1", "[::1]:")]
)
def test_an_option_chooses_the_family_of_addresses(
    run: Run, monkeypatch: pytest.MonkeyPatch, option: str, address: str, shown: str
) -> None:
    resolve_to(monkeypatch, "127.0.0.1", "::1")
    handler = {"handler_args": {"greeting": "{address}"}}
    with netkit.create_server(netkit.GreeterHandler, **handler).listen(0) as server:
        port = server.server_address[1]
        assert run(option, "both.example", port).out == address.encode()
    for host in ("both.example", ""):
        words = ("--listen", option, "--timeout", "1ms", *filter(None, (host, "0")))
        assert run(*words).lines[0].startswith(f"listening on {shown}")


def test_a_host_without_an_address_of_the_family_is_explained(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, "127.0.0.1")
    line = "netkit: error: cannot connect to four.example: no IPv6 address of it is known"
    for option in (["-6"], ["--source", "::1"]):
        assert run(*option, "four.example", "80") == (1, b"", [line])
    line = "netkit: error: four.example has no IPv6 address"
    assert run("--listen", "-6", "four.example:0").lines == [line]


def test_a_failed_look_up_of_a_host_is_explained(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", down)
    line = "netkit: error: cannot connect to h:80: the name servers do not answer (EAI_AGAIN)"
    assert run("-6", "h:80").lines == [line]


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Have each host name that ends with ``.example`` resolve to these addresses."""
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, family: int = 0, *rest: Any, **named: Any) -> Any:
        if not str(host).endswith(".example"):
            return real(host, port, family, *rest, **named)
        found = []
        for address in addresses:
            kind, more = (socket.AF_INET6, (0, 0)) if ":" in address else (socket.AF_INET, ())
            if family in (0, kind):
                found.append((kind, socket.SOCK_STREAM, 6, "", (address, int(port), *more)))
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def test_it_pretends_to_be_a_proxy(run: Run) -> None:
    def tell(conn: netkit.Connection) -> None:
        header = conn.proxy
        assert header is not None
        conn.write(f"{header.version} {header.command} {conn.remote_address} {conn.remote_port}")

    with netkit.create_server(tell).listen(0, "127.0.0.1", proxy=True) as server:
        port = server.address.port
        shown = [
            run("--proxy", "v1", "--proxy-client", "192.0.2.7:4", port).out,
            run("--proxy-client", "2001:db8::7", port).out,
            run("--proxy", "local", port).out.rpartition(b" ")[0],
            run("--proxy", "v2", port).out.rpartition(b" ")[0],
        ]
        assert run("--probe", "--proxy", "local", port) == (0, b"", [])
    assert shown == [
        b"1 PROXY 192.0.2.7 4",
        b"2 PROXY 2001:db8::7 0",
        b"2 LOCAL 127.0.0.1",
        b"2 PROXY 127.0.0.1",
    ]


def test_it_connects_from_the_source_address(run: Run) -> None:
    with port_of(netkit.GreeterHandler, handler_args={"greeting": "{address}:{port}"}) as port:
        for source in ("127.0.0.3", f"127.0.0.3:{free_port()}"):
            out = run("--source", source, "127.0.0.1", port).out
            assert out.startswith(source.encode())


def test_a_reset_is_a_failure(run: Run) -> None:
    def handler(conn: netkit.Connection) -> None:
        conn.readexactly(1)
        conn.reset()

    with port_of(handler) as port:
        assert run("127.0.0.1", port, data=b"x") == (
            1,
            b"",
            [f"netkit: error: connection reset by 127.0.0.1:{port}"],
        )


def test_a_server_that_reads_no_more_is_a_failure_and_its_last_bytes_are_shown(
    run: Run, tmp_path: Path
) -> None:
    path = str(tmp_path / "s")

    def refuse(listener: socket.socket) -> None:
        conn, _ = listener.accept()
        with conn:
            conn.shutdown(socket.SHUT_RD)
            conn.sendall(b"too large")
            threading.Event().wait(0.05)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with in_thread(refuse, listener):
            status, out, (line,) = run(f"unix:{path}", data=BINARY * 4)
    assert (status, out) == (1, b"too large")
    assert line in (
        f"netkit: error: This socket has been ended by the other party (unix:{path})",
        f"netkit: error: connection reset by unix:{path}",
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--send", "/nowhere/f"], "cannot open /nowhere/f: no such file or directory"),
        (["--send", ""], "cannot open '': no such file or directory"),
        (["--receive", ""], "cannot open '': no such file or directory"),
        (["--receive", "/nowhere/f"], "cannot open /nowhere/f: no such file or directory"),
        (["--send", "/proc/self/mem"], "cannot read /proc/self/mem: input/output error"),
        (["--receive", "/dev/full"], "cannot write to /dev/full: no space left on device"),
    ],
)
def test_the_error_of_a_file_names_it(run: Run, echo: int, arguments: list[str], line: str) -> None:
    assert run(*arguments, echo, data=b"x") == (1, b"", [f"netkit: error: {line}"])


def test_a_server_that_cannot_be_reached_leaves_the_file_as_it_was(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "f").write_text("precious")
    assert run("--receive", tmp_path / "f", "127.0.0.1", free_port()).status == 1
    assert (tmp_path / "f").read_text() == "precious"


ADDRESS = "is needed, such as 8080 or localhost:8080"
TIME = "it must be a time such as 30, 500ms, 5m or 2h or 'off'"
WRONG = {
    "80 x": "'x' has no port: write HOST:PORT, HOST PORT, or PORT alone",
    "": f"one address to connect to {ADDRESS}",
    "80 81": f"one address to connect to {ADDRESS}",
    "--listen": f"one address to listen at {ADDRESS}",
    "fd:3": "only servers take descriptors, and settings after a '?'",
    "80?reuse_port=on": "only servers take descriptors, and settings after a '?'",
    "0": "port 0, for which the system chooses a port, needs --listen",
    "-4 [::1]:80": "-4 cannot be used with the IPv6 address ::1",
    "-6 127.0.0.1 80": "-6 cannot be used with the IPv4 address 127.0.0.1",
    "-4 --source ::1 localhost 80": "-4 cannot be used with the IPv6 address ::1",
    "--source ::1 127.0.0.1:1": "--source ::1 cannot be used with the IPv4 address 127.0.0.1",
    "-4 -6 localhost 80": "argument -6: not allowed with argument -4",
    "-4 unix:/s": "a Unix socket has no IP address: -4 cannot be used with it",
    "--source 1.2.3.4 unix:/s": (
        "a Unix socket has no IP address: --source 1.2.3.4 cannot be used with it"
    ),
    "--tls unix:/s": "TLS through a Unix socket needs --server-name, or --insecure",
    "--listen --tls 80": "--listen --tls needs --tls-cert or --tls-self-signed",
    "--listen --tls-key f 80": "--tls-key needs --tls-cert",
    "--listen --insecure 80": "--listen cannot be used with --insecure",
    "--insecure --tls-ca f 80": "--insecure cannot be used with --tls-ca",
    "--tls-self-signed 80": "--tls-self-signed needs --listen",
    "--listen --tls-self-signed --tls-cert f 80": (
        "--tls-self-signed cannot be used with --tls-cert"
    ),
    "-q 1 localhost 80": (
        "there is no option -q: it ends when the server has ended its side; see --idle-timeout"
    ),
    "-zv localhost 80": "there is no option -z: use --probe",
    "-vz localhost 80": "there is no option -z: use --probe",
    "--servername=x localhost 80": "there is no option --servername: use --server-name",
    "-connect localhost:80 -servername x": (
        "there is no option -connect: the address is no option: netkit connect --tls HOST:PORT"
    ),
    "--proxy v3 80": "argument --proxy: it must be v1, v2 or local, not 'v3'",
    "--proxy local --proxy-client ::1 80": "--proxy-client cannot be used with --proxy local",
    "--listen --proxy v1 80": "--listen cannot be used with --proxy",
    "--probe --send f 80": "--probe cannot be used with --send",
    "--probe --idle-timeout 5 80": "--probe cannot be used with --idle-timeout",
    "--timeout 0 80": "argument --timeout: it must be more than 0 seconds, not 0.0",
    "--timeout x 80": f"argument --timeout: {TIME}, not 'x'",
    "--retry -- 80": "argument --retry: expected one argument",
    "--retry 1.5 80": "argument --retry: it must be 0 or more, not '1.5'",
    "--source me 80": (
        "argument --source: it must be an address such as 10.0.0.1 or 10.0.0.1:4000, not 'me'"
    ),
}


@pytest.mark.parametrize("arguments", WRONG)
def test_a_wrong_use_is_an_error_of_one_line(run: Run, arguments: str) -> None:
    line = f"netkit connect: error: {WRONG[arguments]} (see netkit connect --help)"
    assert run(*arguments.split()) == (2, b"", [line])


def test_the_file_that_is_sent_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"precious")
    link.symlink_to(file)
    line = "netkit connect: error: --receive would overwrite the file of --send"
    status, _, errors = run("--send", file, "--receive", link, 80)
    assert (status, errors) == (2, [f"{line} (see netkit connect --help)"])
    assert file.read_bytes() == b"precious"
    assert run("--send", "/dev/null", "--receive", "/dev/null", free_port()).status == 1


# TLS


@pytest.fixture
def certificates() -> Any:
    pytest.importorskip("trustme")
    from secure import files

    return files()


def test_a_server_must_have_a_certificate_of_a_trusted_authority(
    run: Run, certificates: Any
) -> None:
    with port_of(netkit.EchoHandler, tls_cert=certificates.server) as port:
        status, out, lines = run("--tls-ca", certificates.ca, "-v", "localhost", port, data=BINARY)
        assert (status, out) == (0, BINARY)
        assert f"connected to 127.0.0.1:{port} with TLSv1.3" in lines
        warning = "netkit: warning: --insecure: the server's certificate is not verified"
        assert run("--insecure", "localhost", port, data=b"x") == (0, b"x", [warning])
        for option, name in (("--tls", "certificate"), ("--tls-ca=/nowhere", "/nowhere")):
            status, out, (line,) = run(option, "localhost", port, data=b"x")
            assert (status, out, name in line) == (1, b"", True)


def test_it_works_with_a_server_of_openssl(run: Run, certificates: Any) -> None:
    port = free_port()
    command = [tool("openssl"), "s_server", "-rev", "-quiet", "-naccept", "1"]
    command += ["-accept", f"127.0.0.1:{port}", "-cert", certificates.server]
    with Program(*command, listening=False):
        arguments = ("--tls", "--tls-ca", certificates.ca, "--no-half-close", "--retry", "9")
        assert run(*arguments, "localhost", port, data=b"hello\nCLOSE\n")[:2] == (0, b"olleh\n")


def test_an_option_of_tls_that_is_empty_does_not_switch_tls_off(run: Run, echo: int) -> None:
    status, out, (line,) = run("--tls-ca", "", "localhost", echo, data=b"secret")
    assert (status, out) == (1, b"")
    assert line.startswith("netkit: error: the CA file '': ")


def test_a_server_may_have_another_name_than_its_host(
    run: Run, certificates: Any, tmp_path: Path
) -> None:
    server = netkit.create_server(netkit.EchoHandler, tls_cert=certificates.server)
    with server.listen(path=tmp_path / "s"):
        options = ["--tls-ca", certificates.ca, f"unix:{tmp_path}/s"]
        assert run("--server-name", "localhost", *options, data=b"x").out == b"x"
        status, _, (line,) = run("--server-name", "example.org", *options, data=b"x")
    assert (status, "example.org" in line) == (1, True)


def test_a_client_shows_its_certificate(run: Run, certificates: Any) -> None:
    options = {"tls_cert": certificates.server, "tls_client_ca": certificates.ca}
    with port_of(netkit.EchoHandler, **options) as port:
        words = ["--tls-ca", certificates.ca, f"localhost:{port}"]
        shown = ["--tls-cert", certificates.client]
        for options in (shown, [*shown, "--tls-key", certificates.client]):
            assert run(*options, *words, data=b"x").out == b"x"
        assert run(*words, data=b"x").status == 1


def test_the_client_of_a_listener_uses_tls(run: Run, certificates: Any) -> None:
    with listening("-v", "--tls-cert", certificates.server, "0") as server:
        options = ["--tls-ca", certificates.ca]
        assert run(*options, "localhost", server.port, data=b"hello").status == 0
        assert (output(server), server.wait()) == (b"hello", 0)
        assert any(line.endswith("connected with TLSv1.3") for line in server.lines)
    with listening("--tls-cert", certificates.server, "0") as server:
        with server.connect() as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert server.wait() == 1
    assert server.lines[-1].startswith("netkit: error: ")


def test_the_certificate_of_a_listener_may_be_self_signed(run: Run) -> None:
    pytest.importorskip("cryptography")
    with listening("--tls-self-signed", "0") as server:
        assert run("--insecure", server.port, data=b"hello").status == 0
        assert server.wait() == 0


def test_an_invalid_certificate_is_an_error_before_a_client_comes(run: Run) -> None:
    status, _, (line,) = run("--listen", "--tls-cert", "/nowhere", "0")
    assert (status, "/nowhere" in line) == (1, True)


# As a process


def test_it_ends_with_the_server_although_input_is_open() -> None:
    with port_of(greet) as port:
        with start(port) as program:
            assert output(program) == b"hi\n"
            assert program.wait() == 0
            assert program.lines == []


def test_ctrl_c_ends_it_without_output(echo: int) -> None:
    with start(echo) as program:
        send(program, b"hello")
        assert output(program, 5) == b"hello"
        program.send_signal()
        assert (program.wait(), program.lines) == (130, [])
    with listening("0") as program:
        program.send_signal()
        assert program.wait() == 130


def test_a_ctrl_c_that_comes_just_before_a_wait_ends_the_wait(echo: int) -> None:
    """Such a signal does not interrupt the wait: here another thread gets it."""
    program = """
import signal, sys, threading
import netkit.net.connection as net
from netkit.cli.main import main
real = net.Connection.pipe_to
def pipe_to(conn, sink):
    interrupt = lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    threading.Timer(0.1, interrupt).start()
    return real(conn, sink)
net.Connection.pipe_to = pipe_to
sys.exit(main(["connect", *sys.argv[1:]]))
"""
    command = [sys.executable, "-c", program, echo]
    with Program(*command, listening=False) as running:
        assert (running.wait(), running.lines) == (130, [])


def unshare() -> list[str]:
    """A command before another one that has it run as the first process of a namespace."""
    command = ["unshare", "-pf", "--mount-proc", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"]).returncode:
        pytest.skip("no process namespaces here")
    return command


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_sigterm_ends_it_as_the_first_process_of_a_container(tmp_path: Path) -> None:
    path = tmp_path / "s"
    command = [*unshare(), sys.executable, "-m", "netkit", "connect", "--listen", f"unix:{path}"]
    with Program(*command, listening=False) as program:
        program.wait_for_line("listening on")
        (child,) = program.children()
        os.kill(child, signal.SIGTERM)
        assert program.wait() == 143
        assert not path.exists()
        assert program.lines == [f"listening on unix:{path}"]


def test_an_output_that_nobody_reads_ends_it_quietly() -> None:
    def handler(conn: netkit.Connection) -> None:
        while True:
            conn.write(BINARY)

    with port_of(handler) as port, start(port) as program:
        assert len(output(program, 10)) == 10
        program.process.stdout.close()
        assert program.wait() == 141
        assert program.lines == []


def test_late_input_from_a_pipe_is_still_sent() -> None:
    got = []

    def handler(conn: netkit.Connection) -> None:
        conn.end("your turn\n")
        got.append(conn.read())

    with port_of(handler) as port, start(port) as program:
        assert output(program, 10) == b"your turn\n"
        send(program, b"thank you")
        program.process.stdin.close()
        assert program.wait() == 0
        wait_until(lambda: got)
    assert got == [b"thank you"]


@pytest.mark.parametrize(
    ("closed", "result"),
    [
        ("<&-", (0, b"hi\n", b"")),
        (
            "</dev/null >&-",
            (1, b"", b"netkit: error: standard output is closed: name a file with --receive\n"),
        ),
        ("--receive /nowhere/f 2>&-", (1, b"", b"")),
    ],
)
def test_a_closed_input_is_empty_and_a_closed_output_is_an_error(
    closed: str, result: tuple[int, bytes, bytes]
) -> None:
    with port_of(greet) as port:
        command = f"exec {sys.executable} -m netkit connect {port} {closed}"
        found = subprocess.run(["sh", "-c", command], capture_output=True, cwd=ROOT)
    assert (found.returncode, found.stdout, found.stderr) == result


# Beside nc, ncat and socat

LONG = 60.0  # seconds that the transfers may take where much else goes on
NETKIT = [sys.executable, "-m", "netkit", "connect"]
CLIENTS: dict[str, list[str]] = {
    "nc": ["nc", "-N", "127.0.0.1", "PORT"],
    "ncat": ["ncat", "127.0.0.1", "PORT"],
    "socat": ["socat", "-t", "60", "-", "TCP:127.0.0.1:PORT"],
    "netkit": [*NETKIT, "127.0.0.1", "PORT"],
}
SERVERS: dict[str, list[str]] = {
    "nc": ["nc", "-lN", "127.0.0.1", "PORT"],
    "ncat": ["ncat", "-l", "127.0.0.1", "PORT"],
    "socat": ["socat", "-t", "60", "-", "TCP-LISTEN:PORT,bind=127.0.0.1,reuseaddr"],
    "netkit": [*NETKIT, "--listen", "127.0.0.1", "PORT"],
}
PAIRS = [
    *(("netkit", server) for server in SERVERS),
    *((client, "netkit") for client in CLIENTS if client != "netkit"),
]


def listens(port: int) -> bool:
    """Whether somebody listens there, without connecting: the first client is the only one."""
    return f":{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text()


class Files(NamedTuple):
    """Two files of a hundred megabytes, and those to which they are copied."""

    client: Path
    server: Path
    to_client: Path
    to_server: Path

    def are_copied(self) -> bool:
        copies = ((self.client, self.to_server), (self.server, self.to_client))
        return all(filecmp.cmp(*each, shallow=False) for each in copies)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    folder = tmp_path_factory.mktemp("large")
    files = Files(*(folder / name for name in Files._fields))
    for file in (files.client, files.server):
        file.write_bytes(os.urandom(100_000_000))
    yield files
    shutil.rmtree(folder)


@contextlib.contextmanager
def copying(command: list[str], port: int, source: Path, target: Path) -> Iterator[None]:
    """Runs a program that sends a file and receives another one, and ends with the status 0."""
    program = [tool(command[0]), *(word.replace("PORT", str(port)) for word in command[1:])]
    with open(source, "rb") as stdin, open(target, "wb") as stdout:
        with subprocess.Popen(program, stdin=stdin, stdout=stdout, cwd=ROOT) as process:
            try:
                yield
                assert process.wait(LONG) == 0
            finally:
                process.kill()


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="Linux only")
@pytest.mark.parametrize(("client", "server"), PAIRS)
def test_a_hundred_megabytes_both_ways_at_once_with_the_others(
    files: Files, client: str, server: str
) -> None:
    port = free_port()
    command, server_command = CLIENTS[client], SERVERS[server]
    # These leave once the other side has ended, whatever they still have to send.
    if server == "nc":
        command = [*command, "--no-half-close"]
    if client == "ncat":  # from some version on
        server_command = [*server_command, "--no-half-close"]
    with copying(server_command, port, files.server, files.to_server):
        wait_until(lambda: listens(port), "listening")
        with copying(command, port, files.client, files.to_client):
            pass
    assert files.are_copied()


@pytest.mark.parametrize("client", ["nc", "netkit"])
def test_a_hundred_megabytes_to_a_server_that_sends_as_many_meanwhile(
    files: Files, client: str
) -> None:
    def handler(conn: netkit.Connection) -> None:
        with in_thread(send, conn), open(files.to_server, "wb") as file:
            conn.pipe_to(file)

    def send(conn: netkit.Connection) -> None:
        with open(files.server, "rb") as file:
            conn.sendfile(file)
        conn.end()

    with port_of(handler) as port:
        with copying(CLIENTS[client], port, files.client, files.to_client):
            pass
    assert files.are_copied()


def test_an_option_ends_lines_with_crlf_as_ncat_does(run: Run, echo: int) -> None:
    text = b"a\nb\r\n\r\n\nc\rd\n"
    ours = run("--crlf", echo, data=text).out
    assert ours == b"a\r\nb\r\n\r\n\r\nc\rd\r\n"
    command = [tool("ncat"), "-C", "127.0.0.1", str(echo)]
    theirs = subprocess.run(command, input=text, capture_output=True, timeout=PATIENCE)
    assert theirs.stdout == ours
