"""An action in a thread of its own."""

from __future__ import annotations

import threading

import pytest
from support import PATIENCE, observed, silent_log

from netkit.core import events
from netkit.process.errand import Errand


def test_an_action_that_is_asked_for_meanwhile_is_done_once_more() -> None:
    began, may_end, done = threading.Semaphore(0), threading.Semaphore(0), []

    def act() -> None:
        began.release()
        may_end.acquire()
        done.append(threading.current_thread().name)

    errand = Errand("test", act, None)
    errand.join(PATIENCE)
    errand.ask()
    began.acquire()
    for _ in range(3):
        errand.ask()
    may_end.release(2)
    errand.join(PATIENCE)
    assert done == ["netkit-test"] * 2


def test_what_an_action_raises_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise SystemExit("no")

    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    errand = Errand("test", fail, None)
    with silent_log(), observed(events.HookFailed) as seen:
        errand.ask()
        errand.join(PATIENCE)
        monkeypatch.setattr(threading.Thread, "start", no_thread)
        errand.ask()  # in this thread
    assert [(each.hook, str(each.error)) for each in seen] == [("test", "no")] * 2
