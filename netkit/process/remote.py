"""A program with workers, as the endpoints in the front process see it.

The front process asks the workers, and keeps the counters of those that have ended. Rules:

1. A worker that has not answered at the deadline is not waited for. Its answer has an error, and
   what it sends later is dropped.
2. The counters of a worker are in its answers until the step that adds them to those of the ended
   workers. So no sum of counters falls, and none has a worker twice.
3. Before a counter is shown it is saved, for the next front process.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..core.cores import check_workers
from ..core.deadline import Deadline
from .channel import Channel, State, Tell
from .local import stop_order
from .memory import Memory
from .program import MAX_ORDER, NONE, SECONDS, Answer, ProgramState
from .questions import METRICS, packed, receive

_MAX_UNSENT = 1 << 20  # bytes of questions that a worker has not read
_CHANGED = ("ready", "suspended")  # the phases that operators change
_ENDED = "the worker has ended"
SUSPEND = "suspend"  # the key of the order by which all workers accept no clients, or do again

Counters = dict[str, float]


class Pending:
    """A question that a worker has been asked. One thread waits for its answer."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._value: Any = None
        self._error = ""

    def finish(self, value: Any, error: str) -> None:
        """Note the answer, unless there is one already."""
        if not self._done.is_set():
            self._value, self._error = value, error
            self._done.set()

    def wait(self, seconds: float, deadline: Deadline) -> tuple[Any, str]:
        """Return the value and the error. `seconds` are those from the question to `deadline`."""
        if self._done.wait(deadline.remaining()):
            return self._value, self._error
        return None, f"no answer within {seconds:g} s"


class Peer:
    """A worker, as the front process sees it. Thread-safe."""

    def __init__(
        self, number: int, pid: int, sock: socket.socket, when_ended: Callable[[Peer], object]
    ) -> None:
        """`when_ended` is called once, in a thread of the peer, when no more answers come."""
        self.number, self.pid = number, pid
        self.known: Counters = {}
        """The counters that the worker has sent last. The lock of `RemoteProgram` guards them."""
        self._socket = sock
        self._when_ended = when_ended
        self._lock = threading.Lock()  # guards what follows, and is held for a send, which is short
        self._unsent = b""
        self._pending: dict[int, Pending] = {}
        self._has_ended = False
        self.final: Counters = {}
        """The counters that the worker has sent at its end."""

    def start(self) -> None:
        """Begin to receive answers."""
        name = f"netkit-worker-{self.pid}"
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def ask(self, number: int, question: dict[str, Any]) -> Pending:
        """Send a question, which has this number. Never waits."""
        pending = Pending()
        with self._lock:
            self._send_locked()  # what it has not read so far
            if self._has_ended:
                pending.finish(None, _ENDED)
            elif len(self._unsent) <= _MAX_UNSENT:  # else it has not read for long
                self._pending[number] = pending
                self._unsent += packed({"id": number, **question})
                self._send_locked()
        return pending

    def _send_locked(self) -> None:
        with contextlib.suppress(OSError):  # it is full, or the worker has ended
            while self._unsent:
                sent = self._socket.send(self._unsent, socket.MSG_DONTWAIT)
                self._unsent = self._unsent[sent:]

    def forget(self, number: int) -> None:
        """Drop the answer to a question, which comes too late."""
        with self._lock:
            self._pending.pop(number, None)

    def _run(self) -> None:
        with contextlib.suppress(EOFError, OSError, ValueError):
            while True:
                self._take(receive(self._socket))
        with self._lock:
            self._has_ended = True
            pending, self._pending = self._pending, {}
            self._socket.close()
        for each in pending.values():
            each.finish(None, _ENDED)
        self._when_ended(self)

    def _take(self, message: dict[str, Any]) -> None:
        if "final" in message:
            self.final = numbers_in(message["final"], "counters")
            return
        with self._lock:
            pending = self._pending.pop(message.get("id", 0), None)
        if pending is not None:
            pending.finish(message.get("value"), str(message.get("error", "")))


def numbers_in(value: Any, kind: str) -> Counters:
    """Return the ``"counters"`` or the ``"gauges"``, as `kind` says, of an answer to ``"metrics"``.

    A worker may send anything.
    """
    found = value.get(kind) if isinstance(value, dict) else None
    if not isinstance(found, dict):
        return {}
    return {name: number for name, number in found.items() if _is_finite(number)}


