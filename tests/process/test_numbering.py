"""The numbers of connections are unique, in threads and in processes."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from pathlib import Path

import pytest
from support import Program, in_threads, receive_all

from netkit.net import ids
from netkit.process.numbering import SharedNumbers

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


def test_threads_get_each_number_once() -> None:
    numbers = SharedNumbers()
    taken: list[int] = []
    try:
        in_threads(lambda: taken.extend(numbers.take() for _ in range(500)), [()] * 4)
    finally:
        numbers.close()
    assert sorted(taken) == list(range(1, 2001))
    numbers.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, from 3.12 on
def test_processes_get_each_number_once(tmp_path: Path) -> None:
    numbers = SharedNumbers()
    children = {}
    for name in "abc":
        child = os.fork()
        if child == 0:
            taken = [numbers.take() for _ in range(2000)]
            (tmp_path / name).write_text(" ".join(map(str, taken)))
            os._exit(0)
        children[child] = tmp_path / name
    numbers.close()
    assert {os.waitpid(child, 0)[1] for child in children} == {0}
    taken = [int(number) for path in children.values() for number in path.read_text().split()]
    assert sorted(taken) == list(range(1, 6001))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, from 3.12 on
def test_a_process_goes_on_where_another_one_was() -> None:
    numbers = SharedNumbers()
    assert numbers.take() == 1
    child = os.fork()
    if child == 0:
        os._exit(numbers.take())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert numbers.take() == 3
    numbers.close()


@pytest.mark.usefixtures("sending")
def test_the_numbers_can_be_sent_to_a_process_that_is_being_started() -> None:
    numbers = SharedNumbers()
    others = pickle.loads(pickle.dumps(numbers))
    assert [numbers.take(), others.take(), numbers.take()] == [1, 2, 3]
    numbers.close()
    others.close()


def test_the_source_of_connection_numbers_can_be_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ids, "take", ids.take)
    ids.number_by(iter([70, 71]).__next__)
    assert [ids.take(), ids.take()] == [70, 71]


@pytest.mark.skipif(sys.platform == "win32", reason="needs worker processes")
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
@pytest.mark.parametrize("method", ["spawn"])
def test_workers_number_their_own_connections_if_the_system_gives_no_file(
    method: str, tmp_path: Path
) -> None:
    fail = "import os\ndef fail(*_): raise OSError\nos.memfd_create = fail\n"
    (tmp_path / "script.py").write_text(fail + SCRIPT)
    with Program(sys.executable, tmp_path / "script.py", method) as program:
        program.wait_for_line("2 workers ready")
        seen = []
        for _ in range(3):  # two of them come to the same worker
            with program.connect() as sock:
                seen.append(int(receive_all(sock)))
        assert 1 in seen
        assert max(seen) > 1
        program.send_signal(signal.SIGTERM)
        assert program.wait() == 0
