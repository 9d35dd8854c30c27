"""The base class of all events, and the one place where events are emitted.

Servers and clients emit events, and observers subscribe to them. The log is one observer. Rules:

1. An observer runs in the thread in which the event happened (a client's thread, the accepting
   thread), so it should be quick. netkit holds no lock during the call, so an observer may stop the
   server or connect to it.
2. An exception of an observer harms neither netkit nor the other observers. The first exception of
   each observer becomes an event, `ObserverFailed`. Its later exceptions are dropped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from ..text import described, one_line

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform as _transform
else:  # an identity function: type checkers learn the parameters of the constructors from it

    def _transform(**_: Any) -> Callable[[Any], Any]:
        return lambda cls: cls


DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40  # the levels of `logging`


@_transform(frozen_default=True)
class Event:
    """Something that happened to a server or a client, as data that does not change.

    The annotations of a subclass are its fields, in the order of the constructor's arguments. Two
    events are equal if they are of the same class and their fields are equal.
    """

    level: ClassVar[int] = INFO
    """The level of the log record, a number of `logging`."""
    line: ClassVar[str] = ""
    """The text of the log record, with the fields in braces as for ``str.format``.

    An exception is shown as its class and its text. Some classes override `_text` instead.
    """
    with_traceback: ClassVar[bool] = False
    """Whether the log shows the traceback of the field `error`."""
    field_names: ClassVar[tuple[str, ...]] = ()
    """The names of the fields, in order."""
    server: ClassVar[Any] = None
    """The `netkit.Server` that emitted the event; None if no server did."""

    def __init_subclass__(cls) -> None:
        cls.field_names = tuple(cls.__annotations__)
        cls.__match_args__ = cls.field_names  # type: ignore[attr-defined,misc] # for ``match``

    def __init__(self, *values: Any, **named: Any) -> None:
        names, fields = self.field_names, self.__dict__
        for name, value in zip(names, values):  # noqa: B905 - fast, since it runs for each client
            fields[name] = value
        if not named and len(values) == len(names):
            return
        for name in names[len(values) :]:
            if name in named:
                fields[name] = named.pop(name)
            elif not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__}: the field {name} is missing")
        if named or len(values) > len(names):
            raise TypeError(f"{type(self).__name__} has only these fields: {', '.join(names)}")

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by their names, in order."""
        return {name: getattr(self, name) for name in self.field_names}

    def message(self) -> str:
        """Return the text of the log record: one line of printable characters."""
        return one_line(self._text())

    def _text(self) -> str:
        fields = {
            name: described(value) if isinstance(value, BaseException) else value
            for name, value in self.as_dict().items()
        }
        return self.line.format_map(fields) or repr(self)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an event cannot be changed: {name}")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash((type(self), *self.as_dict().values()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.as_dict().items())
        return f"{type(self).__name__}({fields})"

    def __reduce__(self) -> tuple[Any, ...]:  # without the server, which cannot be pickled
        return type(self), tuple(self.as_dict().values())


Observer = Callable[[Event], None]


class ObserverFailed(Event):
    """An observer of events raised. Emitted once for each observer, and not to that observer."""

    observer: str
    error: BaseException
    level = ERROR
    with_traceback = True
    line = "the observer {observer} failed: {error}"


class _Subscription:
    def __init__(self, observer: Observer, wants: Callable[[int], bool] | None) -> None:
        self.observer = observer
        self.wants = wants
        self.unreported = [True]  # emptied by the first failure: `pop` is atomic


# No lock guards it: storing and deleting a key is atomic on every CPython, also in a signal handler
# that interrupts either.
_subscriptions: dict[_Subscription, None] = {}


def subscribe(observer: Observer, wants: Callable[[int], bool] | None = None) -> Callable[[], None]:
    """Call `observer` with every event from now on. Returns a function that ends the subscription.

    ``wants(level)`` tells whether the observer has a use for events of a level, a number of
    `logging`. Frequent events of a level that no observer wants are not emitted. Thread-safe, and
    so is the returned function, which may be called more than once.
    """
    subscription = _Subscription(observer, wants)
    _subscriptions[subscription] = None
    return lambda: _subscriptions.pop(subscription, None)


def is_wanted(level: int) -> bool:
    """Whether an observer wants events of `level`. Ask before making a frequent event."""
    for subscription in list(_subscriptions):
        try:
            if subscription.wants is None or subscription.wants(level):
                return True
        except Exception:  # so the event is emitted, and if the observer fails, that is reported
            return True
    return False


def emit(event: Event, server: Any = None) -> None:
    """Call every observer with `event`, which `server` (if any) emits.

    A server whose attribute `unobserved` is true is netkit's own, beside those of the program: its
    events are dropped. Exceptions of observers are not raised, with one exception:
    KeyboardInterrupt and SystemExit in the main thread, where a signal handler may have raised them
    to end the program.
    """
    if server is not None:
        if getattr(server, "unobserved", False):
            return
        vars(event)["server"] = server
    _emit(event, None)


def _emit(event: Event, skipped: _Subscription | None) -> bool:
    """Call the observers, and return whether one of them took the event without an exception."""
    taken = False
    for subscription in list(_subscriptions):
        if subscription is skipped:
            continue
        try:  # costs nothing, unlike contextlib.suppress: this runs for each client
            subscription.observer(event)
            taken = True
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)) and _in_main_thread():
                raise
            try:
                subscription.unreported.pop()
            except IndexError:
                continue
            _report_failure(subscription, error)
    return taken


def _in_main_thread() -> bool:
    threading = sys.modules.get("threading")  # not imported: the program has one thread
    return threading is None or threading.current_thread() is threading.main_thread()


def _report_failure(subscription: _Subscription, error: BaseException) -> None:
    observer: Any = subscription.observer
    if not hasattr(observer, "__qualname__"):  # an object that can be called
        observer = type(observer)
    name = f"{observer.__module__}.{observer.__qualname__}"
    if not _emit(ObserverFailed(name, error), skipped=subscription):
        last_resort(f"the observer {name} failed", error)


def last_resort(what: str, error: BaseException) -> None:
    """Write one line to standard error, for a failure that cannot be logged.

    Like `logging` for its own failures, this does nothing if ``logging.raiseExceptions`` is False.
    """
    import logging  # here because a program without a server may not need it

    if logging.raiseExceptions and sys.stderr is not None:
        try:
            sys.stderr.write(f"netkit: {what}: {described(error)}\n")
        except Exception:  # standard error cannot be written to either
            return
