"""Two hosts of netkit behind one HAProxy, each in a network namespace, and clients that reconnect.

Each host is stopped and started in turn, and HAProxy is reloaded meanwhile, with the configuration
of examples/haproxy.cfg. Prints as JSON what the clients have seen. It needs namespaces of its own:

    unshare --net --mount --pid --fork --kill-child python tests/cluster.py --stops 20

(as root; else with --map-root-user, too). `system/test_cluster.py` runs it for a few seconds.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 30.0
AGENT_INTERVAL = 0.2  # seconds, shorter than in the example
THINKING = 0.3  # the longest time from a client's connection to its request
FRONTEND = ("10.0.0.2", 8000)
HOSTS = {"a": "10.0.1", "b": "10.0.2"}  # the networks between HAProxy and each host

APPLICATION = """
import os

def reply(conn):
    conn.write(os.environ["HOST"] + "\\n")
    for line in conn.lines():
        conn.write(f"{line} from {conn.peer.rpartition(':')[0]}\\n")
"""


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.01)
    return found


def ip(*words: str) -> None:
    subprocess.run(["ip", *" ".join(words).split()], check=True)


def make_network() -> None:
    """Clients are in this namespace, 10.0.0.1; HAProxy is in `lb`, and the hosts in `a` and `b`."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    ip("link set lo up")
    for name in ("lb", *HOSTS):
        ip("netns add", name)
        ip("-n", name, "link set lo up")
    ip("link add eth0 type veth peer name eth0 netns lb")
    ip("addr add 10.0.0.1/24 dev eth0")
    ip("link set eth0 up")
    ip("-n lb addr add 10.0.0.2/24 dev eth0")
    ip("-n lb link set eth0 up")
    for name, network in HOSTS.items():
        ip("-n lb link add", f"to-{name}", "type veth peer name eth0 netns", name)
        for where, device, number in (("lb", f"to-{name}", 1), (name, "eth0", 2)):
            ip("-n", where, f"addr add {network}.{number}/24 dev", device)
            ip("-n", where, "link set", device, "up")


class Host:
    """One of the two hosts, whose server is started and stopped."""

    def __init__(self, name: str, folder: Path, options: list[str]) -> None:
        self.name = name
        self._folder = folder
        self._options = options
        self._log = folder / f"{name}.log"
        self._log.touch()
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it listens: Python may lose a signal before that."""
        starts = self.log().count("listening on")
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m", "netkit", "serve"]
        addresses = ["*:8080?proxy=on", "--proxy-from", f"{HOSTS[self.name]}.1"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOST": self.name}
        with open(self._log, "a") as log:
            self.process = subprocess.Popen(
                [*command, "app:reply", *addresses, "--status", "*:9101", *self._options],
                cwd=self._folder,
                env=environment,
                stderr=log,
            )
        wait_until(lambda: self.log().count("listening on") > starts, f"the start of {self.name}")

    def log(self) -> str:
        return self._log.read_text()


class Balancer:
    """HAProxy, with a process that stays and one that is replaced at each reload."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "haproxy.sock"
        text = (ROOT / "examples" / "haproxy.cfg").read_text()
        for before, after in (
            ("/run/haproxy.sock", str(self._path)),
            ("agent-inter 1s", f"agent-inter {AGENT_INTERVAL * 1000:.0f}ms"),
            ("inter 2s", "inter 200ms"),
        ):
            assert text.count(before) >= 1, before
            text = text.replace(before, after)
        (folder / "haproxy.cfg").write_text(text)
        command = ["ip", "netns", "exec", "lb", "haproxy", "-W", "-f", str(folder / "haproxy.cfg")]
        with open(folder / "haproxy.log", "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def ask(self, command: str) -> str:
        """The answer to a command of the socket; empty while nobody answers."""
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(PATIENCE)
                sock.connect(str(self._path))
                sock.sendall(f"{command}\n".encode())
                return b"".join(iter(lambda: sock.recv(65536), b"")).decode()
        except OSError:
            return ""

    def status(self, host: str) -> str:
        """What HAProxy thinks of a host: ``UP``, ``DRAIN``, ``DOWN`` and others."""
        rows = csv.DictReader(self.ask("show stat").removeprefix("# ").splitlines())
        return next((row["status"] for row in rows if row["svname"] == host), "")

    def reload(self) -> None:
        def number() -> str:
            return "".join(re.findall(r"^Pid: (\d+)", self.ask("show info"), re.MULTILINE))

        before = wait_until(number, "the start of HAProxy")
        self.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: number() not in ("", before), "the reload of HAProxy")