def _is_finite(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


class RemoteProgram:
    """The program of a parent and its workers, in the front process. Thread-safe."""

    def __init__(self, channel: Channel, memory: Memory, facts: ProgramState) -> None:
        """`facts` has those fields of the state that never change."""
        self._channel = channel
        self._memory = memory
        self._facts = facts
        self._numbers = itertools.count(1)
        self._sending = threading.Lock()  # held for the whole of a message to the parent
        # Guards what follows, and the memory.
        self._lock = threading.Lock()
        self._state = State("starting", 0, 0, 0, 0)
        self._peers: dict[int, Peer] = {}
        saved: Any = memory.load() or {"retired": {}, "known": {}}
        self._retired: Counters = saved["retired"]
        self._known: dict[str, Counters] = saved["known"]  # by `Peer.number`, as text

    # What the parent says

    def update(self, state: State) -> None:
        with self._lock:
            self._state = state

    def meet(self, number: int, pid: int, sock: socket.socket) -> None:
        """Ask this worker, too, from now on."""
        peer = Peer(number, pid, sock, self._lost)
        with self._lock:
            peer.known = self._known.get(str(number), {})
            self._peers[number] = peer
        peer.start()

    def has_met_all(self) -> None:
        """Count workers that have ended while there was no front process."""
        with self._lock:
            for gone in set(self._known) - set(map(str, self._peers)):
                self._retire_locked(self._known.pop(gone))
            self._save_locked()

    def _lost(self, peer: Peer) -> None:
        with self._lock:
            del self._peers[peer.number]
            self._known.pop(str(peer.number), None)
            self._retire_locked(_larger(peer.known, peer.final))
            self._save_locked()

    def _retire_locked(self, counters: Counters) -> None:
        retired = self._retired
        sums = {name: retired.get(name, 0) + count for name, count in counters.items()}
        self._retired = {**retired, **sums}

    def _save_locked(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a counter may fall then, later
            self._memory.save({"retired": self._retired, "known": self._known})

    # What operators ask

    def state(self) -> ProgramState:
        with self._lock:
            state, retired = self._state, self._retired
        return self._facts._replace(
            phase=state.phase,
            workers=state.workers,
            restarts=state.restarts,
            reloads={"ok": state.ok, "failed": state.failed},
            retired=dict(retired),
        )

    def ask(
        self,
        command: str,
        arguments: Mapping[str, Any] = NONE,
        pids: Collection[int] | None = None,
        seconds: float = SECONDS,
    ) -> list[Answer]:
        """As `Program.ask`. A worker that ends meanwhile has an error if it is one of `pids`."""
        deadline = Deadline(seconds)
        until = time.monotonic() + seconds
        question = {"command": command, "arguments": dict(arguments), "until": until}
        number = next(self._numbers)
        with self._lock:
            peers = [it for it in self._peers.values() if pids is None or it.pid in pids]
        asked = [(peer, peer.ask(number, question)) for peer in peers]
        found = [(peer, *pending.wait(seconds, deadline)) for peer, pending in asked]
        for peer in peers:
            peer.forget(number)
        if command == METRICS:
            return self._noted(found)
        answers = [Answer(peer.pid, value, error) for peer, value, error in found]
        return [it for it in answers if pids is not None or it.error != _ENDED]

    def _noted(self, found: list[tuple[Peer, Any, str]]) -> list[Answer]:
        """Return answers with counters that do not fall, and save these."""
        answers = []
        with self._lock:
            for peer, value, error in found:
                peer.known = _larger(peer.known, numbers_in(value, "counters"))
                if peer.number in self._peers:
                    self._known[str(peer.number)] = peer.known
                samples = {"counters": peer.known, "gauges": numbers_in(value, "gauges")}
                answers.append(Answer(peer.pid, samples, error))
            self._save_locked()
        return answers

    def order(self, command: str, /, **arguments: Any) -> None:
        check_order(command, arguments)
        text = json.dumps(arguments)
        if len(text) > MAX_ORDER:
            raise ValueError(f"{command}: the arguments are too long")
        self._expect(command, arguments)
        with self._sending, contextlib.suppress(OSError):  # the parent is gone
            self._channel.send(Tell(command, text))

    def _expect(self, command: str, arguments: dict[str, Any]) -> None:
        """Change the phase as the parent will: the operator may ask for it at once."""
        with self._lock:
            if command == "stop":
                self._state = self._state._replace(phase="stopping")
            elif arguments.get("key") == SUSPEND and self._state.phase in _CHANGED:
                phase = _CHANGED[suspends(arguments["command"])]
                self._state = self._state._replace(phase=phase)


def _larger(some: Counters, others: Counters) -> Counters:
    return {**some, **{name: max(it, some.get(name, 0)) for name, it in others.items()}}


def suspends(command: Any) -> bool:
    """Whether `command`, of a standing order with the key `SUSPEND`, suspends the workers.

    The other command with this key is ``"resume"``.
    """
    return bool(command == "suspend")


def check_order(command: str, arguments: dict[str, Any]) -> None:
    """ValueError unless `Program.order` may be called so."""
    if command == "stop":
        stop_order(**arguments)
    elif command == "resize":
        try:
            check_workers(arguments["count"])
        except TypeError as error:
            raise ValueError(str(error)) from None
    elif command not in ("reload", "release", "standing"):
        raise ValueError(f"unknown order: {command}")
