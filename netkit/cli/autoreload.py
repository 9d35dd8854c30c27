"""``--reload``: new workers as soon as a file of the program has changed. For development.

Rules:

1. Only a worker knows which files it has loaded. So a worker watches them, in a thread of its own:
   one worker at a time, which holds a lock. It sends SIGHUP to the parent, which starts new workers
   first, and keeps the old ones if the new code does not load. It writes each report into the file
   of the lock, so that an old worker that is about to be replaced does not report it once more.
2. The files are looked at once a second, or as soon as something has changed, if the package
   watchfiles is installed. Only the times and sizes of files are compared.
3. What is watched are the loaded modules, but not those of Python, of installed packages or of
   netkit; all modules beside them, since one of these may be imported next; and, if a folder is
   named, all modules below it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import signal
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from ..core.text import printable
from ..process.application import Application
from ..process.channel import Stop
from ..process.supervisor import Workers
from ..server import log
from ..server.life import State
from ..server.server import Server

INTERVAL = 1.0  # seconds between two looks at the files
PATIENCE = 1.0  # seconds that the clients of former workers have
_NOT_OURS = ("__pycache__", "node_modules", "site-packages", "dist-packages")

Files = dict[str, str | None]  # the time and the size of each file, by its path; None: it is gone


def announce(below: str) -> None:
    """Log what is watched, and that this is for development."""
    where = f", and those in {printable(below)}" if below else ""
    log.logger.warning("--reload is for development: it watches the loaded modules%s", where)


def new_lock() -> str:
    """Make a file for the lock of the workers, which is removed at the end of this process."""
    descriptor, path = tempfile.mkstemp(prefix="netkit-reload-")
    os.close(descriptor)

    def remove(process: int = os.getpid()) -> None:
        if os.getpid() == process:  # pragma: no branch - else it is a child that calls `atexit`
            with contextlib.suppress(OSError):
                os.unlink(path)

    atexit.register(remove)
    return path


class ReloadedWorkers(Workers):
    """Workers whose clients do not delay new code."""

    def _leave(self) -> Stop:
        return Stop(PATIENCE)


class Watch:
    """Watches the files of a worker. Make it before the worker loads the program.

    `below` is a folder, or empty. `lock` is a file of `new_lock`. `wait` returns when it is time to
    look at the files; it gets the folders in which they are. `report` is called when files have
    changed; by default it sends SIGHUP to the parent of this process.
    """

    def __init__(
        self,
        below: str,
        lock: str,
        wait: Callable[[Sequence[str]], object] | None = None,
        report: Callable[[], object] | None = None,
    ) -> None:
        self._below = below
        self._lock = lock
        self._wait = wait or waiting()
        parent = os.getppid()
        self._report = report or (lambda: _ask_for_reload(parent))
        self._libraries = _libraries()
        # Python takes compiled code for current if the source has the same second and size.
        sys.dont_write_bytecode = True
        self._seen = self._look()

    def watching(self, application: Application) -> Application:
        """Return `application`, which has been loaded, so that it begins to watch once it serves.

        The watch, a daemon thread, ends when the server begins to stop.
        """
        self._seen = {**self._look(), **self._seen}  # a file may have changed since it was read

        def complete(base: Server) -> Server:
            server = application.complete(base)

            def is_wanted() -> bool:
                return server._life.state in (State.NEW, State.LISTENING)

            threading.Thread(None, self.run, "netkit-watch", (is_wanted,), daemon=True).start()
            return server

        return application._replace(complete=complete)

    def run(self, is_wanted: Callable[[], bool]) -> None:
        """Watch, in this thread."""
        import fcntl  # which Windows has not

        with open(self._lock, "r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            reported: Files = json.loads(file.read() or "{}")
            while is_wanted():
                changed = self._changed(reported)
                if changed:
                    log.logger.info("%s has changed", printable(min(changed)))
                    reported.update(changed)
                    file.seek(0)
                    file.truncate()
                    file.write(json.dumps(reported))
                    file.flush()
                    self._report()
                self._wait(sorted({os.path.dirname(path) for path in self._seen}))

    def _changed(self, reported: Files) -> Files:
        """Return the files that have changed since the last call, and are not as in `reported`."""
        before, self._seen = self._seen, self._look()
        changed = {path: self._seen.get(path) for path, _ in before.items() ^ self._seen.items()}
        return {path: it for path, it in changed.items() if reported.get(path, "") != it}

    def _look(self) -> Files:
        found: Files = {}
        for path in self._paths():
            with contextlib.suppress(OSError):  # it is gone, or cannot be looked at
                status = os.stat(path)
                found[path] = f"{status.st_mtime_ns} {status.st_size}"
        return found

    def _paths(self) -> Iterator[str]:
        files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
        folders = {os.path.dirname(os.path.abspath(path)) for path in files if path}
        for each in folders:
            if not os.path.join(each, "").startswith(self._libraries):
                yield from _modules_in(each)
        if self._below:
            for each, inner, _ in os.walk(self._below):
                inner[:] = [it for it in inner if not it.startswith(".") and it not in _NOT_OURS]
                yield from _modules_in(each)


def _modules_in(folder: str) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name.endswith(".py") and not name.startswith("."):
                yield os.path.join(folder, name)


def _libraries() -> tuple[str, ...]:
    """Return the folders of modules that are not the user's, each with a slash at its end."""
    netkit = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return tuple(os.path.join(path, "") for path in (netkit, *paths))


def _ask_for_reload(parent: int) -> None:
    if os.getppid() == parent:  # else it has ended, and this process is about to
        os.kill(parent, signal.SIGHUP)


def waiting() -> Callable[[Sequence[str]], object]:
    """Return how a watch waits: until something changes, if watchfiles is installed."""
    try:
        from watchfiles import watch
    except ImportError:
        return lambda _: time.sleep(INTERVAL)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # netkit logs what has changed

    def wait(folders: Sequence[str]) -> None:
        there = [each for each in folders if os.path.isdir(each)]
        milliseconds = int(INTERVAL * 1000)
        events = watch(
            *there,
            rust_timeout=milliseconds,
            yield_on_timeout=True,
            raise_interrupt=False,
            recursive=False,
        )
        next(events, None)
        events.close()

    return wait
