"""Which address is bound, and errors that say which one could not be."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import Any

import pytest
from support import needs_ipv6

import netkit
from netkit.net.bind import candidates, checked, explain, family_of, prepare, scoped, worth_another


@pytest.mark.parametrize("host", [None, "", "*"])
def test_no_host_is_every_address_of_both_families(host: str | None) -> None:
    assert candidates(host, 80) == [
        (socket.AF_INET6, ("::", 80)),
        (socket.AF_INET, ("0.0.0.0", 80)),
    ]


def test_an_address_is_taken_as_it_is() -> None:
    assert candidates("127.0.0.1", 80) == [(socket.AF_INET, ("127.0.0.1", 80))]
    assert candidates("::1", 80) == [(socket.AF_INET6, ("::1", 80, 0, 0))]


def test_a_name_has_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def getaddrinfo(*arguments: Any, **options: Any) -> list[Any]:
        asked.append((arguments, options))
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 80, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert candidates("name", 80) == [
        (socket.AF_INET6, ("2001:db8::1", 80, 0, 0)),
        (socket.AF_INET, ("192.0.2.1", 80)),
    ]
    assert asked == [(("name", 80, 0, socket.SOCK_STREAM), {"flags": socket.AI_PASSIVE})]


@pytest.mark.parametrize("host", [5, b"localhost", ["localhost"], True])
def test_a_host_of_another_type_is_a_type_error(host: Any) -> None:
    with pytest.raises(TypeError, match="^host must be a name or an address, not "):
        candidates(host, 80)


@pytest.mark.parametrize("host", ["\0", "127.0.0.1\0.example"])
def test_a_host_with_null_characters_is_not_a_name(host: str) -> None:
    with pytest.raises(socket.gaierror) as caught:
        candidates(host, 80)
    shown = repr(host)[1:-1]
    text = f"cannot listen on {shown}:80: it is not a host name (ENOTFOUND)"
    assert caught.value.strerror == text


@pytest.mark.parametrize("host", ["x" * 64 + ".invalid", "a..b", "::g", "no name"])
def test_a_name_that_does_not_resolve_is_named_in_the_error(host: str) -> None:
    with pytest.raises(socket.gaierror) as caught:
        candidates(host, 80)
    error: Any = caught.value
    assert (error.address, error.port, error.syscall) == (host, 80, "listen")
    where = f"{host}:80" if ":" not in host else f"[{host}]:80"
    assert error.strerror.startswith(f"cannot listen on {where}: ")
    assert (error.code, error.strerror[-11:]) == ("ENOTFOUND", "(ENOTFOUND)")


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EADDRNOTAVAIL, True),
        (errno.EAFNOSUPPORT, True),
        (errno.EPROTONOSUPPORT, True),
        (errno.ENOPROTOOPT, True),
        (errno.EADDRINUSE, False),
        (errno.EACCES, False),
    ],
)
def test_another_address_is_tried_if_this_machine_does_not_have_this_one(
    number: int, expected: bool
) -> None:
    assert worth_another(OSError(number, "")) is expected


@pytest.mark.parametrize(
    ("address", "family", "expected"),
    [
        (("::1", 80), socket.AF_INET, socket.AF_INET6),
        (("::1", 80), socket.AF_INET6, socket.AF_INET6),
        (("127.0.0.1", 80), socket.AF_INET, socket.AF_INET),
        (("", 80), socket.AF_INET, socket.AF_INET),
        ((b"::1", 80), socket.AF_INET, socket.AF_INET),
        (("127.0.0.1", 80), socket.AF_INET6, socket.AF_INET6),
        ("/run/a:b", socket.AF_UNIX, socket.AF_UNIX),
        ("/run/a:b", socket.AF_INET, socket.AF_INET),
    ],
)
def test_an_ipv6_address_makes_an_ipv6_server(address: Any, family: int, expected: int) -> None:
    assert family_of(address, family) == expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (("", "80"), ("", 80)),
        (("::1", 80, 0, 2), ("::1", 80, 0, 2)),
        ("/run/x.sock", "/run/x.sock"),
        (b"\0abstract", b"\0abstract"),
        (("alone",), ("alone",)),
        (None, None),
    ],
)
def test_the_port_of_an_address_is_checked_and_a_path_has_none(address: Any, expected: Any) -> None:
    assert checked(address) == expected


@pytest.mark.parametrize("address", [("::1", 80), ("::1", 80, 0, 2), ("", 0), (b"x", 1), "/a%b"])
def test_an_address_without_a_zone_is_bound_as_it_is(address: Any) -> None:
    assert scoped(address) is address


@needs_ipv6
def test_a_zone_is_bound_as_the_number_of_its_interface() -> None:
    index, name = socket.if_nameindex()[0]
    assert scoped((f"fe80::1%{name}", "80")) == ("fe80::1", 80, 0, index)
    with pytest.raises(socket.gaierror):
        scoped(("fe80::1%no-such-link", 80))


@pytest.mark.parametrize(
    ("port", "kind"), [(70000, ValueError), ("x", ValueError), (None, TypeError)]
)
def test_an_address_with_a_bad_port_is_refused(port: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="^port must be a number from 0 to 65535"):
        checked(("127.0.0.1", port))


@needs_ipv6
def test_an_ipv6_socket_takes_ipv4_clients_whatever_the_system_says() -> None:
    with socket.socket(socket.AF_INET6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        prepare(sock, False)
        assert not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


@pytest.mark.parametrize("reuse", [True, False])
def test_a_port_is_shared_only_if_that_is_wanted(reuse: bool) -> None:
    with socket.socket() as sock:
        prepare(sock, reuse)
        assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)) is reuse


def test_sharing_a_port_means_nothing_to_a_unix_socket() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        prepare(sock, True)


@pytest.mark.parametrize(
    ("error", "address", "syscall", "text"),
    [
        (
            OSError(errno.EADDRINUSE, ""),
            ("::1", 80, 0, 0),
            "listen",
            "cannot listen on [::1]:80: address already in use (EADDRINUSE)",
        ),
        (
            PermissionError(errno.EACCES, ""),
            ("127.0.0.1", 80),
            "listen",
            "cannot listen on 127.0.0.1:80: permission denied: ports under 1024 need privileges "
            "(EACCES)",
        ),
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            ("127.0.0.1", 80),
            "listen",
            "cannot listen on 127.0.0.1:80: the name is not known (ENOTFOUND)",
        ),
        (
            UnicodeError("label too long"),
            ("h", 80),
            "listen",
            "cannot listen on h:80: it is not a host name (ENOTFOUND)",
        ),
        (
            OSError(errno.EACCES, ""),
            ("::", 1024),
            "listen",
            "cannot listen on [::]:1024: permission denied (EACCES)",
        ),
        (
            OSError(errno.EACCES, ""),
            "/x/s",
            "listen",
            "cannot listen on /x/s: permission denied: this user may not create files in the "
            "folder (EACCES)",
        ),
        (
            OSError(errno.EINVAL, ""),
            ("fe80::1", 8080),
            "bind",
            "cannot bind to [fe80::1]:8080: a link-local address needs its zone, such as "
            "fe80::1%eth0 (EINVAL)",
        ),
        (
            OSError(errno.EINVAL, ""),
            ("::1", 8080),
            "bind",
            "cannot bind to [::1]:8080: invalid argument (EINVAL)",
        ),
        (
            socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
            ("h", 80),
            "connect",
            "cannot connect to h:80: the name servers do not answer (EAI_AGAIN)",
        ),
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            ("fe80::1%none", 80),
            "connect",
            "cannot connect to [fe80::1%none]:80: unknown network interface (ENOTFOUND)",
        ),
        (
            socket.gaierror(socket.EAI_FAMILY, "ai_family not supported"),
            ("h", 80),
            "connect",
            "cannot connect to h:80: ai_family not supported (ENOTFOUND)",
        ),
        (
            OSError(99999, ""),
            "fd:3",
            "listen",
            "cannot listen on fd:3: unknown error 99999 (99999)",
        ),
    ],
)
def test_an_explained_error_names_the_attempt_and_the_reason(
    error: Exception, address: Any, syscall: str, text: str
) -> None:
    explained: Any = explain(error, address, syscall)
    assert explained.strerror == text
    assert explained.syscall == syscall
    if isinstance(error, OSError):
        assert (type(explained), explained.errno) == (type(error), error.errno)
    else:
        assert (type(explained), explained.errno) == (socket.gaierror, socket.EAI_NONAME)


@needs_ipv6
def test_an_explained_error_has_the_zone_of_a_link_local_address() -> None:
    index, name = socket.if_nameindex()[0]
    explained: Any = explain(OSError(errno.EADDRINUSE, ""), ("fe80::1", 80, 0, index))
    assert explained.strerror.startswith(f"cannot listen on [fe80::1%{name}]:80: ")
    assert explained.address == f"fe80::1%{name}"


def test_the_path_of_a_unix_socket_is_its_address_and_it_has_no_port(tmp_path: Path) -> None:
    class UnixServer(netkit.Server):
        address_family = socket.AF_UNIX

    path = str(tmp_path / "missing" / "x.sock")
    with pytest.raises(FileNotFoundError) as caught:
        UnixServer(path, lambda conn: None)
    error: Any = caught.value
    assert (error.address, error.port) == (path, None)
    assert error.strerror == f"cannot listen on {path}: the folder does not exist (ENOENT)"

    path = str(tmp_path / ("x" * 200))
    with pytest.raises(OSError, match="too long") as caught_again:
        UnixServer(path, lambda conn: None)
    error = caught_again.value
    assert type(error) is OSError
    assert str(error) == f"cannot listen on {path}: AF_UNIX path too long"
    assert (error.address, error.port) == (path, None)


def test_an_address_given_as_bytes_is_explained_too() -> None:
    with pytest.raises(OSError, match="EADDRNOTAVAIL") as caught:
        netkit.Server((b"192.0.2.1", 0), lambda conn: None)
    assert caught.value.address == b"192.0.2.1"  # type: ignore[attr-defined]
