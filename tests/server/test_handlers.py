"""The base class of handlers, and the three handlers that netkit comes with."""

from __future__ import annotations

import errno
import io
import logging
import random
import re
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest
from support import (
    PATIENCE,
    client,
    exchange,
    exchange_and_fail,
    exchange_much,
    in_thread,
    in_threads,
    observed,
    receive_all,
    receive_exactly,
    reset,
    send_and_end,
    serving,
    silent_log,
    wait_until,
)

import netkit
from netkit.core import events
from netkit.server.handlers import hex_dump

# Handler


class Recorder(netkit.Handler):
    """Records its calls, and raises in the methods that `failing` names."""

    calls: list[Any]
    failing: frozenset[str] = frozenset()

    def note(self, call: str, *details: Any) -> None:
        self.calls.append((call, *details))
        if call in self.failing:
            raise RuntimeError(call)

    def connected(self) -> None:
        self.note("connected", self.conn.closed)

    def received(self, data: Any) -> None:
        self.note("received", data)

    def closed(self) -> None:
        self.note("closed", self.conn.closed)


class OwnServer(netkit.Server):
    motto = "hello"


AnyServer = TypeVar("AnyServer", bound=OwnServer)


class TellsMotto(netkit.Handler):
    server: OwnServer

    def handle(self) -> None:
        self.conn.end(self.server.motto)


class TellsMottoOf(netkit.Handler[AnyServer], Generic[AnyServer]):
    def handle(self) -> None:
        self.conn.end(self.server.motto)


class TellsOwnMotto(TellsMottoOf[OwnServer]):
    pass


@pytest.mark.parametrize("handler", [TellsMotto, TellsOwnMotto, TellsMottoOf[OwnServer]])
def test_a_handler_may_name_the_class_of_its_server_for_type_checkers(handler: Any) -> None:
    with OwnServer(("127.0.0.1", 0), handler) as server:
        server.start()
        assert exchange(server, b"") == b"hello"


def recorder(*failing: str) -> tuple[type[Recorder], list[Any]]:
    calls: list[Any] = []
    members = {"calls": calls, "failing": frozenset(failing)}
    return type("MadeRecorder", (Recorder,), members), calls


def test_connected_received_and_closed_are_called_in_this_order() -> None:
    handler, calls = recorder()
    with serving(handler) as server:
        assert exchange(server, b"hello") == b""
    assert calls == [("connected", False), ("received", b"hello"), ("closed", True)]


@pytest.mark.parametrize("failing", ["connected", "received", "handle", "closed"])
def test_closed_is_called_once_whatever_fails(failing: str) -> None:
    handler, calls = recorder(failing)
    if failing == "handle":
        handler.handle = lambda self: self.note("handle")  # type: ignore[method-assign, assignment]
    with silent_log(), observed(events.HandlerFailed) as failures, serving(handler) as server:
        talk = exchange if failing == "closed" else exchange_and_fail
        assert talk(server, b"hello") == b""
    assert calls[-1] == ("closed", True)
    assert [call[0] for call in calls].count("closed") == 1
    assert [str(failure.error) for failure in failures] == [failing]


def test_closed_is_called_when_the_client_resets() -> None:
    handler, calls = recorder()
    with observed(events.ClientFailed) as failures, serving(handler) as server:
        with client(server) as sock:
            sock.sendall(b"x")
            wait_until(lambda: len(calls) == 2, "received")
            reset(sock)
        wait_until(lambda: len(calls) == 3, "closed")
        wait_until(lambda: failures, "the report")
    assert calls == [("connected", False), ("received", b"x"), ("closed", True)]
    assert isinstance(failures[0].error, ConnectionResetError)


def test_when_two_of_its_methods_fail_the_earlier_error_is_the_context_of_the_later() -> None:
    handler, _ = recorder("received", "closed")
    with silent_log(), observed(events.HandlerFailed) as failures, serving(handler) as server:
        exchange_and_fail(server, b"hello")
    (failure,) = failures
    assert str(failure.error) == "closed"
    assert str(failure.error.__context__) == "received"


def test_closed_still_knows_the_addresses_and_the_counts() -> None:
    facts: list[Any] = []

    class Facts(netkit.EchoHandler):
        def closed(self) -> None:
            conn = self.conn
            facts.append((conn.remote_port, conn.local_port, conn.bytes_read, conn.bytes_written))

    with serving(Facts) as server, client(server) as sock:
        send_and_end(sock, b"hello")
        assert receive_all(sock) == b"hello"
        wait_until(lambda: facts, "closed")
        assert facts == [(sock.getsockname()[1], server.server_address[1], 5, 5)]


