"""The socket calls of connections: the compiled ones do exactly what Python's own do."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import (
    MUCH,
    PATIENCE,
    ROOT,
    fill,
    in_thread,
    in_threads,
    receive_exactly,
    tool,
    wait_until,
)

from netkit.core.cores import has_gil
from netkit.net import gate

BAD = "Bad file descriptor"
NAMES = ("recv", "recv_into", "send", "sendall")
PYTHON = SimpleNamespace(**{name: getattr(socket.socket, name) for name in NAMES}, name="Python")

try:
    from netkit.net import _gate as compiled
except ImportError:
    compiled = None

built = pytest.mark.skipif(compiled is None, reason="the compiled module is not built")
both = pytest.mark.parametrize(
    "calls", [pytest.param(PYTHON, id="Python"), pytest.param(compiled, id="compiled", marks=built)]
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets. The first one blocks, and the second one has a time limit."""
    ours, peer = socket.socketpair()
    with ours, peer:
        peer.settimeout(PATIENCE)
        yield ours, peer


def outcome(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What a call returns, or the class and the text of what it raises."""
    try:
        return function(*arguments, **named)
    except Exception as error:
        return type(error), str(error)


# What they do


@both
def test_each_call_moves_bytes_from_one_socket_to_the_other(calls: Any, pair: Any) -> None:
    ours, peer = pair
    assert calls.send(ours, b"hello") == 5
    assert calls.recv(peer, 100) == b"hello"
    assert calls.sendall(peer, memoryview(b"good day")) is None
    buffer = bytearray(100)
    assert calls.recv_into(ours, buffer) == 8
    assert buffer[:8] == b"good day"


@both
def test_an_object_that_is_bound_is_a_method(calls: Any, pair: Any) -> None:
    ours, peer = pair
    calls.sendall.__get__(ours)(b"bound")
    kind = type("Kind", (socket.socket,), {"recv": calls.recv})
    with kind(fileno=peer.detach()) as sock:
        assert sock.recv(100) == b"bound"


@both
def test_numbers_and_flags_are_those_of_the_method(calls: Any, pair: Any) -> None:
    ours, peer = pair
    peer.sendall(b"abcdef")
    assert calls.recv(ours, 2, socket.MSG_PEEK) == b"ab"
    buffer = bytearray(10)
    assert calls.recv_into(ours, buffer, 3, socket.MSG_PEEK) == 3
    assert calls.recv_into(ours, memoryview(buffer)[4:], nbytes=2) == 2
    assert buffer == b"abc\0ab\0\0\0\0"
    assert calls.recv_into(ours, buffer, 0) == 4
    assert outcome(calls.recv, ours, 5, int(socket.MSG_DONTWAIT))[0] is BlockingIOError
    assert calls.send(ours, b"x", socket.MSG_DONTWAIT) == 1
    calls.sendall(ours, b"y", 0)
    assert receive_exactly(peer, 2) == b"xy"


@both
def test_nothing_is_received_and_sent_where_there_is_nothing(calls: Any, pair: Any) -> None:
    ours, peer = pair
    assert calls.recv(ours, 0) == b""
    assert calls.recv_into(ours, bytearray()) == 0
    assert calls.send(ours, b"") == 0
    assert calls.sendall(ours, b"") is None
    peer.shutdown(socket.SHUT_WR)
    assert calls.recv(ours, 10) == b""
    assert calls.recv_into(ours, bytearray(10)) == 0


released = memoryview(bytearray(5))
released.release()
WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("recv", (), {}),
    ("recv", (-1,), {}),
    ("recv", ("10",), {}),
    ("recv", (10, 1 << 40), {}),
    ("recv", (10, 0, 0), {}),
    ("recv", (1 << 70,), {}),
    ("recv_into", (b"constant",), {}),
    ("recv_into", (bytearray(4), 5), {}),
    ("recv_into", (bytearray(4), -1), {}),
    ("recv_into", (released,), {}),
    ("recv_into", (memoryview(bytearray(8))[::2],), {}),
    ("recv_into", (bytearray(4),), {"size": 3}),
    ("send", ("text",), {}),
    ("send", (None,), {}),
    ("send", (released,), {}),
    ("send", (memoryview(b"abcd")[::2],), {}),
    ("sendall", ("text",), {}),
    ("sendall", (b"x", "flag"), {}),
]


@built
@pytest.mark.parametrize(("name", "arguments", "named"), WRONG)
def test_an_invalid_argument_has_the_error_of_the_method(
    name: str, arguments: Any, named: Any, pair: Any
) -> None:
    expected = outcome(getattr(PYTHON, name), pair[0], *arguments, **named)
    assert issubclass(expected[0], Exception)
    assert outcome(getattr(compiled, name), pair[0], *arguments, **named) == expected


@both
def test_only_sockets_are_accepted(calls: Any) -> None:
    assert outcome(calls.recv, 5, 10)[0] is TypeError
    assert outcome(calls.recv)[0] is TypeError


@both
@pytest.mark.parametrize("name", NAMES)
def test_a_closed_socket_is_an_invalid_descriptor(calls: Any, name: str) -> None:
    argument = 10 if name == "recv" else bytearray(10)
    with pytest.raises(OSError, match=BAD):
        getattr(calls, name)(closed(), argument)


def closed() -> socket.socket:
    sock = socket.socket()
    sock.close()
    return sock


@both
@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_the_timeout_of_the_socket_applies(calls: Any, seconds: float, pair: Any) -> None:
    ours, _ = pair
    fill(ours)
    ours.settimeout(seconds)
    error = TimeoutError if seconds else BlockingIOError
    for name, argument in zip(NAMES, (10, bytearray(10), b"x", b"x"), strict=True):
        with pytest.raises(error):
            getattr(calls, name)(ours, argument)


@both
def test_a_time_limit_of_the_kernel_is_a_would_block(calls: Any, pair: Any) -> None:
    ours, _ = pair
    fill(ours)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", 0, 10_000))
    for name, argument in zip(NAMES, (10, bytearray(10), b"x", b"x"), strict=True):
        with pytest.raises(BlockingIOError):
            getattr(calls, name)(ours, argument)


@both
def test_a_peer_that_is_gone_is_a_broken_pipe(calls: Any, pair: Any) -> None:
    ours, peer = pair
    peer.close()
    for call in (calls.send, calls.sendall):
        with pytest.raises(BrokenPipeError):
            call(ours, b"x")


@both
def test_much_data_arrives_in_order(calls: Any, pair: Any) -> None:
    ours, peer = pair
    data = os.urandom(1 << 20) * (MUCH >> 22)
    with in_thread(calls.sendall, ours, data):
        received = bytearray()
        while len(received) < len(data):
            received += calls.recv(peer, 1 << 20)
    assert received == data


@both
def test_a_buffer_cannot_be_resized_during_the_call(calls: Any, pair: Any) -> None:
    ours, peer = pair
    buffer = bytearray(10)
    with in_thread(calls.recv_into, ours, buffer):
        wait_until(lambda: outcome(buffer.append, 1) is not None)
        assert outcome(buffer.append, 1)[0] is BufferError
        peer.sendall(b"x")
    buffer.append(1)
    assert buffer[:1] == b"x"


# Signals


@contextlib.contextmanager
def alarm(handler: Callable[..., Any], seconds: float = 0.02) -> Iterator[None]:
    """Have SIGALRM, which comes after `seconds`, call `handler`."""
    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@both
def test_a_wait_goes_on_after_a_signal(calls: Any, pair: Any) -> None:
    ours, peer = pair
    signals: list[int] = []

    def handle(*_: object) -> None:
        signals.append(1)
        if len(signals) == 3:
            peer.sendall(b"at last")

    with alarm(handle):
        assert calls.recv(ours, 100) == b"at last"
    assert len(signals) >= 3


@both
@pytest.mark.parametrize("name", NAMES)
def test_a_signal_handler_that_raises_ends_the_wait(calls: Any, name: str, pair: Any) -> None:
    ours, _ = pair
    fill(ours)

    signals: list[int] = []

    def handle(*_: object) -> None:
        signals.append(1)
        if len(signals) == 1:  # a later one may come after the call
            raise KeyboardInterrupt

    argument = 10 if name == "recv" else bytearray(10)
    with alarm(handle), pytest.raises(KeyboardInterrupt):
        getattr(calls, name)(ours, argument)


@both
def test_a_signal_handler_may_close_the_socket(calls: Any, pair: Any) -> None:
    ours, _ = pair
    with alarm(lambda *_: ours.close()), pytest.raises(OSError, match=BAD):
        calls.recv(ours, 100)


@both
def test_a_large_send_goes_on_after_signals(calls: Any, pair: Any) -> None:
    ours, peer = pair
    data = os.urandom(MUCH // 10)
    received = bytearray()

    def receive() -> None:
        while len(received) < len(data):
            received.extend(peer.recv(50_000))
            time.sleep(0.001)

    with in_thread(receive), alarm(lambda *_: None, 0.002):
        calls.sendall(ours, data)
    assert received == data


# Computing


@built
def test_a_reply_that_took_long_is_sent_in_full(pair: Any) -> None:
    """It is sent without releasing the GIL, as far as the kernel takes it at once."""
    ours, peer = pair
    filled = fill(ours)
    peer.sendall(b"go")
    compiled.recv(ours, 2)
    compute(0.002)
    with in_thread(lambda: (time.sleep(0.02), receive_exactly(peer, filled + 3 * 10_000))):
        for _ in range(3):
            compiled.sendall(ours, bytes(10_000))
            compute(0.002)


def compute(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@built
def test_no_thread_waits_for_good_while_others_compute() -> None:
    replies = [0] * 20
    until = time.monotonic() + 1.0

    def serve(index: int) -> None:
        ours, peer = socket.socketpair()
        with ours, peer:
            while time.monotonic() < until:
                compiled.sendall(peer, b"x")
                compiled.recv(ours, 1)
                compute(0.001)
                replies[index] += 1

    in_threads(serve, [(index,) for index in range(20)])
    assert min(replies) >= 5, replies


@built
def test_a_thread_that_never_waits_lets_others_run(pair: Any) -> None:
    """The main thread waits for the GIL in an ordinary way, as a thread that accepts does."""
    ours, peer = pair
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            compiled.sendall(peer, b"x")
            compiled.recv(ours, 1)
            compute(0.001)

    with in_thread(work):
        start = time.monotonic()
        for _ in range(20):
            time.sleep(0.001)
        taken = time.monotonic() - start
        done.set()
    assert taken < 2.0  # 0.1 on an idle machine, and minutes if the thread takes the GIL each time


@built
def test_replies_of_many_threads_do_not_mix() -> None:
    def serve(index: int) -> None:
        ours, peer = socket.socketpair()
        with ours, peer, in_thread(echo, peer):
            for number in range(200):
                message = b"%d %d" % (index, number)
                compiled.sendall(ours, message)
                assert compiled.recv(ours, 100) == message
            ours.shutdown(socket.SHUT_WR)

    def echo(sock: socket.socket) -> None:
        while data := compiled.recv(sock, 100):
            compiled.send(sock, data)

    in_threads(serve, [(index,) for index in range(30)])


# Processes

BUSY = """
import os, socket, sys, threading
from netkit.net import _gate

def echo(sock):
    while data := _gate.recv(sock, 100):
        _gate.sendall(sock, data)

def ask(sock):
    while True:
        _gate.sendall(sock, b"x")
        _gate.recv(sock, 1)

def work(count):
    for _ in range(count):
        ours, peer = socket.socketpair()
        threading.Thread(target=echo, args=[peer], daemon=True).start()
        threading.Thread(target=ask, args=[ours], daemon=True).start()

def exchange():
    ours, peer = socket.socketpair()
    for _ in range(10):
        _gate.sendall(ours, b"y")
        assert _gate.recv(peer, 10) == b"y"
"""


def run(program: str, **environment: str) -> str:
    # The measurement of coverage does not work in subinterpreters.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", program],  # left open on purpose
        cwd=ROOT,
        env={**inherited, "NETKIT_GATE": "", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@built
def test_a_child_begins_with_an_open_gate() -> None:
    program = f"""{BUSY}
import warnings
warnings.simplefilter("ignore")  # that there are threads
from netkit.net import gate
work(20)
for _ in range(30):
    child = os.fork()
    if child == 0:
        work(2)
        exchange()
        os._exit(0)
    exchange()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(program).split() == ["0"] * 30


@built
@pytest.mark.parametrize(
    "end",
    ["", "sys.exit(0)", "os._exit(0)", "threading.Thread(target=exchange).start()"],
    ids=["end", "exit", "_exit", "thread"],
)
def test_threads_in_the_gate_do_not_hold_up_the_exit(end: str) -> None:
    program = f"""{BUSY}
import atexit
class Last:
    def __del__(self, exchange=exchange):
        exchange()
sys.last = Last()  # until the modules are cleared
atexit.register(exchange)
work(20)
idle = socket.socketpair()
threading.Thread(target=echo, args=[idle[0]], daemon=True).start()
exchange()
print("there")
sys.stdout.flush()
{end}
"""
    for _ in range(5):
        assert run(program) == "there\n"


@built
@pytest.mark.skipif(sys.version_info < (3, 13), reason="subinterpreters as 3.13 has them")
def test_each_interpreter_has_a_gate_of_its_own() -> None:
    program = f"""{BUSY}
import _interpreters as interpreters
work(5)
def one():
    interpreter = interpreters.create()
    assert interpreters.exec(interpreter, '''
import sys
sys.path[:] = {{path!r}}
import socket
from netkit.net import gate
assert gate.gate_active()
ours, peer = socket.socketpair()
for _ in range(100):
    gate.sendall(ours, b"y")
    assert gate.recv(peer, 10) == b"y"
ours.close(), peer.close()
'''.replace("{{path!r}}", repr(sys.path))) is None
    interpreters.destroy(interpreter)
threads = [threading.Thread(target=one) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
exchange()
print("done")
"""
    assert run(program) == "done\n"


# Which ones are used


STATE = """
import socket
from netkit.net import gate
print(gate.gate_active(), gate.recv is socket.socket.recv, gate.Socket is socket.socket)
"""


def test_the_environment_turns_the_compiled_calls_off() -> None:
    assert run(STATE, NETKIT_GATE="off") == "False True True\n"


@built
def test_the_compiled_calls_are_used_where_they_are_built() -> None:
    assert run(STATE) == "True False False\n"


def test_a_missing_module_is_no_error() -> None:
    missing = "import sys; sys.modules['netkit.net._gate'] = None"
    assert run(missing + STATE) == "False True True\n"


def test_a_socket_and_its_files_use_the_calls(pair: Any) -> None:
    ours, peer = pair
    with gate.Socket(fileno=ours.detach()) as sock:
        with sock.makefile("rwb") as file:
            peer.sendall(b"line\n")
            assert file.readline() == b"line\n"
            file.write(b"reply\n")
            file.flush()
        assert receive_exactly(peer, 6) == b"reply\n"
        sock.sendall(b"more")
        assert receive_exactly(peer, 4) == b"more"


# Building


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the script that builds, and with the source."""
    (tmp_path / "netkit" / "net").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for name in ("bin/build", "netkit/net/_gate.c"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def build(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "bin" / "build"],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_a_checkout_is_built_in_place(checkout: Path) -> None:
    done = build(checkout, CC=tool("cc"))
    if "no headers" in done.stderr or "is free-threaded" in done.stderr:
        assert done.returncode == 1
        pytest.skip(done.stderr)
    assert (done.returncode, done.stderr) == (0, "")
    assert [str(path.relative_to(checkout)) for path in checkout.rglob("*.so*")] == [
        done.stdout.strip()
    ]
    program = f"""
import importlib.util, socket
spec = importlib.util.spec_from_file_location("_gate", {str(checkout / done.stdout.strip())!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
ours, peer = socket.socketpair()
module.sendall(ours, b"built")
print(module.recv(peer, 10))
"""
    assert run(program) == "b'built'\n"


@pytest.mark.skipif(not has_gil(), reason="nothing is compiled without the GIL")
def test_a_missing_compiler_is_named(checkout: Path) -> None:
    done = build(checkout, CC="no-compiler")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "bin/build: no C compiler (no-compiler); netkit works without the module, too\n"
    )
    assert not list(checkout.rglob("*.so*"))
