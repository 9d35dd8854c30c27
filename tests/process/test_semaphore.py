"""The places that worker processes share."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest
from support import ROOT, wait_until

import netkit
from netkit.process.semaphore import SharedPlaces


@pytest.fixture
def places() -> Iterator[SharedPlaces]:
    made = SharedPlaces(2)
    yield made
    made.close()


def test_there_are_as_many_as_the_limit_says(places: SharedPlaces) -> None:
    assert places.any_free()
    assert [places.take(), places.take(), places.take()] == [True, True, False]
    assert not places.any_free()
    places.give_back()
    assert [places.take(), places.take()] == [True, False]


def test_the_limit_may_be_zero() -> None:
    places = SharedPlaces(0)
    assert not places.take()
    places.close()


def test_the_places_of_a_killed_worker_are_given_back_once(places: SharedPlaces) -> None:
    places.index = 3
    assert places.take()
    assert places.take()
    places.reclaim(2)
    assert not places.any_free()
    places.reclaim(3)
    places.reclaim(3)
    assert [places.take(), places.take(), places.take()] == [True, True, False]


def taken_from(places: SharedPlaces) -> int:
    """How many there are to be taken."""
    return sum(iter(places.take, False))


def test_a_place_is_given_back_that_was_taken_and_not_noted(places: SharedPlaces) -> None:
    """A worker may be killed at each moment of `take`."""
    places.index = 3
    for moment in ("before the pipe", "before the note"):
        taken, changes = places._cell(3)
        places._note(3, taken, changes + 1)
        if moment == "before the note":
            os.read(places._reader, 1)
        places.reclaim(3)
        assert not places.uncertain
        assert places._count_free() == 2


def test_a_place_is_given_back_that_was_noted_and_not_given_back(places: SharedPlaces) -> None:
    """A worker may be killed at each moment of `give_back`."""
    places.index = 3
    for noted in (False, True):
        assert places.take()
        taken, changes = places._cell(3)
        places._note(3, taken - noted, changes + 1)
        places.reclaim(3)
        assert places._count_free() == 2


def test_places_are_counted_once_no_other_worker_is_at_them(places: SharedPlaces) -> None:
    os.read(places._reader, 1)  # by one that was killed
    places._note(5, 0, 1)  # another one takes one, or gives it back, or has been stopped just then
    places.reclaim(3)
    assert places.uncertain
    assert places._count_free() == 1
    places.recount()
    assert places.uncertain
    places._note(5, 0, 2)
    places.recount()
    assert not places.uncertain
    assert places._count_free() == 2
    os.read(places._reader, 1)
    places.recount()  # nobody was killed: it does not look
    assert places._count_free() == 1


def test_places_that_change_during_the_count_are_counted_again(
    places: SharedPlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one takes a place, and gives it back: all is as before, but for what was seen."""
    count = places._count_free
    others: list[int] = []

    def count_amid_changes() -> int:
        if len(others) < 3 and places.uncertain:
            others.append(places.index)
            assert places.take()
            free = count()
            places.give_back()
            return free
        return count()

    monkeypatch.setattr(places, "_count_free", count_amid_changes)
    places.index = 5
    places.reclaim(3)
    assert len(others) == 3
    assert taken_from(places) == 2


@pytest.mark.parametrize("taken", [2**32 - 1, 1000, -1])
def test_whatever_is_in_a_cell_there_are_never_too_many(places: SharedPlaces, taken: int) -> None:
    places._note(3, taken, 0)
    places.reclaim(3)
    assert taken_from(places) == 2


def test_a_full_pipe_that_waits_does_not_block_the_parent(places: SharedPlaces) -> None:
    """A worker may fill it, and change how all its users wait (fcntl(2), O_NONBLOCK)."""
    with pytest.raises(BlockingIOError):
        while True:
            os.write(places._writer, bytes(4096))
    os.set_blocking(places._writer, True)
    places._note(3, 2, 0)
    places.reclaim(3)
    with pytest.raises(BlockingIOError):
        places._give(1)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux")
def test_the_size_of_the_shared_memory_cannot_be_changed(places: SharedPlaces) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(places._file, 0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, from 3.12 on
def test_workers_that_are_killed_in_the_midst_leave_all_their_places() -> None:
    """At whatever moment, while others take and give back."""
    context = multiprocessing.get_context("fork")
    places = SharedPlaces(3)
    try:
        processes = [context.Process(target=take_and_give, args=(places, i)) for i in range(3)]
        for process in processes:
            process.start()
        for index, process in enumerate(processes):
            wait_until(lambda index=index: places._cell(index)[1] > 100)  # type: ignore[misc]
            process.kill()
            process.join()
            process.close()
            places.reclaim(index)
        places.recount()
        assert not places.uncertain
        assert taken_from(places) == 3
    finally:
        places.close()


def test_more_than_a_pipe_holds_are_too_many() -> None:
    before = set(os.listdir("/dev/fd"))
    with pytest.raises(OSError, match="no pipe for the 10000000 places") as caught:
        SharedPlaces(10_000_000)
    assert caught.value.errno == errno.ENOBUFS
    assert len(set(os.listdir("/dev/fd"))) == len(before)


def test_a_limit_above_what_can_be_shared_is_refused_before_it_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = netkit.create_server(netkit.EchoHandler, max_connections=10**12)
    text = "max_connections must be at most 65536 where workers share it, not 1000000000000"
    with pytest.raises(ValueError, match=text):
        netkit.Workers(server, 2)
    command = ["-m", "netkit", "echo", "--workers", "2", "--max-connections", "1000000000000"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert text.replace("_", "-") in done.stderr
    monkeypatch.setattr("netkit.process.semaphore.MAX_PLACES", 10_000_000)
    server.configure(max_connections=1_000_000)
    with pytest.raises(netkit.WorkersFailedError, match="no pipe for the 1000000 places"):
        netkit.run(server.listen(0, "127.0.0.1"), workers=2)
    assert not server.listening


def take_and_give(places: SharedPlaces, index: int) -> None:
    places.index = index
    while True:
        if places.take():
            places.give_back()


def take_all(places: SharedPlaces, results: Connection) -> None:
    places.index = 1
    results.send(sum(places.take() for _ in range(5)))
    places.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, from 3.12 on
def test_another_process_takes_from_the_same() -> None:
    context = multiprocessing.get_context("fork")
    places = SharedPlaces(3)
    ours, theirs = context.Pipe()
    assert places.take()
    process = context.Process(target=take_all, args=(places, theirs))
    process.start()
    assert ours.recv() == 2
    process.join()
    assert not places.take()
    places.reclaim(1)
    assert [places.take(), places.take(), places.take()] == [True, True, False]
    process.close()
    for each in (ours, theirs, places):
        each.close()
