"""How netkit top looks, on screens of any size."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import examples

from netkit.cli.top_layout import amount, cut, duration, plain, screen, width_of
from netkit.cli.top_model import Request, Sample, Top

from .control_server import client_row, status_row
from .test_top_model import press, sample, top_with


def shown(top: Top, width: int = 100, height: int = 24) -> list[str]:
    lines = screen(top, width, height)
    assert len(lines) == height
    assert all(width_of(text) <= width for text, _ in lines)
    assert all(text.isprintable() for text, _ in lines)
    return [text.rstrip() for text, _ in lines]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((None, "-"), (0, "0"), (999, "999"), (2.5, "2.5"), (12.4, "12"), (1000, "1.0K")),
        *((9_960, "10K"), (999_499, "999K"), (999_600, "1.0M"), (7e9, "7.0G"), (5e15, "5000T")),
    ],
)
def test_an_amount_is_short(number: Any, text: str) -> None:
    assert amount(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((None, "-"), (0.4, "0s"), (59.9, "59s"), (65, "1m05s"), (3599, "59m59s")),
        *((3720, "1h02m"), (86_399, "23h59m"), (90_000, "1d01h"), (400 * 86_400, "400d00h")),
    ],
)
def test_a_duration_has_two_units(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_wide_characters_are_two_columns_and_accents_none() -> None:
    assert (width_of("日本"), width_of("e\u0301"), width_of("ab")) == (4, 1, 2)
    assert (cut("日本語", 5), cut("abc", 2), cut("abc", 0), cut("abc", -1)) == (
        "日本",
        "ab",
        "",
        "",
    )


def test_the_header_has_totals_and_rates_and_what_is_wrong() -> None:
    top = Top("/run/app.ctl")
    top.take(sample(1.0, accepted=1000, received=0))
    silent = [{"pid": 9, "error": "no answer within 1 s"}]
    more: dict[str, Any] = {"ready": False, "reason": "by hand", "phase": "suspended"}
    top.take(
        sample(3.0, accepted=1010, received=4096, processes=silent, workers=4, restarts=1, **more)
    )
    top.take(Sample(4.0, failure="no server listens on /run/app.ctl"))
    assert shown(top)[:6] == [
        "netkit top /run/app.ctl  suspended (by hand)  up 1h02m  netkit 0.1.0, Python 3.13.0",
        "clients 3 of 100  held 0  accepted 1.0K (5/s)  in 4.1K (2.0K/s)  out 7.0G (0/s)"
        "  refused 0",
        "workers 4, 1 restarted  threads 6  127.0.0.1:8080",
        "! no server listens on /run/app.ctl; trying again",
        "! worker 9: no answer within 1 s",
        "ID  PEER  STATE  AGE  IDLE  IN  OUT  IN/s  OUT/s  RTT  SENDQ  WHERE",
    ]


def test_each_client_is_a_row_and_the_selected_one_is_marked() -> None:
    top = top_with(
        client_row(1, via="10.0.0.7:999", tls="TLSv1.3", rtt=None),
        client_row(2, id="", state="held", age=None, where="", rtt=0.0004, **{"in": None}),
        client_row(3, end="idle_timeout", rtt=0.025),
    )
    lines = screen(top, 140, 10)
    assert [text.rstrip() for text, _ in lines[3:7]] == [
        "ID  PEER             VIA           STATE           AGE  IDLE    IN   OUT  IN/s  OUT/s"
        "     RTT  SENDQ  TLS      WHERE",
        "3   192.0.2.3:50312                idle_timeout  3m00s    1s  3.0K  6.0M     -      -"
        "    25ms      0           app.py:12 shout",
        "1   192.0.2.1:50312  10.0.0.7:999  serving       1m00s    1s  1.0K  2.0M     -      -"
        "       -      0  TLSv1.3  app.py:12 shout",
        "    192.0.2.2:50312                held              -    1s     -  4.0M     -      -"
        "  0.40ms      0",
    ]
    assert [style for _, style in lines[3:7]] == ["reverse", "reverse", "", ""]


def test_a_narrow_screen_has_fewer_columns_and_the_last_one_is_cut() -> None:
    top = top_with(client_row(1, where="a_long_name.py:1234 a_function_with_a_long_name"))
    assert shown(top, 79)[4].endswith("  2.0M  a_long_name.py:1234 a_fu")
    assert shown(top, 40)[3:5] == [
        "ID  PEER             WHERE",
        "1   192.0.2.1:50312  a_long_name.py:1234",
    ]
    assert shown(top, 10)[3:5] == ["ID", "1"]


def test_the_stack_of_a_client_has_its_lines_of_python() -> None:
    top = top_with()
    press(top, "enter")
    assert shown(top)[3:5] == ["stack of 3", "waiting for the server"]
    frames = [{"file": "/srv/app.py", "line": 12, "function": "shout", "code": "for line in x:"}]
    row = {"peer": "::1", "state": "serving", "thread": "netkit 3", "inside": "", "frames": frames}
    top.answered(Request("stacks", "3"), [row])
    assert shown(top)[3:7] == [
        "stack of 3",
        "::1  serving  netkit 3",
        "  /srv/app.py:12 shout",
        "      for line in x:",
    ]
    assert shown(top)[-1] == "Esc back  k kill"


def test_the_last_line_says_what_a_key_does_or_has_done() -> None:
    top = top_with()
    assert shown(top)[-1].endswith("sort: a i r s t u p w  by age, greatest first")
    press(top, "p")
    assert shown(top)[-1].endswith("by peer, least first")
    press(top, "k")
    assert shown(top)[-1] == "kill 3? y kills this client, any other key does not"
    press(top, "n")
    assert shown(top)[-1] == "3 is not killed"
    press(top, "/", "1", "9")
    assert shown(top)[-1] == "filter: 19_"
    press(top, "enter")
    assert "[19] by peer" in shown(top)[-1]


def test_the_plain_table_is_whole() -> None:
    top = top_with(client_row(1, where="x" * 300))
    text = plain(top)
    assert text.endswith("x" * 300 + "\n")
    assert len(text.splitlines()) == 5


hostile = st.text(max_size=30)


@given(st.integers(1, 120), st.integers(1, 30), hostile, hostile, hostile, st.booleans())
@examples(50)
def test_no_text_of_a_server_breaks_a_screen(
    width: int, height: int, peer: str, where: str, reason: str, has_stack: bool
) -> None:
    top = Top(reason)
    clients = [client_row(1, peer=peer, where=where), client_row(2, peer="\x1b[2J\u202e日本")]
    top.take(Sample.of(1.0, [status_row(ready=False, reason=reason)], clients))
    top.filter = "" if has_stack else peer
    shown(top, width, height)
    if has_stack:
        press(top, "enter")
        top.answered(Request("stacks", "2"), [{"peer": peer, "frames": [{"code": where}]}])
        shown(top, width, height)
    plain(top)


def test_a_server_of_another_version_may_lack_any_field() -> None:
    top = Top("x")
    top.take(Sample.of(1.0, [{"phase": "ready"}], [{"id": "1"}]))
    assert shown(top)[3:5] == [
        "ID  PEER  STATE  AGE  IDLE  IN  OUT  IN/s  OUT/s  RTT  SENDQ  WHERE",
        "1                  -     -   -    -     -      -    -      -",
    ]
