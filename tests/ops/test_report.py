"""The report that SIGUSR1 asks for."""

from __future__ import annotations

from support import client, echo, observed, serving, wait_until

from netkit.core import events
from netkit.ops import report

from .programs import FakeProgram


def test_the_status_and_each_client_with_its_place_are_logged() -> None:
    with serving(echo) as server, client(server):
        wait_until(lambda: server.connection_count)
        with observed(events.StatusReported) as seen:
            report.write(FakeProgram(server))
    lines = [event.text for event in seen]
    assert lines[0].startswith("netkit ")
    assert "connected  1, 0 held" in lines
    assert lines[-1].split()[4] == "serving"
    assert all("\n" not in line for line in lines)