def test_the_client_has_the_end_of_input_before_closed_is_done() -> None:
    """So a client does not wait for a slow `closed`."""
    go_on = threading.Event()

    class Slow(netkit.Handler):
        def closed(self) -> None:
            assert go_on.wait(PATIENCE)

    with serving(Slow) as server:
        try:
            assert exchange(server, b"") == b""
        finally:
            go_on.set()


def test_received_gets_text_after_set_encoding_with_no_character_cut() -> None:
    handler, calls = recorder()

    class Text(handler):  # type: ignore[valid-type, misc]
        def connected(self) -> None:
            self.conn.set_encoding("utf-8")

    with serving(Text) as server, client(server) as sock:
        for byte in "\xe4\xf6\xfc".encode():
            sock.sendall(bytes([byte]))
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b""
    chunks = [call[1] for call in calls if call[0] == "received"]
    assert "".join(chunks) == "\xe4\xf6\xfc"
    assert "" not in chunks


def test_handle_may_be_overridden_and_then_reads_by_itself() -> None:
    class Lines(netkit.Handler):
        def handle(self) -> None:
            for line in self.conn.lines():
                self.conn.write(f"<{line}>")

        def received(self, data: Any) -> None:
            raise AssertionError("not called")

    with serving(Lines) as server:
        assert exchange(server, b"one\ntwo") == b"<one><two>"


def test_each_client_has_a_handler_whose_methods_run_in_one_thread() -> None:
    calls: list[Any] = []  # of several clients, since one may be closed while the next one comes

    class Kept(netkit.Handler):
        def connected(self) -> None:
            calls.append((self, threading.get_ident()))
            self.conn.write(str(self.server.server_address[1]))

        received = closed = lambda self, *_: calls.append((self, threading.get_ident()))

    with serving(Kept) as server:
        port = str(server.server_address[1]).encode()
        assert [exchange(server, b"x") for _ in range(3)] == [port] * 3
    assert len(calls) == 9
    assert len({id(handler) for handler, _ in calls}) == len({*calls}) == 3


def test_settings_are_attributes_of_the_class_and_a_server_gives_others() -> None:
    class Fixed(netkit.Handler):
        word = "default"

        def connected(self) -> None:
            self.conn.end(self.word)

    with serving(Fixed) as server:
        assert exchange(server, b"") == b"default"
    with serving(Fixed, handler_args={"word": "given"}) as server:
        assert exchange(server, b"") == b"given"
    assert Fixed.word == "default"


class FakeConnection:
    """Replaces a connection, and keeps what is written."""

    remote_address, remote_port = "::1", 5

    def __init__(self) -> None:
        self.written: list[Any] = []
        self.write = self.written.append

    def end(self) -> None:
        self.written.append("end")


def test_a_handler_can_be_called_without_a_server_or_a_socket() -> None:
    class Upper(netkit.Handler):
        suffix = b""

        def received(self, data: bytes) -> None:
            self.conn.write(data.upper() + self.suffix)

    conn: Any = FakeConnection()
    Upper(conn, suffix=b"!").received(b"hello")
    assert conn.written == [b"HELLO!"]


def test_a_handler_class_may_have_a_constructor_of_its_own() -> None:
    class Own(netkit.Handler):
        def __init__(self, conn: netkit.Connection, word: str, times: int = 2) -> None:
            super().__init__(conn)
            self.text = word * times

        def connected(self) -> None:
            self.conn.end(self.text)

    with serving(Own, handler_args={"word": "ho"}) as server:
        assert exchange(server, b"") == b"hoho"
    with pytest.raises(TypeError, match=r"handler Own cannot be called: .*'word'"):
        netkit.create_server(Own)


# EchoHandler


@pytest.mark.parametrize("size", [0, 1, 65537, 3_000_000])
def test_echo_returns_every_byte_whatever_the_encoding(size: int) -> None:
    data = random.Random(size).randbytes(size)
    with serving(netkit.EchoHandler, encoding="ascii") as server:
        assert exchange_much(server, data) == data


def test_echo_answers_while_the_client_is_still_sending() -> None:
    with serving(netkit.EchoHandler) as server, client(server) as sock:
        for number in range(50):
            message = b"%d\0\n\xff" % number
            sock.sendall(message)
            assert receive_exactly(sock, len(message)) == message


# LoggerHandler


