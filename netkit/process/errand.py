"""An action of a program that serves, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..core import events
from ..server.server import Server


class Errand:
    """Does the same action in a thread whenever it is asked for, one at a time. Thread-safe.

    A file may not open (a FIFO without a writer, a file server that is down), the `reopen` of a
    handler's setting may block, and so may the log. The thread that obeys requests must not wait.
    """

    def __init__(self, name: str, action: Callable[[], object], server: Server | None) -> None:
        """What `action` raises is an event, of `server` if any: `HookFailed` with `name`."""
        self._name = name
        self._action = action
        self._server = server
        self._lock = threading.Lock()  # guards what follows
        self._asked = False  # since the present action began
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """Begin the action: now, or as soon as the present one has ended."""
        with self._lock:
            self._asked = True
            if self._thread is not None:
                return
            name = f"netkit-{self._name}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system gives no thread
            self._run()

    def join(self, seconds: float) -> None:
        """Wait for the end of the present action, for at most `seconds`."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _run(self) -> None:
        while self._is_next():
            try:
                self._action()
            except BaseException as error:
                events.emit(events.HookFailed(self._name, error), self._server)

    def _is_next(self) -> bool:
        with self._lock:
            if not self._asked:
                self._thread = None
            asked, self._asked = self._asked, False
            return asked
