"""What a service manager passes: its variables, and the sockets that a server listens on."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from support import PATIENCE, receive_all, send_and_end

import netkit
from netkit.net import service_manager as manager
from netkit.net.service_manager import ServiceManager, service_manager

ME = str(os.getpid())


@contextlib.contextmanager
def passed(
    monkeypatch: pytest.MonkeyPatch, *made: socket.socket, **variables: str
) -> Iterator[list[int]]:
    """Passes copies of the sockets to this process, and yields the descriptors of the copies."""
    first = 700
    monkeypatch.setattr(manager, "_FIRST", first)
    variables = {"LISTEN_FDS": str(len(made)), "LISTEN_PID": ME, **variables}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    descriptors = [os.dup2(each.fileno(), first + n) for n, each in enumerate(made)]
    try:
        yield descriptors
    finally:
        for each in descriptors:
            with contextlib.suppress(OSError):  # a server has closed it
                os.close(each)


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def exchange(sock: socket.socket) -> bytes:
    with socket.create_connection(sock.getsockname(), timeout=PATIENCE) as client:
        send_and_end(client, b"hello")
        return receive_all(client)


# The variables


def test_the_variables_are_read_once_and_removed() -> None:
    variables = {
        "LISTEN_FDS": "3",
        "LISTEN_PID": ME,
        "LISTEN_FDNAMES": "web:",
        "NOTIFY_SOCKET": "@notify",
        "WATCHDOG_USEC": "1500000",
        "WATCHDOG_PID": ME,
        "HOME": "/",
    }
    passed = service_manager(variables)
    assert variables == {"HOME": "/"}
    assert passed.sockets == (("web", 3), ("", 4), ("unknown", 5))
    assert passed.supervises
    assert (passed.notify_socket, passed.watchdog) == ("@notify", 1.5)
    assert service_manager(variables) == passed


@pytest.mark.parametrize(
    "count", ["", "0", "-1", "+1", " 1", "1.0", "x", "\u0661", "9" * 30, "70000"]
)
def test_a_malformed_number_of_sockets_is_none(count: str) -> None:
    passed = service_manager({"LISTEN_FDS": count, "LISTEN_PID": ME})
    assert passed.sockets == ()
    assert passed.why_none == f"systemd has passed no sockets: LISTEN_FDS is {count!r}"
    assert not passed.supervises


@pytest.mark.parametrize("pid", [str(os.getppid()), "", "x"])
def test_what_was_passed_to_another_process_is_not_ours(pid: str) -> None:
    passed = service_manager(
        {"LISTEN_FDS": "1", "LISTEN_PID": pid, "WATCHDOG_USEC": "1", "WATCHDOG_PID": pid}
    )
    assert passed.sockets == ()
    assert passed.watchdog == 0
    assert passed.why_none == (
        f"LISTEN_PID is {pid} and this is {ME}: "
        "begin the last line of the script that starts netkit with exec"
    )


@pytest.mark.parametrize("period", ["", "0", "-5", "x", "1e6"])
def test_a_malformed_time_of_the_watchdog_is_none(period: str) -> None:
    assert service_manager({"WATCHDOG_USEC": period}).watchdog == 0


@pytest.mark.parametrize("address", ["", "/", "@", "notify", "vsock:2:1"])
def test_a_malformed_address_of_a_manager_is_none(address: str) -> None:
    assert service_manager({"NOTIFY_SOCKET": address}).notify_socket == ""


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, from 3.12 on
def test_a_child_that_is_forked_has_been_passed_nothing() -> None:
    service_manager({"NOTIFY_SOCKET": "/run/notify"})
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, repr(service_manager({}) == ServiceManager()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with open(reader) as pipe:
        assert pipe.read() == "True"


# A number of a process that is never used again


def own_id() -> int:
    found = manager._pidfd_id()
    if found is None:
        pytest.skip("this kernel has no such numbers")
    return found


def test_a_recycled_pid_is_recognized() -> None:
    variables = {"LISTEN_FDS": "1", "LISTEN_PID": ME}
    own = own_id()
    assert service_manager({**variables, "LISTEN_PIDFDID": str(own)}).sockets
    passed = service_manager({**variables, "LISTEN_PIDFDID": "1"})
    assert passed.sockets == ()
    assert passed.why_none == f"LISTEN_PIDFDID is 1 and that of this process is {own}"


def test_each_process_has_a_number_of_its_own() -> None:
    program = "import netkit.net.service_manager as m; print(m._pidfd_id())"
    output = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert int(output) != own_id()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux")
def test_a_kernel_without_such_numbers_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"LISTEN_FDS": "1", "LISTEN_PID": ME, "LISTEN_PIDFDID": "1"}

    monkeypatch.setattr(os, "pidfd_open", lambda pid: os.eventfd(0))
    assert service_manager(dict(variables)).sockets

    def fail(pid: int) -> int:
        raise OSError

    monkeypatch.setattr(os, "pidfd_open", fail)
    assert service_manager(dict(variables)).sockets


# Sockets


@pytest.mark.parametrize(("address", "served"), [("systemd:", {0, 1, 2}), ("systemd:web", {0, 2})])
def test_a_server_listens_on_all_sockets_or_on_those_of_a_name(
    address: str, served: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with listener() as a, listener() as b, listener() as c:
        with passed(monkeypatch, a, b, c, LISTEN_FDNAMES="web:admin:web") as descriptors:
            server = netkit.create_server(netkit.EchoHandler).listen_on(address)
            assert not any(map(os.get_inheritable, descriptors))
            assert len(server.addresses) == len(served)
            with server:
                for each in served:
                    assert exchange((a, b, c)[each]) == b"hello"


def test_servers_share_what_was_passed_and_settings_hold_for_each_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with listener() as web, listener() as admin:
        with passed(monkeypatch, web, admin, LISTEN_FDNAMES="web:admin"):
            one = netkit.create_server(netkit.EchoHandler).listen_on("systemd:web?tls=off")
            other = netkit.create_server(netkit.GreeterHandler).listen_on("systemd:admin", 0)
            assert [each.tls for each in one._listeners.layers] == [False]
            assert "LISTEN_FDS" not in os.environ
            with one, other:
                assert exchange(web) == b"hello"
                assert len(other.addresses) == 2
            with pytest.raises(ValueError, match="descriptor 700 is not open"):
                one.listen_on("systemd:web")


def test_the_error_says_which_names_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    server = netkit.create_server(netkit.EchoHandler)
    with listener() as sock:
        with passed(monkeypatch, sock, sock, sock, LISTEN_FDNAMES="http:admin:http"):
            with pytest.raises(ValueError, match="^") as caught:
                server.listen_on("systemd:web")
            assert str(caught.value) == "systemd:web: LISTEN_FDNAMES has only 'http', 'admin'"
        with passed(monkeypatch, sock):
            monkeypatch.delenv("LISTEN_FDNAMES", raising=False)
            with pytest.raises(ValueError, match="systemd:web: LISTEN_FDNAMES is not set"):
                server.listen_on("systemd:web")
    assert not server.listening


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: socket.socket(type=socket.SOCK_DGRAM), "is a datagram socket"),
        (
            lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET),
            "is a socket for sequenced packets",
        ),
        (socket.socket, "does not listen: its .socket unit must not have Accept=yes"),
        (tempfile.TemporaryFile, "is not a socket"),
    ],
)
def test_a_descriptor_that_is_no_listener_is_named(
    make: Any, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listener() as good, make() as bad, passed(monkeypatch, good, bad):
        with pytest.raises(ValueError, match="^") as caught:
            netkit.create_server(netkit.EchoHandler).listen_on("systemd:")
        assert str(caught.value) == f"descriptor 701 {problem}"


def test_without_sockets_the_error_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="^systemd has passed no sockets: LISTEN_FDS is not set$"):
        netkit.create_server(netkit.EchoHandler).listen_on("systemd:")
