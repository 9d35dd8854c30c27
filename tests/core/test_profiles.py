"""The values of the profile for the Internet."""

from __future__ import annotations

import re
import resource
from typing import Any

import pytest
from support import (
    ROOT,
)

from netkit.core import options as profiles
from netkit.core.options import Options

PUBLIC = profiles.public()

# Values


def test_the_page_lists_the_values_of_the_profile() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    table = page.partition("| option | value | reason |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", table, re.MULTILINE))
    assert rows.pop("max_connections") == (
        f"half of the descriptor limit, at most {profiles.clients_for(float('inf'))}"
    )
    assert {name: float(value) for name, value in rows.items()} == {
        name: value for name, value in PUBLIC.items() if name != "max_connections"
    }


def test_the_page_lists_the_limits_that_a_server_without_options_has() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    table = page.partition("| what | limit | option |")[2].partition("\n\n")[0]
    found = dict(re.findall(r"\| ([^|]+?) \| `(\w+)`", table))
    options = Options()
    assert options.max_line == 64 * 1024
    assert found["64 KiB"] == "max_line"
    assert options.max_message == 16 * 1024 * 1024
    assert found["16 MiB"] == "max_message"
    assert options.handshake_timeout == 10
    assert found["10 seconds"] == "handshake_timeout"
    assert not options.limited


def test_the_limit_of_clients_depends_on_the_limit_of_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = [1024, 256, 3, 1, 10**6, float("inf")]
    assert [profiles.clients_for(number) for number in numbers] == [512, 128, 1, 1, 10_000, 10_000]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = {soft: soft // 2, 300: 150, resource.RLIM_INFINITY: 10_000}
    for limit, clients in limits.items():
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, hard))
        assert Options(profile="public").max_connections == min(clients, 10_000)


def test_a_single_option_wins_against_the_profile() -> None:
    assert Options(profile="public", idle_timeout=300, min_rate=None).as_dict() == {
        **Options().as_dict(),
        **profiles.public(),
        "profile": "public",
        "idle_timeout": 300,
        "min_rate": None,
    }
    assert Options(profile=None) == Options()


@pytest.mark.parametrize("name", ["Public", "", 5, True, ["public"]])
def test_an_unknown_profile_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"profile must be 'public', not {name!r}")):
        Options(profile=name)
