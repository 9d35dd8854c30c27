"""Makes the text of /metrics: the samples of all processes of a program, in one page."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from ..process.program import Answer, Program, ProgramState
from .exposition import Samples, merged, sample, text_of
from .figures import build_info

_ATTEMPTS = 3


class Scraper:
    """Makes the page of one program. Thread-safe."""

    def __init__(self, program: Program) -> None:
        self._program = program
        # Guards the attributes below. Held during a scrape: it waits for the processes, and so
        # another scrape waits, too. None of the program's code runs meanwhile.
        self._lock = threading.Lock()
        self._text = ""
        self._began = -1.0  # when the making of `_text` began, on the monotonic clock
        self._shown: Samples = {}  # the counters of the last page

    def text(self) -> str:
        """Return the page, with everything that had happened when this was called.

        Calls that wait for a page at the same time share the next one.
        """
        called = time.monotonic()
        with self._lock:
            if self._began <= called:
                self._began = time.monotonic()
                self._text = text_of(self._samples_locked())
            return self._text

    def _samples_locked(self) -> Samples:
        """All samples. No counter is less than in the page before."""
        answers, state = self._ask()
        unresponsive = [each for each in answers if each.error]
        # An answer with an error has the counters that the process has sent last.
        sent = [each.value["counters"] for each in answers if each.value]
        counters = merged([state.retired, *sent])
        for name, value in counters.items():  # though a process may end without its last figures
            self._shown[name] = max(value, self._shown.get(name, 0))
        gauges = merged(each.value["gauges"] for each in answers if not each.error)
        more = {"netkit_processes_unresponsive": len(unresponsive)}
        return {**build_info(), **_samples_of(state), **self._shown, **gauges, **more}

    def _ask(self) -> tuple[Sequence[Answer], ProgramState]:
        """The answers of all processes, and a state that has none of these among its `retired`."""
        for _ in range(_ATTEMPTS):  # a process that ends meanwhile would be counted twice
            before = self._program.state()
            answers = self._program.ask("metrics")
            state = self._program.state()
            if state.retired == before.retired:
                break
        return answers, before


def _samples_of(state: ProgramState) -> Samples:
    """What is known of the program as a whole."""
    reloads = {
        sample("netkit_reloads_total", result=result): state.reloads.get(result, 0)
        for result in ("ok", "failed")
    }
    return {
        "netkit_start_time_seconds": state.started_at,
        "netkit_ready": int(state.phase == "ready"),
        "netkit_workers": state.workers,
        "netkit_worker_restarts_total": state.restarts,
        **reloads,
    }
