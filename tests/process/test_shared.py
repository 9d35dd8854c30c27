"""What worker processes share: the places for connections, and the numbers of connections."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT, Program, in_threads, receive_all, wait_until

import netkit
from netkit.net import ids
from netkit.process import shared
from netkit.process.shared import SharedNumbers, SharedPlaces

# Of fork, from 3.12 on.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


@pytest.fixture
def places() -> Iterator[SharedPlaces]:
    made = SharedPlaces(2)
    yield made
    made.close()


@pytest.fixture
def numbers() -> Iterator[SharedNumbers]:
    made = SharedNumbers()
    yield made
    made.close()
    made.close()


def taken_from(places: SharedPlaces) -> int:
    """How many there are to be taken."""
    return sum(iter(places.take, False))


def change(places: SharedPlaces, index: int) -> None:
    """The worker begins to change its number of places, or ends that."""
    places._cells[2 * index + 1] += 1


# Places


def test_there_are_as_many_as_the_limit_says(places: SharedPlaces) -> None:
    assert places.any_free()
    assert [places.take(), places.take(), places.take()] == [True, True, False]
    assert not places.any_free()
    places.give_back()
    assert [places.take(), places.take()] == [True, False]
    none = SharedPlaces(0)
    assert not none.take()
    none.close()


def test_the_places_of_a_killed_worker_are_given_back_once(places: SharedPlaces) -> None:
    places.index = 3
    assert taken_from(places) == 2
    places.reclaim(2)
    assert not places.any_free()
    places.reclaim(3)
    places.reclaim(3)
    assert taken_from(places) == 2


def test_a_worker_may_be_killed_at_each_moment_of_taking_and_giving_back(
    places: SharedPlaces,
) -> None:
    places.index = 3
    for taken_from_pipe, noted in [(0, 0), (1, 0), (1, 1)]:
        change(places, 3)
        os.read(places._reader, taken_from_pipe)
        places._cells[6] = noted
        places.reclaim(3)
        assert places._count_free() == 2


def test_places_are_counted_once_no_other_worker_changes_them(places: SharedPlaces) -> None:
    """A worker that is stopped during a change costs no more than a place."""
    places.index = 3
    assert places.take()
    os.read(places._reader, 1)  # by one that is killed
    change(places, 5)
    places.reclaim(3)
    assert places._count_free() == 1
    change(places, 5)
    places.reclaim(3)
    assert places._count_free() == 2


def test_places_that_change_during_the_count_are_counted_again(
    places: SharedPlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one takes a place, and gives it back: all is as before, but for what was seen."""
    count = places._count_free
    others: list[int] = []

    def count_amid_changes() -> int:
        others.append(places.index)
        if len(others) > 3:
            return count()
        assert places.take()
        free = count()
        places.give_back()
        return free

    places.index = 5
    monkeypatch.setattr(places, "_count_free", count_amid_changes)
    places.reclaim(3)
    assert len(others) == 4
    assert taken_from(places) == 2


@pytest.mark.parametrize("changes", [0, 1])
@pytest.mark.parametrize("taken", [2**64 - 1, 1000])
def test_whatever_is_in_a_cell_there_are_never_too_many(
    places: SharedPlaces, taken: int, changes: int
) -> None:
    places._cells[6] = taken
    places._cells[13] = changes
    places.reclaim(3)
    assert taken_from(places) == 2


def test_a_full_pipe_that_waits_does_not_block_the_parent(places: SharedPlaces) -> None:
    """A worker may fill it, and change how all its users wait (fcntl(2), O_NONBLOCK)."""
    with pytest.raises(BlockingIOError):
        while True:
            os.write(places._writer, bytes(4096))
    os.set_blocking(places._writer, True)
    places._cells[shared._LIMIT] = 10**6
    places.reclaim(3)
    with pytest.raises(BlockingIOError):
        places._give(1)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux")
def test_the_size_of_the_shared_memory_cannot_be_changed(places: SharedPlaces) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(places._file, 0)


def take_and_give(places: SharedPlaces, index: int) -> None:
    places.index = index
    while True:
        if places.take():
            places.give_back()


