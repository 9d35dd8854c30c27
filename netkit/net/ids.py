"""The identifiers of connections, which are unique in a server, also among its worker processes."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable

from ..core.cores import has_gil
from .forks import renew_in_children

_next = itertools.count(1).__next__
# Held while an identifier is made: without the GIL, two threads could be given the same one.
# Re-entrant, for signal handlers.
_lock = threading.RLock()
renew_in_children(sys.modules[__name__], "_lock")


def _next_locked() -> int:  # pragma: no cover - free-threaded builds only
    with _lock:
        return _next()


take: Callable[[], int] = _next if has_gil() else _next_locked
"""Returns a new identifier. Thread-safe. Call it as ``ids.take()``: `number_by` replaces it."""


def number_by(source: Callable[[], int]) -> None:
    """Have `source` make all further identifiers of this process. For worker processes."""
    global take
    take = source
