"""The time limits of a connection: which one passes, and when, with a clock of the test's own."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support import PATIENCE, tcp_pair

from netkit.core.options import TimeLimits
from netkit.net.timeouts import RATE_GRACE, HandshakeTimer, Timer, timed_out, unacknowledged


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with tcp_pair() as (ours, _):
        yield ours


def timer(sock: socket.socket, **limits: float) -> tuple[Timer, Clock]:
    clock = Clock()
    return Timer(sock, TimeLimits(**limits), "p", None, clock), clock


def kernels(sock: socket.socket, option: int = socket.SO_RCVTIMEO) -> float:
    """What the kernel gives a wait; 0: for ever."""
    seconds, microseconds = struct.unpack("@ll", sock.getsockopt(socket.SOL_SOCKET, option, 16))
    return round(seconds + microseconds / 1e6, 2)


def test_without_limits_the_kernel_waits_for_ever(sock: socket.socket) -> None:
    waits, _ = timer(sock)
    waits.before_receive(0, 0)
    waits.before_receive(0, 5)
    waits.after_wait()
    assert kernels(sock) == kernels(sock, socket.SO_SNDTIMEO) == 0


def test_the_kernel_gets_the_limits_of_a_wait_once(sock: socket.socket) -> None:
    waits, _ = timer(sock, idle_timeout=7, read_timeout=3, write_timeout=5)
    assert (kernels(sock), kernels(sock, socket.SO_SNDTIMEO)) == (7, 5)
    waits = Timer(sock, TimeLimits(read_timeout=3), "p", waits)
    assert (kernels(sock), kernels(sock, socket.SO_SNDTIMEO)) == (3, 0)
    waits = Timer(sock, TimeLimits(idle_timeout=7), "p", waits)
    assert (kernels(sock), kernels(sock, socket.SO_SNDTIMEO)) == (7, 7)
    Timer(sock, TimeLimits(min_rate=100), "p", waits)
    assert (kernels(sock), kernels(sock, socket.SO_SNDTIMEO)) == (0, RATE_GRACE)


def test_a_silent_peer_meets_the_idle_timeout(sock: socket.socket) -> None:
    waits, clock = timer(sock, idle_timeout=7, read_timeout=3)
    waits.before_receive(0, 0)
    clock.now += 6
    waits.after_wait()  # the kernel was too early
    assert kernels(sock) == 1
    clock.now += 1
    with pytest.raises(TimeoutError) as caught:
        waits.after_wait()
    assert caught.value.strerror == "idle_timeout: nothing received from p for 7 seconds"


def test_without_an_idle_timeout_the_wait_for_a_message_counts_as_part_of_it(
    sock: socket.socket,
) -> None:
    waits, clock = timer(sock, read_timeout=3)
    waits.before_receive(0, 0)
    clock.now += 3
    with pytest.raises(TimeoutError, match="read_timeout: no whole message from p within 3 sec"):
        waits.after_wait()


def test_a_message_has_a_moment_that_a_trickle_does_not_put_off(sock: socket.socket) -> None:
    waits, clock = timer(sock, idle_timeout=60, read_timeout=3)
    for held in range(1, 4):
        waits.before_receive(10, held)
        assert kernels(sock) == 4 - held
        clock.now += 1
    with pytest.raises(TimeoutError, match="read_timeout"):
        waits.before_receive(10, 4)


def test_the_next_message_has_a_moment_of_its_own(sock: socket.socket) -> None:
    waits, clock = timer(sock, idle_timeout=60, read_timeout=3)
    waits.before_receive(10, 5)
    clock.now += 2.9
    waits.before_receive(20, 5)
    clock.now += 2.9
    waits.before_receive(20, 6)


def test_the_kernels_time_is_not_shortened_for_a_little(sock: socket.socket) -> None:
    waits, clock = timer(sock, idle_timeout=3, read_timeout=3)
    waits.before_receive(10, 5)
    clock.now += 0.1
    waits.before_receive(10, 6)
    assert kernels(sock) == 3


@pytest.mark.parametrize("limit", ["read_timeout", "min_rate"])
def test_a_message_has_its_time_anew_once_its_error_was_caught(
    sock: socket.socket, limit: str
) -> None:
    waits, clock = timer(sock, idle_timeout=2, **{limit: 8})
    waits.before_receive(10, 5)
    clock.now += 8
    with pytest.raises(TimeoutError, match=limit):
        waits.before_receive(10, 6)
    waits.before_receive(10, 6)
    clock.now += 3
    with pytest.raises(TimeoutError, match="idle_timeout"):
        waits.after_wait()
    waits.before_receive(10, 7)  # a silence that is caught puts it off no further
    clock.now += 5
    with pytest.raises(TimeoutError, match=limit):
        waits.before_receive(10, 8)


def test_a_peer_that_is_slower_than_the_rate_is_given_up(sock: socket.socket) -> None:
    waits, clock = timer(sock, min_rate=100)
    waits.before_receive(0, 1)
    clock.now += RATE_GRACE + 5
    waits.before_receive(0, 501)  # one more than in time
    with pytest.raises(TimeoutError, match="min_rate: p is slower than 100 bytes a second"):
        waits.before_receive(0, 499)


def test_a_stalled_write_meets_its_limit(sock: socket.socket) -> None:
    waits, _ = timer(sock, write_timeout=5, idle_timeout=7)
    waits.after_send(waits.now(), 10, stalled=False)
    with pytest.raises(TimeoutError, match="write_timeout: nothing could be sent to p for 5 sec"):
        waits.after_send(waits.now(), 10, stalled=True)


def test_a_write_may_be_too_slow_as_well(sock: socket.socket) -> None:
    waits, clock = timer(sock, min_rate=100)
    began = waits.now()
    waits.after_send(began, 0, stalled=True)
    clock.now += RATE_GRACE + 1
    with pytest.raises(TimeoutError, match="min_rate"):
        waits.after_send(began, 50, stalled=False)


def test_each_limit_names_itself() -> None:
    assert str(timed_out("lifetime", 1.5, "p")).endswith(
        "lifetime: the connection to p has lasted 1.5 seconds"
    )


def test_a_handshake_has_one_moment_however_much_comes_and_goes(sock: socket.socket) -> None:
    clock = Clock()
    shaking = HandshakeTimer(sock, 10, "p", None, clock)
    assert kernels(sock, socket.SO_SNDTIMEO) == 10
    for clock.now in (1000, 1003, 1006):
        shaking.before_receive(0, 0)
        assert kernels(sock) == 1010 - clock.now
        shaking.after_send(clock.now, 1, stalled=False)
    clock.now = 1010
    for step, arguments in (
        (shaking.before_receive, (0, 5)),
        (shaking.after_send, (0, 5, False)),
    ):
        with pytest.raises(TimeoutError) as caught:
            step(*arguments)
        assert caught.value.strerror == (
            "handshake_timeout: no TLS handshake with p within 10 seconds"
        )


FORKS = """
import os, threading, warnings
from netkit.net import timeouts

