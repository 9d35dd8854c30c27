"""The report: tables in Markdown, between the markers of a text that is written by hand."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers import ALL, CEILING, C

BEGIN = "<!-- measured: begin (written by bin/bench) -->"
END = "<!-- measured: end -->"
NONE = "-"

Run = dict[str, Any]
_PEERS = {peer.name: peer for peer in ALL}


class Results:
    """The figures of all rounds, by scenario, point and server."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        self._runs: dict[tuple[str, str, str], list[Run]] = {}
        for run in raw["runs"]:
            key = run["scenario"], run["point"], run["server"]
            self._runs.setdefault(key, []).append(run)

    def points(self, scenario: str) -> list[str]:
        return list(dict.fromkeys(point for name, point, _ in self._runs if name == scenario))

    def servers(self, scenario: str) -> list[str]:
        """In the order of the table of servers; the ceiling, which is last there, is last."""
        found = {server for name, _, server in self._runs if name == scenario}
        return [name for name in _PEERS if name in found]

    def runs(self, scenario: str, point: str, server: str) -> list[Run]:
        return self._runs.get((scenario, point, server), [])

    def values(self, scenario: str, point: str, server: str, *path: str) -> list[float]:
        """One figure of the rounds that went well."""
        found = []
        for run in self.runs(scenario, point, server):
            if "error" in run:
                continue
            value: Any = run["figures"]
            for key in path:
                value = value.get(key) if value else None
            if value is not None:
                found.append(float(value))
        return found

    def median(self, scenario: str, point: str, server: str, *path: str) -> float | None:
        values = self.values(scenario, point, server, *path)
        return statistics.median(values) if values else None

    def failures(self) -> list[Run]:
        return [run for run in self.raw["runs"] if "error" in run]


# How a number is shown


