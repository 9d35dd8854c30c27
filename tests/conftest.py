"""Every test must end all threads and children, and close all descriptors, that it has made.

The tests with the marker `fuzz` feed generated input to one parser each. They are quick by default.
This command runs them for long:

    python -m pytest tests -m fuzz --hypothesis-profile=fuzz -o faulthandler_timeout=0
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import reduction
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from netkit.net import outbox, service_manager

SETTLING = 5.0  # seconds that threads and children have to end after their test

_FD_FOLDER = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"

# The programs that tests start write their stacks to standard error if a signal aborts them.
os.environ["PYTHONFAULTHANDLER"] = "1"

# A shell without job control starts programs in the background with SIGINT and SIGQUIT ignored, and
# nohup ignores SIGHUP. The programs that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A single example has no deadline, since the machine may be busy. The whole test has its timeout.
settings.register_profile("netkit", parent=settings.default, deadline=None)
settings.load_profile("netkit")
settings.register_profile(
    "fuzz",
    max_examples=20_000,
    deadline=None,
    derandomize=False,
    suppress_health_check=[HealthCheck.too_slow],
)


def pytest_configure(config: pytest.Config) -> None:
    # Before Python 3.13, a reset during `wrap_socket` leaves its socket to the garbage collector.
    # Each test checks that no descriptor is left.
    if sys.version_info < (3, 13):
        line = "ignore:unclosed <ssl.SSLSocket:ResourceWarning"
        config.addinivalue_line("filterwarnings", line)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests have no time limit with the profile that runs for long."""
    if config.getoption("hypothesis_profile", None) == "fuzz":
        for item in items:
            item.add_marker(pytest.mark.timeout(0))


def _descriptors() -> set[str]:
    found = set()
    for name in os.listdir(_FD_FOLDER):
        try:
            found.add(f"{name} -> {os.readlink(f'{_FD_FOLDER}/{name}')}")
        except OSError:  # the descriptor of the listing
            continue
    return found


def _children() -> list[int]:
    try:
        return [os.waitpid(-1, os.WNOHANG)[0]]
    except ChildProcessError:
        return []


@pytest.fixture(autouse=True)
def traced_outboxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a tool for coverage trace the threads of outboxes, which `threading` does not start."""
    trace = threading.gettrace()
    if trace is not None:
        start = outbox._start

        def start_traced(function: Callable[..., object], *arguments: Any) -> None:
            def run() -> None:
                sys.settrace(trace)
                function(*arguments)

            start(run)

        monkeypatch.setattr(outbox, "_start", start_traced)


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    threads = set(threading.enumerate())
    descriptors = _descriptors()
    yield
    deadline = time.monotonic() + SETTLING
    while True:
        more_threads = set(threading.enumerate()) - threads
        more_descriptors = _descriptors() - descriptors
        children = _children()
        if not (more_threads or more_descriptors or children):
            return
        if time.monotonic() > deadline:
            break
        gc.collect()  # not before, since it takes longer than most tests
        time.sleep(0.005)
    pytest.fail(f"left behind: {more_threads or ''} {more_descriptors or ''} {children or ''}")


@pytest.fixture(autouse=True)
def unsupervised(nothing_leaks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test is passed, as by systemd, is not passed to later tests."""
    monkeypatch.setattr(service_manager, "_passed", service_manager.ServiceManager())


class _Duplicate:
    """As `reduction.DupFd`, which works only while a process is being started."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = os.dup(descriptor)

    def detach(self) -> int:
        return self._descriptor


@pytest.fixture
def sending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickling duplicates descriptors, as while a process is being started."""
    monkeypatch.setattr(reduction, "DupFd", _Duplicate)


@pytest.fixture
def long_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A close that waits for its peer without need makes the test time out."""
    monkeypatch.setattr("netkit.net.connection.Connection.linger_seconds", 1000.0)


@pytest.fixture
def no_signal_ends_the_run() -> Iterator[None]:
    """For a test that sends signals to its own process: a signal without a handler fails it."""
    stray: list[int] = []
    before = {
        signum: signal.signal(signum, lambda number, _: stray.append(number))
        for signum in (signal.SIGINT, signal.SIGTERM)
    }
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
    assert stray == [], "these signals had no handler"
