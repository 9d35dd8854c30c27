"""A program of one process as its endpoints see it, while `run` serves."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support import in_thread, observed, serving, silent_log, wait_until

import netkit
from netkit.core import events
from netkit.process.local import LocalProgram
from netkit.process.program import Answer
from netkit.process.service import supervise
from netkit.process.signals import StopSignals

from .attachments import Noting

ME = os.getpid()


def supervised(attachment: Noting, act: Callable[[], object], **options: Any) -> netkit.Server:
    """A server that is supervised in this thread, while `act` runs in another one."""
    server = netkit.create_server(netkit.EchoHandler, **options).listen(0, "127.0.0.1")
    with in_thread(act), StopSignals() as signals:
        supervise([server], signals, attachment=attachment)
    return server


def program_of(attachment: Noting) -> Any:
    wait_until(
        lambda: attachment.program is not None and attachment.program.state().phase == "ready"
    )
    return attachment.program


def test_the_endpoints_see_the_program_and_give_it_orders() -> None:
    attachment = Noting()
    seen: list[Any] = []

    def act() -> None:
        program = program_of(attachment)
        seen.append(program.state())
        assert program.ask("hello", {"a": 1}) == [Answer(ME, {"a": 1})]
        assert program.ask("hello", pids=[ME]) == [Answer(ME, {})]
        assert program.ask("hello", pids=[1]) == []
        assert program.ask("wrong") == [Answer(ME, None, "a wrong question")]
        assert program.ask("fault") == [Answer(ME, None, "KeyError: 'fault'")]
        program.order("standing", command="suspend", arguments={}, key="suspend")
        with observed(events.ReloadEnded) as ended:
            program.order("reload")
            wait_until(lambda: ended)
        seen.append(program.state())
        for wrong in ({"timeout": -1}, {"patience": "x"}, {"delay": None}):
            with pytest.raises(ValueError, match="must be|None"):
                program.order("stop", **wrong)
        with pytest.raises(ValueError, match="serves in one process; start it with --workers N"):
            program.order("resize", count=2)
        with pytest.raises(ValueError, match="unknown: the program serves in one process"):
            program.order("unknown")
        program.order("stop", timeout=0)

    with silent_log():
        server = supervised(attachment, act)
    first, second = seen
    assert (first.phase, first.pid, first.workers, first.retired) == ("ready", ME, 0, {})
    assert len(first.addresses) == 1
    assert (first.reloads, second.reloads) == ({"ok": 0, "failed": 0}, {"ok": 1, "failed": 0})
    assert attachment.calls == ["attach", "serve", "hello", "hello", "reopen", "closed", "detach"]
    assert not server.listening


def test_a_reopened_file_is_something_to_reload() -> None:
    attachment = Noting()
    attachment.files = True

    def act() -> None:
        with observed(events.ReloadEnded, events.NothingToReload) as seen:
            program_of(attachment).order("reload")
            wait_until(lambda: seen)
        assert seen == [events.ReloadEnded("")]
        os.kill(ME, signal.SIGTERM)

    supervised(attachment, act)


def test_without_endpoints_it_is_attached_for_a_report_only() -> None:
    attachment = Noting(attaches=False, has_endpoints=False)

    def act() -> None:
        with observed(events.Ready) as seen:
            wait_until(lambda: seen)
        assert attachment.calls == []
        os.kill(ME, signal.SIGUSR1)
        wait_until(lambda: attachment.calls == ["report ready"])
        os.kill(ME, signal.SIGTERM)

    supervised(attachment, act)
    assert attachment.calls == ["report ready"]


def test_a_signal_for_a_report_does_nothing_without_an_attachment() -> None:
    server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1")

    def act() -> None:
        wait_until(lambda: server._accept_loop.under_way)
        os.kill(ME, signal.SIGUSR1)
        os.kill(ME, signal.SIGTERM)

    with in_thread(act), StopSignals() as signals:
        assert supervise([server], signals) == (0, 0, False)


def test_the_phase_is_that_of_all_servers() -> None:
    attachment = Noting()
    idle = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1")
    with serving(netkit.EchoHandler) as server, idle:
        idle.shutdown()
        program = LocalProgram([server], attachment, lambda: None, {})
        both = LocalProgram([server, netkit.create_server()], attachment, lambda: None, {})
        assert (program.state().phase, both.state().phase) == ("ready", "starting")
        server.suspend()
        assert program.state().phase == "suspended"
        server.resume()
        server.request_stop(delay=60)
        assert program.state().phase == "stopping"
    assert program.state().phase == "stopping"
    program.detach()  # it was never attached
    assert attachment.calls == []


def test_several_threads_that_ask_attach_once() -> None:
    attachment = Noting()
    program = LocalProgram([netkit.create_server()], attachment, lambda: None, {})
    threads = [threading.Thread(target=program.ask, args=("metrics",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    program.detach()
    program.detach()
    assert attachment.calls == ["attach", "detach"]


def test_a_question_after_the_end_does_not_attach_again() -> None:
    attachment = Noting()
    program = LocalProgram([netkit.create_server()], attachment, lambda: None, {})
    program.ask("hello")
    program.detach()
    assert program.ask("hello") == [Answer(ME, None, "the program has ended")]
    assert attachment.calls == ["attach", "hello", "detach"]


def test_what_has_been_attached_before_a_failure_is_detached() -> None:
    class Failing(Noting):
        def attach(self, servers: Any) -> Any:
            super().attach(servers)
            raise OSError("no thread")

    attachment = Failing()
    program = LocalProgram([netkit.create_server()], attachment, lambda: None, {})
    with pytest.raises(OSError, match="no thread"):
        program.attach()
    program.detach()
    assert attachment.calls == ["attach", "detach"]
