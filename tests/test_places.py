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
from support import ROOT

import netkit
from netkit.places import SharedPlaces


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


def test_none_at_all_may_be_the_limit() -> None:
    places = SharedPlaces(0)
    assert not places.take()
    places.close()


def test_what_one_held_that_was_killed_is_given_back_once(places: SharedPlaces) -> None:
    places.index = 3
    assert places.take()
    assert places.take()
    places.reclaim(2)
    assert not places.any_free()
    places.reclaim(3)
    places.reclaim(3)
    assert [places.take(), places.take(), places.take()] == [True, True, False]


def test_more_than_a_pipe_holds_are_too_many() -> None:
    before = set(os.listdir("/dev/fd"))
    with pytest.raises(OSError, match="no pipe for the 10000000 places") as caught:
        SharedPlaces(10_000_000)
    assert caught.value.errno == errno.ENOBUFS
    assert len(set(os.listdir("/dev/fd"))) == len(before)


def test_more_than_can_be_shared_is_told_before_anybody_listens(
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
    monkeypatch.setattr("netkit.places.MAX_PLACES", 10_000_000)
    server.configure(max_connections=1_000_000)
    with pytest.raises(netkit.WorkersFailedError, match="no pipe for the 1000000 places"):
        netkit.run(server.listen(0, "127.0.0.1"), workers=2)
    assert not server.listening


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
