"""The clients of this process as rows for an operator.

Rows are made in pages, so that neither this process nor the socket of its answers is busy with
thousands of clients at once. Nothing is kept between two pages. All values are JSON values.
"""

from __future__ import annotations

import itertools
import operator
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ..core.blocklist import BlockList
from ..net.addresses import describe_peer
from ..net.bare import Bare
from ..net.connection import Connection
from ..net.endings import carried
from ..net.states import Life
from ..net.tcpinfo import TcpInfo, send_queue, tcp_info
from ..server.server import Server
from ..server.threads import PARKED
from .stacks import NOWHERE, Stack, stacks_of
from .states import state_of

PAGE = 20  # clients; a page takes about a millisecond

Row = dict[str, Any]
_Kernel = tuple["TcpInfo | None", "int | None"]  # the counters of a connection, and its send queue


class Filters:
    """Which clients are wanted. ValueError for an invalid network.

    `ids` are identifiers; `older` and `idle` are seconds at least; `peer` is a rule as for
    `BlockList.add`; `state` is one of those of `state_of`. None does not filter.
    """

    def __init__(
        self,
        ids: Sequence[int] | None = None,
        older: float | None = None,
        idle: float | None = None,
        peer: str | None = None,
        state: str | None = None,
    ) -> None:
        self._ids = None if ids is None else frozenset(ids)
        self._older, self.idle, self._state = older, idle, state
        self._peer = None if peer is None else BlockList([peer])

    def want(self, connection: Connection, now: float) -> bool:
        """Whether the client of an open connection is wanted, apart from its idle time."""
        return (
            (self._ids is None or connection.id in self._ids)
            and (self._older is None or now - connection.opened_at >= self._older)
            and (self._state is None or self._state == state_of(connection))
            and (self._peer is None or self._peer.check(connection.remote_address or ""))
        )

    def want_held(self, address: Any) -> bool:
        """Whether a held client, which has no identifier and no age, is wanted."""
        others = self._ids, self._older, self.idle
        peer = address[0] if isinstance(address, tuple) else ""
        return (
            all(each is None for each in others)
            and self._state in (None, "held")
            and (self._peer is None or self._peer.check(peer))
        )


def connections_of(
    servers: Iterable[Server], filters: Filters, after: int = 0
) -> Iterator[Connection]:
    """Yield the open connections that are wanted, in the order of their identifiers.

    Only those whose identifiers are greater than `after`.
    """
    now = time.monotonic()
    every = (each for server in servers for each in server._connections.live())
    for each in sorted((it for it in every if it.id > after), key=operator.attrgetter("id")):
        if filters.want(each, now):
            yield each


def page_of_clients(
    servers: Sequence[Server], after: int = 0, count: int = PAGE, **filters: Any
) -> dict[str, Any]:
    """Return the rows of `count` clients whose identifiers are greater than `after`.

    The result has ``rows``, and as ``next`` the `after` of the next page, or None. Held clients are
    on the last page. The other arguments are those of `Filters`.
    """
    wanted = Filters(**filters)

    def row_of(connection: Connection, stack: Stack) -> Row | None:
        return _client(connection, stack, wanted)

    return _page(servers, after, count, wanted, row_of, _held)


def page_of_stacks(
    servers: Sequence[Server], after: int = 0, count: int = PAGE, **filters: Any
) -> dict[str, Any]:
    """As `page_of_clients`, for rows with the stacks of the clients' threads.

    Threads that wait for their next client are on the last page, too, unless there is a filter.
    """

    names = {thread.ident: thread.name for thread in threading.enumerate()}

    def row_of(connection: Connection, stack: Stack) -> Row:
        row = {**_brief(connection), **_stack_row(stack, names.get(connection.thread, ""))}
        row["inside"] = row["inside"] or doing(connection)
        return row

    def rest(servers: Sequence[Server], wanted: Filters) -> Iterable[Row]:
        yield from ({**row, **_stack_row(NOWHERE)} for row in _held_briefly(servers, wanted))
        if not filters:
            yield from _parked(servers)

    return _page(servers, after, count, Filters(**filters), row_of, rest)


