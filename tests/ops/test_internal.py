"""The servers that netkit runs for operators."""

from __future__ import annotations

import logging

import pytest
from support import exchange, observed, wait_until

import netkit
from netkit.ops.internal import InternalServer


def fail(conn: netkit.Connection) -> None:
    conn.read()
    raise LookupError("no such page")


def test_nothing_that_happens_to_it_is_observed_and_a_fault_is_logged_for_debugging_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "netkit")
    server = InternalServer(None, fail)
    with observed() as seen:
        server.listen(0, "127.0.0.1").start(daemon=True)
        with pytest.raises(ConnectionResetError):
            exchange(server, b"hello")
        wait_until(lambda: not server.connections)
        server.stop()
    assert seen == []
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert "no such page" in record.getMessage()
