"""The files of Unix sockets are made and removed safely; and the credentials of a peer."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import in_threads

from netkit.net import unix
from netkit.net.unix import PeerCredentials, bind, peer_credentials

Patch = pytest.MonkeyPatch

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux has it")
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: Patch) -> str:
    monkeypatch.chdir(tmp_path)  # a path may have 107 bytes only
    return "x.sock"


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        yield sock


def leave_dead(path: str) -> None:
    """Leave the file of a server that was killed."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)


def inode(path: str) -> int:
    return os.lstat(path).st_ino


@contextlib.contextmanager
def umask_of(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def refuse(sock: socket.socket, path: str, reason: str) -> None:
    with pytest.raises(OSError, match="^") as caught:
        bind(sock, path, backlog=1)
    error: Any = caught.value
    assert error.errno == errno.EADDRINUSE
    assert error.strerror == f"cannot listen on {path.replace(chr(0), '@')}: {reason} (EADDRINUSE)"
    assert (error.address, error.port, error.syscall) == (path, None, "listen")


def test_the_file_is_there_until_it_is_removed(path: str, sock: socket.socket) -> None:
    file = bind(sock, path)
    assert file is not None
    assert stat.S_ISSOCK(os.lstat(path).st_mode)
    assert file.is_ours()
    file.check()
    file.remove()
    assert not os.path.exists(path)
    assert not file.is_ours()
    file.remove()


def test_a_relative_path_is_removed_wherever_the_process_goes(
    path: str, sock: socket.socket, tmp_path: Path, monkeypatch: Patch
) -> None:
    file = bind(sock, path)
    assert file is not None
    monkeypatch.chdir("/")
    file.remove()
    assert not (tmp_path / path).exists()


def test_a_dead_servers_file_is_replaced_and_nothing_else_is_left(
    path: str, sock: socket.socket, tmp_path: Path
) -> None:
    leave_dead(path)
    file = bind(sock, path)
    assert file is not None
    assert file.inode == inode(path)
    assert os.listdir(tmp_path) == [path]


@pytest.mark.parametrize("kind", ["stream", "datagrams", pytest.param("full", marks=linux)])
def test_a_live_server_keeps_its_file(path: str, sock: socket.socket, kind: str) -> None:
    type_ = socket.SOCK_DGRAM if kind == "datagrams" else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, type_) as live, socket.socket(socket.AF_UNIX) as queued:
        live.bind(path)
        before = inode(path)
        if kind != "datagrams":
            live.listen(0 if kind == "full" else 10)
        if kind == "full":
            queued.connect(path)
        refuse(sock, path, "another server listens there")
        assert inode(path) == before


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link"])
def test_a_file_that_is_not_a_socket_is_never_removed(
    path: str, sock: socket.socket, kind: str, tmp_path: Path
) -> None:
    if kind == "file":
        Path(path).touch()
    elif kind == "folder":
        os.mkdir(path)
    else:
        if kind == "link":
            leave_dead("other")
        os.symlink("other", path)
    before = inode(path)
    refuse(sock, path, "the file there is not a socket")
    assert inode(path) == before


def test_a_folder_is_never_removed(sock: socket.socket, path: str) -> None:
    os.mkdir("folder")
    refuse(sock, "folder/", "the file there is not a socket")


def test_a_server_that_does_not_let_this_user_connect_keeps_its_file(
    path: str, sock: socket.socket, monkeypatch: Patch
) -> None:
    leave_dead(path)

    class Guarded(socket.socket):
        def connect(self, _: Any) -> None:
            raise PermissionError(errno.EACCES, "")

    monkeypatch.setattr(socket, "socket", Guarded)
    refuse(sock, path, "it is not known whether a server listens there")


@pytest.mark.parametrize(("owner", "call"), [(os, "stat"), (socket.socket, "connect")])
def test_a_dead_servers_file_may_be_removed_by_another_program_meanwhile(
    path: str, sock: socket.socket, monkeypatch: Patch, owner: Any, call: str
) -> None:
    leave_dead(path)
    original = getattr(owner, call)

    def removing(*arguments: Any, **options: Any) -> Any:
        os.unlink(path)
        setattr(owner, call, original)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, call, removing)
    file = bind(sock, path)
    assert file is not None
    assert getattr(owner, call) is original
    assert file.is_ours()


