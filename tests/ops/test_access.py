"""The access log: its lines, its file, and what a client cannot forge in it."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from secure import contexts
from support import (
    client,
    echo,
    exchange,
    in_threads,
    observed,
    receive_exactly,
    serving,
    silent_log,
    wait_until,
)

import netkit
import netkit.logs
from netkit.core import events
from netkit.core.addresses import SocketAddress
from netkit.ops import access
from netkit.ops.access import AccessLog, members_of, text_of
from netkit.ops.attachment import Operations

CLOSED: Any = {
    "id": 17,
    "peer": "192.0.2.7:50312",
    "bytes_read": 1024,
    "bytes_written": 65536,
    "seconds": 12.345,
    "local": "198.51.100.1:8080",
    "end": "done",
}
TLS = {"tls_version": "TLSv1.3", "server_name": "example.org"}
REFUSED = events.ClientRefused("192.0.2.9:40022", "deny", None, SocketAddress("198.51.100.1", 8080))


@contextlib.contextmanager
def logging_to(path: str, is_json: bool = False) -> Iterator[AccessLog]:
    access_log = AccessLog(path, is_json)
    access_log.begin()
    try:
        yield access_log
    finally:
        access_log.end()


# --- The line ---


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"via": "10.0.0.7", "proxy": "PROXY", **TLS},
            "192.0.2.7:50312 via 10.0.0.7 -> 198.51.100.1:8080 12.345s in 1024 out 65536 done "
            "TLSv1.3 example.org [17]",
        ),
        (
            {"bytes_read": None, "bytes_written": None, "end": "reset", "tls_version": "TLSv1.2"},
            "192.0.2.7:50312 -> 198.51.100.1:8080 12.345s in - out - reset TLSv1.2 [17]",
        ),
        (
            {"peer": "10.0.0.7:5", "via": "10.0.0.7", "proxy": "LOCAL"},
            "10.0.0.7:5 local -> 198.51.100.1:8080 12.345s in 1024 out 65536 done [17]",
        ),
        ({"local": ""}, "192.0.2.7:50312 -> - 12.345s in 1024 out 65536 done [17]"),
    ],
)
def test_a_connection_is_one_line(fields: dict[str, Any], line: str) -> None:
    assert text_of(events.ConnectionClosed(**{**CLOSED, **fields})) == line


def test_a_client_that_was_refused_is_a_line_with_the_reason() -> None:
    line = "192.0.2.9:40022 -> 198.51.100.1:8080 0.000s in 0 out 0 refused:deny"
    assert text_of(REFUSED) == line
    assert members_of(REFUSED)["reason"] == "deny"


@pytest.mark.parametrize("field", ["peer", "server_name", "via"])
def test_a_client_can_forge_neither_a_line_nor_a_field(field: str) -> None:
    evil = "x\n1.2.3.4:5 -> :80 1s in 0 out 0 done [18]\x1b[2J\u202e\x85" + "y" * 5000
    event = events.ConnectionClosed(**{**CLOSED, **TLS, "proxy": "PROXY", "via": "v", field: evil})
    line = text_of(event)
    assert len(line.split(" ")) == 14
    assert line.isprintable()
    assert len(line) < 2000
    assert "\n" not in json.dumps(members_of(event))
    assert len(json.dumps(members_of(event))) < 4096  # a pipe takes so much at once


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "127.0.0.1:{port}"), ("0.0.0.0", ":{port}")]
)
def test_a_line_has_the_address_of_the_listener(host: str, shown: str, tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    with logging_to(str(file)), netkit.create_server(echo).listen(0, host) as server:
        exchange(server, b"hello")
        wait_until(file.read_text)
        port = server.server_address[1]
    assert f" -> {shown.format(port=port)} " in file.read_text()


def test_with_several_listeners_it_is_the_one_that_the_client_has_connected_to() -> None:
    with (
        observed(events.ConnectionClosed) as seen,
        netkit.create_server(echo).listen_on("127.0.0.1:0", "127.0.0.2:0") as server,
    ):
        _, second = server.addresses
        with netkit.connect(second.port, second.address) as conn:
            conn.end()
            conn.read()
        wait_until(lambda: seen)
        assert f" -> {second} " in text_of(seen[0])
        fields = {**seen[0].as_dict(), "local": "198.51.100.1:80", "proxy": "PROXY"}
        vars(announced := events.ConnectionClosed(**fields))["server"] = server
        assert " -> 198.51.100.1:80 " in text_of(announced)


# --- Real clients ---


LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} 127\.0\.0\.1:\d+ -> 127\.0\.0\.1:\d+ \d+\.\d{3}s "
    r"in (\d+) out (\d+) (\w+) \[\d+\]"
)


def test_each_connection_becomes_a_whole_line_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    with logging_to(str(file)), serving(echo) as server:
        in_threads(lambda size: exchange(server, bytes(size)), [(size,) for size in range(1, 20)])
    lines = [LINE.fullmatch(line) for line in file.read_text().splitlines()]
    assert all(lines)
    assert sorted(int(line[1]) for line in lines if line) == list(range(1, 20))
    assert {(line[1] == line[2], line[3]) for line in lines if line} == {(True, "done")}


def test_with_the_log_in_json_it_is_an_object_with_these_members(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    with logging_to(str(file), is_json=True), serving(echo, tls=contexts()[0]) as server:
        with client(server) as sock:
            with contexts()[1].wrap_socket(sock, server_hostname="localhost") as secured:
                secured.sendall(b"hello")
                receive_exactly(secured, 5)
                secured.unwrap()
        wait_until(file.read_text)
        address = f"127.0.0.1:{server.server_address[1]}"
    [line] = file.read_text().splitlines()
    members = json.loads(line)
    assert list(members) == [
        *("time", "pid", "event", "id", "peer", "via", "proxy", "local", "listener", "seconds"),
        *("waited", "bytes_read", "bytes_written", "end", "tls_version", "server_name"),
        "unique_id",
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", members["time"])
    assert (members["pid"], members["event"]) == (os.getpid(), "ConnectionClosed")
    assert members["local"] == members["listener"] == address
    assert (members["bytes_read"], members["bytes_written"], members["end"]) == (5, 5, "done")
    assert (members["tls_version"], members["server_name"]) == ("TLSv1.3", "localhost")
    assert 0 < members["waited"] < members["seconds"]


def test_a_refused_client_has_a_line(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    with logging_to(str(file)), silent_log(), serving(echo, deny=["127.0.0.1"]) as server:
        with contextlib.suppress(ConnectionError):
            exchange(server, b"")
        wait_until(file.read_text)
    assert file.read_text().rstrip().endswith(" in 0 out 0 refused:deny")


# --- The logger ---


def test_a_program_can_have_the_records_without_a_file(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "netkit.access")
    end = netkit.logs.log_accesses()
    with serving(echo) as server:
        exchange(server, b"hello")
    end()
    with serving(echo) as server:
        exchange(server, b"hello")
    records = [record for record in caplog.records if record.name == "netkit.access"]
    assert [(r.levelname, isinstance(r.event, netkit.ConnectionClosed)) for r in records] == [  # type: ignore[attr-defined]
        ("INFO", True)
    ]
    assert " in 5 out 5 done [" in records[0].getMessage()


def test_a_level_above_info_switches_the_lines_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "netkit.access")
    end = netkit.logs.log_accesses()
    events.emit(events.ConnectionClosed(**CLOSED))
    end()
    assert caplog.records == []


def test_lines_in_a_file_are_nowhere_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = access.logger.level, access.logger.propagate
    with logging_to(str(tmp_path / "a.log")) as access_log:
        events.emit(events.ConnectionClosed(**CLOSED))
        access.logger.info("of the program's")
        access_log.addFilter(lambda _: False)
        events.emit(events.ConnectionClosed(**CLOSED))
    assert "netkit.access" not in caplog.text
    assert (access.logger.level, access.logger.propagate) == before
    lines = (tmp_path / "a.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        text_of(events.ConnectionClosed(**CLOSED)),
        "of the program's",
    ]


def test_a_record_of_another_kind_is_an_object_with_a_message(tmp_path: Path) -> None:
    with logging_to(str(tmp_path / "a.log"), is_json=True):
        access.logger.info("of the program's")
    assert json.loads((tmp_path / "a.log").read_text())["message"] == "of the program's"


# --- Files that fail ---


def test_a_file_that_cannot_be_opened_is_an_error_with_its_name(tmp_path: Path) -> None:
    operations = Operations(access_log=str(tmp_path / "none" / "a.log"))
    with pytest.raises(OSError, match="the access log: cannot open .*no such file") as caught:
        operations.open([])
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(ValueError, match="access_log must be the name of a file"):
        Operations(access_log="")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_said_once_and_the_server_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with logging_to("/dev/full"), serving(echo) as server:
        for _ in range(3):
            assert exchange(server, b"hello") == b"hello"
    failures = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert failures[0].startswith("the access log: cannot write to /dev/full: no space left")
    assert re.fullmatch("the access log: cannot write .*; [0-9]+ bytes were lost", failures[1])
    assert len(failures) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_without_a_reader_ends_the_log_and_not_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with logging_to(str(pipe)):
        os.close(reader)
        for _ in range(3):
            events.emit(events.ConnectionClosed(**CLOSED))
    failures = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "broken pipe" in failures[0]
    assert failures[0].startswith("the access log has ended: cannot write to ")
    assert len(failures) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_that_nobody_reads_holds_no_client_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(access, "PIPE_SECONDS", 0.01)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with logging_to(str(pipe)):
        for _ in range(2000):  # 140 KB
            events.emit(events.ConnectionClosed(**CLOSED))
        os.read(reader, 1_000_000)
        events.emit(events.ConnectionClosed(**CLOSED))
    os.close(reader)
    texts = [record.getMessage() for record in caplog.records]
    assert "data is lost until that succeeds" in texts[0]
    assert re.fullmatch("the output takes data again; [0-9]+ bytes were lost", texts[1])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_opened_only_if_a_process_reads_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="the access log: cannot open .*pipe that no process reads"):
        access.check(str(tmp_path / "pipe"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_stays_open_until_the_program_ends_since_its_reader_ends_with_it(
    tmp_path: Path,
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    operations = Operations(access_log=pipe)
    operations.open([])
    for _ in range(2):  # as for a worker, and for the one that replaces it
        with pytest.raises(BlockingIOError):  # the end would be no error
            os.read(reader, 1)
        operations.attach([])
        operations.detach()
    for _ in range(2):
        operations.close()
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_file_that_cannot_be_opened_again_is_no_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(access, "LOOK_SECONDS", 0.0)
    folder = tmp_path / "logs"
    folder.mkdir()
    with logging_to(str(folder / "access")) as log:
        folder.rename(tmp_path / "others")
        events.emit(events.ConnectionClosed(**CLOSED))
        log.reopen()
        folder.mkdir()
        log.reopen()
        events.emit(events.ConnectionClosed(**CLOSED))
        assert (folder / "access").read_text().count("\n") == 1
    texts = [record.getMessage() for record in caplog.records]
    assert "data is lost until that succeeds" in texts[0]
    assert texts[1].startswith("the access log not reloaded, the old one stays: ")
    assert texts[2] == "the access log reloaded"


def test_without_standard_output_a_file_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OSError, match="standard output is closed: name a file"):
        access.check("-")


# --- SIGHUP ---


def test_the_file_is_opened_anew_after_sighup(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    operations = Operations(access_log=file)
    assert not operations.reopen()
    operations.open([])
    operations.attach([])
    try:
        events.emit(events.ConnectionClosed(**CLOSED))
        file.rename(tmp_path / "a.log.1")
        with observed(events.SettingsReloaded) as seen:
            assert operations.reopen()
        assert [event.what for event in seen] == ["the access log"]
        assert file.read_text() == ""
        events.emit(events.ConnectionClosed(**CLOSED))
    finally:
        operations.detach()
    assert [len((tmp_path / name).read_text().splitlines()) for name in ("a.log.1", "a.log")] == [
        *(1, 1)
    ]


def test_if_that_fails_the_former_file_stays_in_use(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "a.log"
    file.parent.mkdir()
    with logging_to(str(file)) as access_log, observed(events.SettingsKept) as seen, silent_log():
        file.parent.rename(tmp_path / "moved")
        access_log.reopen()
        assert [str(event.error).partition(" ")[0] for event in seen] == ["[Errno"]
    with logging_to("-") as access_log, observed() as seen:
        access_log.reopen()  # standard output has no name to be opened by
    assert seen == []


def test_lines_of_several_threads_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    start = threading.Barrier(4)

    def emit() -> None:
        start.wait()
        for _ in range(100):
            events.emit(events.ConnectionClosed(**CLOSED))

    with logging_to(str(file)):
        in_threads(emit, [()] * 4)
    lines = file.read_text().splitlines()
    assert {line.split(" ", 2)[2] for line in lines} == {text_of(events.ConnectionClosed(**CLOSED))}
    assert len(lines) == 400


def test_a_thread_leaves_its_line_to_one_that_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "PIPE_SECONDS", 0.01)
    file = tmp_path / "a.log"
    with logging_to(str(file)) as access_log:
        with access_log._writing:
            events.emit(events.ConnectionClosed(**CLOSED))
            assert file.read_text() == ""
            access_log.end()  # does not wait for long
        access_log.begin()
        events.emit(events.ConnectionClosed(**CLOSED))
        access_log._write_some()  # as a thread that finds all written
    assert len(file.read_text().splitlines()) == 2


def test_a_write_that_does_not_return_keeps_a_limited_number_of_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(access, "MOST_WAITING", 2)
    file = tmp_path / "a.log"
    with logging_to(str(file)) as access_log:
        for _ in range(2):  # a later episode is logged, too
            with access_log._writing:  # as a thread whose write hangs
                for _ in range(4):
                    events.emit(events.ConnectionClosed(**CLOSED))
            access_log._write_some()
            events.emit(events.ConnectionClosed(**CLOSED))
    assert len(file.read_text().splitlines()) == 2 * 3
    behind = [text for text in caplog.messages if "further ones are lost" in text]
    assert behind == ["the access log: 2 lines wait for a write; further ones are lost"] * 2
