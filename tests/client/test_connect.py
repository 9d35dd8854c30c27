"""The client's end of a connection."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from secure import contexts, files
from support import (
    PATIENCE,
    full_listener,
    in_thread,
    needs_ipv6,
    observed,
    serving,
    silent_log,
    wait_until,
)

import netkit
from netkit.client.connect import connect
from netkit.core import events
from netkit.core.errors import CancelledError, ConnectError, HandshakeError

linux_only = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="abstract names")


def shout(conn: netkit.Connection) -> None:
    conn.set_encoding()
    for line in conn.lines():
        conn.write(line.upper() + "\n")


@contextlib.contextmanager
def listener(host: str = "127.0.0.1") -> Iterator[int]:
    """A port where somebody listens, and accepts nobody."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as sock:
        yield sock.getsockname()[1]


def closed_port() -> int:
    with listener() as port:
        return port


def resolver(*addresses: str) -> Any:
    return lambda host, port: addresses


# --- Connected ---


def test_a_client_has_the_same_methods_as_a_handler_and_no_server() -> None:
    with serving(shout) as server:
        with connect(server.server_address[1], "127.0.0.1") as conn:
            assert (conn.remote_address, conn.remote_port) == server.server_address
            wait_until(lambda: server.connections)
            assert server.connections[0].remote_port == conn.local_port
            assert server.connections[0].attempted_addresses == ()
            assert conn.attempted_addresses == (conn.peer,)
            assert conn.server is conn.thread is None
            conn.end("hello\nworld\n")
            assert conn.read() == b"HELLO\nWORLD\n"
        assert conn.closed
        assert (conn.bytes_written, conn.bytes_read) == (12, 12)


def test_a_port_may_be_digits_and_localhost_is_tried_in_both_families() -> None:
    with serving(shout) as server:
        port = server.server_address[1]
        with connect(str(port)) as conn:
            assert conn.remote_address == "127.0.0.1"
            assert conn.attempted_addresses[-1] == f"127.0.0.1:{port}"


@needs_ipv6
def test_attempts_are_reported_in_their_order() -> None:
    with listener() as port, observed(events.Resolved, events.AttemptFailed) as seen:
        with connect(port, "somewhere", resolver=resolver("::1", "127.0.0.1")) as conn:
            assert conn.attempted_addresses == (f"[::1]:{port}", f"127.0.0.1:{port}")
        with connect(port, "127.0.0.1"):
            pass  # there is no name to be resolved
    assert len(seen) == 2
    assert seen[0] == events.Resolved("somewhere", conn.attempted_addresses)
    assert seen[1].address == f"[::1]:{port}"


def test_a_connection_that_is_reset_at_once_leaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr("netkit.client.connect.Connection", fail)
    with listener() as port, pytest.raises(OSError, match="not connected"):
        connect(port, "127.0.0.1")


def test_the_time_limit_is_for_connecting_and_an_option_may_be_none() -> None:
    none = dict.fromkeys(("block_list", "source_address", "resolver", "cancel", "tos"))
    with listener() as port, connect(port, "127.0.0.1", connect_timeout=5, **none) as conn:
        assert conn.socket.gettimeout() is None


def test_a_server_that_sends_without_end_fills_no_memory_unless_the_program_says_so() -> None:
    size = 16 * 1024 * 1024 + 1

    def generous(conn: netkit.Connection) -> None:
        with contextlib.suppress(OSError):
            conn.write(bytes(size))

    with serving(generous) as server:
        with connect(server.address.port, "127.0.0.1") as conn:
            with pytest.raises(netkit.MessageTooLongError, match="max_message"):
                conn.read()
        with connect(server.address.port, "127.0.0.1", max_message=None) as conn:
            assert len(conn.read()) == size


def test_a_client_has_the_options_of_a_connection() -> None:
    options: dict[str, Any] = {"idle_timeout": 0.02, "max_line": 3, "encoding": "latin1"}
    with listener() as port, connect(port, "127.0.0.1", **options) as conn:
        assert (conn.max_line, conn.max_message, conn.encoding) == (3, 16 * 1024 * 1024, "latin1")
        with pytest.raises(TimeoutError, match="idle_timeout"):
            conn.read()


