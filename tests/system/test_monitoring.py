"""The status endpoint of whole programs: Prometheus, HAProxy, and workers that die meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pages import asked, check_by_promtool, page_of, samples_of
from support import PATIENCE, Cli, Program, in_thread, receive_exactly, tool, wait_until

from netkit.core.ends import ENDS

ACCEPTED = "netkit_connections_accepted_total"
RECEIVED, SENT = "netkit_received_bytes_total", "netkit_sent_bytes_total"


def status_of(program: Program) -> tuple[str, int]:
    """The address of the status endpoint."""
    program.wait_for_line(r"status on .*:\d+")
    found = [
        match for match in map(re.compile(r"status on .*:(\d+)").search, program.lines) if match
    ]
    return "127.0.0.1", int(found[0][1])


@contextlib.contextmanager
def monitored(*arguments: str) -> Iterator[tuple[Program, tuple[str, int]]]:
    """An echo server that is ready, and the address of its status endpoint."""
    with Cli("echo", "127.0.0.1:0", "--status", "0", *arguments) as program:
        address = status_of(program)
        wait_until(lambda: is_ready(address))
        yield program, address


def is_ready(address: tuple[str, int]) -> bool:
    try:
        return asked(address, b"agent\n") == b"ready up\n"
    except OSError:  # the process of the endpoint is about to be replaced
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def running(*command: str) -> Iterator[None]:
    """A tool in the background."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_a_program_that_stops_says_so_and_answers_until_its_clients_are_gone() -> None:
    with monitored() as (program, address), program.connect() as client:
        client.sendall(b"hello")
        receive_exactly(client, 5)
        check_by_promtool(page_of(address))
        wait_until(lambda: samples_of(page_of(address))[SENT] == 5)  # counted as a write returns
        assert samples_of(page_of(address))[RECEIVED] == 5
        program.send_signal(signal.SIGTERM)
        wait_until(lambda: not is_ready(address))
        client.close()
        assert program.wait() == 0


def test_an_address_that_cannot_be_had_ends_the_start_with_one_line() -> None:
    port = free_port()
    with Cli("echo", f"127.0.0.1:{port}", "--status", str(port), listening=False) as program:
        assert program.wait() == 1
    assert program.lines[-1].endswith(f"cannot have {port}, which is the server's own")
    assert len(program.lines) <= 2  # where it listens, and the error


def test_a_prometheus_scrapes_it(tmp_path: Path) -> None:
    port = free_port()
    with monitored() as (_, address):
        (tmp_path / "prometheus.yml").write_text(
            "global: {scrape_interval: 250ms, scrape_timeout: 200ms}\n"
            "scrape_configs: [{job_name: netkit, static_configs: "
            f"[{{targets: ['127.0.0.1:{address[1]}']}}]}}]\n"
        )
        command = (
            tool("prometheus"),
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        )
        with running(*command):

            def value_of(query: str) -> float | None:
                url = f"http://127.0.0.1:{port}/api/v1/query?query={query}"
                try:
                    with urllib.request.urlopen(url, timeout=PATIENCE) as reply:
                        result = json.load(reply)["data"]["result"]
                except OSError as error:  # it is not ready yet
                    if isinstance(error, urllib.error.HTTPError):
                        error.close()
                    return None
                return float(result[0]["value"][1]) if result else None

            # `up` is 1 after a scrape that is good. One may be late on a machine that is busy.
            wait_until(lambda: (value_of("sum_over_time(up[1m])") or 0) >= 3, "three good scrapes")
            wait_until(lambda: value_of("netkit_ready") == 1)