def short(value: float) -> str:
    """Three digits that count, and thousands as k."""
    if value >= 1e6:
        return f"{value / 1e6:.3g}M"
    if value >= 9995:
        return f"{value / 1e3:.3g}k"
    if value >= 1000:
        return f"{value / 1e3:.2f}k"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def plain(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"


def spread(values: list[float], show: Callable[[float], str] = short) -> str:
    """The median and, from several rounds, the least and the most."""
    if not values:
        return NONE
    middle = show(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({show(min(values))} to {show(max(values))})"


def summary(run: Run) -> str:
    """The figures of one run that count, for the line on the terminal."""
    wanted = {
        "requests_per_s": "{:.0f}/s",
        "p50_us": "p50 {:.0f} us",
        "p99_us": "p99 {:.0f} us",
        "memory_per_client": "{:.0f} bytes per client",
        "wakeups_per_s": "{:.2f} wake-ups/s",
        "calls": "{:.2f} calls",
        "seconds": "{:.3f} s",
    }
    figures = run["figures"]
    if "requests_per_s" in figures:
        figures = {name: value for name, value in figures.items() if name != "seconds"}
    return ", ".join(text.format(figures[key]) for key, text in wanted.items() if key in figures)


# Tables


@dataclass
class Column:
    heading: str
    cell: Callable[[str], str]
    """What stands there for a server, by its name."""


def _table(servers: Iterable[str], columns: list[Column]) -> str:
    lines = [
        "| server | " + " | ".join(column.heading for column in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for server in servers:
        cells = [column.cell(server) for column in columns]
        if any(cell != NONE for cell in cells):
            lines.append(f"| {_PEERS[server].title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _figure(
    results: Results,
    heading: str,
    scenario: str,
    point: str,
    *path: str,
    scale: float = 1.0,
    show: Callable[[float], str] = short,
) -> Column:
    def cell(server: str) -> str:
        values = results.values(scenario, point, server, *path)
        text = spread([value * scale for value in values], show)
        lost = len(results.runs(scenario, point, server)) - len(values)
        return f"{text} [{lost} failed]" if lost else text

    return Column(heading, cell)


def _latency(results: Results, scenario: str, point: str, which: str = "p99_us") -> Column:
    heading = f"{which.removesuffix('_us').replace('_', '.')}, ms"

    def cell(server: str) -> str:
        value = results.median(scenario, point, server, which)
        return NONE if value is None else plain(value / 1000)

    return Column(heading, cell)


def _relative(
    results: Results, heading: str, scenario: str, point: str, *path: str, to: str = C.name
) -> Column:
    """The median of the rounds' ratios: in one round, both had about the same machine."""

    def cell(server: str) -> str:
        ratios = []
        for mine in results.runs(scenario, point, server):
            for other in results.runs(scenario, point, to):
                if mine["round"] != other["round"] or "error" in mine or "error" in other:
                    continue
                mine_figure, other_figure = mine["figures"], other["figures"]
                for key in path:
                    mine_figure, other_figure = mine_figure[key], other_figure[key]
                if other_figure:
                    ratios.append(mine_figure / other_figure)
        return f"{statistics.median(ratios):.2f}" if ratios else NONE

    return Column(heading, cell)


def _throughput(results: Results, scenario: str, title: str, text: str) -> str:
    parts = [f"### {title}", text]
    for point in results.points(scenario):
        columns = [
            _figure(results, "requests/s", scenario, point, "requests_per_s"),
            _relative(results, "to C", scenario, point, "requests_per_s"),
            _latency(results, scenario, point, "p50_us"),
            _latency(results, scenario, point, "p99_us"),
            _latency(results, scenario, point, "p99_9_us"),
            _figure(results, "server CPU, µs each", scenario, point, "server_cpu_us", show=plain),
        ]
        if scenario == "bulk":
            columns.insert(1, _figure(results, "MiB/s", scenario, point, "mib_per_s", show=plain))
        parts += [f"#### {point}", _table(results.servers(scenario), columns)]
    return "\n\n".join(parts)


def _against_ideal(
    results: Results, scenario: str, title: str, text: str, ideal: Callable[[str], float]
) -> str:
    """`ideal`: milliseconds that a reply would take from a server that costs nothing."""
    parts = [f"### {title}", text]
    for point in results.points(scenario):

        def ratio(server: str, point: str = point) -> str:
            value = results.median(scenario, point, server, "p99_us")
            return NONE if value is None else f"{value / 1000 / ideal(server):.2f}"

        columns = [
            _figure(results, "requests/s", scenario, point, "requests_per_s"),
            _latency(results, scenario, point, "p50_us"),
            _latency(results, scenario, point, "p99_us"),
            Column("ideal, ms", lambda server: plain(ideal(server))),
            Column("p99 to ideal", ratio),
        ]
        servers = [name for name in results.servers(scenario) if ratio(name) != NONE]
        parts += [f"#### {point}", _table(servers, columns)]
    return "\n\n".join(parts)


def _clients(point: str) -> int:
    return int(point.split()[0])


def _overhead(results: Results) -> str:
    parts = [
        "### What a handler's comfort costs",
        "One client, and server and load on one core: what is left is what the code computes. The "
        "class is `EchoHandler`, the `socketserver` handler a bare loop of `recv` and `sendall`.",
    ]
    for point in results.points("overhead"):
        columns = [
            _figure(results, "requests/s", "overhead", point, "requests_per_s"),
            _relative(
                results,
                "to the bare loop under netkit",
                "overhead",
                point,
                "requests_per_s",
                to="netkit-loop",
            ),
            _figure(results, "server CPU, µs each", "overhead", point, "server_cpu_us", show=plain),
        ]
        parts.append(_table(results.servers("overhead"), columns))
    return "\n\n".join(parts)


def _broadcast(results: Results) -> str:
    parts = [
        "### A chat",
        "All members get each message of 64 bytes. Ten of them send one, wait until all have it, "
        "and send the next one.",
    ]
    for point in results.points("broadcast"):
        columns = [
            _figure(results, "broadcasts/s", "broadcast", point, "requests_per_s"),
            *(
                _relative(results, title, "broadcast", point, "requests_per_s", to=other)
                for title, other in (("to asyncio", "asyncio-protocol"), ("to Node", "node"))
            ),
            _latency(results, "broadcast", point, "p50_us"),
            _latency(results, "broadcast", point, "p99_us"),
            _figure(
                results, "server CPU, µs each", "broadcast", point, "server_cpu_us", show=plain
            ),
        ]
        parts += [f"#### {point}", _table(results.servers("broadcast"), columns)]
    return "\n\n".join(parts)


def _idle(results: Results) -> str:
    points = results.points("idle")
    columns = [
        _figure(results, f"KiB each of {point}", "idle", point, "memory_per_client", scale=1 / 1024)
        for point in points
    ]
    last = points[-1]
    columns.append(
        _figure(results, "and in the kernel", "idle", last, "kernel_per_client", scale=1 / 1024)
    )
    busy = [
        _figure(results, "alone, requests/s", "idle", last, "alone", "requests_per_s"),
        _figure(results, "among idle ones", "idle", last, "among_idle", "requests_per_s"),
        _figure(results, "alone, p99 ms", "idle", last, "alone", "p99_us", scale=1e-3),
        _figure(results, "among, p99 ms", "idle", last, "among_idle", "p99_us", scale=1e-3),
    ]
    return "\n\n".join(
        [
            "### Idle clients",
            "Memory of the server's processes (PSS) for each client that is connected and has been "
            "served once. The kernel's share (sockets, threads, page tables; the client's end of "
            "the connection is in it, too) is what the whole machine had more, so it is rough.",
            _table(results.servers("idle"), columns),
            f"#### 100 busy clients, alone and among {last} that are idle",
            _table(results.servers("idle"), busy),
        ]
    )


def _rest(results: Results) -> str:
    columns = []
    for point in results.points("rest"):
        columns += [
            _figure(results, f"wake-ups/s, {point}", "rest", point, "wakeups_per_s"),
            _figure(results, "CPU, ms/s", "rest", point, "cpu_ms_per_s"),
        ]
    return "\n\n".join(
        [
            "### Nothing to do",
            "Context switches of all threads of the server while no client sends anything.",
            _table(results.servers("rest"), columns),
        ]
    )


def _stop_and_start(results: Results) -> str:
    columns = [
        _figure(results, f"stop with {point}, ms", "stop", point, "seconds", scale=1000)
        for point in results.points("stop")
    ]

    def how(server: str) -> str:
        for point in results.points("stop"):
            status = results.median("stop", point, server, "status")
            if status is not None:
                return "killed by the signal" if status < 0 else f"exit status {status:.0f}"
        return NONE

    columns.append(Column("how", how))
    columns.append(_figure(results, "start, ms", "start", "", "seconds", scale=1000))
    servers = [
        name for name in _PEERS if name in {*results.servers("stop"), *results.servers("start")}
    ]
    return "\n\n".join(
        [
            "### Starting and stopping",
            "From the start of the process until a connection succeeds; and from SIGTERM, with "
            "idle clients connected, until it is gone. A server that the signal kills stops fast, "
            "and loses what is under way: only an exit status tells of a decision.",
            _table(servers, columns),
        ]
    )


def _calls(results: Results) -> str:
    point = results.points("calls")[0]

    def names(server: str) -> str:
        runs = [run for run in results.runs("calls", point, server) if "error" not in run]
        if not runs:
            return NONE
        by_name: dict[str, float] = runs[-1]["figures"]["by_name"]
        most = sorted(by_name.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {calls:.2f}" for name, calls in most if calls >= 0.05) or NONE

    columns = [
        _figure(results, "calls", "calls", point, "calls"),
        Column("which, in the last round", names),
    ]
    return "\n\n".join(
        [
            "### System calls for each exchange",
            f"As strace counts them, {point}. Traced, all is slower, and threads meet in other "
            "ways: the futex calls are not those of an ordinary run.",
            _table(results.servers("calls"), columns),
        ]
    )


def _scaling(results: Results) -> str:
    points = results.points("scaling")
    first = points[0]

    def column(point: str) -> Column:
        def cell(server: str) -> str:
            value = results.median("scaling", point, server, "requests_per_s")
            alone = results.median("scaling", first, server, "requests_per_s")
            return NONE if value is None or not alone else f"{value / alone:.2f}"

        return Column(point.replace("clients", "threads"), cell)

    columns = [
        _figure(results, f"requests/s with {_clients(first)}", "scaling", first, "requests_per_s"),
        *(column(point) for point in points[1:]),
        _figure(
            results,
            f"requests/s with {_clients(points[-1])}",
            "scaling",
            points[-1],
            "requests_per_s",
        ),
    ]
    return "\n\n".join(
        [
            "### Computing in several threads",
            "A handler that computes for 1 ms in pure Python: throughput relative to that with one "
            f"client. This machine has {results.raw['machine']['cores']} cores, and the load "
            "generator needs little of them here. With one client, some of the time goes by until "
            "a core wakes up: two can be more than twice as much.",
            _table(results.servers("scaling"), columns),
        ]
    )


def _ceiling(results: Results) -> str:
    found = [
        f"{short(value)} ({scenario}, {point})"
        for scenario in ("echo", "connect", "bulk")
        for point in results.points(scenario)
        if (value := results.median(scenario, point, CEILING.name, "requests_per_s"))
    ]
    if not found:
        return ""
    return (
        "The load generator's ceiling, measured against one epoll loop in C, in requests/s: "
        f"{', '.join(found)}. What comes near it is limited by the load, not by the server."
    )


def _conditions(results: Results) -> str:
    raw = results.raw
    settings = raw["settings"]
    lines = [f"| {name} | {value} |" for name, value in (raw["machine"] | raw["versions"]).items()]
    skipped = ", ".join(f"{name} ({reason})" for name, reason in raw["skipped"].items())
    parts = [
        f"Measured on {raw['date'][:10]}: {settings['rounds']} "
        f"{'round' if settings['rounds'] == 1 else 'rounds'} of "
        f"{settings['seconds']:g} s at each point, after {settings['warmup']:g} s of warm-up. "
        "Cells show the median (and the least and the most); percentiles are medians.",
        "\n".join(["| | |", "|---|---|", *lines]),
    ]
    others = [run["others_cpu"] for run in raw["runs"]]
    if others:
        parts.append(
            "Meanwhile all other processes of the machine used "
            f"{statistics.median(others):.2f} of its {raw['machine']['cores']} cores in the median "
            f"run, {max(others):.2f} in the worst one."
        )
    if "note" in raw:  # put there by hand
        parts.append(raw["note"])
    if settings["quick"]:
        parts.append("**A quick run: too short and too few for more than a first look.**")
    if skipped:
        parts.append(f"Skipped: {skipped}.")
    if failures := results.failures():
        parts.append("What failed:")
        parts.append(
            "\n".join(
                f"- {_PEERS[run['server']].title}, {run['scenario']} {run['point']}, "
                f"round {run['round']}: {run['error']}"
                for run in failures
            )
        )
    return "\n\n".join(parts)


_PLOTS = {
    "echo": ("throughput.svg", "Throughput by clients", "latency.svg", "Latency percentiles"),
    "idle": ("memory.svg", "Memory by clients"),
    "scaling": ("scaling.svg", "Throughput by threads"),
}


def _with_plots(scenario: str, text: str, folder: Path) -> str:
    names = _PLOTS.get(scenario, ())
    images = [
        f"![{title}]({name})"
        for name, title in zip(names[::2], names[1::2], strict=True)
        if (folder / name).exists()
    ]
    heading, _, rest = text.partition("\n\n")
    return "\n\n".join([heading, *images, rest])


def _generated(results: Results, folder: Path) -> str:
    sections: dict[str, Callable[[], str]] = {
        "echo": lambda: _throughput(
            results, "echo", "Echo of 64 bytes", "Each client sends, waits for the reply, sends."
        ),
        "overhead": lambda: _overhead(results),
        "connect": lambda: _throughput(
            results,
            "connect",
            "Connect, one exchange, close",
            "Latencies are from the connect to the reply.",
        ),
        "bulk": lambda: _throughput(
            results, "bulk", "Large messages", "They come back while they are still being sent."
        ),
        "broadcast": lambda: _broadcast(results),
        "sleep": lambda: _against_ideal(
            results,
            "sleep",
            "Waiting: 5 ms for each message",
            "A handler that waits for something else, as most do. Event loops wait their own way, "
            "awaited; the rows with `to_thread` wait in a call that blocks.",
            lambda server: 5.0,
        ),
        "compute": lambda: _against_ideal(
            results,
            "compute",
            "Computing: 1 ms for each message",
            "In pure Python, a fixed number of rounds of a loop; in C, Go and Node, what takes "
            "1 ms there. Ideal: all clients in turn, on the cores that the server can use.",
            lambda server: 200.0 / _PEERS[server].cores(),
        ),
        "scaling": lambda: _scaling(results),
        "idle": lambda: _idle(results),
        "rest": lambda: _rest(results),
        "stop": lambda: _stop_and_start(results),
        "calls": lambda: _calls(results),
    }
    parts = [_conditions(results), _ceiling(results)]
    for scenario, section in sections.items():
        if results.points(scenario) or (scenario == "stop" and results.points("start")):
            parts.append(_with_plots(scenario, section(), folder))
    return "\n\n".join(part for part in parts if part)


def write(raw: dict[str, Any], folder: Path) -> str:
    """Write the plots and, between the markers of README.md, the tables; return these."""
    results = Results(raw)
    try:
        import plots
    except ImportError:  # no matplotlib: a report without plots
        raw["skipped"]["plots"] = "no matplotlib"
    else:
        plots.draw(results, folder)
    text = _generated(results, folder)
    path = folder / "README.md"
    before, after = "# Benchmarks\n\n", "\n"
    if path.exists():
        old = path.read_text()
        if BEGIN in old and END in old:
            before, after = old.partition(BEGIN)[0], old.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
    return text
