"""The time limits and the socket options of a connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core.errors import ConnectionClosedError
from ..core.kinds import check_seconds
from ..core.options import TimeLimits
from . import sockopts
from .link import Link
from .states import Life
from .unix import PeerCredentials, peer_credentials


class Settings:
    """For classes that have a `_link`. Thread-safe; does nothing after the close."""

    __slots__ = ()
    _link: Link

    def set_timeout(self, seconds: float | None) -> None:
        """Limit the wait of each read for input, and of each write for progress, in seconds.

        Replaces the options `idle_timeout` and `write_timeout`; None is no limit. TypeError or
        ValueError unless `seconds` is more than 0.
        """
        if seconds is not None:
            check_seconds("timeout", seconds, zero=False)
        limits = self._link.wire.limits
        self.set_limits(limits._replace(idle_timeout=seconds, write_timeout=seconds))

    def set_limits(self, limits: TimeLimits) -> None:
        """Replace all time limits; a wait that is under way may keep its own."""
        self._link.set_limits(limits)

    def set_no_delay(self, on: bool = True) -> None:
        """Send small writes at once (TCP_NODELAY), instead of waiting to fill a packet."""
        self._set(sockopts.set_no_delay, on)

    def set_keep_alive(
        self,
        on: bool = True,
        idle: float | None = None,
        interval: float | None = None,
        count: int | None = None,
    ) -> None:
        """Have the kernel probe a silent peer, and reset the connection if no probe is answered.

        The first probe comes after `idle` seconds of silence (60), and further ones each `interval`
        seconds (10), up to `count` probes (6). Seconds are rounded down. ValueError below 1,
        TypeError.
        """
        sockopts.check_keep_alive(idle, interval, count)
        self._set(sockopts.set_keep_alive, on, idle, interval, count)

    def _set(self, setter: Callable[..., None], *values: Any) -> None:
        link = self._link
        with link.lock:
            if link.life is not Life.CLOSED:
                setter(link.sock, *values)

    @property
    def tos(self) -> int:
        """The type of service (IP_TOS), or traffic class (IPV6_TCLASS), of sent packets: 0 to 255.

        May be set: TypeError or ValueError for an invalid value. The kernel may keep the lowest two
        bits, which are for congestion (RFC 3168). 0 for a Unix socket. Reading it raises
        ConnectionClosedError after the close.
        """
        return sockopts.tos(self._open_link().sock)

    @tos.setter
    def tos(self, value: int) -> None:
        sockopts.check_tos(value)
        self._set(sockopts.set_tos, value)

    @property
    def peer_credentials(self) -> PeerCredentials:
        """The process, user and group that connected a Unix socket, as the kernel knows them.

        OSError (EOPNOTSUPP) for any other connection; ConnectionClosedError after the close.
        """
        return peer_credentials(self._open_link().sock)

    def _open_link(self) -> Link:
        if self._link.life is Life.CLOSED:
            raise ConnectionClosedError
        return self._link