def _page(
    servers: Sequence[Server],
    after: int,
    count: int,
    wanted: Filters,
    row_of: Callable[[Connection, Stack], Row | None],
    rest: Callable[[Sequence[Server], Filters], Iterable[Row]],
) -> dict[str, Any]:
    later = list(itertools.islice(connections_of(servers, wanted, after), count + 1))
    these = later[:count]
    stacks = stacks_of(each.thread for each in these) if these else {}
    found = [row_of(each, stacks.get(each.thread, NOWHERE)) for each in these]
    rows = [row for row in found if row is not None]
    if len(later) > count:
        return {"rows": rows, "next": these[-1].id}
    return {"rows": [*rows, *rest(servers, wanted)], "next": None}


def _client(connection: Connection, stack: Stack, wanted: Filters) -> Row | None:
    """The row of a client; None if its idle time is not known, or less than that of the filter."""
    info, queued = _asked_of_kernel(connection)
    idle = None if info is None else info.idle
    received, sent = carried(connection)
    if wanted.idle is not None and (idle is None or idle < wanted.idle):
        return None
    tls = connection.tls
    return {
        **_brief(connection),
        "age": time.monotonic() - connection.opened_at,
        "idle": idle,
        "in": received,
        "out": sent,
        "rtt": info and info.rtt,
        "retransmits": info and info.retransmits,
        "send_queue": queued,
        "tls": "" if tls is None else str(tls.version or ""),
        "end": connection.end_reason,
        "where": stack.where() or doing(connection),
    }


def _brief(connection: Connection) -> Row:
    header = getattr(connection, "proxy", None)
    return {
        "id": connection.id,
        "peer": connection.peer,
        "via": "" if header is None else str(header.via),
        "local": connection.local,
        "state": state_of(connection),
    }


def _asked_of_kernel(connection: Connection) -> _Kernel:
    link = connection._link
    with link.lock:  # so that the descriptor is not closed, and given to another, meanwhile
        if link.life is Life.CLOSED:
            return None, None
        if not isinstance(link.wire, Bare):
            return tcp_info(link.wire.sock), send_queue(link.wire.sock)
        with link.wire.reached() as sock:
            return tcp_info(sock), send_queue(sock)


def doing(connection: Connection) -> str:
    """Return what the thread of `connection` does, as far as netkit knows without its stack."""
    link, state = connection._link, state_of(connection)
    if state not in ("serving", "killed"):
        return f"({state})"
    if link.writing:
        return "(writing)"
    return "(reading)" if link.waiting else ""


def _held(servers: Sequence[Server], wanted: Filters) -> Iterable[Row]:
    unknown = dict.fromkeys(("age", "idle", "in", "out", "rtt", "retransmits", "send_queue"))
    for row in _held_briefly(servers, wanted):
        yield {**row, **unknown, "tls": "", "end": "", "where": ""}


def _held_briefly(servers: Sequence[Server], wanted: Filters) -> Iterable[Row]:
    for server in servers:
        for each in server._overflow.waiting():
            if wanted.want_held(each.client_address):
                peer, local = describe_peer(each.client_address), _local_end(each.request)
                yield {"id": "", "peer": peer, "via": "", "local": local, "state": "held"}


def _local_end(request: Any) -> str:
    """Return this end of an accepted socket as text; empty if it is closed."""
    try:
        return describe_peer(request.getsockname())
    except OSError:
        return ""


def _stack_row(stack: Stack, thread: str = "") -> Row:
    return {
        "thread": thread,
        "frames": [line.as_dict() for line in stack.lines],
        "inside": "" if stack.inside is None else str(stack.inside),
    }


def _parked(servers: Sequence[Server]) -> Iterable[Row]:
    for server in servers:
        for thread in server._client_threads.threads():
            if thread.name == PARKED:
                empty = {"id": "", "peer": "", "via": "", "local": "", "state": "parked"}
                yield {**empty, **_stack_row(NOWHERE, thread.name)}
