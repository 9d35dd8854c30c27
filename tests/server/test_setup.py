"""The options and the handler of a server, which are replaced together."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from netkit.core.options import Options
from netkit.server.reload import configure
from netkit.server.setup import Configuration, Setup


def configuration(pass_on: Any = lambda _: None) -> Configuration:
    return Configuration(Setup(Options()), lambda handler, _: handler, pass_on)


def test_a_change_begins_anew_if_another_one_came_first() -> None:
    config = configuration()
    seen: list[Setup] = []

    def prepare(setup: Setup) -> Setup:
        seen.append(setup)
        if len(seen) == 1:
            config.set_handler("of the other thread")
        return setup.with_options(Options(max_line=5), None)

    config.change(prepare)
    assert [setup.handler for setup in seen] == [None, "of the other thread"]
    assert (config.setup.handler, config.setup.options.max_line) == ("of the other thread", 5)


def test_a_change_that_fails_changes_nothing() -> None:
    config = configuration()
    before = config.setup
    with pytest.raises(ValueError, match="max_line"):
        configure(config, {"max_line": -1, "idle_timeout": 5})
    assert config.setup is before


def test_options_and_what_is_made_of_them_are_replaced_in_one_step() -> None:
    setups: list[tuple[Setup, Options]] = []
    config = configuration(lambda options: setups.append((config.setup, options)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    configure(config, {"tls": context, "starttls": True, "idle_timeout": 5})
    ((setup, options),) = setups
    assert setup.options is options
    assert setup.tls is context
    assert not setup.speaks_tls
    assert setup.time_limits is not None
    assert setup.time_limits.idle_timeout == 5
    configure(config, {"starttls": False})
    assert config.setup.speaks_tls
    assert not setup.speaks_tls  # a client that began before