def test_an_agent_check_takes_a_server_that_stops_out_of_the_balancing(tmp_path: Path) -> None:
    haproxy = tool("haproxy")
    port, socket_path = free_port(), str(tmp_path / "haproxy")
    with monitored("--stop-delay", "20") as (program, address):
        (tmp_path / "haproxy.cfg").write_text(
            f"global\n  stats socket {socket_path}\n"
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 5s\n  timeout server 5s\n"
            f"listen front\n  bind 127.0.0.1:{port}\n"
            f"  server one 127.0.0.1:{program.port} check inter 100ms agent-check"
            f' agent-port {address[1]} agent-send "agent\\n" agent-inter 100ms\n'
        )
        with running(haproxy, "-f", str(tmp_path / "haproxy.cfg")):

            def state_of() -> str:
                if not os.path.exists(socket_path):
                    return ""
                rows = asked(socket_path, b"show stat\n").decode().split("\n")
                names = rows[0].removeprefix("# ").split(",")
                found = [dict(zip(names, row.split(","), strict=False)) for row in rows[1:]]
                return next(
                    f"{it['status']} {it['agent_status']}" for it in found if it["svname"] == "one"
                )

            wait_until(lambda: state_of() == "UP L7OK", "an agent-check that succeeds")
            program.send_signal(signal.SIGTERM)
            wait_until(lambda: state_of().startswith("DRAIN"), "the drain")
            with program.connect() as client:  # it still accepts
                client.sendall(b"hello")
                assert receive_exactly(client, 5) == b"hello"
            program.send_signal(signal.SIGINT)
            assert program.wait() == 0


# A worker that is killed is replaced at once, however short its life was.
WORKERS = """
import os
import netkit
from netkit.process import crew, supervisor

supervisor.Pace = lambda: crew.Pace(steady=0.0)

def serve(conn):
    for data in conn:
        conn.write(f"{os.getpid():10}" if data == b"who       " else data)

if __name__ == "__main__":
    netkit.run(netkit.create_server(serve).listen(0, "127.0.0.1"), workers=2, status=0)
"""


