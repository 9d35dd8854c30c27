"""The benchmarks' command line; bin/bench makes what this needs, and then runs it.

A round goes through all points (a scenario at one size), and at each point through all servers, in
an order that is different in each round: what disturbs the machine for a while disturbs all alike,
and no server is always the one after the same other. Each round's figures are in the result.

Exit status: 0, 1 if a server or the load generator failed at some point, 2 for wrong arguments,
130 after Ctrl+C.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import machine
import report
from processes import Interrupted, handle_signals
from scenarios import LoadError, Point, Settings, points
from servers import ALL, BUILT, CEILING, ROOT, Laboratory, Peer, ServerError

OUTPUT = ROOT / "docs" / "benchmarks"
TOOLS = {"calls": "strace"}  # what a scenario cannot do without


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> _Parser:
    scenarios = list(dict.fromkeys(point.scenario for point in points(Settings())))
    parser = _Parser(
        prog="bench",
        description="Measure netkit beside other servers, and write the report.",
        epilog=f"Scenarios: {', '.join(scenarios)}. Servers: "
        f"{', '.join(peer.name for peer in ALL if peer is not CEILING)}.",
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="one short round, fewer clients")
    parser.add_argument("--rounds", type=_positive(int), metavar="N", help="default: 3")
    parser.add_argument("--seconds", type=_positive(float), metavar="S", help="of load; default: 3")
    parser.add_argument(
        "--scenario", nargs="+", metavar="NAME", choices=scenarios, help="only these"
    )
    parser.add_argument(
        "--server",
        nargs="+",
        metavar="NAME",
        choices=[peer.name for peer in ALL],
        help="only these",
    )
    parser.add_argument(
        "--python", metavar="PATH", default=sys.executable, help="for the servers in Python"
    )
    parser.add_argument(
        "--free-threaded", metavar="PATH", default="", help="a free-threaded Python; default: found"
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=OUTPUT, help="default: docs/benchmarks"
    )
    parser.add_argument(
        "--report-only", action="store_true", help="write the report again, from DIR/results.json"
    )
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    return parser


def _positive(kind: type[Any]) -> Any:
    def convert(text: str) -> Any:
        value = kind(text)
        if not 0 < value < 1e6:
            raise ValueError
        return value

    convert.__name__ = f"positive {kind.__name__}"
    return convert


def _check(parser: _Parser, arguments: argparse.Namespace) -> None:
    for option in ("python", "free_threaded"):
        path = getattr(arguments, option)
        if path and not shutil.which(path):
            parser.error(f"argument --{option.replace('_', '-')}: {path!r} is no program")
    if arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"argument --output: {str(arguments.output)!r} is no folder")
    if arguments.report_only and not (arguments.output / "results.json").is_file():
        parser.error(f"argument --report-only: no results.json in {str(arguments.output)!r}")


def main() -> int:
    parser = _parser()
    arguments = parser.parse_args()
    _check(parser, arguments)
    if arguments.check:
        print(shutil.which(arguments.python))
        return 0
    handle_signals()
    try:
        if not arguments.report_only:
            _measure_all(parser, arguments)
        results = json.loads((arguments.output / "results.json").read_text())
        print(report.write(results, arguments.output))
    except Interrupted as interrupted:
        print("bench: interrupted", file=sys.stderr)
        return 128 + interrupted.signum
    return 1 if any("error" in run for run in results["runs"]) else 0


def _measure_all(parser: _Parser, arguments: argparse.Namespace) -> None:
    for program in ("load", "server"):
        if not (BUILT / program).exists():
            parser.error(f"{program} is not compiled: run bin/bench")
    # Thousands of clients: what we may have, each process that we start has.
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    laboratory = Laboratory(arguments.free_threaded)
    settings = Settings(arguments.seconds or (0.5 if arguments.quick else 3.0), arguments.quick)
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    plan = _plan(arguments, settings, laboratory)
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
        "machine": machine.describe(),
        "versions": _versions(laboratory),
        "settings": {
            "rounds": rounds,
            "seconds": settings.seconds,
            "warmup": settings.warmup,
            "quick": settings.quick,
            "rounds_of_a_millisecond": laboratory.rounds,
        },
        "skipped": laboratory.skipped,
        "runs": [],
    }
    for name, reason in laboratory.skipped.items():
        print(f"skipped: {name}: {reason}", file=sys.stderr)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for number in range(1, rounds + 1):
        for point, peers in plan:
            for peer in random.Random(f"{number} {point}").sample(peers, len(peers)):
                results["runs"].append(_measure(laboratory, settings, number, point, peer))
        # After each round: an interrupted run is worth what it has measured.
        (arguments.output / "results.json").write_text(_json(results))


def _json(results: dict[str, Any]) -> str:
    """A line for each run: what has changed can be seen."""
    runs = ",\n".join(json.dumps(run) for run in results["runs"])
    head = json.dumps({name: value for name, value in results.items() if name != "runs"}, indent=1)
    return f'{head.removesuffix("}").rstrip()},\n "runs": [\n{runs}\n]}}\n'


def _plan(
    arguments: argparse.Namespace, settings: Settings, laboratory: Laboratory
) -> list[tuple[Point, list[Peer]]]:
    """The points that are wanted and possible, with their servers."""
    plan = []
    for point in points(settings):
        tool = TOOLS.get(point.scenario)
        if arguments.scenario and point.scenario not in arguments.scenario:
            continue
        if tool and not shutil.which(tool):
            laboratory.skipped[point.scenario] = f"no {tool}"
            continue
        peers = [
            peer
            for peer in point.peers
            if peer.name not in laboratory.skipped
            and (not arguments.server or peer.name in arguments.server)
        ]
        plan.append((point, peers))
    return plan


def _measure(
    laboratory: Laboratory, settings: Settings, number: int, point: Point, peer: Peer
) -> dict[str, Any]:
    run: dict[str, Any] = {
        "round": number,
        "scenario": point.scenario,
        "point": point.name,
        "server": peer.name,
    }
    start, others = time.monotonic(), machine.others_cpu_seconds()
    try:
        run["figures"] = point.measure(laboratory, settings, peer)
    except LoadError as error:
        run |= {"error": f"load: {error}", "figures": error.figures}
    except (ServerError, OSError, subprocess.SubprocessError) as error:
        run["error"] = f"server: {error}"
    told = run.get("error") or report.summary(run)
    taken = time.monotonic() - start
    # How much it was disturbed, in cores. Less than none: somebody's past is gone with a process.
    run["others_cpu"] = round(max(0.0, machine.others_cpu_seconds() - others) / taken, 3)
    line = f"{number}  {point.scenario:9} {point.name:28} {peer.name:18} {taken:5.1f} s  {told}"
    print(line, file=sys.stderr, flush=True)
    return run


def _versions(laboratory: Laboratory) -> dict[str, str]:
    code = "import sys; print(sys.version.replace(chr(10), ' '))"
    found = {
        "netkit": machine.output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "Python": machine.output(sys.executable, "-c", code),
        "Python, free-threaded": machine.output(laboratory.free_threaded or "-", "-c", code),
        "node": machine.output("node", "--version"),
        "go": machine.output("go", "version"),
        "cc": machine.output("cc", "--version"),
        "strace": machine.output("strace", "--version"),
    }
    for package in ("uvloop", "gevent", "trio", "twisted"):
        code = f"from importlib.metadata import version; print(version({package!r}))"
        found[package] = machine.output(sys.executable, "-c", code)
    return {name: version for name, version in found.items() if version}


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
