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
from netkit.net.explain import timed_out, unacknowledged
from netkit.net.timeouts import Timer


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
    waits = Timer(sock, "p", clock)
    waits.set(TimeLimits(**limits))
    return waits, clock


def kernels(sock: socket.socket, option: int = socket.SO_RCVTIMEO) -> float:
    """The kernel's timeout of a wait (seconds); 0 for none."""
    seconds, microseconds = struct.unpack("@ll", sock.getsockopt(socket.SOL_SOCKET, option, 16))
    return round(seconds + microseconds / 1e6, 2)


def test_without_limits_the_kernel_waits_for_ever(sock: socket.socket) -> None:
    waits, _ = timer(sock)
    waits.before_receive(0, 0)
    waits.before_receive(0, 5)
    waits.after_wait()
    assert kernels(sock) == kernels(sock, socket.SO_SNDTIMEO) == 0


def test_new_limits_set_the_timeouts_of_the_kernel(sock: socket.socket) -> None:
    waits = Timer(sock, "p")
    for limits, receive, send in (
        (TimeLimits(idle_timeout=7, read_timeout=3, write_timeout=5), 7, 5),
        (TimeLimits(read_timeout=3), 3, 0),
        (TimeLimits(idle_timeout=7), 7, 7),
        (TimeLimits(min_rate=100), 0, Timer.grace),
    ):
        waits.set(limits)
        assert (kernels(sock), kernels(sock, socket.SO_SNDTIMEO)) == (receive, send)


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


def test_a_trickle_does_not_postpone_the_deadline_of_a_message(sock: socket.socket) -> None:
    waits, clock = timer(sock, idle_timeout=60, read_timeout=3)
    for held in range(1, 4):
        waits.before_receive(10, held)
        assert kernels(sock) == 4 - held
        clock.now += 1
    with pytest.raises(TimeoutError, match="read_timeout"):
        waits.before_receive(10, 4)


def test_the_next_message_has_its_own_deadline(sock: socket.socket) -> None:
    waits, clock = timer(sock, idle_timeout=60, read_timeout=3)
    waits.before_receive(10, 5)
    clock.now += 2.9
    waits.before_receive(20, 5)
    clock.now += 2.9
    waits.before_receive(20, 6)


def test_the_kernels_timeout_is_not_lowered_by_a_little(sock: socket.socket) -> None:
    waits, clock = timer(sock, idle_timeout=3, read_timeout=3)
    waits.before_receive(10, 5)
    clock.now += 0.1
    waits.before_receive(10, 6)
    assert kernels(sock) == 3


@pytest.mark.parametrize("limit", ["read_timeout", "min_rate"])
def test_after_its_error_was_caught_a_message_has_its_time_again(
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


def test_a_peer_that_is_slower_than_the_rate_is_an_error(sock: socket.socket) -> None:
    waits, clock = timer(sock, min_rate=100)
    waits.before_receive(0, 1)
    clock.now += Timer.grace + 5
    waits.before_receive(0, 501)  # one more than in time
    with pytest.raises(TimeoutError, match="min_rate: p is slower than 100 bytes a second"):
        waits.before_receive(0, 499)


def test_a_stalled_write_meets_its_limit(sock: socket.socket) -> None:
    waits, clock = timer(sock, write_timeout=5, idle_timeout=7)
    clock.now += 4
    waits.after_stall()  # the kernel was too early
    assert kernels(sock, socket.SO_SNDTIMEO) == 1
    clock.now += 1
    with pytest.raises(TimeoutError, match="write_timeout: nothing could be sent to p for 5 sec"):
        waits.after_stall()
    assert waits.untouched
    waits.begin_write()
    assert not waits.untouched
    clock.now += 4
    waits.after_send(10, 20)
    clock.now += 4
    waits.after_stall()
    clock.now += 1
    with pytest.raises(TimeoutError, match="write_timeout"):
        waits.after_stall()
    assert not waits.untouched


def test_a_stalled_write_without_a_limit_of_its_own_meets_the_idle_timeout(
    sock: socket.socket,
) -> None:
    waits, clock = timer(sock, idle_timeout=7)
    clock.now += 7
    with pytest.raises(TimeoutError, match="idle_timeout"):
        waits.after_stall()


def test_a_write_that_is_slower_than_the_rate_is_an_error(sock: socket.socket) -> None:
    waits, clock = timer(sock, min_rate=100)
    waits.after_stall()
    clock.now += Timer.grace + 1
    waits.after_send(20, 20)  # the end of a write is never too slow
    with pytest.raises(TimeoutError, match="min_rate"):
        waits.after_send(50, 60)


def test_each_limit_names_itself() -> None:
    assert str(timed_out("lifetime", 1.5, "p")).endswith(
        "lifetime: the connection to p has lasted 1.5 seconds"
    )


def test_a_handshake_has_one_deadline_however_much_is_received_and_sent(
    sock: socket.socket,
) -> None:
    clock = Clock()
    shaking = Timer(sock, "p", clock)
    shaking.set(TimeLimits(), ("handshake_timeout", 10))
    shaking.begin_write()
    assert kernels(sock, socket.SO_SNDTIMEO) == 10
    for clock.now in (1000, 1003, 1006):
        shaking.before_receive(0, 0)
        assert kernels(sock) == 1010 - clock.now
        shaking.after_send(1, 2)
        shaking.after_stall()
        shaking.after_wait()
        assert kernels(sock, socket.SO_SNDTIMEO) == kernels(sock) == 1010 - clock.now
    clock.now = 1010
    shaking.after_send(2, 2)
    for step, arguments in (
        (shaking.before_receive, (0, 5)),
        (shaking.after_send, (1, 2)),
        (shaking.after_stall, ()),
        (shaking.after_wait, ()),
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
def test_the_write_timeout_limits_unacknowledged_bytes_in_the_kernel(sock: socket.socket) -> None:
    def limit() -> int:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    waits = Timer(sock, "p")
    waits.set(TimeLimits(idle_timeout=7))
    assert limit() == 0
    waits.set(TimeLimits(write_timeout=2.5))
    assert limit() == 2500
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1)
    waits.set(TimeLimits(write_timeout=2.5, read_timeout=1))
    assert limit() == 1  # nothing has changed, and so there is no further system call
    waits.set(TimeLimits())
    assert limit() == 0
    waits.set(TimeLimits(write_timeout=1e9))
    assert limit() == 2**31 - 1


def test_only_errors_of_a_connection_that_the_kernel_gave_up_name_the_write_timeout() -> None:
    for number in (errno.ETIMEDOUT, errno.EHOSTUNREACH):
        given_up = unacknowledged(OSError(number, os.strerror(number)), 3, "p")
        assert isinstance(given_up, TimeoutError)
        assert given_up.strerror == "write_timeout: p has acknowledged nothing for 3 seconds"
    for other in (OSError("text"), timed_out("idle_timeout", 3, "p")):
        assert unacknowledged(other, 3, "p") is other