def test_the_socket_has_its_options() -> None:
    options: dict[str, Any] = {"no_delay": False, "keep_alive": (7, 3, 2), "tos": 0x10}
    options.update(receive_buffer=5000, send_buffer=6000)
    with listener() as port, connect(port, "127.0.0.1", **options) as conn:
        get = conn.socket.getsockopt
        assert get(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
        assert get(socket.SOL_SOCKET, socket.SO_RCVBUF) in (5000, 10000)
        assert get(socket.SOL_SOCKET, socket.SO_SNDBUF) in (6000, 12000)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert get(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
            assert get(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 3
            assert get(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 2
        assert conn.tos == 0x10
        conn.tos = 0x20
        assert conn.tos == 0x20
        with pytest.raises(TypeError, match="tos must be"):
            conn.tos = True
        conn.set_keep_alive(True, idle=9.9)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert get(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 9
        with pytest.raises(ValueError, match="idle must be from 1 to 32767, not 0"):
            conn.set_keep_alive(True, idle=0)


@needs_ipv6
def test_the_traffic_class_of_ipv6_is_set_too() -> None:
    with listener("::1") as port, connect(port, "::1", tos=0x28, keep_alive=False) as conn:
        assert conn.tos == 0x28
        assert (conn.remote_address, conn.remote_family) == ("::1", "IPv6")


def test_a_client_connects_from_its_source_address() -> None:
    with listener() as port:
        with connect(port, "localhost", source_address=("127.0.0.1", 0)) as conn:
            assert conn.local_address == "127.0.0.1"
        source = closed_port()
        with connect(port, "127.0.0.1", source_address=("127.0.0.1", source)) as conn:
            assert conn.local_port == source


@needs_ipv6
def test_a_source_address_chooses_the_family() -> None:
    with listener("::1") as port:
        with connect(port, "localhost", source_address=("::1", 0), resolver=both) as conn:
            assert conn.local_address == "::1"


def test_a_source_address_in_use_is_named_in_the_error() -> None:
    with listener() as port, socket.create_server(("127.0.0.1", 0)) as taken:
        source = taken.getsockname()
        with pytest.raises(ConnectError) as caught:
            connect(port, "127.0.0.1", source_address=source)
    assert caught.value.errno == errno.EADDRINUSE
    where = f"127.0.0.1:{source[1]}"
    assert str(caught.value) == (
        f"connect to 127.0.0.1:{port} failed: "
        f"cannot bind to {where}: address already in use (EADDRINUSE)"
    )


def both(_: str, __: int) -> tuple[str, ...]:
    return ("127.0.0.1", "::1")


# --- Unix sockets ---


@pytest.mark.parametrize("name", ["file", pytest.param("\0netkit-test", marks=linux_only)])
def test_a_unix_socket_is_connected_by_its_path(name: str, tmp_path: Path) -> None:
    path = name + str(os.getpid()) if name.startswith("\0") else str(tmp_path / name)
    with netkit.create_server(shout).listen(path=path):
        with connect(path=path, tos=8, source_address=("127.0.0.1", 0)) as conn:
            conn.end("hello\n")
            assert conn.read() == b"HELLO\n"
            assert (conn.remote_address, conn.remote_port, conn.tos) == (None, None, 0)
            assert conn.peer == ("@" + path[1:] if path.startswith("\0") else f"unix:{path}")


def test_a_missing_unix_socket_is_named_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "none"
    with pytest.raises(ConnectError) as caught:
        connect(path=path)
    assert str(caught.value) == f"connect to unix:{path} failed: no such file or directory"
    assert caught.value.errno == errno.ENOENT
    assert (caught.value.address, caught.value.port) == (str(path), None)


# --- Failed ---


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((), {}, TypeError, "connect() takes a port or a path"),
        ((1,), {"path": "x"}, TypeError, "connect() takes a port or a path"),
        ((1, ["::1"]), {}, TypeError, "host must be a name or an address, not ['::1']"),
        ((1, ""), {}, ValueError, "host must be a name or an address, not empty"),
        (("0x",), {}, ValueError, "port must be a number from 0 to 65535, not '0x'"),
        ((), {"path": "a\0b"}, ValueError, "a Unix socket's path must not have null characters"),
        (("localhost", 8080), {}, ValueError, "; the port comes first, and then the host"),
        ((True,), {}, TypeError, "port must be a number from 0 to 65535, not True"),
        ((), {"path": 5}, TypeError, "expected str, bytes or os.PathLike object, not int"),
        ((70000,), {}, ValueError, "port must be a number from 0 to 65535, not 70000"),
        ((1,), {"timeout": 5}, TypeError, "unknown option 'timeout'; did you mean '"),
        ((1,), {"attempt_delay": "x"}, TypeError, "attempt_delay must be a number of seconds"),
        ((1,), {"retry": -1}, ValueError, "retry must be 0 or more, not -1"),
        ((1,), {"family": 5}, ValueError, "family must be 4, 6, or 0 for both, not 5"),
        ((1,), {"source_address": "x"}, TypeError, "source_address must be (address, port)"),
        ((1,), {"source_address": ("x", 0)}, ValueError, "source_address must have an IP address"),
        (
            (1,),
            {"source_address": ("::1", 0), "family": 4},
            ValueError,
            "source_address ::1 is no IPv4 address",
        ),
        ((1,), {"resolver": "x"}, TypeError, "resolver must be a function, not 'x'"),
        ((1,), {"cancel": "x"}, TypeError, "cancel must be a netkit.Cancel, not 'x'"),
        ((1,), {"keep_alive": 5}, TypeError, "keep_alive must be True, False or (idle, interval"),
        ((1,), {"keep_alive": (1, 1, 200)}, ValueError, "count must be from 1 to 127, not 200"),
        ((1,), {"tos": 256}, ValueError, "tos must be from 0 to 255, not 256"),
        ((1,), {"send_buffer": 0}, ValueError, "send_buffer must be at least 1 byte, not 0"),
        ((1,), {"block_list": ["x"]}, ValueError, "'x'"),
        ((1,), {"tls": "x"}, TypeError, "tls must be True, False or an ssl.SSLContext, not"),
        ((1,), {"tls_ca": "x"}, ValueError, "tls_ca needs tls=True"),
        ((1,), {"tls": True, "server_hostname": 5}, TypeError, "server_hostname must be a name"),
        ((), {"path": "x", "tls": True}, ValueError, "TLS through a Unix socket needs server_host"),
    ],
)
def test_an_invalid_argument_or_option_is_an_error_that_names_it(
    arguments: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        connect(*arguments, **options)
    assert message in str(caught.value)


def test_the_error_of_one_attempt_reads_well(caplog: pytest.LogCaptureFixture) -> None:
    port = closed_port()
    assert netkit.Server  # whose module has the log observe the events
    with caplog.at_level("DEBUG", "netkit"), pytest.raises(ConnectionRefusedError) as caught:
        connect(port, "127.0.0.1")
    error = caught.value
    assert isinstance(error, ConnectError)
    assert str(error) == f"connect to 127.0.0.1:{port} failed: connection refused"
    assert (error.errno, error.code) == (errno.ECONNREFUSED, "ECONNREFUSED")
    assert (error.address, error.port, error.syscall) == ("127.0.0.1", port, "connect")
    assert [address for address, _ in error.errors] == [f"127.0.0.1:{port}"]
    assert caplog.messages[-2:] == [
        f"connecting to 127.0.0.1:{port}",
        f"127.0.0.1:{port}: connection refused",
    ]


@needs_ipv6
def test_the_errors_of_all_attempts_are_in_one() -> None:
    port = closed_port()
    with pytest.raises(ConnectionRefusedError) as caught:
        connect(port, "somewhere", resolver=resolver("::1", "127.0.0.1"))
    assert str(caught.value) == (
        f"connect to somewhere:{port} failed: [::1]:{port} connection refused; "
        f"127.0.0.1:{port} connection refused"
    )


def test_connecting_ends_at_the_timeout() -> None:
    with full_listener() as (_, port), pytest.raises(TimeoutError) as caught:
        connect(port, "127.0.0.1", connect_timeout=0.05)
    assert isinstance(caught.value, ConnectError)
    assert str(caught.value) == f"connect to 127.0.0.1:{port} timed out: no answer in time"


def test_resolving_counts_for_the_timeout() -> None:
    go_on = threading.Event()

    def slow(host: str, port: int) -> list[str]:
        go_on.wait(PATIENCE)
        return []

    with pytest.raises(TimeoutError) as caught:
        connect(1, "somewhere", connect_timeout=0.02, resolver=slow)
    assert str(caught.value) == "connect to somewhere:1 timed out"
    go_on.set()


@pytest.mark.parametrize(
    ("host", "options", "reason"),
    [
        ("no-such-host.invalid", {}, "no-such-host.invalid:1"),
        ("a" * 100, {}, "it is not a host name"),
        ("127.0.0.1\0.example", {}, "it is not a host name"),
        ("\x1b[31m.invalid", {}, r"cannot connect to \\x1b\[31m.invalid:1: "),
        ("::1", {"source_address": ("127.0.0.1", 0)}, "it has no address of this family"),
        ("127.0.0.1", {"family": 6}, "127.0.0.1:1"),
    ],
)
def test_a_name_that_does_not_resolve_is_named_in_the_error(
    host: str, options: Any, reason: str
) -> None:
    with pytest.raises(socket.gaierror, match=reason) as caught:
        connect(1, host, **options)
    assert (caught.value.address, caught.value.port) == (host, 1)  # type: ignore[attr-defined]


def test_the_results_of_a_resolver_are_checked() -> None:
    with pytest.raises(ValueError, match="the resolver must return IP addresses, not 'x'"):
        connect(1, "somewhere", resolver=resolver("x"))
    with pytest.raises(socket.gaierror):
        connect(1, "somewhere", resolver=resolver("127.0.0.1"), family=6)

    def fail(host: str, port: int) -> list[str]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        connect(1, "somewhere", resolver=fail)


def test_only_addresses_of_the_family_are_tried() -> None:
    with listener() as port, connect(port, "somewhere", family=4, resolver=both) as conn:
        assert conn.attempted_addresses == (f"127.0.0.1:{port}",)


def test_blocked_addresses_are_not_tried() -> None:
    with listener() as port:
        with pytest.raises(PermissionError) as caught:
            connect(port, "127.0.0.1", block_list=["127.0.0.0/8"])
        assert isinstance(caught.value, ConnectError)
        assert str(caught.value) == (f"connect to 127.0.0.1:{port} failed: the address is blocked")
        with connect(port, "somewhere", block_list=["::1"], resolver=both) as conn:
            assert conn.attempted_addresses == (f"127.0.0.1:{port}",)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "0", "0x7f.1", "127.1", "::ffff:127.0.0.1", "localhost", "::", "::1"]
)
def test_no_spelling_of_this_machine_gets_past_the_private_ranges(host: str) -> None:
    with serving(shout) as server, pytest.raises(PermissionError, match="the address is blocked"):
        connect(server.address.port, host, block_list=netkit.BlockList.PRIVATE_RANGES)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux takes 0.0.0.0 for this machine")
def test_the_address_that_was_really_reached_is_checked_too() -> None:
    with listener() as port, observed(events.AttemptFailed) as seen:
        with pytest.raises(PermissionError, match=f"0.0.0.0:{port} failed: the address is blocked"):
            connect(port, "0.0.0.0", block_list=["127.0.0.0/8"])
        with connect(port, "0.0.0.0", block_list=["10.0.0.0/8"]) as conn:
            assert conn.remote_address == "127.0.0.1"
    assert [event.address for event in seen] == [f"0.0.0.0:{port}"]


def test_a_connection_that_is_reset_at_once_is_an_attempt_that_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Reset(socket.socket):
        def getpeername(self) -> Any:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr("netkit.client.happy_eyeballs.socket.socket", Reset)
    with listener() as port, pytest.raises(ConnectError, match="not connected"):
        connect(port, "127.0.0.1")


def test_a_block_list_does_not_apply_to_unix_sockets(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with netkit.create_server(shout).listen(path=path):
        with connect(path=path, block_list=["0.0.0.0/0", "::/0"]) as conn:
            assert says_hello(conn)


def test_an_error_without_a_common_kind_is_a_connect_error() -> None:
    port = closed_port()
    with pytest.raises(ConnectError) as caught:
        connect(port, "somewhere", block_list=["::1"], resolver=both)
    assert not isinstance(caught.value, (PermissionError, ConnectionRefusedError))


# --- Again ---


def test_rounds_are_tried_until_one_succeeds() -> None:
    port = closed_port()
    conns: list[Any] = []
    with (
        observed(events.AttemptFailed) as failed,
        in_thread(lambda: conns.append(connect(port, "127.0.0.1", retry=1000))),
    ):
        wait_until(lambda: failed)
        with netkit.create_server(shout).listen(port, "127.0.0.1"):
            wait_until(lambda: conns)
            with conns[0] as conn:
                conn.end("hello\n")
                assert conn.read() == b"HELLO\n"
                assert len(conn.attempted_addresses) > 1


def test_the_error_of_the_last_round_is_raised() -> None:
    with pytest.raises(ConnectionRefusedError):
        connect(closed_port(), "127.0.0.1", retry=1)
    with pytest.raises(socket.gaierror):
        connect(1, "somewhere", retry=1, resolver=resolver())
    with pytest.raises(TimeoutError):
        connect(closed_port(), "127.0.0.1", retry=1000, connect_timeout=0.05)


# --- Cancelled ---


def test_another_thread_cancels_an_attempt_and_a_pause() -> None:
    for port, options in ((closed_port(), {"retry": 100}), (None, {})):
        cancel = netkit.Cancel()
        with full_listener() as (_, silent):
            threading.Timer(0.03, cancel.cancel).start()
            with pytest.raises(CancelledError):
                connect(port or silent, "127.0.0.1", cancel=cancel, **options)


def test_a_call_that_is_cancelled_before_it_begins_attempts_nothing() -> None:
    cancel = netkit.Cancel()
    cancel.cancel()
    with listener() as port, observed(events.AttemptStarted) as seen:
        with pytest.raises(CancelledError):
            connect(port, "127.0.0.1", cancel=cancel)
    assert not seen


def test_another_thread_cancels_a_handshake() -> None:
    cancel = netkit.Cancel()
    with listener() as port:
        threading.Timer(0.05, cancel.cancel).start()
        with pytest.raises(CancelledError):
            connect(port, cancel=cancel, tls=contexts()[1], family=4)


def test_a_handshake_that_has_just_succeeded_is_cancelled_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cancel, real = netkit.Cancel(), netkit.Connection.start_tls

    def start_tls(conn: netkit.Connection, *arguments: Any, **options: Any) -> None:
        real(conn, *arguments, **options)
        cancel.cancel()

    monkeypatch.setattr(netkit.Connection, "start_tls", start_tls)
    with secure_server() as port, pytest.raises(CancelledError):
        connect(port, cancel=cancel, tls=True, tls_verify=False)


# --- TLS ---


@contextlib.contextmanager
def secure_server(**options: Any) -> Iterator[int]:
    with silent_log(), serving(shout, tls_cert=files().server, **options) as server:
        yield server.server_address[1]


def says_hello(conn: netkit.Connection) -> bool:
    conn.end("hello\n")
    return bool(conn.read() == b"HELLO\n")


def test_a_server_is_verified_by_its_name_and_authority() -> None:
    with secure_server(tls_alpn=["a"]) as port:
        with connect(port, tls=True, tls_ca=files().ca, tls_alpn=["b", "a"]) as conn:
            assert conn.tls
            assert conn.tls.alpn_protocol == "a"
            assert says_hello(conn)
        with connect(port, "127.0.0.1", tls=contexts()[1], server_hostname="localhost") as conn:
            assert says_hello(conn)
        with pytest.raises(HandshakeError, match="certificate of the server is not valid"):
            connect(port, tls=True)
        with pytest.raises(HandshakeError, match="certificate of the server is not valid"):
            connect(port, tls=True, tls_ca=files().ca, server_hostname="example.com")


@needs_ipv6
@pytest.mark.skipif(sys.platform != "linux", reason="Linux takes a zone of ::1")
def test_a_certificate_is_for_an_address_without_its_zone(tmp_path: Path) -> None:
    pem = files().authority.issue_cert("::1").private_key_and_cert_chain_pem
    pem.write_to_path(tmp_path / "server.pem")
    with netkit.create_server(shout, tls_cert=tmp_path / "server.pem").listen(0, "::1") as server:
        with connect(server.address.port, "::1%1", tls=True, tls_ca=files().ca) as conn:
            assert says_hello(conn)


def test_a_client_need_not_verify_the_server_and_shows_its_certificate() -> None:
    with secure_server(tls_client_ca=files().ca) as port:
        with connect(port, tls=True, tls_verify=False, tls_cert=files().client) as conn:
            assert says_hello(conn)


def test_the_handshake_counts_for_the_timeout() -> None:
    with listener() as port, pytest.raises(netkit.ConnectError) as caught:
        connect(port, "127.0.0.1", tls=True, tls_verify=False, connect_timeout=0.1)
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert str(error) == f"connect to 127.0.0.1:{port} timed out: no TLS handshake in time"
    assert (error.address, error.port) == ("127.0.0.1", port)


def test_options_about_certificates_are_refused_beside_a_context() -> None:
    with pytest.raises(ValueError, match="tls_ca has no effect on a context of your own"):
        connect(1, tls=contexts()[1], tls_ca="x")
    with pytest.raises(netkit.TlsConfigError):
        connect(1, tls=True, tls_ca="/nonexistent")
