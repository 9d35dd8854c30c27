"""Attempts that race: their order, their times, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, full_listener, in_thread, observed

from netkit.client import happy_eyeballs
from netkit.client.happy_eyeballs import Cancel, Race, Waiter, interleaved
from netkit.core import events
from netkit.core.deadline import Deadline
from netkit.core.errors import CancelledError
from netkit.net.bind import Candidate

V4, V6 = socket.AF_INET, socket.AF_INET6


def candidates(text: str) -> list[Candidate]:
    return [
        Candidate(V6, (f"::{each[1:]}", 1, 0, 0)) if each[0] == "6" else Candidate(V4, (each, 1))
        for each in text.split()
    ]


@pytest.mark.parametrize(
    ("found", "ordered"),
    [
        ("61 62 63 41 42", "61 41 62 42 63"),
        ("41 42 61", "41 61 42"),
        ("41 41 61 41 61", "41 61"),
        ("41", "41"),
        ("", ""),
    ],
)
def test_families_alternate_and_nothing_is_tried_twice(found: str, ordered: str) -> None:
    assert interleaved(candidates(found)) == candidates(ordered)


# --- The race ---


def nothing(_: Any) -> None:
    pass


@contextlib.contextmanager
def silent_candidate() -> Iterator[Candidate]:
    with full_listener() as address:
        yield Candidate(V4, address)


@contextlib.contextmanager
def listening() -> Iterator[Candidate]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Candidate(V4, listener.getsockname())


def refusing() -> Candidate:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return Candidate(V4, listener.getsockname())


def race(
    *candidates: Candidate, delay: float = 0.01, timeout: float = PATIENCE, prepare: Any = nothing
) -> tuple[Race, socket.socket | None]:
    with Waiter(Deadline(timeout)) as waiter:
        runners = Race(prepare, delay, waiter)
        return runners, runners.run(candidates)


def test_the_first_to_answer_wins_although_an_earlier_one_is_still_tried() -> None:
    with silent_candidate() as silent, listening() as good, observed(events.AttemptStarted) as seen:
        runners, winner = race(silent, good)
        assert winner
        with winner:
            assert winner.getpeername() == good.address
    assert runners.attempted == [str(silent), str(good)]
    assert not runners.errors
    assert [event.address for event in seen] == [str(silent), str(good)]


class InTurn(Waiter):
    """The first wait is over for nobody; in the second one, both have connected."""

    def __init__(self) -> None:
        super().__init__(Deadline(PATIENCE))
        self.added: list[socket.socket] = []
        self.waits = 0

    def add(self, sock: socket.socket) -> None:
        super().add(sock)
        self.added.append(sock)

    def wait(self, seconds: float | None = None) -> list[socket.socket]:
        self.waits += 1
        return [] if self.waits == 1 else self.added


def test_an_earlier_attempt_may_still_win() -> None:
    with listening() as first, listening() as second, InTurn() as waiter:
        winner = Race(nothing, 0.01, waiter).run([first, second])
        assert winner
        with winner:
            assert winner.getpeername() == first.address
        assert waiter.added[1].fileno() == -1


def test_after_a_failure_the_next_one_is_tried_at_once() -> None:
    with listening() as good:
        bad = refusing()
        runners, winner = race(bad, bad, good, delay=1000)
        assert winner
        winner.close()
    assert [(str(each), error.errno) for each, error in runners.errors] == [
        (str(bad), errno.ECONNREFUSED)
    ] * 2
    assert runners.errors[0][1].strerror == "connection refused"


def test_an_address_that_must_not_be_used_is_skipped_before_and_after_the_attempt() -> None:
    asked: list[Any] = []

    def blocked(address: Any) -> bool:
        """The first one is blocked at once, the second one once it has been reached."""
        asked.append(address)
        return address == first.address or (address == second.address and asked.count(address) == 2)

    with listening() as first, listening() as second, listening() as third:
        with Waiter(Deadline(PATIENCE)) as waiter:
            runners = Race(nothing, 1000, waiter, blocked)
            winner = runners.run([first, second, third])
        assert winner
        with winner:
            assert winner.getpeername() == third.address
    assert runners.attempted == [str(second), str(third)]
    assert [(address, error.errno) for address, error in runners.errors] == [
        (str(first), errno.EACCES),
        (str(second), errno.EACCES),
    ]


def test_there_is_no_winner_if_all_attempts_fail() -> None:
    runners, winner = race(refusing(), refusing())
    assert winner is None
    assert len(runners.errors) == 2
    assert race()[1] is None


def test_at_the_deadline_all_attempts_are_reported_and_closed() -> None:
    with silent_candidate() as silent:
        with Waiter(Deadline(0.5)) as waiter:
            runners = Race(nothing, 0.01, waiter)
            with pytest.raises(TimeoutError):
                runners.run([silent, refusing(), silent])
    reasons = sorted(str(error.strerror) for _, error in runners.errors)
    assert reasons == ["connection refused", "no answer in time", "no answer in time"]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (("fe80::1", 1, 0, 0), "a link-local address needs its zone, such as fe80::1%eth0"),
        (("::1", 1, 0, 0), "invalid argument"),
        ("/run/s", "invalid argument"),
    ],
)
def test_the_error_of_a_link_local_address_without_a_zone_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, address: Any, reason: str
) -> None:
    class Strict(socket.socket):
        def connect_ex(self, _: Any) -> int:
            return errno.EINVAL

    monkeypatch.setattr("netkit.client.happy_eyeballs.socket.socket", Strict)
    runners, winner = race(Candidate(V4, address))
    assert winner is None
    assert [error.strerror for _, error in runners.errors] == [reason]


def test_a_socket_that_cannot_be_prepared_is_an_attempt_that_failed() -> None:
    def refuse(_: socket.socket) -> None:
        raise OSError(errno.EADDRINUSE, "address already in use")

    with listening() as good:
        runners, winner = race(good, prepare=refuse)
    assert winner is None
    assert runners.errors[0][1].errno == errno.EADDRINUSE
    runners, winner = race(Candidate(9999, ("x", 1)))
    assert winner is None
    assert len(runners.errors) == 1

    def fail(_: socket.socket) -> None:
        raise KeyboardInterrupt

    with listening() as good, pytest.raises(KeyboardInterrupt):
        race(good, prepare=fail)


def test_a_socket_that_connects_to_itself_counts_as_refused() -> None:
    candidate = refusing()
    runners, winner = race(candidate, prepare=lambda sock: sock.bind(candidate.address))
    assert winner is None
    assert runners.errors[0][1].errno == errno.ECONNREFUSED


def test_a_unix_listener_whose_queue_is_full_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as others:
        listener.bind(path)
        listener.listen(0)
        others.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        candidate = Candidate(socket.AF_UNIX, path)
        with pytest.raises(TimeoutError):
            race(candidate, timeout=0.05)
        connected: list[Any] = []
        with in_thread(lambda: connected.append(race(candidate)[1])):
            listener.accept()[0].close()
        connected[0].close()


# --- Waiting ---


def test_a_call_in_another_thread_returns_or_raises_what_it_does() -> None:
    with Waiter(Deadline(None)) as waiter:
        assert waiter.call(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            waiter.call(lambda: 1 // 0)


def test_a_call_that_is_done_at_once_ends_no_later_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", threading.Thread.run)
    with Waiter(Deadline(0.5)) as waiter:
        assert waiter.call(lambda: 7) == 7
        with pytest.raises(TimeoutError):
            waiter.wait()


def test_a_wait_that_ends_early_does_not_end_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, waits = threading.Event(), []

    def wait_time(_: float | None) -> float:
        waits.append(None)
        if len(waits) > 1:
            go_on.set()
        return 0.001

    monkeypatch.setattr(happy_eyeballs, "wait_time", wait_time)
    with Waiter(Deadline(None)) as waiter:
        assert waiter.call(lambda: go_on.wait(PATIENCE))


def test_a_call_may_outlast_the_wait_for_it() -> None:
    go_on = threading.Event()
    with Waiter(Deadline(0.02)) as waiter, pytest.raises(TimeoutError):
        waiter.call(go_on.wait)
    go_on.set()


def test_a_lookup_waits_while_too_many_others_are_under_way() -> None:
    lookups: deque[None] = deque([None])
    go_on = threading.Event()
    with Waiter(Deadline(0.02), lookups=lookups) as waiter, pytest.raises(TimeoutError):
        waiter.call(go_on.wait)  # which goes on
    with Waiter(Deadline(0.02), lookups=lookups) as waiter, pytest.raises(TimeoutError):
        waiter.call(lambda: 7)
    results: list[int] = []
    with Waiter(Deadline(PATIENCE), lookups=lookups) as waiter:
        with in_thread(lambda: results.append(waiter.call(lambda: 7))):
            go_on.set()
    assert results == [7]


def test_a_lookup_whose_thread_cannot_be_started_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Waiter(Deadline(PATIENCE), lookups=deque([None])) as waiter:
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="new thread"):
            patch.setattr(threading.Thread, "start", fail)
            waiter.call(lambda: 7)
        assert waiter.call(lambda: 7) == 7


@pytest.mark.parametrize("early", [True, False])
def test_a_wait_is_cancelled_from_another_thread(early: bool) -> None:
    cancel = Cancel()

    def wait(act: Callable[[Waiter], Any]) -> None:
        with Waiter(Deadline(None), cancel) as waiter, pytest.raises(CancelledError) as caught:
            act(waiter)
        assert str(caught.value) == "cancelled"

    if early:
        cancel.cancel()
        cancel.cancel()
    assert cancel.cancelled is early
    go_on = threading.Event()
    with in_thread(wait, lambda waiter: waiter.wait()):
        with in_thread(wait, lambda waiter: waiter.call(go_on.wait)):
            if not early:
                time.sleep(0.02)  # until they wait, which cannot be seen
                cancel.cancel()
    go_on.set()
    assert not cancel._callbacks


def test_a_callback_may_detach_itself() -> None:
    cancel, called = Cancel(), []

    def call(number: int) -> Callable[[], None]:
        def callback() -> None:
            called.append(number)
            cancel.detach(callback)

        return callback

    for number in range(3):
        cancel.attach(call(number))
    cancel.cancel()
    cancel.cancel()
    assert called == [0, 1, 2]


def test_a_race_that_is_cancelled_closes_what_it_has_begun() -> None:
    cancel = Cancel()
    with silent_candidate() as silent, Waiter(Deadline(None), cancel) as waiter:
        threading.Timer(0.02, cancel.cancel).start()
        with pytest.raises(CancelledError):
            Race(nothing, 1, waiter).run([silent])


def test_a_waiter_that_cannot_be_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("netkit.client.happy_eyeballs.selectors.DefaultSelector", fail)
    with pytest.raises(OSError, match="Too many open files"):
        Waiter(Deadline(None))
