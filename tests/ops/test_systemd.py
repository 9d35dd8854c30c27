"""Notifications to a service manager: their text, their order, and when they are sent."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from managers import Manager
from support import PATIENCE

from netkit.core import events
from netkit.net.service_manager import ServiceManager
from netkit.ops.systemd import Notices, Notifier

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd is for Linux")


class Program:
    """A program that is as a test says."""

    def __init__(self) -> None:
        self.is_ready = True
        self.now = "ready"
        self.count: int | None = None
        self.clients = 0
        self.start: float | None = None
        self.answered = True
        self.asked: list[float | None] = []
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1

    def phase(self) -> str:
        return self.now

    def workers(self) -> int | None:
        return self.count

    def connected(self) -> int:
        return self.clients

    def start_seconds(self) -> float | None:
        return self.start

    def stop_seconds(self) -> float:
        return 7.5

    def ask(self, seconds: float | None) -> None:
        self.asked.append(seconds)

    def has_answered(self) -> bool:
        return self.answered


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = str(tmp_path / "notify")
    if request.param == "abstract":
        address = f"@netkit-test-{os.getpid()}"
    made = Manager(address)
    yield made
    made.close()


@pytest.fixture
def program() -> Program:
    return Program()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def notices(manager: Manager, program: Program, clock: Clock, watchdog: float = 0.0) -> Notices:
    passed = ServiceManager(notify_socket=manager.address, watchdog=watchdog)
    return Notices(passed, program, clock)


def test_a_manager_hears_of_the_start_and_of_the_stop(
    manager: Manager, program: Program, clock: Clock
) -> None:
    with notices(manager, program, clock) as made:
        made.step()
        assert manager.received() == []
        assert made.due().remaining() is None
        events.emit(events.Ready())
        assert program.wakes == 1
        made.step()
        program.now, program.clients = "stopping", 2
        made.step()
        made.step()
        made.stopped("2 finished, 0 cut")
    assert manager.received() == [
        "READY=1\nSTATUS=0 connected",
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=10500000\nSTATUS=stopping: 2 connected",
        "STATUS=2 finished, 0 cut",
    ]


def test_a_start_that_runs_code_of_the_program_may_take_the_time_that_netkit_allows(
    manager: Manager, program: Program, clock: Clock
) -> None:
    program.start, program.count = 240, 2
    with notices(manager, program, clock):
        assert manager.received() == ["EXTEND_TIMEOUT_USEC=243000000\nSTATUS=starting"]
        events.emit(events.Ready())
        assert manager.received() == ["READY=1\nSTATUS=0 connected, 2 workers"]


def test_a_reload_begins_at_a_time_and_ends_with_its_outcome(
    manager: Manager, program: Program, clock: Clock
) -> None:
    with notices(manager, program, clock) as made:
        events.emit(events.Ready())
        before = time.monotonic_ns() // 1000
        events.emit(events.ReloadBegun())
        events.emit(events.ReloadEnded("TLS not reloaded, the old one stays: no such file"))
        _, begun, ended = manager.received()
        match = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", begun)
        assert match
        assert before <= int(match[1]) <= time.monotonic_ns() // 1000
        text = "TLS not reloaded, the old one stays: no such file"
        assert ended == f"READY=1\nSTATUS={text}"
        clock.now += 10
        made.step()
        assert manager.received() == [f"STATUS=0 connected; {text}"]
        events.emit(events.ReloadBegun())
        events.emit(events.ReloadEnded(""))
        assert manager.received()[1:] == ["READY=1\nSTATUS=reloaded"]
        program.now = "stopping"
        made.step()
        manager.received()
        events.emit(events.ReloadBegun())  # STOPPING is final
        events.emit(events.ReloadEnded(""))
        assert manager.received() == []


def test_the_number_of_connections_is_told_every_ten_seconds_while_it_changes(
    manager: Manager, program: Program, clock: Clock
) -> None:
    program.count = 4
    with notices(manager, program, clock) as made:
        events.emit(events.Ready())
        manager.received()
        program.clients = 5
        clock.now += 9.9
        made.step()
        assert manager.received() == []
        assert made.due().remaining() == pytest.approx(0.1)
        clock.now += 0.1
        made.step()
        assert manager.received() == ["STATUS=5 connected, 4 workers"]
        assert program.asked == [None]
        clock.now += 10
        made.step()
        assert manager.received() == []


def test_a_change_of_the_state_is_told_at_once(
    manager: Manager, program: Program, clock: Clock
) -> None:
    program.count = 2
    with notices(manager, program, clock) as made:
        events.emit(events.Ready())
        program.count = 1
        made.step()
        program.count, program.now = 2, "suspended"
        made.step()
        assert manager.received()[1:] == [
            "STATUS=0 connected, 1 worker",
            "STATUS=suspended: 0 connected, 2 workers",
        ]


def test_the_watchdog_is_told_only_of_a_program_that_answers(
    manager: Manager, program: Program, clock: Clock
) -> None:
    with notices(manager, program, clock, watchdog=8) as made:
        made.step()
        assert made.due().remaining() is None
        events.emit(events.Ready())
        assert manager.received() == ["READY=1\nSTATUS=0 connected"]
        made.step()
        assert manager.received() == ["WATCHDOG=1"]
        assert made.due().remaining() == 2
        program.answered = False
        for _ in range(4):
            clock.now += 2
            made.step()
        assert manager.received() == []
        assert program.asked == [8]
        program.answered = True
        clock.now += 2
        program.now, program.clients = "ready", 3
        made.step()
        assert manager.received() == ["WATCHDOG=1", "STATUS=3 connected"]
        assert program.asked == [8, 8]
        clock.now += 2
        program.now = "stopping"
        made.step()
        stopping, watchdog = manager.received()
        assert stopping.startswith("STOPPING=1")
        assert watchdog == "WATCHDOG=1"


@pytest.mark.parametrize(
    ("error", "status"),
    [(OSError("the\nlistener is gone"), "the\\nlistener is gone"), (SystemExit(), "SystemExit")],
)
def test_an_exception_that_ends_the_program_is_its_last_status(
    error: BaseException, status: str, manager: Manager, program: Program, clock: Clock
) -> None:
    with pytest.raises(type(error)), notices(manager, program, clock):
        raise error
    assert manager.received() == [f"STATUS={status}"]


@pytest.mark.parametrize(
    "address",
    ["/no/such/folder/notify", "@netkit-nobody", "", "@", "vsock:2:1", "/x\0y", "/" + "x" * 200],
)
def test_without_a_manager_nothing_happens(
    address: str, program: Program, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "netkit")
    passed = ServiceManager(notify_socket=address, watchdog=1)
    with Notices(passed, program, clock) as made:
        events.emit(events.Ready())
        made.step()
        made.stopped("all")
    assert "not sent to the service manager: READY=1: " in caplog.text


def test_a_manager_that_reads_nothing_delays_once_what_it_must_not_miss(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    began = time.monotonic()
    for _ in range(1000):
        notifier.send("STATUS=x", seconds=0)
    assert time.monotonic() - began < PATIENCE / 2
    began = time.monotonic()
    notifier.send("STOPPING=1", seconds=0.05)
    assert time.monotonic() - began >= 0.04
    assert notifier.send("STATUS=stopped", seconds=10 * PATIENCE) != ""  # this one does not wait
    assert "STATUS=x" in manager.received()
    assert notifier.send("STATUS=y") == ""
    for _ in range(1000):
        notifier.send("STATUS=x", seconds=0)
    began = time.monotonic()
    notifier.send("STOPPING=1", seconds=0.05)
    assert time.monotonic() - began >= 0.04
    notifier.close()
    notifier.close()
    assert notifier.send("READY=1") == "there is no socket for it"


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, from 3.12 on
def test_a_child_does_not_speak_for_its_parent(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    child = os.fork()
    if child == 0:
        notifier.send("READY=1")
        os._exit(0)
    os.waitpid(child, 0)
    assert manager.received() == []
    notifier.close()
