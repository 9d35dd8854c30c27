"""`run` and `serve`: what they take, and whom they have serve. (How they end: test_signals.)"""

from __future__ import annotations

import signal
from typing import Any

import pytest
from support import in_thread, observed, wait_until

import netkit
from netkit import events, options, workers


class Recorder:
    """In the place of `Workers`."""

    calls: list[Any] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self, server: netkit.Server, count: int | str) -> None:
        self.calls.append((server, count))

    def run(self, drain_timeout: float | None) -> netkit.RunReport:
        self.calls.append(drain_timeout)
        return netkit.RunReport(1, 2, False)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setattr(Recorder, "calls", [])
    monkeypatch.setattr(workers, "Workers", Recorder)
    return Recorder


def test_several_workers_serve_if_they_are_asked_for(recorder: type[Recorder]) -> None:
    with netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1") as server:
        assert netkit.run(server, 5, workers=3) == (1, 2, False)
    assert recorder.calls == [(server, 3), 5]


def test_serve_hands_on_how_many(recorder: type[Recorder]) -> None:
    netkit.serve(netkit.EchoHandler, 0, "127.0.0.1", workers=2, drain_timeout=7)
    (server, count), drain_timeout = recorder.calls
    assert (count, drain_timeout) == (2, None)
    assert server._options.drain_timeout == 7
    server.close()


@pytest.mark.parametrize("count", [1, "auto"])
def test_one_worker_is_this_process(
    count: int | str, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options.sys, "_is_gil_enabled", lambda: False, raising=False)

    before = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        wait_until(lambda: seen and signal.getsignal(signal.SIGINT) is not before)
        signal.raise_signal(signal.SIGINT)

    with observed(events.Listening) as seen, in_thread(interrupt):
        report = netkit.serve(netkit.EchoHandler, host="127.0.0.1", workers=count)
    assert report == (0, 0, False)
    assert recorder.calls == []


def test_a_port_is_not_bound_for_a_number_of_workers_that_cannot_be() -> None:
    with observed(events.Listening) as seen, pytest.raises(ValueError, match="workers must be"):
        netkit.serve(netkit.EchoHandler, workers=0)
    assert seen == []
