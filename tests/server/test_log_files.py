"""The files of ``netkit logger``: rotation, renamed files, failures, a file for each client."""

from __future__ import annotations

import errno
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netkit.cli.logger import Logger
from netkit.core.errors import Failure
from netkit.net.files import OutputError
from netkit.server import log_files
from netkit.server.log_files import LogFile, LogFiles, name_of
from netkit.server.rotation import Rotation


class Client:
    """In the place of a connection."""

    def __init__(self, peer: str, address: str | None = None, port: int | None = None) -> None:
        self.peer, self.remote_address, self.remote_port = peer, address, port


def tcp(address: str, port: int) -> Any:
    return Client(f"{address}:{port}", address, port)


ONE, TWO = tcp("127.0.0.1", 5001), tcp("::1", 5002)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """A function that returns the messages of the log since its last call."""

    def take() -> list[str]:
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    return take


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# One file


def test_a_file_is_opened_again_once_it_is_renamed_or_removed(path: Path) -> None:
    file = LogFile(str(path), Rotation())
    file.append(b"one\n")
    old = path.rename(path.with_name("old"))
    file.append(b"two\n")
    assert (old.read_bytes(), path.read_bytes()) == (b"one\n", b"two\n")
    path.unlink()
    file.append(b"three\n")
    assert path.read_bytes() == b"three\n"
    file.close()
    file.close()


def test_a_file_is_rotated_before_it_is_too_large(path: Path) -> None:
    path.write_bytes(b"before\n")
    file = LogFile(str(path), Rotation(size=10, keep=2))
    for line in (b"a\n", b"b\n", b"a line that is longer\n", b"c\n", b"d\n"):
        file.append(line)
    file.close()
    contents = {name: (path.parent / name).read_bytes() for name in names(path.parent)}
    assert contents == {"log": b"c\nd\n", "log.1": b"a line that is longer\n", "log.2": b"b\n"}


def test_a_file_of_an_earlier_day_is_rotated_before_the_next_line(path: Path) -> None:
    path.write_bytes(b"yesterday\n")
    then = time.time() - 24 * 3600
    os.utime(path, (then, then))
    file = LogFile(str(path), Rotation(when="midnight"))
    file.append(b"today\n")
    file.append(b"again\n")
    file.close()
    day = time.strftime("%Y-%m-%d", time.gmtime(then))
    assert path.with_name(f"log.{day}").read_bytes() == b"yesterday\n"
    assert path.read_bytes() == b"today\nagain\n"


def test_weeks_and_days_end_at_midnight(path: Path) -> None:
    for word, is_end in (("daily", True), ("weekly", True), ("hourly", False)):
        arguments, _ = Logger().parser().read(["--rotate-time", word])
        handler: Any = Rotation(when=arguments.rotate_time).of(str(path))
        moment = time.gmtime(handler.rolloverAt)
        assert (moment.tm_hour, moment.tm_min) == (0, 0) or not is_end
        assert moment.tm_wday == 0 or word != "weekly"
        handler.close()


def test_a_line_that_follows_a_part_of_one_begins_a_line(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [3, 0, 0]  # of the next writes to a disk that is nearly full

    class Full(log_files._File):
        def write(self, data: Any, /) -> int:
            size = sizes.pop(0) if sizes else len(data)
            if not size:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data[:size])

    monkeypatch.setattr(log_files, "_File", Full)
    for has_lines, end in ((True, b"one\nnext\n"), (False, b"onenext\n")):
        sizes[:] = [3, 0, 0]
        path.write_bytes(b"")
        file = LogFile(str(path), Rotation(), has_lines)
        for _ in range(2):
            with pytest.raises(OutputError, match=r"^.*cannot write to .*log: no space left"):
                file.append(b"one line\n")
        file.append(b"next\n")
        file.close()
        assert path.read_bytes() == end


def test_a_file_that_cannot_be_opened_again_stays_in_use(path: Path) -> None:
    file = LogFile(str(path), Rotation())
    file.reopen()  # it is not open yet
    assert not path.exists()
    file.append(b"one\n")
    old = path.rename(path.with_name("old"))
    path.mkdir()
    with pytest.raises(OSError, match="cannot open .*log: is a directory"):
        file.reopen()
    assert old.read_bytes() == b"one\n"
    path.rmdir()
    file.reopen()
    assert path.read_bytes() == b""
    file.close()


# All files


def test_failures_are_logged_once_and_so_is_their_end(path: Path, messages: Any) -> None:
    with LogFiles(str(path)) as files:
        file = files.file_of(ONE)
        path.unlink()
        path.symlink_to("/dev/full")
        for _ in range(3):
            files.append(file, b"hello\n")
        begin = f"cannot write to {path}: no space left on device; data is lost until that succeeds"
        assert messages() == [begin]
        path.unlink()
        files.append(file, b"again\n")
        files.append(file, b"and again\n")
        assert messages() == ["the output takes data again; 18 bytes were lost"]
        assert path.read_bytes() == b"again\nand again\n"
        files.release(file)


