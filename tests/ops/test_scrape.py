"""The page of a program: all its processes, also those that end, or do not answer."""

from __future__ import annotations

import threading

from pages import STATE, NoProgram, check_by_promtool, samples_of, told
from support import PATIENCE, in_thread, in_threads, wait_until

from netkit.ops.scrape import Scraper
from netkit.process.program import Answer

SENT = "netkit_sent_bytes_total"


def sent(scraper: Scraper) -> float:
    return samples_of(scraper.text())[SENT]


def test_the_page_has_the_sums_of_all_processes_and_the_state_of_the_program() -> None:
    program = NoProgram(
        told(7, {SENT: 10}, {"netkit_threads": 2}), told(8, {SENT: 5}, {"netkit_threads": 3})
    )
    program.present = STATE._replace(
        workers=2, restarts=4, reloads={"ok": 1}, retired={SENT: 100, "unknown": 1}
    )
    page = Scraper(program).text()
    check_by_promtool(page)
    found = samples_of(page)
    assert found[SENT] == 115
    assert found["netkit_threads"] == 5
    assert found["netkit_start_time_seconds"] == 1.5
    assert found["netkit_ready"] == 1
    assert found["netkit_workers"] == 2
    assert found["netkit_worker_restarts_total"] == 4
    assert found['netkit_reloads_total{result="ok"}'] == 1
    assert found['netkit_reloads_total{result="failed"}'] == 0
    assert found["netkit_processes_unresponsive"] == 0
    assert "unknown" not in found


def test_a_program_that_stops_or_is_suspended_is_not_ready() -> None:
    program = NoProgram()
    for phase in ("starting", "suspended", "stopping"):
        program.present = STATE._replace(phase=phase)
        assert samples_of(Scraper(program).text())["netkit_ready"] == 0


def test_a_process_that_does_not_answer_counts_with_its_last_counters() -> None:
    program = NoProgram(told(7, {SENT: 10}, {"netkit_threads": 2}), told(8, {SENT: 5}))
    scraper = Scraper(program)
    assert sent(scraper) == 15
    silent = told(7, {SENT: 12})._replace(error="no answer within 1 s")
    program.answers = [silent, told(8, {SENT: 6})]
    found = samples_of(scraper.text())
    assert found[SENT] == 18
    assert found["netkit_processes_unresponsive"] == 1
    assert "netkit_threads" not in found
    program.answers = [Answer(9, None, "no answer within 1 s")]  # nothing is known of it
    assert sent(scraper) == 18  # nothing falls


def test_a_process_that_ends_during_a_scrape_is_counted_once() -> None:
    before, after = STATE, STATE._replace(retired={SENT: 10})
    program = NoProgram(told(7, {SENT: 10}))

    def ask() -> list[Answer]:
        if program.asked == 1:  # it ends once it has answered
            program.present = after
            return program.answers
        return []

    program._ask = ask
    program.present = before
    assert sent(Scraper(program)) == 10
    assert program.asked == 2


def test_a_scrape_ends_also_while_process_after_process_ends() -> None:
    program = NoProgram(told(7, {SENT: 1}))
    program.states = [STATE._replace(retired={SENT: number}) for number in range(20)]
    assert sent(Scraper(program)) > 0
    assert program.asked == 3


def test_no_counter_falls_from_page_to_page() -> None:
    program = NoProgram(told(7, {SENT: 10}))
    scraper = Scraper(program)
    assert sent(scraper) == 10
    program.answers = [told(8, {SENT: 3})]
    assert sent(scraper) == 10
    program.answers = [told(8, {SENT: 11})]
    assert sent(scraper) == 11


def test_scrapes_at_the_same_time_share_a_page_which_is_not_older_than_they_are() -> None:
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def ask() -> list[Answer]:
        begun.release()
        assert go_on.acquire(timeout=PATIENCE)
        return [told(7, {SENT: program.asked})]

    program = NoProgram(ask=ask)
    scraper = Scraper(program)
    found: list[float] = []
    waiting = [threading.Event() for _ in range(5)]

    def scrape(event: threading.Event) -> None:
        event.set()
        found.append(sent(scraper))

    with in_thread(lambda: found.append(sent(scraper))):
        assert begun.acquire(timeout=PATIENCE)
        with in_thread(in_threads, scrape, [(event,) for event in waiting]):
            for event in waiting:
                assert event.wait(PATIENCE)
            wait_until(lambda: threading.active_count() > 7)
            go_on.release(10)
    assert sorted(found)[:2] == [1, 2]
    assert program.asked <= 6
