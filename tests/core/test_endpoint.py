"""The grammar of addresses to listen on, and the errors of invalid ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netkit.core import endpoint
from netkit.core.endpoint import Endpoint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080", Endpoint("tcp", None, 8080)),
        ("0", Endpoint()),
        ("*:8080", Endpoint("tcp", "*", 8080)),
        ("127.0.0.1:8080", Endpoint("tcp", "127.0.0.1", 8080)),
        ("my-host.example:0", Endpoint("tcp", "my-host.example", 0)),
        ("[::1]:8080", Endpoint("tcp", "::1", 8080)),
        ("[fe80::1%eth0]:80", Endpoint("tcp", "fe80::1%eth0", 80)),
        ("[::]:80?ipv6_only=on", Endpoint("tcp", "::", 80, ipv6_only=True)),
        ("80?reuse_port=on&ipv6_only=off", Endpoint("tcp", None, 80, reuse_port=True)),
        ("unix:/run/x.sock", Endpoint("unix", path="/run/x.sock")),
        ("unix:x:y", Endpoint("unix", path="x:y")),
        ("unix:/x?mode=660", Endpoint("unix", path="/x", mode=0o660)),
        ("unix:/x?mode=0600&owner=a:b", Endpoint("unix", path="/x", mode=0o600, owner="a:b")),
        ("unix:/x?owner=:7", Endpoint("unix", path="/x", owner=":7")),
        ("@name", Endpoint("unix", path="\0name")),
        ("@a/b", Endpoint("unix", path="\0a/b")),
        ("fd:3", Endpoint("fd", fd=3)),
        ("systemd:", Endpoint("systemd")),
        ("systemd:web", Endpoint("systemd", name="web")),
        ("systemd:8080?tls=off", Endpoint("systemd", name="8080", tls=False)),
        ("80?tls=on", Endpoint("tcp", None, 80, tls=True)),
        ("unix:/x?mode=660&tls=off", Endpoint("unix", path="/x", mode=0o660, tls=False)),
        ("fd:3?tls=on", Endpoint("fd", fd=3, tls=True)),
        ("*:80?proxy=on&tls=off", Endpoint("tcp", "*", 80, tls=False, proxy=True)),
        ("unix:/x?proxy=on", Endpoint("unix", path="/x", proxy=True)),
        ("fd:3?proxy=off", Endpoint("fd", fd=3)),
        ("systemd:web?proxy=on", Endpoint("systemd", name="web", proxy=True)),
    ],
)
def test_an_address_is_parsed(text: str, expected: Endpoint, linux: None) -> None:
    assert Endpoint.parse(text) == expected


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint.sys, "platform", "linux")


PORT = "port must be a number from 0 to 65535, not "
FD = "fd must be the number of a descriptor, not "
OWNER = "owner must be USER, USER:GROUP or :GROUP, not "
MODE = "mode must be three octal digits, such as 660, not "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", PORT + "''"),
        ("http", PORT + "'http'"),
        ("-1", PORT + "'-1'"),
        ("65536", PORT + "65536"),
        ("*:", PORT + "''"),
        ("localhost:http", PORT + "'http'"),
        ("[::1]:99999", PORT + "99999"),
        (":8080", "':8080' has no host: write '*:8080' for every address"),
        ("::1:80", "an IPv6 address needs brackets: '[::1]:8080', not '::1:80'"),
        ("[::1]", "an IPv6 address needs brackets: '[::1]:8080', not '[::1]'"),
        ("[1.2.3.4]:80", "the brackets of '[1.2.3.4]:80' must contain an IPv6 address"),
        ("/run/x", "a path needs unix: before it: 'unix:/run/x', not '/run/x'"),
        ("./x:80", "a path needs unix: before it: 'unix:./x:80', not './x:80'"),
        ("http://a:80/x", "an address has no http://: write 'a:80', not 'http://a:80/x'"),
        ("tcp://", "an address has no tcp://: write 'HOST:PORT', not 'tcp://'"),
        ("unix:", "a Unix socket must have a path or a name"),
        ("@", "a Unix socket must have a path or a name"),
        ("unix:/a\0b", "a Unix socket's path must not have null characters: '/a\\x00b'"),
        ("fd:", FD + "''"),
        ("fd:x", FD + "'x'"),
        ("fd:\u0663", FD + "'\u0663'"),
        ("fd:4294967299", FD + "'4294967299'"),
        ("fd:-1", FD + "-1"),
        ("systemd:a:b", "a name of systemd has no colon, but 'a:b' has one"),
        ("systemd:?mode=660", "a socket of systemd has no setting 'mode'; it has proxy and tls"),
        ("80?", "a port has no setting ''; it has ipv6_only, reuse_port, proxy and tls"),
        (
            "80?mode=660",
            "a port has no setting 'mode'; it has ipv6_only, reuse_port, proxy and tls",
        ),
        ("80?ipv6_only=yes", "ipv6_only must be on or off, not 'yes'"),
        ("80?tls=yes", "tls must be on or off, not 'yes'"),
        ("80?proxy=off&proxy=on", "the setting 'proxy' is given twice"),
        ("80?ipv6_only", "ipv6_only must be on or off, not ''"),
        (
            "unix:/x?color=1",
            "a Unix socket has no setting 'color'; it has mode, owner, proxy and tls",
        ),
        ("unix:/x?mode=rw", MODE + "'rw'"),
        ("unix:/x?mode=888", MODE + "'888'"),
        ("unix:/x?mode=", MODE + "''"),
        ("unix:/x?mode=1777", "mode must be from 0 to 0o777, not 0o1777"),
        ("unix:/x?owner=", OWNER + "''"),
        ("unix:/x?owner=:", OWNER + "':'"),
        ("unix:/x?owner=a:b:c", OWNER + "'a:b:c'"),
        ("@n?mode=660", "an abstract name has no mode and no owner: all users may connect"),
        ("fd:3?mode=660", "a descriptor has no setting 'mode'; it has proxy and tls"),
    ],
)
def test_an_invalid_address_is_an_error_of_one_line(text: str, message: str, linux: None) -> None:
    with pytest.raises(ValueError, match="^") as caught:
        Endpoint.parse(text)
    assert str(caught.value) == message


# Pieces of addresses in any order, or any text.
pieces = [
    "unix:",
    "@",
    "fd:",
    "systemd:",
    "/run/x",
    "x",
    "*",
    "[::1]",
    "[",
    "]",
    "::1",
    "127.0.0.1",
    "%eth0",
]
pieces += [":", "80", "65536", "0", "-1", "?", "&", "=", "mode", "mode=660", "owner=a:b", "owner="]
pieces += ["ipv6_only=on", "reuse_port=off", "tls=on", "\0", "\n", "\x1b", "\u0661", "\udcff"]
pieces += ["9" * 5000]
texts = st.one_of(st.lists(st.sampled_from(pieces), max_size=8).map("".join), st.text())


@pytest.mark.fuzz
@given(texts)
def test_any_text_is_an_address_or_a_value_error_of_one_line(text: str) -> None:
    try:
        found = Endpoint.parse(text)
    except ValueError as error:
        found, message = None, str(error)
    else:
        message = "it is one"
    assert message.isprintable()
    if found is not None:
        check(found)


def check(found: Endpoint) -> None:
    """Check that an endpoint is valid, and equals one that is made of keywords."""
    assert found.kind in ("tcp", "unix", "fd", "systemd")
    assert 0 <= found.port <= 65535
    assert (found.kind == "fd") == (found.fd >= 0)
    assert (found.kind == "unix") == (found.path.strip("\0") != "")
    assert "\0" not in found.path[1:]
    assert found.mode is None or 0 <= found.mode <= 0o777
    options = found._asdict()
    kind, port, host = (options.pop(name) for name in ("kind", "port", "host"))
    options["path"], options["fd"] = options["path"] or None, None if kind != "fd" else found.fd
    assert ":" not in options.pop("name")
    if kind != "systemd":  # which `listen` has no parameter for
        assert Endpoint.of(port, host, **options) == found


def test_abstract_names_are_for_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint.sys, "platform", "darwin")
    text = "only Linux has abstract names, such as '@name'"
    with pytest.raises(ValueError, match=f"^{text}$"):
        Endpoint.parse("@name")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Endpoint()),
        ({"port": "80", "host": "::1"}, Endpoint("tcp", "::1", 80)),
        ({"ipv6_only": True, "reuse_port": False}, Endpoint(ipv6_only=True)),
        ({"path": Path("/x"), "mode": 0, "owner": None}, Endpoint("unix", path="/x", mode=0)),
        ({"path": b"/x\xff"}, Endpoint("unix", path="/x\udcff")),
        ({"fd": 0}, Endpoint("fd", fd=0)),
        ({"fd": 0, "tls": False}, Endpoint("fd", fd=0, tls=False)),
    ],
)
def test_an_endpoint_can_be_made_of_keywords(given: dict[str, Any], expected: Endpoint) -> None:
    assert Endpoint.of(**given) == expected


ONE_OF = "a server listens on one of port, path, fd and sock; see listen_on()"
UNIX = {"path": "/x"}


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"port": 80, **UNIX}, TypeError, ONE_OF),
        ({"fd": 3, **UNIX}, TypeError, ONE_OF),
        ({"tls": 1.5}, TypeError, "tls must be True, False or None, not 1.5"),
        (
            {"mode": 6},
            TypeError,
            "a port has no setting 'mode'; it has ipv6_only, reuse_port, proxy and tls",
        ),
        (
            {**UNIX, "ipv6_only": True},
            TypeError,
            "a Unix socket has no setting 'ipv6_only'; it has mode, owner, proxy and tls",
        ),
        ({"port": 65536}, ValueError, PORT + "65536"),
        ({"port": None}, TypeError, PORT + "None"),
        ({"path": ""}, ValueError, "a Unix socket must have a path or a name"),
        ({"path": "\ud800"}, ValueError, r"a Unix socket's path must be encodable, not '\ud800'"),
        ({**UNIX, "mode": "6"}, TypeError, "mode must be a number such as 0o660, not '6'"),
        ({**UNIX, "mode": True}, TypeError, "mode must be a number such as 0o660, not True"),
        ({**UNIX, "mode": -1}, ValueError, "mode must be from 0 to 0o777, not -0o1"),
        (
            {**UNIX, "owner": 7},
            TypeError,
            "owner must be text such as 'www-data:www-data', not 7",
        ),
        ({"fd": -1}, ValueError, FD + "-1"),
        ({"fd": 2**32 + 3}, ValueError, FD + "4294967299"),
        ({"fd": "3"}, TypeError, FD + "'3'"),
        ({"fd": True}, TypeError, FD + "True"),
    ],
)
def test_an_invalid_keyword_is_an_error_that_names_it(
    given: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        Endpoint.of(**given)
    assert str(caught.value) == message


@pytest.mark.parametrize("address", [80, "80", Endpoint(port=80)])
def test_an_endpoint_can_be_made_of_a_port_of_text_and_of_an_endpoint(address: Any) -> None:
    assert Endpoint.from_any(address) == Endpoint(port=80)