def fork():
    warnings.simplefilter("ignore")  # what is forked here does nothing with threads
    if not os.fork():
        os._exit(timeouts._main_thread != threading.get_ident())
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))

assert timeouts._main_thread == threading.get_ident()
threading.Thread(target=fork).start()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_after_a_fork_the_main_thread_is_the_one_that_has_forked() -> None:
    subprocess.run([sys.executable, "-c", FORKS], check=True, timeout=PATIENCE)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's kernel")
def test_the_kernel_gets_the_limit_of_what_is_unacknowledged(sock: socket.socket) -> None:
    def limit() -> int:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    waits, _ = timer(sock, idle_timeout=7)
    assert limit() == 0
    waits = Timer(sock, TimeLimits(write_timeout=2.5), "p", waits)
    assert limit() == 2500
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1)
    waits = Timer(sock, TimeLimits(write_timeout=2.5, read_timeout=1), "p", waits)
    assert limit() == 1  # nothing has changed, and so the kernel is not told again
    waits.release()
    assert limit() == 0
    Timer(sock, TimeLimits(write_timeout=1e9), "p")
    assert limit() == 2**31 - 1


def test_what_the_network_says_is_named_only_if_it_has_given_up() -> None:
    for number in (errno.ETIMEDOUT, errno.EHOSTUNREACH):
        given_up = unacknowledged(OSError(number, os.strerror(number)), 3, "p")
        assert isinstance(given_up, TimeoutError)
        assert given_up.strerror == "write_timeout: p has acknowledged nothing for 3 seconds"
    for other in (OSError("text"), timed_out("idle_timeout", 3, "p")):
        assert unacknowledged(other, 3, "p") is other