class Clients:
    """Clients that connect, think, send one request and leave, until `stop`."""

    def __init__(self, count: int) -> None:
        self.replies = 0
        self.failed_connects: list[str] = []
        self.lost_replies: list[str] = []
        self.hosts: dict[str, int] = dict.fromkeys(HOSTS, 0)
        self._lock = threading.Lock()  # guards what is above
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._live, args=(n,), daemon=True) for n in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def _live(self, number: int) -> None:
        pauses = random.Random(number)
        while not self._stopping.wait(pauses.uniform(THINKING, 3 * THINKING)):
            for _ in self.visit(f"client {number}"):
                time.sleep(pauses.uniform(0, THINKING))

    def visit(self, name: str) -> Iterator[str]:
        """Connect, yield the name of the host, and then send a request and expect its reply."""
        try:
            sock = socket.create_connection(FRONTEND, PATIENCE)
        except OSError as error:
            with self._lock:
                self.failed_connects.append(f"{name}: {error}")
            return
        host = ""
        with sock, sock.makefile("rw", newline="\n") as file:
            try:
                host = file.readline().strip()
                if host:
                    yield host
                    file.write(f"{name}\n")
                    file.flush()
                reply = file.readline()
                problem = "" if reply == f"{name} from 10.0.0.1\n" else f"{reply!r}"
            except OSError as error:
                problem = str(error)
        with self._lock:
            if problem:
                self.lost_replies.append(f"{name} of host {host!r}: {problem}")
            else:
                self.replies += 1
                self.hosts[host] += 1

    def visit_slowly(self, host: str, go_on: threading.Event) -> threading.Thread:
        """Have a client connect to `host`, which sends its request once `go_on` is set."""
        connected = threading.Event()

        def live() -> None:
            while not connected.is_set():
                for found in self.visit("the slow client"):
                    if found == host:
                        connected.set()
                        go_on.wait(PATIENCE)

        thread = threading.Thread(target=live, daemon=True)
        thread.start()
        assert connected.wait(PATIENCE)
        return thread


def replace(host: Host, balancer: Balancer, clients: Clients, reload: bool) -> dict[str, Any]:
    """Stop a host and start it again. Return how HAProxy has followed."""
    wait_until(lambda: balancer.status(host.name) == "UP", f"that host {host.name} is up")
    go_on = threading.Event()
    slow = clients.visit_slowly(host.name, go_on)
    begin = time.monotonic()
    host.process.terminate()

    def has_begun() -> bool:
        is_known = balancer.status(host.name).startswith("DRAIN")
        return is_known or host.process.poll() is not None

    wait_until(has_begun, "the drain")
    seen = balancer.status(host.name), time.monotonic() - begin
    go_on.set()
    if reload:
        balancer.reload()
    status = host.process.wait(PATIENCE)
    slow.join(PATIENCE)
    took = time.monotonic() - begin
    host.start()
    wait_until(lambda: balancer.status(host.name) == "UP", f"the return of host {host.name}")
    return {"status": seen[0], "noticed": seen[1], "stopped": took, "exit": status}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--stop-delay", default="2500ms")
    arguments = parser.parse_args()
    make_network()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "app.py").write_text(APPLICATION)
        hosts = [Host(name, folder, ["--stop-delay", arguments.stop_delay]) for name in HOSTS]
        balancer = Balancer(folder)
        for host in hosts:
            wait_until(lambda host=host: balancer.status(host.name) == "UP", "that all are up")
        clients = Clients(arguments.clients)
        wait_until(lambda: clients.replies > arguments.clients, "the replies of all clients")
        stops = [
            replace(host, balancer, clients, reload=number % 2 == 1)
            for number, host in zip(range(arguments.stops), itertools.cycle(hosts))
        ]
        clients.stop()
        for host in hosts:
            host.process.send_signal(signal.SIGINT)  # which waits for no delay
            host.process.wait(PATIENCE)
        balancer.process.terminate()
        balancer.process.wait(PATIENCE)
        print(
            json.dumps(
                {
                    "replies": clients.replies,
                    "hosts": clients.hosts,
                    "failed_connects": clients.failed_connects,
                    "lost_replies": clients.lost_replies,
                    "stops": stops,
                    "logs": {host.name: host.log() for host in hosts},
                }
            )
        )


if __name__ == "__main__":
    main()