class Load:
    """Clients that echo until they are stopped, one after another in each of several threads."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._stopped = threading.Event()
        self._lock = threading.Lock()  # guards `counts`
        self.counts: Counter[str] = Counter()
        """What the clients have done: at least as much as the server can know of."""

    @contextlib.contextmanager
    def running(self, threads: int) -> Iterator[None]:
        """Run clients in so many threads during the block."""
        with contextlib.ExitStack() as stack:
            for _ in range(threads):
                stack.enter_context(in_thread(self._run))
            stack.callback(self._stopped.set)
            yield

    def _run(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(OSError, AssertionError):  # its worker was killed
                self.exchange(*[bytes(1000)] * 5)

    def exchange(self, *messages: bytes) -> bytes:
        """Connect, send each message and wait for the answer, which has the same size."""
        answer = b""
        with self._program.connect() as client:
            self._count("connected", 1)
            for message in messages:
                self._count("sent", len(message))
                client.sendall(message)
                answer = receive_exactly(client, len(message))
                self._count("answered", len(message))
        return answer

    def worker(self) -> int:
        """The number of a worker process."""
        while True:
            with contextlib.suppress(OSError, AssertionError):
                return int(self.exchange(b"who       "))

    def _count(self, name: str, number: int) -> None:
        with self._lock:
            self.counts[name] += number


def scraped(address: tuple[str, int]) -> dict[str, float]:
    """The samples of the page, also if the process of the endpoint is being replaced."""
    pages: list[dict[str, float]] = []

    def has_page() -> bool:
        with contextlib.suppress(OSError, AssertionError):
            pages.append(samples_of(page_of(address)))
        return bool(pages)

    wait_until(has_page, "a page")
    return pages[0]


def idle_page(address: tuple[str, int]) -> dict[str, float]:
    """The samples once all connections are closed, and reported as closed."""
    pages = [scraped(address)]

    def is_idle() -> bool:
        time.sleep(0.5)  # a connection is reported a moment after it is closed
        before, pages[0] = pages[0], scraped(address)
        return closed(before) == closed(pages[0]) and not any(
            page[name]
            for page in (before, pages[0])
            for name in page
            if name.startswith("netkit_connections{")
        )

    wait_until(is_idle, "the end of all connections")
    return pages[0]


def scrape_and_kill(
    program: Program, load: Load, address: tuple[str, int], kills: int
) -> list[dict[str, float]]:
    """Kill workers, one after another, and return the pages that were scraped meanwhile."""
    pages = []
    for number in range(1, kills + 1):
        pages += [scraped(address) for _ in range(3)]
        worker = load.worker()
        if number == kills // 2:  # also the process that answers
            (front,) = set(program.children()) - workers_of(program, load)
            os.kill(front, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        while pages[-1]["netkit_worker_restarts_total"] < number:
            time.sleep(0.02)  # so that the new worker gets the processor
            pages.append(scraped(address))
    return pages


def workers_of(program: Program, load: Load) -> set[int]:
    """The numbers of both workers."""
    found: set[int] = set()
    wait_until(lambda: found.add(load.worker()) or len(found) == 2, "answers of both workers")
    return found


def test_no_counter_falls_while_worker_after_worker_is_killed(tmp_path: Path) -> None:
    """What killed workers have not told is missing. Nothing counts that has not happened."""
    kills = 20
    (tmp_path / "app.py").write_text(WORKERS)
    with Program(sys.executable, str(tmp_path / "app.py")) as program:
        address = status_of(program)
        wait_until(lambda: is_ready(address))
        load = Load(program)
        with load.running(2):
            pages = scrape_and_kill(program, load, address, kills)
        quiet = idle_page(address)
        for _ in range(10):
            load.exchange(bytes(700), bytes(300))
        wait_until(lambda: closed(scraped(address)) - closed(quiet) >= 10, "ten reports")
        after = idle_page(address)
        check_by_promtool(page_of(address))
    check_none_falls([*pages, quiet, after])
    assert after["netkit_worker_restarts_total"] == kills
    assert quiet[SENT] <= quiet[RECEIVED] <= load.counts["sent"]
    assert 0 < quiet[ACCEPTED] <= load.counts["connected"]
    # Of what has been done since, nothing is missing.
    assert after[ACCEPTED] - quiet[ACCEPTED] == 10
    assert after[RECEIVED] - quiet[RECEIVED] == after[SENT] - quiet[SENT] == 10_000
    assert closed(after) - closed(quiet) == 10


def test_nothing_is_lost_while_workers_are_replaced_by_a_reload(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(WORKERS)
    pages = []
    with Program(sys.executable, str(tmp_path / "app.py")) as program:
        address = status_of(program)
        wait_until(lambda: is_ready(address))
        load = Load(program)
        with load.running(2):
            for number in (1, 2):
                program.send_signal(signal.SIGHUP)
                while scraped(address)['netkit_reloads_total{result="ok"}'] < number:
                    time.sleep(0.02)
                    pages.append(scraped(address))
        count = load.counts["connected"]
        wait_until(lambda: closed(scraped(address)) >= count, "reports of all connections")
        last = idle_page(address)
    check_none_falls([*pages, last])
    counts = load.counts
    assert last[ACCEPTED] == closed(last) == counts["connected"]
    # A message that crosses the end of input of an old worker is not read.
    assert counts["answered"] <= last[SENT] == last[RECEIVED] <= counts["sent"]
    assert last["netkit_worker_restarts_total"] == 0


def closed(page: dict[str, float]) -> float:
    return sum(page[f'netkit_connections_closed_total{{end="{end}"}}'] for end in ENDS)


def check_none_falls(pages: list[dict[str, float]]) -> None:
    is_counter = re.compile(r"\w+(_total|_bucket|_sum|_count)(\{|$)").match
    for before, after in itertools.pairwise(pages):
        fallen = {name for name in before if is_counter(name) and after[name] < before[name]}
        assert fallen == set()


def test_a_worker_that_hangs_is_shown_and_delays_a_scrape_by_a_second_only(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(WORKERS)
    with Program(sys.executable, str(tmp_path / "app.py")) as program:
        address = status_of(program)
        wait_until(lambda: is_ready(address))
        hung = Load(program).worker()
        before = idle_page(address)
        os.kill(hung, signal.SIGSTOP)
        began = time.monotonic()
        found = scraped(address)
        assert time.monotonic() - began < PATIENCE / 3
        assert found["netkit_processes_unresponsive"] == 1
        assert found[RECEIVED] == before[RECEIVED] == 10
        os.kill(hung, signal.SIGCONT)
        wait_until(lambda: scraped(address)["netkit_processes_unresponsive"] == 0)
