"""The states of clients."""

from __future__ import annotations

from support import connected

from netkit.core.errors import KilledError
from netkit.ops.states import STATES, state_of


def test_the_state_of_a_connection_is_one_of_a_closed_set() -> None:
    with connected() as (conn, _):
        assert state_of(conn) == "serving"
        vars(conn)["expects_proxy"] = True
        assert state_of(conn) == "proxy"
        vars(conn)["expects_proxy"] = False
        conn.interrupt(KilledError("1"), hard=True)
        assert state_of(conn) == "killed"
        conn.destroy()
        assert state_of(conn) == "closing"
    assert {"serving", "killed", "proxy", "closing", "handshake", "held"} == set(STATES)