def logged(
    data: bytes, *, style: str = "text", prefix: bool = False, **options: Any
) -> tuple[bytes, list[str]]:
    """What the logger writes when a client sends `data` and leaves, and its reports."""
    output = io.BytesIO()
    settings = {"style": style, "output": output, "prefix": prefix}
    with observed(events.Report) as reports:
        with serving(netkit.LoggerHandler, handler_args=settings, **options) as server:
            assert exchange(server, data) == b""
    return output.getvalue(), [report.text for report in reports]


def test_logger_reports_each_client_that_comes_and_leaves_with_counts_and_duration() -> None:
    _, reports = logged(b"hello\n")
    first, last = reports
    assert re.fullmatch(r"got connection from 127\.0\.0\.1:\d+", first)
    address = first.removeprefix("got connection from ")
    ending = r" closed: 6 bytes received, 0 sent, \d\.\d s"
    assert re.fullmatch(re.escape(address) + ending, last)


def test_logger_reports_a_client_that_resets_as_any_other() -> None:
    output = io.BytesIO()
    with observed(events.Report, events.HandlerFailed) as reports:
        with serving(netkit.LoggerHandler, handler_args={"output": output}) as server:
            with client(server) as sock:
                sock.sendall(b"one\ntwo")
                wait_until(output.getvalue, "the line")
                reset(sock)
            wait_until(lambda: len(reports) == 2, "the report")
    assert output.getvalue() == b"one\n"
    assert " closed: 7 bytes received" in reports[1].text


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b"a\nb\n", b"a\nb\n"),
        (b"no newline at the end", b"no newline at the end\n"),
        (b"\n\n", b"\n\n"),
        (b"dos\r\n", b"dos\n"),
        (b"two\r\r\n", b"two\\r\n"),
        (b"over\rwritten\n", b"over\\rwritten\n"),
        (b"nul\0\n", b"nul\\x00\n"),
        (b"\x1b[2J\x1b]0;title\x07\n", b"\\x1b[2J\\x1b]0;title\\x07\n"),
        (b"\x9b31m \xff\xfe\n", b"\\x9b31m \\xff\\xfe\n"),
        (b"back\\slash \\n\n", b"back\\\\slash \\\\n\n"),
        ("grüße €\n".encode(), "grüße €\n".encode()),
        ("\u0085next\u2028line\n".encode(), b"\\u0085next\\u2028line\n"),
        ("\u202egnp.exe\n".encode(), b"\\u202egnp.exe\n"),
        (b"tab\tbed\n", b"tab\\tbed\n"),
        (b"\xed\xa0\x80\n", b"\\xed\\xa0\\x80\n"),
        ("\u20ac".encode()[:2], b"\\xe2\\x82\n"),
    ],
)
def test_logger_shows_each_line_as_one_line_that_commands_nothing(
    sent: bytes, shown: bytes
) -> None:
    output, _ = logged(sent)
    assert output == shown


def test_no_bytes_can_forge_a_line_of_the_log() -> None:
    generator = random.Random(3)
    data = bytes(range(256)) * 4 + generator.randbytes(20_000)
    output, _ = logged(data)
    assert output.count(b"\n") == data.count(b"\n") + (not data.endswith(b"\n"))
    assert all(line.isprintable() for line in output.decode().split("\n"))


def test_logger_decodes_lines_with_the_servers_encoding() -> None:
    text = "grüße\r\n\x1b\nend"
    output, _ = logged(text.encode("utf-16-le"), encoding="utf16le")
    assert output == "grüße\n\\x1b\nend\n".encode()
    output, _ = logged("grüße\n".encode("latin-1"), encoding="latin1")
    assert output == "grüße\n".encode()


def test_logger_reports_a_line_that_is_too_long_once_and_goes_on_with_the_next() -> None:
    output, reports = logged(b"one\n" + b"x" * 1_000_000 + b"\ntwo\n", max_line=100)
    assert output == b"one\ntwo\n"
    _, skipped, last = reports
    text = r"127.0.0.1:\d+: line longer than 100 bytes \(max_line\); it is skipped"
    assert re.fullmatch(text, skipped)
    assert "1000009 bytes received" in last


def test_logger_writes_raw_bytes_as_they_are() -> None:
    data = bytes(range(256)) * 1000
    output, reports = logged(data, style="raw")
    assert (output, len(reports)) == (data, 2)


