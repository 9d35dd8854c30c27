"""A program as the thread that supervises it sees it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from support import echo, exchange, in_thread, serving, wait_until

import netkit
from netkit.process.group import Group
from netkit.process.hooks import Hooks
from netkit.process.signals import Mailbox, Request
from netkit.process.supervised import NoNotices, SupervisedCrew, SupervisedGroup, notices_of
from netkit.process.worker import READY_SECONDS


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with contextlib.closing(Mailbox()) as mailbox:
        yield mailbox


def supervised(mailbox: Mailbox, *servers: netkit.Server, **options: Any) -> SupervisedGroup:
    return SupervisedGroup(Group(servers, mailbox, **options), None)


def test_each_accepting_thread_answers(mailbox: Mailbox) -> None:
    with serving(echo) as one, serving(echo, max_connections=1) as other:
        program = supervised(mailbox, one, other)
        assert program.phase() == "ready"
        assert program.workers() is None
        assert program.has_answered()
        program.ask(7)
        wait_until(program.has_answered)
        with netkit.connect(other.address.port, "127.0.0.1"):
            wait_until(lambda: program.connected() == 1)
            other.suspend()
            assert program.phase() == "suspended"
            program.ask(7)
            wait_until(program.has_answered)


def test_an_accepting_thread_that_hangs_does_not_answer(mailbox: Mailbox) -> None:
    class Hanging(netkit.Server):
        hangs = may_go_on = False

        def get_request(self) -> Any:
            self.hangs = True
            wait_until(lambda: self.may_go_on)
            return super().get_request()

    with Hanging(("127.0.0.1", 0), echo) as server, server.start():
        program = supervised(mailbox, server)
        program.ask(7)
        wait_until(program.has_answered)
        with netkit.connect(server.server_address[1], "127.0.0.1"):
            wait_until(lambda: server.hangs)
            program.ask(7)
            assert not program.has_answered()
            server.may_go_on = True
            wait_until(program.has_answered)
    program.ask(7)
    assert program.has_answered()  # a server that has stopped does not hang


def test_the_time_for_a_stop_is_that_of_its_order_or_of_the_options(mailbox: Mailbox) -> None:
    with serving(echo, drain_timeout=20) as one, serving(echo, drain_timeout=30) as other:
        assert exchange(one, b"x") == b"x"
        program = supervised(mailbox, one, other)
        assert program.start_seconds() is None
        assert program.stop_seconds() == 30
        assert supervised(mailbox, one, other, drain_timeout=5).stop_seconds() == 5
        one.request_stop(40, 1, delay=2)
        assert program.phase() == "stopping"
        assert program.stop_seconds() == 43
        with netkit.connect(other.address.port, "127.0.0.1") as conn:
            conn.write("x")
            assert conn.read(1) == b"x"
            with in_thread(other.stop, 100, 20):
                wait_until(lambda: program.stop_seconds() > 100)
                conn.end()


def test_hooks_have_their_own_time(mailbox: Mailbox) -> None:
    server = netkit.create_server(echo, drain_timeout=20, stop_delay=1)
    hooks = Hooks(print, print, start_seconds=3, stop_seconds=4)
    program = SupervisedGroup(Group([server], mailbox), hooks)
    assert (program.start_seconds(), program.stop_seconds()) == (3, 24)
    program.stops_early = True
    assert (program.phase(), program.stop_seconds()) == ("stopping", 45)


def test_the_thread_that_supervises_can_be_woken(mailbox: Mailbox) -> None:
    supervised(mailbox, netkit.create_server(echo)).wake()
    assert mailbox.wait() == [Request.LOOK]


def test_workers_are_counted_that_serve_and_all_of_them_are_asked(mailbox: Mailbox) -> None:
    def worker(ready: bool, leaving: bool = False, hook_seconds: float = 0.0) -> Any:
        loaded = SimpleNamespace(hook_seconds=hook_seconds) if ready else None
        asked: list[float] = []
        return SimpleNamespace(
            ready=ready,
            leaving=leaving,
            connections=3,
            loaded=loaded,
            asked=asked,
            ask=asked.append,
        )

    workers = [
        worker(True),
        worker(True, hook_seconds=5),
        worker(True, leaving=True),
        worker(False),
    ]
    crew: Any = SimpleNamespace(workers=workers, stopping=False, count=2)
    program = SupervisedCrew(crew, mailbox, lambda: "ready", lambda: 10.0)
    assert (program.workers(), program.connected()) == (2, 12)
    crew.count = 1  # in a reload, the old ones and the new ones serve
    assert program.workers() == 1
    crew.count, crew.stopping = 4, True
    assert program.workers() == 3
    assert program.stop_seconds() == 15
    assert program.start_seconds() == READY_SECONDS
    program.ask(7)
    assert [each.asked for each in workers] == [[7]] * 4
    assert program.has_answered()
    program.wake()
    assert mailbox.wait() == [Request.LOOK]


def test_a_program_without_an_attachment_tells_nobody(mailbox: Mailbox) -> None:
    program = supervised(mailbox, netkit.create_server(echo))
    with notices_of(None, program) as notices:
        notices.step()
        notices.stopped("all")
        assert notices.due().remaining() is None
    assert isinstance(notices, NoNotices)