@forks
def test_workers_that_are_killed_in_the_midst_leave_all_their_places() -> None:
    """At whatever moment, while others take and give back."""
    context = multiprocessing.get_context("fork")
    places = SharedPlaces(3)
    processes = [context.Process(target=take_and_give, args=(places, i)) for i in range(3)]
    for process in processes:
        process.start()
    for index, process in enumerate(processes):
        wait_until(lambda index=index: places._cells[2 * index + 1] > 100)  # type: ignore[misc]
        process.kill()
        process.join()
        process.close()
        places.reclaim(index)
    assert taken_from(places) == 3
    places.close()


def test_more_places_than_a_pipe_holds_are_refused() -> None:
    server = netkit.create_server(netkit.EchoHandler, max_connections=10**12)
    text = "max_connections must be at most 65536 where workers share it, not 1000000000000"
    with pytest.raises(ValueError, match=text):
        netkit.Workers(server, 2)
    command = ["-m", "netkit", "echo", "--workers", "2", "--max-connections", "1000000000000"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert text.replace("_", "-") in done.stderr
    server.configure(max_connections=5)
    workers = netkit.Workers(server.listen(0, "127.0.0.1"), 2)
    server.configure(max_connections=10_000_000)
    with pytest.raises(netkit.WorkersFailedError, match="no pipe for the 10000000 places"):
        workers.run()
    assert not server.listening


@pytest.mark.usefixtures("sending")
def test_places_and_numbers_can_be_sent_to_a_process_that_is_being_started(
    places: SharedPlaces, numbers: SharedNumbers
) -> None:
    places.index = 1
    other_places, other_numbers = pickle.loads(pickle.dumps((places, numbers)))
    assert [other_places.take(), places.take(), other_places.take()] == [True, True, False]
    other_places.close()
    places.reclaim(1)
    assert taken_from(places) == 2
    assert [numbers.take(), other_numbers.take(), numbers.take()] == [1, 2, 3]
    other_numbers.close()


# Numbers


@forks
def test_threads_and_processes_get_each_number_once(numbers: SharedNumbers, tmp_path: Path) -> None:
    children = {}
    for name in "abc":
        child = os.fork()
        if child == 0:
            taken = [numbers.take() for _ in range(2000)]
            (tmp_path / name).write_text(" ".join(map(str, taken)))
            os._exit(0)
        children[child] = tmp_path / name
    taken = []
    in_threads(lambda: taken.extend(numbers.take() for _ in range(500)), [()] * 4)
    assert {os.waitpid(child, 0)[1] for child in children} == {0}
    taken += [int(number) for path in children.values() for number in path.read_text().split()]
    assert sorted(taken) == list(range(1, 8001))


def test_the_source_of_connection_numbers_can_be_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ids, "take", ids.take)
    ids.number_by(iter([70, 71]).__next__)
    assert [ids.take(), ids.take()] == [70, 71]


SCRIPT = """
import multiprocessing, sys
import netkit

def handler(conn):
    conn.write(f"{conn.id}\\n")

if __name__ == "__main__":
    if sys.argv[1] != "default":
        multiprocessing.set_start_method(sys.argv[1])
    netkit.configure_logging("info")
    netkit.run(netkit.create_server(handler).listen(0, "127.0.0.1"), workers=2)
"""


@pytest.mark.parametrize("method", ["default", "forkserver"])
def test_no_two_connections_of_workers_have_the_same_number_nor_after_a_reload(
    method: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with Program(sys.executable, script, method) as program:
        program.wait_for_line("2 workers ready")
        seen: list[int] = []

        def connect() -> None:
            for _ in range(10):
                with program.connect() as sock:
                    seen.append(int(receive_all(sock)))

        in_threads(connect, [()] * 3)
        program.send_signal(signal.SIGHUP)
        program.wait_for_line("reloaded: 2 workers")
        in_threads(connect, [()] * 3)
        program.send_signal(signal.SIGTERM)
        assert program.wait() == 0
    assert sorted(seen) == list(range(1, 61))


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux")
def test_workers_number_their_own_connections_if_the_system_gives_no_file(tmp_path: Path) -> None:
    fail = "import os\ndef fail(*_): raise OSError\nos.memfd_create = fail\n"
    (tmp_path / "script.py").write_text(fail + SCRIPT)
    with Program(sys.executable, tmp_path / "script.py", "fork") as program:
        seen = []
        for _ in range(3):  # two of them come to the same worker
            with program.connect() as sock:
                seen.append(int(receive_all(sock)))
        assert 1 in seen
        assert max(seen) > 1
        program.send_signal(signal.SIGTERM)
        assert program.wait() == 0
