"""Options that change while a server runs, and files that are read again."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support import (
    client,
    exchange,
    in_thread,
    in_threads,
    input_of_client,
    observed,
    receive_exactly,
    serving,
)

import netkit
from netkit.core import events


def test_options_of_the_handler_and_of_the_sockets_change_for_new_clients() -> None:
    def handler(conn: netkit.Connection, greeting: str) -> None:
        conn.write(greeting)
        conn.read()

    options = (socket.TCP_NODELAY, socket.IPPROTO_TCP), (socket.SO_KEEPALIVE, socket.SOL_SOCKET)

    def seen() -> list[bool]:
        with client(server) as sock:
            assert receive_exactly(sock, 5) == greeting.encode()
            (conn,) = server.connections
            found = [bool(conn.socket.getsockopt(level, option)) for option, level in options]
        server.wait_for_connections(0)
        return found

    greeting = "hello"
    with serving(handler, handler_args={"greeting": greeting}) as server:
        assert seen() == [True, True]
        greeting = "howdy"
        server.configure(handler_args={"greeting": greeting}, no_delay=False, keep_alive=False)
        assert seen() == [False, False]
        with pytest.raises(TypeError, match="cannot serve a client"):
            server.configure(handler_args={"colour": "red"}, no_delay=True)
        assert seen() == [False, False]
    server.configure(no_delay=True)  # of a closed server, which may listen again
    netkit.create_server(netkit.EchoHandler).configure(no_delay=False)


def test_no_lock_is_held_while_a_handler_class_checks_its_settings() -> None:
    """Another thread may change the server in the middle of it, and neither change is lost."""
    checked: list[object] = []

    class Checking(netkit.EchoHandler):
        setting = 0

        @classmethod
        def check_settings(cls, settings: Mapping[str, object]) -> None:
            checked.append(dict(settings))
            if len(checked) == 3:  # not the server's first look at them, which is in no hurry
                with in_thread(lambda: server.configure(max_line=10)):
                    pass

    server = netkit.create_server(Checking)
    server.configure(handler_args={"setting": 1})
    assert len(checked) == 2
    server.configure(handler_args={"setting": 2}, deny=iter(["10.0.0.0/8"]))
    assert server._options.handler_args == {"setting": 2}
    assert server._options.max_line == 10
    assert server._options.deny is not None
    assert "10.1.2.3" in server._options.deny
    del checked[:2]
    server.RequestHandlerClass = Checking
    assert server.RequestHandlerClass is Checking


def test_of_two_changes_at_once_none_is_lost() -> None:
    server = netkit.create_server(netkit.EchoHandler)

    def change(name: str, values: range) -> None:
        for value in values:
            server.configure(**{name: value})
            assert getattr(server._options, name) == value

    names = ("max_line", "max_message", "max_connections", "max_connections_per_ip")
    in_threads(change, [(name, range(1, 200)) for name in names])


class Rotating(netkit.Handler):
    output: Any = None


def test_a_setting_of_the_handler_that_can_be_reopened_is_reopened_by_a_reload() -> None:
    calls: list[str] = []

    class Output:
        def reopen(self) -> None:
            calls.append("reopen")
            if len(calls) > 1:
                raise RuntimeError("of the output")

    with observed(events.SettingsReloaded, events.SettingsKept) as told:
        with serving(Rotating, handler_args={"output": Output()}) as server:
            assert server.can_reload
            assert server.reload()
            assert not server.reload()
    assert calls == ["reopen", "reopen"]
    assert told[0] == events.SettingsReloaded("the setting 'output'", None, None)
    assert isinstance(told[1].error, RuntimeError)


def test_a_reload_reads_lists_again_and_keeps_the_old_list_if_the_new_one_is_invalid(
    tmp_path: Path,
) -> None:
    path = tmp_path / "deny"
    path.write_text("127.0.0.0/8\n")
    kinds = (events.ListLoaded, events.SettingsReloaded, events.SettingsKept)
    with observed(*kinds) as told:
        with serving(netkit.EchoHandler, deny=path, allow=["::/0"]) as server:
            assert server.can_reload
            assert input_of_client(server) == b""
            path.write_text("127.0.0.0/88\n")
            assert not server.reload()
            assert input_of_client(server) == b""
            path.write_text("10.0.0.0/8\n")
            assert server.reload()
            assert exchange(server, b"x") == b"x"
            path.write_text("10.0.0.0/8\n10.0.0.1\n")
            assert server.reload()
    assert told.pop(0) == events.ListLoaded("deny", 1, str(path))
    assert isinstance(told.pop(0), events.SettingsKept)
    assert told == [
        events.SettingsReloaded("the list 'deny'", 1, 1),
        events.SettingsReloaded("the list 'deny'", 2, 1),
    ]