def test_an_output_that_fails_at_the_end_is_a_failure(path: Path) -> None:
    with pytest.raises(Failure, match=r"cannot open .*log: is a directory; 6 bytes were lost"):
        with LogFiles(str(path)) as files:
            path.unlink()
            path.mkdir()
            files.append(files.file_of(ONE), b"hello\n")


def test_an_exception_of_the_block_is_not_replaced(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), LogFiles(str(path)) as files:
        path.unlink()
        path.mkdir()
        files.append(files.file_of(ONE), b"hello\n")
        raise ZeroDivisionError


def test_a_pipe_without_a_reader_is_the_end(path: Path) -> None:
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(Failure, match="cannot write to .*log: broken pipe$"):
        with LogFiles(str(path)) as files:
            os.close(reader)
            with pytest.raises(OutputError):
                files.append(files.file_of(ONE), b"hello\n")


def test_a_rotation_that_fails_is_logged_once_and_nothing_is_lost(
    path: Path, messages: Any
) -> None:
    path.with_name("log.1").mkdir()
    with LogFiles(str(path), Rotation(size=5, keep=1)) as files:
        file = files.file_of(ONE)
        for _ in range(3):
            files.append(file, b"line\n")
        (message,) = messages()
        assert message.startswith("the output cannot be rotated, and grows: ")
        assert path.read_bytes() == b"line\n" * 3
        path.with_name("log.1").rmdir()
        files.append(file, b"line\n")
        assert path.read_bytes() == b"line\n"
        assert messages() == []


def test_one_file_that_cannot_be_rotated_is_logged_once_though_others_can(
    tmp_path: Path, messages: Any
) -> None:
    (tmp_path / "127.0.0.1_5001.1").mkdir()
    with LogFiles(str(tmp_path / "{peer}"), Rotation(size=5, keep=1)) as files:
        both = files.file_of(ONE), files.file_of(TWO)
        for _ in range(3):
            for file in both:
                files.append(file, b"line\n")
        assert len(messages()) == 1
        for file in both:
            files.release(file)


def test_each_client_has_a_file_that_is_made_by_its_first_line(tmp_path: Path) -> None:
    with LogFiles(str(tmp_path / "{peer}.log")) as files:
        one, two, same = files.file_of(ONE), files.file_of(TWO), files.file_of(ONE)
        assert one is same
        files.append(one, b"one\n")
        files.append(two, b"two\n")
        files.release(one)
        files.append(one, b"three\n")
        assert files.reopen
        files.reopen()
        files.release(one)
        assert files.file_of(ONE) is not one
    assert names(tmp_path) == ["127.0.0.1_5001.log", "__1_5002.log"]
    assert (tmp_path / "127.0.0.1_5001.log").read_bytes() == b"one\nthree\n"


def test_a_client_whose_file_fails_ends_the_failure_when_it_leaves(
    tmp_path: Path, messages: Any
) -> None:
    (tmp_path / "127.0.0.1_5001").mkdir()
    with LogFiles(str(tmp_path / "{peer}")) as files:
        one, two = files.file_of(ONE), files.file_of(TWO)
        files.append(one, b"one\n")
        files.append(two, b"two\n")
        assert len(messages()) == 1
        files.release(one)
        assert messages() == ["the output takes data again; 4 bytes were lost"]
        files.release(two)


def test_the_folder_of_the_files_must_exist(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"cannot open .*/no/{peer}: no such directory"):
        LogFiles(str(tmp_path / "no/{peer}")).__enter__()


def test_another_process_makes_the_same_files(path: Path) -> None:
    files = pickle.loads(pickle.dumps(LogFiles(str(path), Rotation(size=5), False)))
    with files:
        files.append(files.file_of(ONE), b"line\n")
    assert path.read_bytes() == b"line\n"


# Names


@pytest.mark.parametrize(
    ("client", "name"),
    [
        (tcp("192.0.2.7", 50312), "192.0.2.7_50312"),
        (tcp("2001:db8::1", 80), "2001_db8__1_80"),
        (tcp("fe80::1%eth0", 80), "fe80__1%25eth0_80"),
        (Client("unix"), "unix"),
        (Client("unix:/../../etc/passwd"), "unix_%2F..%2F..%2Fetc%2Fpasswd"),
        (Client("@a_b"), "%40a%5Fb"),
        (Client("..\n\udcff\0"), "%2E.%0A%FF%00"),
    ],
)
def test_the_name_of_a_clients_file_is_safe(client: Any, name: str) -> None:
    assert name_of(client) == name


@given(st.text(min_size=1))
def test_no_peer_has_a_name_that_leads_elsewhere(peer: str) -> None:
    peer = peer.encode("utf-8", "replace").decode()
    name = name_of(Client(peer))  # type: ignore[arg-type]
    assert "/" not in name
    assert not name.startswith(".")
    assert name.isascii()
    assert name.isprintable()
    assert 0 < len(name) < 170


def test_long_names_differ_though_they_begin_alike() -> None:
    long = [name_of(Client("unix:/" + "x" * 300 + end)) for end in "ab"]  # type: ignore[arg-type]
    assert long[0] != long[1]