def test_logger_writes_a_hex_dump_whose_offsets_run_through() -> None:
    output = io.BytesIO()
    settings = {"style": "hex", "output": output}
    with serving(netkit.LoggerHandler, handler_args=settings) as server, client(server) as sock:
        sock.sendall(b"\x00\x1b[A|\\hello")
        wait_until(output.getvalue, "the first line")
        sock.sendall(bytes(range(0x60, 0x80)))
        wait_until(lambda: output.getvalue().count(b"\n") == 3, "the other lines")
    assert output.getvalue().decode().splitlines() == [
        "00000000  00 1b 5b 41 7c 5c 68 65 6c 6c 6f                 |..[A|\\hello|",
        "0000000b  60 61 62 63 64 65 66 67 68 69 6a 6b 6c 6d 6e 6f  |`abcdefghijklmno|",
        "0000001b  70 71 72 73 74 75 76 77 78 79 7a 7b 7c 7d 7e 7f  |pqrstuvwxyz{|}~.|",
    ]


def test_a_hex_dump_holds_every_byte_and_is_printable() -> None:
    data = bytes(range(256))
    lines = hex_dump(data, 256).decode().splitlines()
    assert b"".join(bytes.fromhex(line[10:57]) for line in lines) == data
    assert all(line.isprintable() for line in lines)
    assert hex_dump(b"", 0) == b""


def test_the_lines_of_many_clients_do_not_mix() -> None:
    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            for part in (data[:9], data[9:]):
                time.sleep(0)  # so that another thread may come in between
                super().write(part)
            return len(data)

    output = Slow()
    clients = [f"{letter * 50}\n".encode() * 200 for letter in "abcdefgh"]
    with serving(netkit.LoggerHandler, handler_args={"output": output}) as server:
        in_threads(lambda data: exchange(server, data), [(data,) for data in clients])
    assert sorted(output.getvalue().splitlines()) == b"".join(clients).splitlines()


class Blocked(io.BytesIO):
    """Its writes wait for `may_go_on`."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.may_go_on = threading.Event(), threading.Event()

    def write(self, data: Any) -> int:
        self.began.set()
        assert self.may_go_on.wait(PATIENCE)
        return super().write(data)


def test_a_slow_output_delays_no_write_to_another_one() -> None:
    slow, other = Blocked(), io.BytesIO()
    with serving(netkit.LoggerHandler, handler_args={"output": slow}) as first:
        with in_thread(exchange, first, b"one\n"):
            assert slow.began.wait(PATIENCE)
            with serving(netkit.LoggerHandler, handler_args={"output": other}) as second:
                exchange(second, b"two\n")
                wait_until(other.getvalue)
            slow.may_go_on.set()
    assert (slow.getvalue(), other.getvalue()) == (b"one\n", b"two\n")


class Short(io.RawIOBase):
    """Takes three bytes at a time, as a file without a buffer may."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def write(self, data: Any) -> int:
        self.taken += data[:3]
        return len(data[:3])


