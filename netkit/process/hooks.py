"""The hooks of a program around the time in which a process serves: `on_start` and `on_stop`.

Rules:

1. Both hooks are called in one thread of their own, so that what belongs to a thread (a connection
   to SQLite, a context variable) can be opened in one hook and closed in the other.
2. No client is accepted before `on_start` has returned. If `on_start` raises, `on_stop` is not
   called. Otherwise `on_stop` is called once the clients are gone, whatever has ended the server.
3. Each hook has a time limit. A thread cannot be interrupted, so a hook that is late is left
   behind, in a daemon thread.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ..core import events
from ..core.deadline import Deadline
from ..core.errors import Failure
from ..core.text import described
from ..server.adapting import check_result, problem_of_result, signature_of
from .signals import Mailbox, Request

Hook = Callable[..., object]

# Seconds. `on_start` may load a model; it has less time than the parent gives a worker to be ready
# (`worker.READY_SECONDS`), so that the error names the hook. `on_stop` comes on top of the time for
# the clients, and supervisors lose patience (docker stop: 10 seconds).
START_SECONDS = 240.0
STOP_SECONDS = 5.0


class Hooks:
    """The hooks of one program. Can be pickled if the hooks can."""

    def __init__(
        self,
        on_start: Hook | None = None,
        on_stop: Hook | None = None,
        *,
        servers: int = 1,
        start_seconds: float = START_SECONDS,
        stop_seconds: float = STOP_SECONDS,
        as_failure: bool = False,
    ) -> None:
        """TypeError if a hook cannot be called with so many `servers`.

        With `as_failure`, what `on_start` raises is an event, and a `Failure` is raised instead.
        """
        for name, hook in (("on_start", on_start), ("on_stop", on_stop)):
            if hook is not None:
                _check(name, hook, servers)
        self.on_start, self.on_stop = on_start, on_stop
        self.start_seconds, self.stop_seconds = start_seconds, stop_seconds
        self.as_failure = as_failure

    def __bool__(self) -> bool:
        """Whether there is a hook."""
        return self.on_start is not None or self.on_stop is not None

    def reporting(self) -> Hooks:
        """Return a copy with `as_failure`, for a process whose user sees the log and one line."""
        made = copy.copy(self)
        made.as_failure = True
        return made


def _check(name: str, hook: Any, servers: int) -> None:
    if not callable(hook):
        raise TypeError(f"{name} must be a function that takes the server, not {hook!r}")
    problem = problem_of_result(hook)
    if problem:
        raise TypeError(f"{name} must be a plain function: {problem.partition(';')[0]}")
    signature = signature_of(hook)
    try:
        if signature is not None:
            signature.bind(*[None] * servers)
    except TypeError as error:
        called = f"{name}({', '.join(['server'] * servers)})"
        raise TypeError(f"{name} is called as {called}: {error}") from None


class Lifespan:
    """Calls the hooks around the time in which this process serves.

    For one thread, which takes the requests of `mailbox`.
    """

    def __init__(
        self,
        hooks: Hooks,
        servers: Sequence[Any],
        mailbox: Mailbox,
        when_stopping: Callable[[], object] = lambda: None,
    ) -> None:
        """The hooks are called with `servers`. Events about the hooks name the first of them.

        `when_stopping` is called once a stop is requested before `on_start` has returned.
        """
        self._hooks, self._servers, self._mailbox = hooks, servers, mailbox
        self._when_stopping = when_stopping
        self._failure: BaseException | None = None
        self._started, self._stopping, self._ended = (threading.Event() for _ in range(3))
        self._thread = threading.Thread(target=self._run, name="netkit-hooks", daemon=True)
        self._has_begun = False
        self._stop_limit: Deadline | None = None
        self.interrupted = False
        """Whether a Ctrl+C has ended the wait for a hook."""

    def start(self) -> bool:
        """Call `on_start`. False if a stop is requested and `on_start` does not return.

        Raises what `on_start` raises; TimeoutError if it is late; RuntimeError if the system gives
        no thread. After a request to stop, `on_start` has the `drain_timeout` of the server to
        return. The requests that come meanwhile are in the mailbox afterwards. Call `stop` in any
        case.
        """
        self._thread.start()
        requests, is_stopping = self._wait_for_start()
        if self._failure is not None:
            raise self._explained(self._failure)
        for request in requests:
            self._mailbox.post(request)
        self._has_begun = self._started.is_set()
        if not self._has_begun:
            self._report_late_start(is_stopping)
        return self._has_begun

    def _report_late_start(self, is_stopping: bool) -> None:
        if is_stopping:
            self._report("on_start", TimeoutError("on_start has not returned before the stop"))
            return
        late = _late("on_start", self._hooks.start_seconds)
        raise Failure(str(late)) if self._hooks.as_failure else late

    def _explained(self, error: BaseException) -> BaseException:
        if not (self._hooks.as_failure and isinstance(error, Exception)):
            return error
        self._report("on_start", error)
        return Failure(f"on_start failed: {described(error)}")

    def _wait_for_start(self) -> tuple[list[Request], bool]:
        """Return the requests, and whether a stop is among them."""
        limit, requests, is_stopping = Deadline(self._hooks.start_seconds), [], False
        while not (self._started.is_set() or limit.expired()):
            for request in self._mailbox.wait(limit.remaining()):
                requests.append(request)
                if request is Request.INTERRUPT and is_stopping:
                    self.interrupted, limit = True, Deadline(0)
                elif request in (Request.STOP, Request.INTERRUPT) and not is_stopping:
                    is_stopping = True
                    limit = limit.earlier(Deadline(self._servers[0]._options.drain_timeout))
                    self._when_stopping()
        return requests, is_stopping

    def stop(self) -> None:
        """Call `on_stop`, and wait for its end, or until it is late or a Ctrl+C comes. Idempotent.

        What `on_stop` raises is an event, and so is the fact that it is late. If `on_start` has not
        returned, nothing is waited for: `on_stop` is called if `on_start` returns after all.
        """
        self._stop_limit = limit = self._stop_limit or Deadline(self._hooks.stop_seconds)
        self._stopping.set()
        if not self._has_begun:
            return
        while not (self._ended.is_set() or self.interrupted or limit.expired()):
            self.interrupted = Request.INTERRUPT in self._mailbox.wait(limit.remaining())
        self._has_begun = False
        if not self._ended.is_set():
            self._report("on_stop", _late("on_stop", self._hooks.stop_seconds))

    def abandon(self) -> None:
        """Have `on_stop` called, unless it has been. Never waits. Idempotent."""
        self._stopping.set()

    # In the thread of the hooks

    def _run(self) -> None:
        stack = contextlib.ExitStack()
        try:
            self._call_on_start(stack)
        except BaseException as error:
            self._failure = error
            return
        finally:
            self._tell(self._started)
        self._stopping.wait()
        try:
            stack.close()
        except BaseException as error:
            self._report("on_stop", error)
        finally:
            self._tell(self._ended)

    def _call_on_start(self, stack: contextlib.ExitStack) -> None:
        """Call `on_start`, and have `stack` do what the end needs, the last step first."""
        if self._hooks.on_start is not None:
            result: Any = self._hooks.on_start(*self._servers)
            check_result(result, "on_start")
            is_manager = hasattr(result, "__enter__") and hasattr(result, "__exit__")
            if is_manager and result not in self._servers:
                stack.enter_context(result)
        if self._hooks.on_stop is not None:
            stack.callback(self._call_on_stop, self._hooks.on_stop)

    def _call_on_stop(self, on_stop: Hook) -> None:
        check_result(on_stop(*self._servers), "on_stop")

    def _tell(self, event: threading.Event) -> None:
        event.set()
        self._mailbox.post(Request.LOOK)

    def _report(self, hook: str, error: BaseException) -> None:
        events.emit(events.HookFailed(hook, error), self._servers[0])


def _late(name: str, seconds: float) -> TimeoutError:
    return TimeoutError(f"{name} has not returned after {seconds:g} seconds")
