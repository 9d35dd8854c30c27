"""What the tests of the log share."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import pytest
from support import logging_put_back

import netkit
from netkit.server import log_hooks


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., io.StringIO]]:
    """`configure_logging` with a stream of ours, undone in the end."""
    monkeypatch.setattr(log_hooks, "_episodes", log_hooks.Episodes())

    def configure(level: str = "debug", style: str = "text", terminal: bool = True) -> io.StringIO:
        stream = Terminal() if terminal else io.StringIO()
        netkit.configure_logging(level, style, stream)
        return stream

    with logging_put_back():
        yield configure