class Plain:
    """A file whose `write` returns no count, as it takes everything."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def write(self, data: bytes) -> None:
        self.taken += data

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("output", [Short(), Plain()])
def test_an_output_is_given_all_that_it_has_not_taken(output: Any) -> None:
    with serving(netkit.LoggerHandler, handler_args={"output": output}) as server:
        exchange(server, b"a longer line\nand another one\n")
    assert output.taken == b"a longer line\nand another one\n"


def block(output: io.RawIOBase, data: bytes) -> None:
    """As a file that does not block, and takes nothing."""


def be_full(output: io.RawIOBase, data: bytes) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("write", "number"), [(block, errno.EAGAIN), (be_full, errno.ENOSPC)])
def test_an_error_of_the_output_is_one_of_the_handler(write: Any, number: int) -> None:
    output = type("Failing", (io.RawIOBase,), {"write": write})()
    with silent_log(), observed(events.HandlerFailed) as failures:
        with serving(netkit.LoggerHandler, handler_args={"output": output}) as server:
            exchange_and_fail(server, b"hello\n")
            wait_until(lambda: failures, "the failure")
    assert failures[0].error.errno == number


TIME = rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def test_a_prefix_names_the_time_and_the_peer_of_each_line() -> None:
    for style, second in (("text", b"two"), ("hex", b"00000010  ")):
        written, _ = logged(b"one             \ntwo\n", style=style, prefix=True)
        lines = written.splitlines()
        assert len(lines) == 2
        assert re.match(TIME + rb" 127\.0\.0\.1:\d+ " + re.escape(second), lines[1])


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
def test_the_name_of_a_unix_peer_cannot_forge_a_prefix(tmp_path: Path) -> None:
    output = io.BytesIO()
    settings = {"output": output, "prefix": True}
    name, path = str(tmp_path / "a b\nc"), str(tmp_path / "s")
    with netkit.create_server(netkit.LoggerHandler, handler_args=settings).listen(path=path):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(name)
            sock.connect(path)
            send_and_end(sock, b"hello\n")
            assert receive_all(sock) == b""
    _, peer, line = output.getvalue().split(b" ")
    assert (peer, line) == (f"unix:{tmp_path}/a\\x20b\\nc".encode(), b"hello\n")


class Records(logging.Handler):
    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(levelname)s %(peer)s %(id)d %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def test_the_output_may_be_a_handler_of_logging() -> None:
    handler = Records()
    with serving(netkit.LoggerHandler, handler_args={"output": handler}) as server:
        exchange(server, b"100 %s\nand\x1b[2J\n")
    first, second = handler.lines
    assert re.fullmatch(r"INFO 127\.0\.0\.1:\d+ \d+ 100 %s", first)
    assert second.endswith(r" and\x1b[2J")
    handler = Records()
    settings = {"output": handler, "style": "hex", "prefix": True}
    with serving(netkit.LoggerHandler, handler_args=settings) as server:
        exchange(server, b"x")
    assert re.search(r" \d{4}-\S+Z 127\.0\.0\.1:\d+ 00000000  78 .*\|x\|$", handler.lines[0])


def test_a_handler_of_logging_gets_no_record_below_its_level() -> None:
    handler = Records(logging.WARNING)
    with serving(netkit.LoggerHandler, handler_args={"output": handler}) as server:
        exchange(server, b"hello\n")
    assert handler.lines == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": io.StringIO()}, "output must be a binary file or a logging.Handler, not <_io"),
        ({"output": Records(), "style": "raw"}, "a logging.Handler takes text: style must be text"),
        ({"prefix": True, "style": "raw"}, "raw bytes have no lines that a prefix could begin"),
    ],
)
def test_an_output_that_does_not_take_the_style_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=f"^{message}"):
        netkit.create_server(netkit.LoggerHandler, handler_args=settings)


def test_logger_writes_to_standard_output_by_default(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    with serving(netkit.LoggerHandler) as server:
        exchange(server, b"hello\n")
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == b"hello\n"


# GreeterHandler


def test_greeter_sends_each_line_as_one_write() -> None:
    conn: Any = FakeConnection()
    netkit.GreeterHandler(conn, greeting="{address} {port}\ntwo\nthree").connected()
    assert conn.written == ["::1 5\n", "two\n", "three", "end"]


@pytest.mark.parametrize(
    ("settings", "greeted"),
    [
        ({}, "Hello, 127.0.0.1:PORT!\nThis is netkit.\nGoodbye.\n"),
        ({"greeting": ""}, ""),
        (
            {"greeting": "{port} {unknown} {} {0} %s {address}"},
            "PORT {unknown} {} {0} %s 127.0.0.1",
        ),
        ({"greeting": "gr\xfc\xdfe\n\u20ac\n"}, "gr\xfc\xdfe\n\u20ac\n"),
    ],
)
def test_greeter_greets_each_client_by_its_address_and_ends(
    settings: dict[str, str], greeted: str
) -> None:
    with serving(netkit.GreeterHandler, handler_args=settings) as server:
        with client(server) as sock:
            port = str(sock.getsockname()[1])
            assert receive_all(sock).decode() == greeted.replace("PORT", port)


# Settings


@pytest.mark.parametrize("name", ["server", "nothing"])
def test_an_unknown_setting_is_refused_when_the_server_is_made(name: str) -> None:
    with pytest.raises(TypeError, match=f"EchoHandler has no setting '{name}'"):
        netkit.create_server(netkit.EchoHandler, handler_args={name: 1})


def test_an_unknown_style_is_refused_when_the_server_is_made() -> None:
    with pytest.raises(TypeError, match="style must be text, hex or raw, not 'foo'"):
        netkit.create_server(netkit.LoggerHandler, handler_args={"style": "foo"})


def test_an_object_may_have_methods_of_its_own() -> None:
    """Set in its constructor, or by a patch of the class after the server was made."""
    calls: list[str] = []

    class Own(netkit.Handler):
        def __init__(self, conn: netkit.Connection) -> None:
            super().__init__(conn)
            self.connected = lambda: calls.append("connected")  # type: ignore[method-assign]

    with serving(Own) as server:
        Own.closed = lambda _: calls.append("closed")  # type: ignore[method-assign]
        assert exchange(server, b"") == b""
    assert calls == ["connected", "closed"]
