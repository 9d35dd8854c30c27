"""What a server does with a message before it is echoed: the same for all that are in Python.

A server's arguments are a port and one of

    echo             nothing
    broadcast        send it to all clients (not with all servers)
    sleep MS         wait, as for a database
    rounds COUNT     so many rounds of a loop in pure Python

`work.py calibrate` prints how many rounds take a millisecond here.
"""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

HOST = "127.0.0.1"
BACKLOG = 4096  # more than any scenario connects at once: an overflow costs its client a second
CHUNK = 65536


def compute(count: int) -> int:
    total = 0
    for number in range(count):
        total += number & 7
    return total


class Work(NamedTuple):
    kind: str
    seconds: float = 0.0
    count: int = 0

    def block(self) -> None:
        """Do it in this thread, as blocking code does."""
        if self.kind == "sleep":
            time.sleep(self.seconds)
        elif self.kind == "rounds":
            compute(self.count)


def from_arguments(skipped: int = 0) -> tuple[int, Work]:
    """The port and the work that this process was started for, after `skipped` arguments."""
    port, kind, *amounts = sys.argv[1 + skipped :]
    amount = float(amounts[0]) if amounts else 0.0
    return int(port), Work(kind, seconds=amount / 1000, count=int(amount))


def rounds_of_a_millisecond() -> int:
    """The fastest of many trials: what it takes when nobody disturbs."""
    count = 20_000

    def trial() -> float:
        start = time.perf_counter()
        compute(count)
        return time.perf_counter() - start

    return round(count * 0.001 / min(trial() for _ in range(200)))


if __name__ == "__main__":
    print(rounds_of_a_millisecond())
