"""Two hosts behind HAProxy: no client is lost while all three are replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from support import PATIENCE, ROOT, tool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


def cluster(*options: str) -> dict[str, Any]:
    """What clients and HAProxy have seen, in namespaces that end with the program."""
    for name in ("ip", "haproxy"):
        tool(name)
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    inside = [tool("unshare"), "--net", "--mount", "--pid", "--fork", "--kill-child", *user]
    if subprocess.run([*inside, "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        if os.environ.get("CI") == "true":
            pytest.fail("no namespaces can be made")
        pytest.skip("no namespaces can be made")
    done = subprocess.run(
        [*inside, sys.executable, str(ROOT / "tests" / "cluster.py"), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_no_client_is_lost_while_hosts_and_haproxy_are_replaced() -> None:
    found = cluster("--stops", "2")
    assert (found["failed_connects"], found["lost_replies"]) == ([], []), found
    assert found["replies"] > 400
    assert min(found["hosts"].values()) > 50
    for stop in found["stops"]:
        assert (stop["status"], stop["exit"]) == ("DRAIN (agent)", 0)
        assert stop["noticed"] < 2  # usually within 0.2 s, the interval of the agent
        assert stop["stopped"] > 2.5  # the delay
    for log in found["logs"].values():
        assert "cut" in log
        assert ", 0 cut" in log
        assert "WARNING" not in log
        assert "ERROR" not in log


def test_without_a_delay_of_the_stop_clients_are_lost() -> None:
    found = cluster("--stops", "1", "--clients", "20", "--stop-delay", "0")
    assert any(each.startswith("the slow client") for each in found["lost_replies"]), found
