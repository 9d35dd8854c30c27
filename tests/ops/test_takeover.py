"""A new program takes the listeners of a running one over, and no client is lost."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.control_server import NESTED, control_server
from secure import files
from support import (
    PATIENCE,
    Cli,
    in_thread,
    receive_all,
    receive_exactly,
    serving,
    wait_until,
)

from netkit.core.endpoint import Endpoint
from netkit.core.errors import Failure
from netkit.ops import commands, takeover
from netkit.ops.control import Control
from netkit.ops.endpoints import ServedEndpoints
from netkit.ops.status import Status
from netkit.ops.takeover import TakeOver

from .programs import FakeProgram, Operator

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets")

SHOUT = """
def shout(conn):
    for line in conn.lines():
        conn.write(line.upper() + "\\n")
"""

FAILING_START = """
def on_start():
    raise OSError("no database")

NETKIT_OPTIONS = {"on_start": on_start}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(SHOUT)
    return tmp_path


class Clients:
    """Clients that connect again and again, in threads of their own, until the block ends."""

    def __init__(self, *connects: Callable[[], socket.socket]) -> None:
        self.served = 0
        self.failures: list[object] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(each,)) for each in connects]

    def _run(self, connect: Callable[[], socket.socket]) -> None:
        while not (self._over.wait(0.005) or self.failures):  # which leaves time for the programs
            try:
                with connect() as sock:
                    sock.settimeout(PATIENCE)
                    sock.sendall(b"hi\n")
                    answer = receive_exactly(sock, 3)
                    assert answer == b"HI\n"
                    self.served += 1
            except Exception as error:
                self.failures.append(error)

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def unix_client(path: Path | str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        raise
    return sock


def serve(folder: Path, *arguments: object, **more: Any) -> Cli:
    options = ["serve", "app:shout", "--control", "control", *map(str, arguments)]
    return Cli(*options, cwd=folder, **more)


def test_no_client_is_lost_while_one_program_takes_over_from_another(folder: Path) -> None:
    operator = Operator(folder / "control")
    abstract = [f"@netkit-{os.getpid()}"] if sys.platform == "linux" else []
    more = ["unix:app.sock", *abstract, "--take-over", "--status", "unix:status"]
    with contextlib.ExitStack() as stack:
        program = stack.enter_context(serve(folder, "0", *more))
        port = program.port
        clients = stack.enter_context(
            Clients(
                *[lambda: socket.create_connection(("127.0.0.1", port), PATIENCE)] * 2,
                lambda: unix_client(folder / "app.sock"),
                *[lambda name=name: unix_client("\0" + name[1:]) for name in abstract],
            )
        )
        for workers in (["--workers", "2"], []):  # from one process to several, and back
            former, program = program, stack.enter_context(serve(folder, port, *more, *workers))
            assert former.wait() == 0
            served = clients.served
            wait_until(lambda: clients.served > served + 20 or clients.failures)  # noqa: B023
            assert operator.rows("status")[0]["pid"] == program.process.pid
            assert receive_all_of(folder / "status", b"GET /readyz HTTP/1.0\r\n\r\n") == b"200"
        stack.callback(lambda: (program.send_signal(), program.wait()))
        clients.__exit__()
        assert clients.failures == []
    assert [each.name for each in folder.iterdir() if each.is_socket()] == []


def receive_all_of(path: Path, request: bytes) -> bytes:
    with unix_client(path) as sock:
        sock.sendall(request)
        return receive_all(sock).split()[1]


def test_each_program_has_its_own_settings_of_an_address(folder: Path) -> None:
    with serve(folder, "0") as former:
        options = ["--tls-cert", files().server, "--take-over"]
        with serve(folder, former.port, *options) as program:
            assert former.wait() == 0
            context = ssl.create_default_context(cafile=files().ca)
            with (
                program.connect() as sock,
                context.wrap_socket(sock, server_hostname="localhost") as secured,
            ):
                secured.sendall(b"hi\n")
                assert secured.recv(3) == b"HI\n"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (("{used}",), "netkit: error: port "),
        (("--status", "{used}"), "netkit: error: port "),
        (("--access-log", "no/such/folder/log"), "netkit: error: the access log: "),
        ((), "netkit: error: "),
    ],
    ids=["port", "endpoint", "access log", "on_start"],
)
@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one process", "workers"])
def test_a_program_that_cannot_start_leaves_the_former_one_as_it_was(
    folder: Path, wrong: tuple[str, ...], error: str, workers: tuple[str, ...]
) -> None:
    operator = Operator(folder / "control")
    options = ["unix:app.sock", "--status", "unix:status"]
    with (
        serve(folder, "0", *options) as former,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        if not wrong:
            (folder / "app.py").write_text(SHOUT + FAILING_START)
        options += [each.format(used=other.getsockname()[1]) for each in wrong]
        with serve(folder, former.port, *options, *workers, "--take-over", listening=False) as it:
            assert it.wait() == 1
            assert any(line.startswith(error) for line in it.lines), it.lines
        assert operator.rows("status")[0]["pid"] == former.process.pid
        assert receive_all_of(folder / "status", b"GET /readyz HTTP/1.0\r\n\r\n") == b"200"
        with former.connect() as sock, unix_client(folder / "app.sock") as local:
            for each in (sock, local):
                each.sendall(b"hi\n")
                assert receive_exactly(each, 3) == b"HI\n"
        former.send_signal()
        assert former.wait() == 0


def test_a_control_socket_of_another_program_is_an_error_of_one_line(folder: Path) -> None:
    with control_server(folder / "control") as other:
        answers = [[{"error": "unknown command"}], "220 welcome\n", "", "[]", NESTED]
        for answer in (*answers, [{"endpoints": "2"}]):
            other.answers["json hand-over"] = answer
            with serve(folder, "0", "--take-over", listening=False) as program:
                assert program.wait() == 1
                (line,) = program.lines
                assert line.startswith("netkit: error: the program of control has not handed over:")


def test_it_needs_a_control_socket(folder: Path) -> None:
    with Cli("serve", "app:shout", "--take-over", cwd=folder, listening=False) as program:
        assert program.wait() == 2
        text = "netkit serve: error: --take-over has no effect without --control"
        assert program.lines[0].startswith(text)


def test_a_control_socket_that_cannot_be_reached_is_a_failure() -> None:
    with pytest.raises(Failure, match="has not handed over: AF_UNIX path too long"):
        TakeOver(Endpoint("unix", path="/" + "x" * 200))


# The command


@pytest.fixture
def program() -> Iterator[FakeProgram]:
    with serving(lambda conn: conn.close()) as server:
        yield FakeProgram(server)


def answer(program: FakeProgram, path: Path) -> list[str]:
    return list(filter(None, commands.answer(f"hand-over {path}", program, lambda _: True)))


def test_the_command_needs_a_program_that_takes_the_listeners(
    program: FakeProgram, tmp_path: Path
) -> None:
    path = tmp_path / "nobody"
    assert answer(program, path) == [
        f"error: listeners cannot be sent to '{path}': No such file or directory\n"
    ]
    assert answer(program, Path("")) == [
        "error: listeners cannot be sent to '.': Connection refused\n"
    ]
    (line,) = commands.answer("hand-over", program)
    assert line == "error: wrong use: a path is needed; usage: hand-over PATH\n"


@contextlib.contextmanager
def taking(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield listener


def test_a_program_whose_processes_cannot_send_goes_on(
    program: FakeProgram, tmp_path: Path
) -> None:
    def fail(path: str) -> None:
        raise ValueError("no answer within 1 s")

    program.questions["listeners"] = fail
    with taking(tmp_path / "x"):
        assert answer(program, tmp_path / "x") == ["error: no answer within 1 s\n"]
    assert program.orders == []


def test_without_endpoints_the_listeners_of_the_servers_are_sent_and_it_stops(
    program: FakeProgram, tmp_path: Path
) -> None:
    with taking(tmp_path / "x") as listener:
        looks: list[float] = []

        def gone(seconds: float) -> bool:
            looks.append(seconds)
            if len(looks) == 1:
                return False
            channel, _ = listener.accept()
            process, _ = listener.accept()
            with channel, process:
                _, (descriptor,), _, _ = socket.recv_fds(process, 1, 1)
                with socket.socket(fileno=descriptor) as sent:
                    assert sent.getsockname() == program.servers[0].socket.getsockname()
                channel.sendall(takeover.GO)
                return True

        lines = list(commands.answer(f"hand-over {tmp_path / 'x'}", program, gone))
    assert lines[0] == "sent\n"
    assert program.orders == [("release", {}), ("stop", {"patience": 7.0})]


def test_only_one_program_at_a_time_takes_over_and_none_from_a_program_that_stops(
    program: FakeProgram, tmp_path: Path
) -> None:
    with taking(tmp_path / "x"):
        first = commands.answer(f"hand-over {tmp_path / 'x'}", program, lambda _: True)
        assert next(first) == "sent\n"
        others: list[list[str]] = []
        with in_thread(lambda: others.append(answer(program, tmp_path / "x"))):
            pass
        first.close()
        assert others == [["error: another program is taking over already\n"]]
        program.phase = "stopping"
        assert answer(program, tmp_path / "x") == ["error: this program is stopping\n"]
    assert program.orders == []


def test_a_new_program_that_says_nothing_does_not_serve() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not takeover.may_go(ours, 0.01)
        theirs.close()
        assert not takeover.may_go(ours)


# The endpoints


def test_endpoints_that_wait_accept_nobody_before_the_program_is_ready(
    program: FakeProgram, tmp_path: Path
) -> None:
    program.phase = "starting"
    control = Control(tmp_path / "control")
    control.open()
    with (
        contextlib.closing(control),
        contextlib.closing(ServedEndpoints(None, control, program, True)),
    ):
        with Operator(tmp_path / "control").connect() as sock:
            sock.sendall(b"help help\n")
            sock.settimeout(0.05)
            with pytest.raises(TimeoutError):
                sock.recv(1)
            program.phase = "ready"
            sock.settimeout(PATIENCE)
            assert receive_all(sock).startswith(b"help [COMMAND...]")


def test_endpoints_that_are_closed_wait_no_longer(program: FakeProgram, tmp_path: Path) -> None:
    program.phase = "starting"
    status = Status(f"unix:{tmp_path}/status")
    status.open()
    before = threading.active_count()
    with contextlib.closing(status):
        ServedEndpoints(status, None, program, True).close()
        wait_until(lambda: threading.active_count() <= before)


@pytest.mark.parametrize("kind", [Control, Status])
def test_an_endpoint_that_has_left_its_file_does_not_remove_it(kind: Any, tmp_path: Path) -> None:
    endpoint = kind(f"unix:{tmp_path}/endpoint")
    endpoint.release()  # of nothing
    endpoint.open()
    endpoint.release()
    endpoint.close()
    assert (tmp_path / "endpoint").is_socket()