@pytest.mark.parametrize("_", range(5))
def test_of_many_servers_that_start_at_once_one_gets_the_name_of_a_dead_one(
    path: str, _: int
) -> None:
    leave_dead(path)
    files: list[Any] = []
    refused: list[str] = []
    together = threading.Barrier(5)

    def start(sock: socket.socket) -> None:
        together.wait()
        try:
            files.append(bind(sock, path, backlog=1))
        except OSError as error:
            refused.append(str(error.strerror))

    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(5)]
        in_threads(start, [(sock,) for sock in socks])
        assert (
            refused == [f"cannot listen on {path}: another server listens there (EADDRINUSE)"] * 4
        )
        (file,) = files
        file.check()


def test_another_program_that_keeps_the_folder_locked_does_not_keep_a_server_waiting_for_long(
    path: str, sock: socket.socket, monkeypatch: Patch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(unix, "PATIENCE", 0.01)
    folder = os.open(".", os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    file = bind(sock, path)
    assert file is not None
    monkeypatch.setattr(unix, "PATIENCE", 1000.0)  # when it stops, it waits even less
    file.remove()
    assert not os.path.exists(path)
    os.close(folder)


def test_a_server_starts_in_a_folder_that_cannot_be_opened(
    path: str, sock: socket.socket, monkeypatch: Patch
) -> None:
    def unreadable(*_: Any) -> int:
        raise PermissionError(errno.EACCES, "")

    monkeypatch.setattr(unix.os, "open", unreadable)
    assert bind(sock, path) is not None


def test_a_server_that_has_lost_its_name_before_it_listens_gets_an_error(
    path: str, sock: socket.socket
) -> None:
    file = bind(sock, path)
    assert file is not None
    os.unlink(path)
    Path(path).touch()
    with pytest.raises(OSError, match="^") as caught:
        file.check()
    absolute = os.path.abspath(path)
    assert caught.value.strerror == (
        f"cannot listen on {absolute}: another program has just taken it (EADDRINUSE)"
    )


def test_a_successors_file_stays(path: str, sock: socket.socket) -> None:
    file = bind(sock, path)
    assert file is not None
    os.unlink(path)
    leave_dead(path)
    file.remove()
    assert os.path.exists(path)


def test_only_the_process_that_made_a_file_removes_it(path: str, sock: socket.socket) -> None:
    file = bind(sock, path)
    assert file is not None
    file._replace(pid=file.pid + 1).remove()
    assert os.path.exists(path)


def test_a_file_that_cannot_be_removed_is_left(
    path: str, sock: socket.socket, monkeypatch: Patch
) -> None:
    file = bind(sock, path)
    assert file is not None

    def unlink(_: str, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "")

    monkeypatch.setattr(unix.os, "unlink", unlink)
    file.remove()
    assert file.is_ours()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o777, 0])
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_file_has_the_mode_it_is_given_whatever_the_umask(
    path: str, sock: socket.socket, mode: int, umask: int
) -> None:
    with umask_of(umask):
        bind(sock, path, mode)
    assert stat.S_IMODE(os.lstat(path).st_mode) == mode


def taken_meanwhile(leave: Callable[[str], object]) -> socket.socket:
    """A socket whose name another program takes after `bind`; `leave` puts a file there."""

    class Taken(socket.socket):
        def bind(self, path: Any) -> None:
            super().bind(path)
            os.rename(path, "away")
            leave(path)

    return Taken(socket.AF_UNIX)


@pytest.mark.parametrize(
    ("leave", "stays"),
    [
        (lambda path: os.symlink("secret", path), True),
        (lambda path: os.link("secret", path), True),
        (lambda path: None, False),
    ],
)
@pytest.mark.parametrize("mode", [0o666, 0o777, None])
def test_no_other_file_is_changed_or_removed_if_the_name_is_taken_meanwhile(
    path: str, leave: Callable[[str], object], stays: bool, mode: int | None
) -> None:
    Path("secret").write_text("secret")
    os.chmod("secret", 0o600)
    before = os.lstat("secret")
    with taken_meanwhile(leave) as sock:
        with pytest.raises(
            OSError, match="another program has just taken it|the folder does not exist"
        ) as caught:
            bind(sock, path, mode, f"{os.getuid()}:{os.getgid()}")
    assert caught.value.errno in (errno.EADDRINUSE, errno.ENOENT)
    after = os.lstat("secret")
    assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)
    assert os.path.lexists(path) is stays


