"""The options and the handler of a server, which may be replaced while it serves.

All of them are in one record, so that a reader sees a set that belongs together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..core.encodings import to_bytes
from ..core.endpoint import Layers
from ..core.options import Options, TimeLimits
from ..core.record import NamedTuple
from .adapting import Serve

if TYPE_CHECKING:
    import ssl

_SILENT = ("allow", "deny", "proxy_from")  # a client that they refuse learns nothing


class Setup(NamedTuple):
    """The options and the handler of a server at one moment, and what follows from them."""

    options: Options
    handler: Any = None
    serve: Serve | None = None
    """Serves a connection by the handler. None if the handler reads the bare socket."""
    tls: ssl.SSLContext | None = None
    """The context for clients, of the options; None if they ask for no TLS."""
    speaks_tls: bool = False
    """Whether clients speak TLS from the first byte on, where their listener does not differ."""
    time_limits: TimeLimits | None = None
    """The time limits of the options; None if no limit is set."""

    def with_options(self, options: Options, tls: ssl.SSLContext | None) -> Setup:
        """Return the setup with other options; `tls` is made of them."""
        speaks = tls is not None and not options.starttls
        limits = options.time_limits
        return self._replace(options=options, tls=tls, speaks_tls=speaks, time_limits=limits)

    def begins_tls(self, of_listener: bool | None) -> bool:
        """Whether clients speak TLS from the first byte on.

        `of_listener` is what their listener says; None leaves that to the options.
        """
        return self.speaks_tls if of_listener is None else of_listener

    def context(self, of_listener: bool | None) -> ssl.SSLContext | None:
        """Return the context for clients that speak TLS from the first byte on; else None."""
        return self.tls if self.begins_tls(of_listener) else None

    def refusal(self, reason: str, of_listener: bool | None) -> bytes | None:
        """The message to a client that is refused for `reason`; None if it is sent nothing at all.

        A client that expects TLS could not read a message. `of_listener` as for `begins_tls`.
        """
        if reason in _SILENT:
            return None
        text = self.options.refusal
        if text is None or self.begins_tls(of_listener):
            return b""
        return to_bytes(text, self.options.encoding)

    def check_layers(self, layers: Sequence[Layers]) -> None:
        """ValueError unless listeners, each with one of `layers`, can have this setup."""
        if self.tls is None and any(each.tls for each in layers):
            raise ValueError("a listener with tls=True needs a server with tls_cert or tls")
        if self.options.proxy_from is not None and not any(each.proxy for each in layers):
            raise ValueError("proxy_from needs a listener with proxy=True")


class Configuration:
    """Holds the present `setup` of one server. Thread-safe.

    A function that needs several parts of the setup reads the attribute once.
    """

    def __init__(
        self,
        setup: Setup,
        adapt: Callable[[Any, Options], Serve | None],
        pass_on: Callable[[Options], object],
    ) -> None:
        """``adapt(handler, options)`` checks a handler; `pass_on` is called with new options."""
        self.setup = setup
        self.adapt = adapt
        self._pass_on = pass_on
        self.free_lock()

    def free_lock(self) -> None:
        """Make the lock anew, in a forked child: a thread of the parent may have held it."""
        # Guards the replacement of `setup`. Re-entrant, since a signal handler may change the
        # options while its thread holds the lock.
        self._lock = threading.RLock()

    def change(self, prepare: Callable[[Setup], Setup]) -> None:
        """Replace the setup by ``prepare(setup)``, which may run code of the program.

        No lock is held meanwhile. If another thread has replaced the setup by then, `prepare` is
        called again, so that no change is lost.
        """
        while True:
            before = self.setup
            after = prepare(before)
            with self._lock:
                if self.setup is before:
                    self.setup = after
                    self._pass_on(after.options)
                    return

    def set_handler(self, handler: Any) -> None:
        """Replace the handler. TypeError if it cannot serve a client."""
        self.change(
            lambda setup: setup._replace(handler=handler, serve=self.adapt(handler, setup.options))
        )
