"""The plots. netkit is in colour and thick; each line has its name at its end, and no legend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from report import Results

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, NullLocator

# Text stays text, and the same figures make the same file.
matplotlib.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "netkit",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)

# Not all servers: a plot with twenty lines shows nothing. The tables have the others.
STYLES: dict[str, tuple[str, str]] = {
    "netkit": ("netkit", "#d62728"),
    "netkit-plain": ("netkit, without the gate", "#f29b9b"),
    "netkit-w4": ("netkit, 4 workers", "#e8590c"),
    "netkit-ft": ("netkit, free-threaded", "#9c1c6b"),
    "netkit-ft-gil": ("same build, with the GIL", "#c98bb3"),
    "netkit-w2": ("netkit, 2 workers", "#f0a35e"),
    "c": ("C, thread per client", "#222222"),
    "go": ("Go", "#2a8a8a"),
    "node": ("Node", "#4f8a3c"),
    "socketserver": ("socketserver", "#7f7f7f"),
    "asyncio-streams": ("asyncio streams", "#6b8fc9"),
    "uvloop-streams": ("uvloop streams", "#3d6bb3"),
    "uvloop-protocol": ("uvloop protocol", "#1c3f80"),
    "gevent": ("gevent", "#9a8340"),
}
ECHO = [
    "netkit", "netkit-plain", "netkit-w4", "netkit-ft", "c", "go", "node", "socketserver",
    "asyncio-streams", "uvloop-streams", "uvloop-protocol", "gevent",
]  # fmt: skip
LATENCY = [
    "netkit", "netkit-plain", "netkit-w4", "netkit-ft", "c", "go", "socketserver",
    "asyncio-streams", "uvloop-protocol",
]  # fmt: skip
MEMORY = [
    "netkit", "netkit-w2", "netkit-ft", "c", "go", "node", "socketserver", "asyncio-streams",
    "uvloop-protocol", "gevent",
]  # fmt: skip
SCALING = ["netkit", "netkit-w2", "netkit-w4", "netkit-ft", "netkit-ft-gil", "c"]

LINE_HEIGHT = 13.0  # points between labels, at least

Line = tuple[str, list[float], list[float]]


def draw(results: Results, folder: Path) -> None:
    """Those plots for which there are figures."""
    _throughput(results, folder)
    _latency(results, folder)
    _memory(results, folder)
    _scaling(results, folder)


def _lines(results: Results, scenario: str, servers: list[str], *path: str) -> list[Line]:
    """By the number of clients."""
    found = []
    for server in servers:
        points = [
            (float(point.split()[0]), value)
            for point in results.points(scenario)
            if (value := results.median(scenario, point, server, *path)) is not None
        ]
        if len(points) > 1:
            found.append((server, [x for x, _ in points], [y for _, y in points]))
    return found


def _plot(lines: list[Line], title: str, x_label: str, y_label: str) -> tuple[Any, Any]:
    figure, axes = pyplot.subplots(figsize=(8.4, 5.0), layout="constrained")
    for server, xs, ys in lines:
        netkit = server.startswith("netkit")
        axes.plot(
            xs,
            ys,
            color=STYLES[server][1],
            linewidth=2.6 if netkit else 1.3,
            marker="o",
            markersize=5 if netkit else 3,
            zorder=3 if netkit else 2,
        )
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis="y", color="#e5e5e5", zorder=0)
    return figure, axes


def _label_ends(figure: Any, axes: Any, lines: list[Line]) -> None:
    """Names right of the lines' ends, moved apart where they would cover each other."""
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    ends = sorted(
        (axes.transData.transform((xs[-1], ys[-1]))[1] / scale, server, xs[-1], ys[-1])
        for server, xs, ys in lines
    )
    heights = [height for height, *_ in ends]
    for _ in range(200):
        for i in range(len(heights) - 1):
            lacking = LINE_HEIGHT - (heights[i + 1] - heights[i])
            if lacking > 0:
                heights[i] -= lacking / 2
                heights[i + 1] += lacking / 2
    for wanted, (height, server, x, y) in zip(heights, ends, strict=True):
        title, color = STYLES[server]
        axes.annotate(
            title,
            (x, y),
            xytext=(22, wanted - height),
            textcoords="offset points",
            color=color,
            va="center",
            fontweight="bold" if server.startswith("netkit") else "normal",
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkB": 4},
        )


def _plain(axis: Any, ticks: list[float]) -> None:
    """Ticks where the figures are, as plain numbers."""
    axis.set_ticks(ticks)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _save(figure: Any, folder: Path, name: str) -> None:
    figure.savefig(folder / name, metadata={"Date": None})
    pyplot.close(figure)


def _throughput(results: Results, folder: Path) -> None:
    lines = _lines(results, "echo", ECHO, "requests_per_s")
    if not lines:
        return
    lines = [(server, xs, [y / 1000 for y in ys]) for server, xs, ys in lines]
    figure, axes = _plot(lines, "Echo of 64 bytes", "busy clients", "thousand requests/s")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    _plain(axes.xaxis, lines[0][1])
    _label_ends(figure, axes, lines)
    _save(figure, folder, "throughput.svg")


def _latency(results: Results, folder: Path) -> None:
    names = ["p50_us", "p90_us", "p99_us", "p99_9_us"]
    point = "100 clients"
    lines: list[Line] = []
    for server in LATENCY:
        ys = [results.median("echo", point, server, name) for name in names]
        milliseconds = [y / 1000 for y in ys if y is not None]
        if len(milliseconds) == len(names):
            lines.append((server, [float(x) for x in range(len(names))], milliseconds))
    if not lines:
        return
    figure, axes = _plot(
        lines, "Echo of 64 bytes, 100 busy clients: latency", "percentile", "ms (logarithmic)"
    )
    axes.set_yscale("log")
    axes.set_xticks(range(len(names)), ["50", "90", "99", "99.9"])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _label_ends(figure, axes, lines)
    _save(figure, folder, "latency.svg")


def _memory(results: Results, folder: Path) -> None:
    lines = _lines(results, "idle", MEMORY, "memory")
    if not lines:
        return
    lines = [(server, xs, [y / 2**20 for y in ys]) for server, xs, ys in lines]
    figure, axes = _plot(
        lines, "Memory of the server with idle clients", "clients", "MiB (logarithmic)"
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain(axes.xaxis, lines[0][1])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _label_ends(figure, axes, lines)
    _save(figure, folder, "memory.svg")


def _scaling(results: Results, folder: Path) -> None:
    lines = _lines(results, "scaling", SCALING, "requests_per_s")
    if not lines:
        return
    lines = [(server, xs, [y / ys[0] for y in ys]) for server, xs, ys in lines]
    cores = results.raw["machine"]["cores"]
    figure, axes = _plot(
        lines,
        f"A handler that computes, {cores} cores",
        "clients, each with its thread",
        "throughput, relative to one client",
    )
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    _plain(axes.xaxis, lines[0][1])
    _label_ends(figure, axes, lines)
    _save(figure, folder, "scaling.svg")
