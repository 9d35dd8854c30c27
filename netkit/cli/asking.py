"""Asks a running server through its control socket, for ``netkit ctl`` and ``netkit top``.

A request is one line, and the answer is lines of UTF-8 up to the end of input. Docs/operations.md
has the commands.
"""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..client.connect import connect
from ..core.addresses import format_unix
from ..core.endpoint import Endpoint
from ..core.errors import Failure, PeerError
from ..core.options import Options
from ..core.text import MOST_TEXT, cut, said
from ..net.explain import in_seconds
from ..net.files import OutputError
from .arguments import complain

VARIABLE = "NETKIT_CONTROL"  # the path, if the command line has none

# The longest time in which a server answers: it waits 1 s for each worker, at the same time.
PATIENCE = 10.0  # seconds

_LONGEST_LINE = 16 * 1024 * 1024  # bytes; the stack of a client is one line of JSON

# The answers to these commands have no line if there is no client. Then an answer to ``help`` shows
# whether a server is there at all.
_OF_CLIENTS = ("conns", "stacks")

Row = Mapping[str, Any]


def exit_status(command: Callable[[], int]) -> int:
    """Return ``command()``, or the exit status of its failure, which is one line.

    A Ctrl+C, and a standard output that nobody reads any more, end the command without a line.
    """
    try:
        return command()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (OSError, Failure) as error:
        if isinstance(error, OutputError) and error.errno == errno.EPIPE:
            return 128 + signal.SIGPIPE
        complain(str(error))
        return 1


def split(words: list[str]) -> tuple[str, list[str]]:
    """Return the path in `words` or in the environment, and the other words. ValueError.

    If the environment has a path, the first word is a path only if it has a ``/``, or begins with
    ``unix:`` or ``@``.
    """
    path = os.environ.get(VARIABLE)
    if words and (not path or "/" in words[0] or words[0].startswith(("unix:", "@"))):
        return words[0], words[1:]
    if not path:
        raise ValueError(f"the path of a control socket is needed, here or in {VARIABLE}")
    return path, words


class ControlClient:
    """The control socket of a server, which need not be running yet.

    Each request is a connection of its own. A request fails with `Failure`, whose message is one
    line. The methods may be called in any thread.
    """

    def __init__(self, text: str, patience: float | None = PATIENCE) -> None:
        """`text` has the form of ``--control``. `patience` is the longest silence in seconds.

        ValueError if `text` is no path.
        """
        is_complete = text.startswith(("unix:", "@"))
        self._path = str(Endpoint.parse(text if is_complete else f"unix:{text}").path)
        self._patience = patience
        self.name = format_unix(self._path).removeprefix("unix:")

    def lines(self, request: str) -> Iterator[str]:
        """Yield each line of the answer, without its end, as soon as it comes.

        Failure if there is no line, unless the answer is about events, or about no client.
        """
        line = None
        for line in self._lines(request):
            yield line
        command = request.removeprefix("json ").strip().partition(" ")[0]
        if line is not None or command == "events":
            return
        if command not in _OF_CLIENTS:
            raise Failure(f"the server of {self.name} has closed the connection without an answer")
        next(self.lines("help"))

    def _lines(self, request: str) -> Iterator[str]:
        limits: dict[str, Any] = {"read_timeout": self._patience, "max_line": _LONGEST_LINE}
        try:
            with connect(path=self._path, connect_timeout=PATIENCE, **limits) as conn:
                conn.end(request + "\n")
                yield from conn.lines()
        except (OSError, PeerError) as error:
            raise Failure(self._explain(error)) from None

    def rows(self, request: str) -> Iterator[Row]:
        """Yield each object of the answer to a request for JSON. Errors are rows, too."""
        return map(self.row, self.lines(f"json {request}"))

    def row(self, line: str) -> Row:
        """Return the object in a line of an answer. Failure if it has none."""
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            text = cut(line, MOST_TEXT)
            raise Failure(f"{self.name} is no control socket of netkit: it answers {text!r}")
        return row

    def _explain(self, error: OSError | PeerError) -> str:
        if isinstance(error, TimeoutError):
            within = in_seconds(self._patience or PATIENCE)
            return f"the server of {self.name} has not answered within {within}"
        if not isinstance(error, OSError):
            return f"{self.name} is no control socket of netkit: {said(error)}"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return f"there is no {self.name}: a server makes it with --control {self.name}"
        if error.errno == errno.ECONNREFUSED and not _is_socket(self._path):
            return f"{self.name} is not a socket"
        if error.errno == errno.ECONNREFUSED:
            return f"no server listens on {self.name}"
        if error.errno == errno.EACCES:
            return f"no permission to use {self.name}: run this as the user of the server"
        return f"{self.name}: {said(error)}"


def _is_socket(path: str) -> bool:
    return path.startswith("\0") or Path(path).is_socket()


def time_of(text: str) -> float | None:
    """Convert a time such as ``30``, ``500ms`` or ``off`` to seconds. ValueError."""
    seconds: float | None = Options.rows["idle_timeout"].parse(text)
    return seconds
