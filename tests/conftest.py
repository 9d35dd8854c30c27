"""Every test must leave the process as it found it: no thread, descriptor or child more."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator

import pytest

SETTLING = 5.0  # seconds that what a test has stopped gets to be gone

_FD_FOLDER = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"


def _descriptors() -> set[str]:
    found = set()
    for name in os.listdir(_FD_FOLDER):
        try:
            found.add(f"{name} -> {os.readlink(f'{_FD_FOLDER}/{name}')}")
        except OSError:  # the listing's own descriptor
            continue
    return found


def _children() -> list[int]:
    try:
        return [os.waitpid(-1, os.WNOHANG)[0]]
    except ChildProcessError:
        return []


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
        gc.collect()  # only now: it takes longer than most tests
        time.sleep(0.005)
    pytest.fail(f"left behind: {more_threads or ''} {more_descriptors or ''} {children or ''}")