@linux
def test_only_the_file_that_was_looked_at_gets_the_mode(
    path: str, sock: socket.socket, monkeypatch: Patch
) -> None:
    original = unix._bind_to_file
    leave_dead("other")
    os.chmod("other", 0o600)

    def swapped(*arguments: Any) -> os.stat_result:
        status = original(*arguments)
        os.rename("other", path)
        return status

    monkeypatch.setattr(unix, "_bind_to_file", swapped)
    with pytest.raises(OSError, match="another program has just taken it"):
        bind(sock, path, 0o666)
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600


@root
@linux
def test_a_socket_of_another_user_never_gets_the_mode(path: str) -> None:
    def leave(path: str) -> None:
        leave_dead(path)
        os.chown(path, 4321, 4321)
        os.chmod(path, 0o600)

    with taken_meanwhile(leave) as sock:
        with pytest.raises(OSError, match="another program has just taken it"):
            bind(sock, path, 0o666)
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600


@linux
def test_the_file_never_has_a_wider_mode_than_it_is_to_have(path: str) -> None:
    modes = []

    class Watched(socket.socket):
        def bind(self, path: Any) -> None:
            super().bind(path)
            modes.append(stat.S_IMODE(os.lstat(path).st_mode))

    with umask_of(0o002), Watched(socket.AF_UNIX) as sock:
        bind(sock, path, 0o660)
    assert modes == [0o660]


