"""Flags of the commands that serve."""

from __future__ import annotations

import re

import pytest

from netkit.cli import flags
from netkit.cli.arguments import ArgumentError
from netkit.cli.echo import Echo

from .commands import understood


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("80?tls=on", "?tls=on needs --tls-cert or --tls-self-signed"),
        ("80 81?tls=off", "?tls=off has no effect without --tls-cert"),
        ("80?tls=off --tls-cert x", "--tls-cert has no effect: each address has ?tls=off"),
        ("80?tls=off --tls-self-signed", "--tls-self-signed has no effect: each address has"),
        ("80?tls=off 81 --tls-cert x --starttls on", "?tls=off has no effect with --starttls"),
        ("80?tls=on --tls-cert x --starttls on", "--starttls has no effect: each address has"),
    ],
)
def test_a_setting_of_tls_without_effect_is_an_error(argv: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{re.escape(message)}"):
        understood(Echo(), *argv.split())


def test_trusted_proxies_without_an_address_for_them_are_an_error() -> None:
    message = "^--proxy-from has no effect: no address has \\?proxy=on"
    with pytest.raises(ArgumentError, match=message):
        understood(Echo(), "80", "--proxy-from", "10.0.0.1")


def test_a_certificate_may_be_for_some_addresses() -> None:
    argv = ["80?tls=off", "81", "82?tls=on", "--tls-cert", "x", "--starttls", "off"]
    assert [each.tls for each in understood(Echo(), *argv)[0].addresses] == [False, None, True]


def test_an_error_of_the_library_names_flags_and_variables_where_there_are_any() -> None:
    message = "max_line and min_rate and handler_args and no_such"
    named = flags.as_given(message, ["min_rate"])
    assert named == "--max-line and NETKIT_MIN_RATE and handler_args and no_such"
