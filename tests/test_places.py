"""The places that worker processes share."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

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
    with pytest.raises(ValueError, match="max_connections, which workers share, is too large: 10"):
        SharedPlaces(10_000_000)
    assert len(set(os.listdir("/dev/fd"))) == len(before)


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
