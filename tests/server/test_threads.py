"""Threads that serve one client after another."""

from __future__ import annotations

import contextlib
import contextvars
import decimal
import functools
import os
import queue
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import PATIENCE, in_thread, in_threads, wait_until

from netkit.server import threads
from netkit.server.threads import ClientThreads


@contextlib.contextmanager
def client_threads(daemon: bool = True) -> Iterator[ClientThreads]:
    pool = ClientThreads(lambda: daemon, lambda _: False)
    try:
        yield pool
    finally:
        pool.close()
        assert pool.join(PATIENCE)


def parked(pool: ClientThreads) -> list[threading.Thread]:
    return [thread for thread in pool.threads() if thread.name == "netkit-parked"]


class Gate:
    """A job that runs until `finish` is called."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self._open = threading.Event()

    def __call__(self) -> None:
        self.thread = threading.current_thread()
        assert self._open.wait(PATIENCE)

    def finish(self) -> None:
        self._open.set()


def run_at_once(pool: ClientThreads, count: int) -> list[Gate]:
    gates = [Gate() for _ in range(count)]
    for gate in gates:
        pool.run(gate)
    wait_until(lambda: all(gate.thread for gate in gates))
    return gates


def test_a_job_runs_in_a_thread_that_is_kept_for_the_next() -> None:
    with client_threads() as pool:
        used = []
        for _ in range(5):
            (gate,) = run_at_once(pool, 1)
            used.append(gate.thread)
            gate.finish()
            wait_until(lambda: len(pool._parked) == 1)
        assert len(set(used)) == 1
        assert used[0] is not threading.current_thread()


def test_each_job_begins_with_an_empty_context_in_the_same_thread() -> None:
    variable = contextvars.ContextVar("variable", default="nobody")
    found: list[tuple[Any, int, str, int]] = []

    def job() -> None:
        thread, size = threading.current_thread(), len(contextvars.copy_context())
        found.append((thread, size, variable.get(), decimal.getcontext().prec))
        variable.set("somebody")
        decimal.getcontext().prec = 3

    variable.set("the one who starts it")
    with client_threads() as pool:
        for count in (1, 2, 3):
            pool.run(job)
            wait_until(lambda n=count: len(found) == n and pool._parked)
    assert len({thread for thread, *_ in found}) == 1
    default = decimal.DefaultContext.prec
    assert [rest for _, *rest in found] == [[0, "nobody", default]] * 3


def test_jobs_that_run_at_once_have_threads_of_their_own() -> None:
    with client_threads() as pool:
        gates = run_at_once(pool, 4)
        assert len({gate.thread for gate in gates}) == 4
        assert len(pool.threads()) == 4
        for gate in gates:
            gate.finish()


def test_a_thread_that_waits_says_so_by_its_name() -> None:
    with client_threads() as pool:
        pool.run(lambda: setattr(threading.current_thread(), "name", "busy"))
        wait_until(lambda: len(parked(pool)) == 1)


def test_what_a_client_used_is_freed_while_its_thread_waits() -> None:
    class Client:
        def serve(self) -> None:
            pass

    with client_threads() as pool:
        client = Client()
        gone = weakref.ref(client)
        pool.run(client.serve)
        del client
        wait_until(lambda: gone() is None)
        wait_until(lambda: parked(pool))


def test_only_so_many_threads_are_kept() -> None:
    with client_threads() as pool:
        pool.max_parked = 2
        for gate in run_at_once(pool, 6):
            gate.finish()
        wait_until(lambda: len(pool.threads()) == len(parked(pool)) == 2)


def test_a_thread_that_is_not_needed_ends() -> None:
    with client_threads() as pool:
        pool.park_seconds = 0.01
        for gate in run_at_once(pool, 3):
            gate.finish()
        wait_until(lambda: not pool.threads())
        ran: list[bool] = []
        pool.run(lambda: ran.append(True))
        wait_until(lambda: ran)


class Ready:
    """The lock of a waiting thread. `meanwhile` is called once, by a derived class."""

    def __init__(self, meanwhile: Callable[[], Any]) -> None:
        self._lock, self._meanwhile = threading.Lock(), [meanwhile]

    def _once(self) -> bool:
        """Whether this is the first call; then `meanwhile` has been called."""
        is_first = bool(self._meanwhile)
        if is_first:
            self._meanwhile.pop()()
        return is_first

    def acquire(self, timeout: float = -1) -> bool:
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        self._lock.release()


class GivesUp(Ready):
    def acquire(self, timeout: float = -1) -> bool:
        if timeout > 0 and self._once():
            return False  # as if the time were over
        return super().acquire(timeout)


class IsInterrupted(Ready):
    def release(self) -> None:
        self._once()
        super().release()


def parkings(patch: pytest.MonkeyPatch, make: Callable[[], Any]) -> None:
    """Have each thread wait with a lock that `make` has made."""
    init = threads._Parking.__init__

    def parking(self: Any) -> None:
        init(self)
        self.ready = make()
        self.ready.acquire()

    patch.setattr(threads._Parking, "__init__", parking)


def test_a_job_that_comes_just_as_its_thread_stops_waiting_is_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = threading.Event()
    with client_threads() as pool:
        parkings(monkeypatch, lambda: GivesUp(lambda: pool.run(ran.set)))
        pool.run(lambda: None)
        assert ran.wait(PATIENCE)
        pool.close()
        wait_until(lambda: not pool.threads())
        assert pool._parked == []


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals for other threads")
def test_signals_do_not_keep_a_thread_that_is_not_needed() -> None:
    """They end its wait early, which then goes on for the rest of the time."""
    previous = signal.signal(signal.SIGUSR1, lambda *_: None)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        with client_threads() as pool:
            pool.park_seconds = 0.001
            for _ in range(2_000):
                if not pool.threads():
                    pool.run(functools.partial(signal.pthread_sigmask, signal.SIG_SETMASK, blocked))
                os.kill(os.getpid(), signal.SIGUSR1)
                time.sleep(0.0001)
            wait_until(lambda: not pool.threads())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGUSR1, previous)


def test_nothing_is_lost_when_threads_expire_all_the_time() -> None:
    ran = queue.SimpleQueue[int]()
    with client_threads() as pool:
        pool.park_seconds = 0.0005

        def submit(first: int) -> None:
            for number in range(first, first + 100):
                pool.run(functools.partial(ran.put, number))
                time.sleep(0.0005)  # about as long as a thread waits

        in_threads(submit, [(first,) for first in range(0, 400, 100)])
        wait_until(lambda: ran.qsize() == 400)
        assert sorted(ran.get() for _ in range(400)) == list(range(400))
        wait_until(lambda: not pool.threads())
        assert pool._parked == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_system_exit_ends_one_thread_and_nothing_else() -> None:
    def leave() -> None:
        raise SystemExit(3)

    with client_threads() as pool:
        gate, *_ = run_at_once(pool, 1)
        pool.run(leave)
        wait_until(lambda: len(pool.threads()) == 1)
        gate.finish()
        wait_until(lambda: len(pool._parked) == 1)
        run_at_once(pool, 1)[0].finish()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_job_that_fails_ends_its_thread_and_nothing_else() -> None:
    def fail() -> None:
        raise ValueError("a failing job")

    with client_threads() as pool:
        pool.run(fail)
        wait_until(lambda: not pool.threads())
        run_at_once(pool, 1)[0].finish()


def test_a_thread_that_cannot_start_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    ran: list[bool] = []
    with client_threads() as pool:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            assert not pool.run(lambda: ran.append(True))
        assert pool.threads() == []
        assert ran == []
        pool.run(lambda: ran.append(True))
        wait_until(lambda: ran)


def test_a_thread_whose_start_was_interrupted_but_that_runs_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    with client_threads() as pool:
        gate = Gate()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.run(gate)
        wait_until(lambda: gate.thread)
        assert pool.threads() == [gate.thread]
        gate.finish()


@pytest.mark.parametrize("daemon", [True, False])
def test_the_threads_are_daemons_or_not_as_is_wanted(daemon: bool) -> None:
    with client_threads(daemon) as pool:
        (gate,) = run_at_once(pool, 1)
        assert gate.thread is not None
        assert gate.thread.daemon is daemon
        gate.finish()


def test_a_thread_that_would_hold_up_the_exit_is_not_kept() -> None:
    with client_threads(daemon=False) as pool:
        pool.run(lambda: None)
        wait_until(lambda: not pool.threads())


def test_closing_ends_waiting_threads_at_once_and_busy_ones_after_their_job() -> None:
    with client_threads() as pool:
        idle, busy = run_at_once(pool, 2)
        idle.finish()
        wait_until(lambda: len(pool._parked) == 1)
        pool.close()
        pool.close()
        wait_until(lambda: pool.threads() == [busy.thread])
        assert pool.join(0.01) is False
        with in_thread(busy.finish):
            assert pool.join(PATIENCE)
        assert pool.threads() == []


def test_after_closing_a_job_still_runs_and_its_thread_is_not_kept() -> None:
    with client_threads() as pool:
        pool.close()
        ran: list[bool] = []
        pool.run(lambda: ran.append(True))
        wait_until(lambda: ran)
        assert pool.join(PATIENCE)


def test_after_reopening_threads_wait_for_a_next_job_again() -> None:
    with client_threads() as pool:
        pool.close()
        pool.reopen()
        pool.run(lambda: None)
        wait_until(lambda: [thread.name for thread in pool.threads()] == [threads.PARKED])


def test_waiting_for_the_threads_has_one_limit_for_all() -> None:
    with client_threads() as pool:
        gates = run_at_once(pool, 50)
        begun = time.monotonic()
        assert pool.join(0.1) is False
        assert time.monotonic() - begun < 2.5  # and not 50 times 0.1 seconds
        for gate in gates:
            gate.finish()


def test_a_thread_does_not_wait_for_itself() -> None:
    joined: list[bool] = []
    with client_threads() as pool:
        pool.run(lambda: joined.append(pool.join(PATIENCE)))
        wait_until(lambda: joined)
    assert joined == [True]


def test_waiting_for_a_thread_that_is_about_to_start_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starting, go_on = threading.Event(), threading.Event()
    start = threading.Thread.start

    def slow_start(thread: threading.Thread) -> None:
        starting.set()
        assert go_on.wait(PATIENCE)
        start(thread)

    ran: list[bool] = []
    with client_threads() as pool:
        with in_thread(run_with, monkeypatch, slow_start, pool, lambda: ran.append(True)):
            assert starting.wait(PATIENCE)
            assert pool.join(0.01) is False
            go_on.set()
        wait_until(lambda: ran)


def run_with(
    monkeypatch: pytest.MonkeyPatch, start: Any, pool: ClientThreads, job: Callable[[], None]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        pool.run(job)


def test_a_signal_handler_may_close_them_while_a_job_is_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It runs in the thread that holds the lock."""
    ran: list[bool] = []
    with client_threads() as pool:
        parkings(monkeypatch, lambda: IsInterrupted(pool.close))
        pool.run(lambda: None)
        wait_until(lambda: len(pool._parked) == 1)
        with in_thread(pool.run, lambda: ran.append(True)):
            wait_until(lambda: ran)