@linux
def test_without_proc_a_mode_that_must_be_changed_is_an_error(
    path: str, sock: socket.socket, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(unix.os.path, "lexists", lambda _: False)
    with umask_of(0o077):
        with pytest.raises(OSError, match="without /proc, mode and owner cannot be changed") as it:
            bind(sock, path, 0o660)
        assert it.value.errno == errno.EOPNOTSUPP
        assert os.listdir() == []
        with socket.socket(socket.AF_UNIX) as another:
            bind(another, path, 0o600)


def test_mode_and_owner_are_changed_without_following_links_on_other_systems(
    path: str, sock: socket.socket, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(unix.sys, "platform", "darwin")
    calls = []

    def note(*arguments: Any, **options: Any) -> None:
        calls.append((arguments, options.pop("dir_fd") >= 0, options))

    monkeypatch.setattr(unix.os, "chmod", note)
    monkeypatch.setattr(unix.os, "chown", note)
    bind(sock, path, 0o604, "4321:8765")
    assert calls == [
        ((path, 4321, 8765), True, {"follow_symlinks": False}),
        ((path, 0o604), True, {"follow_symlinks": False}),
    ]


def test_a_new_file_in_the_place_of_a_dead_servers_is_not_removed(
    path: str, sock: socket.socket
) -> None:
    leave_dead(path)

    class Late(socket.socket):
        def connect(self, name: Any) -> None:
            try:
                super().connect(name)
            finally:
                os.unlink(name)
                Path(name).touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", Late)
        with pytest.raises(OSError, match="address already in use"):
            bind(sock, path)
    assert Path(path).is_file()


def test_a_file_in_a_new_folder_of_the_same_name_stays(path: str, sock: socket.socket) -> None:
    os.mkdir("folder")
    file = bind(sock, f"folder/{path}")
    assert file is not None
    os.rename("folder", "old")
    os.mkdir("folder")
    leave_dead(f"folder/{path}")
    file.remove()
    assert sorted([*os.listdir("folder"), *os.listdir("old")]) == [path, path]


def test_no_client_can_connect_before_the_file_has_its_mode(
    path: str, sock: socket.socket, monkeypatch: Patch
) -> None:
    outcomes = []

    def chmod(*_: Any, **__: Any) -> None:
        with socket.socket(socket.AF_UNIX) as peer:
            outcomes.append(peer.connect_ex(path))

    monkeypatch.setattr(unix.os, "chmod", chmod)
    with umask_of(0o777):
        bind(sock, path, 0o600, backlog=1)
    assert outcomes == [errno.ECONNREFUSED]


@pytest.mark.parametrize("owner", ["{user}", "{user}:{group}", ":{group}"])
def test_the_owner_may_be_the_user_of_the_server(
    path: str, sock: socket.socket, owner: str
) -> None:
    grp, pwd = pytest.importorskip("grp"), pytest.importorskip("pwd")
    names = {"user": pwd.getpwuid(os.getuid())[0], "group": grp.getgrgid(os.getgid())[0]}
    bind(sock, path, None, owner.format(**names))
    status = os.lstat(path)
    assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())


@root
def test_the_owner_may_be_another_user_by_number(path: str, sock: socket.socket) -> None:
    bind(sock, path, 0o600, "4321:8765")
    status = os.lstat(path)
    assert (status.st_uid, status.st_gid) == (4321, 8765)


@pytest.mark.parametrize(
    ("owner", "text"),
    [
        ("no-such-user", "owner 'no-such-user': unknown user 'no-such-user'"),
        ("4294967295", "owner '4294967295': 4294967295 is not a valid user or group number"),
        (f":{9**99}", f"owner ':{9**99}': {9**99} is not a valid user or group number"),
        (":no-such-group", "owner ':no-such-group': unknown group 'no-such-group'"),
    ],
)
def test_an_unknown_owner_is_an_error_and_nothing_is_bound(
    path: str, sock: socket.socket, owner: str, text: str
) -> None:
    with pytest.raises(ValueError, match="^") as caught:
        bind(sock, path, None, owner)
    assert str(caught.value) == text
    assert not os.path.exists(path)


def test_a_file_whose_owner_cannot_be_changed_is_removed_again(
    path: str, sock: socket.socket, monkeypatch: Patch
) -> None:
    def chown(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(unix.os, "chown", chown)
    text = f"cannot bind to {path}: operation not permitted (EPERM)"
    with pytest.raises(PermissionError, match=re.escape(text)):
        bind(sock, path, None, "4321:4321")
    assert not os.path.exists(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none/x", "cannot bind to none/x: the folder does not exist (ENOENT)"),
        ("/" + "x" * 108, f"cannot bind to /{'x' * 108}: AF_UNIX path too long"),
    ],
)
def test_a_path_that_cannot_be_bound_is_named_in_the_error(
    sock: socket.socket, path: str, name: str, text: str
) -> None:
    with pytest.raises(OSError, match=f"{re.escape(text)}$"):
        bind(sock, name)


@linux
def test_an_abstract_name_has_no_file_and_is_refused_while_it_is_in_use(
    sock: socket.socket,
) -> None:
    name = f"\0netkit-test-{os.getpid()}"
    assert bind(sock, name) is None
    assert sock.getsockname() == name.encode()
    with socket.socket(socket.AF_UNIX) as other:
        refuse(other, name, "another server listens there")


def test_a_system_without_unix_sockets_says_so(monkeypatch: Patch) -> None:
    assert unix.family() == socket.AF_UNIX
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(OSError, match="this system has no Unix sockets") as caught:
        unix.family()
    assert caught.value.errno == errno.EAFNOSUPPORT


# Credentials


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@linux
def test_the_peer_is_known_by_its_process_user_and_group(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    expected = PeerCredentials(os.getpid(), os.getuid(), os.getgid())
    assert peer_credentials(pair[0]) == expected
    assert expected.pid == os.getpid()


class Answering:
    """A socket whose option is what another system answers."""

    family = getattr(socket, "AF_UNIX", 1)

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def getsockopt(self, *question: int) -> bytes:
        assert question == (0, 1, len(self._answer))
        return self._answer


def test_a_system_without_the_process_of_the_peer_tells_user_and_group(monkeypatch: Patch) -> None:
    monkeypatch.delattr(socket, "SO_PEERCRED", raising=False)
    monkeypatch.setattr(unix.sys, "platform", "darwin")
    answer = struct.pack("=IIHxx16I", 0, 501, 2, 20, 12, *[0] * 14)
    assert peer_credentials(Answering(answer)) == PeerCredentials(None, 501, 20)


def test_a_system_without_credentials_is_an_error(
    pair: tuple[socket.socket, socket.socket], monkeypatch: Patch
) -> None:
    monkeypatch.delattr(socket, "SO_PEERCRED", raising=False)
    monkeypatch.setattr(unix.sys, "platform", "sunos5")
    with pytest.raises(OSError, match="does not tell the credentials of a peer") as caught:
        peer_credentials(pair[0])
    assert caught.value.errno == errno.EOPNOTSUPP


def test_the_peer_of_a_tcp_connection_has_none() -> None:
    with socket.socket() as sock:
        with pytest.raises(OSError, match="only the peer of a Unix socket has credentials"):
            peer_credentials(sock)
