"""Unix sockets: the life of a socket's file, and who is at the other end.

Rules:

1. A file is removed only if it is a socket on which nobody listens. A connection tells: it is
   refused where a server has died without removing its file, and else somebody is there.
2. From looking at a file until it listens, a server holds a lock of the folder (flock(2), so that
   the lock dies with its holder, and there is no other file). So of several that start at once, one
   gets the name, and none takes it from another that does not listen yet.
3. Nobody can connect between ``bind`` and ``listen`` (the kernel refuses it), so that is when the
   file gets its mode and its owner. The umask, which all threads share, stays as it is. On Linux
   the file is made with the mode, less the umask.
4. In the end a file is removed while its server still listens: only by the process that made it,
   and only if the name is still its own, and not a successor's. The kernel keeps the inode as long
   as the socket is open, so its number cannot be another's.
5. A name may be somebody else's by the next system call. So the folder stays open from the look at
   a file to its removal, and mode and owner are changed through a descriptor of the very file that
   was looked at. Only ``unlink`` takes a name: between the last look and it, there is nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from .binding import explain
from .deadline import Deadline

LISTENS = "another server listens there"
TAKEN = "another program has just taken it"

# Servers hold the lock for less than a millisecond, but another program may lock the folder for
# ever, for reasons of its own (seconds).
PATIENCE = 1.0
SHORT_PATIENCE = 0.02  # when a server stops
PAUSE = 0.002

_XUCRED = struct.Struct("@IIhxx16I")  # macOS and FreeBSD, sys/ucred.h: version, uid, groups
_LOCAL_PEERCRED = 1  # sys/un.h there; the level is SOL_LOCAL, 0


class SocketFile(NamedTuple):
    """The file of a socket that this process has bound."""

    path: str
    device: int
    inode: int
    pid: int

    @classmethod
    def at(cls, path: str, status: os.stat_result) -> SocketFile:
        """The file at `path`, which has just been bound and looked at."""
        # Absolute, since the process may go elsewhere.
        return cls(os.path.abspath(path), status.st_dev, status.st_ino, os.getpid())

    def is_ours(self) -> bool:
        """Whether the name still is that of our socket, and this is the process that made it."""
        try:
            status = os.lstat(self.path)
        except OSError:
            return False
        return self._is(status)

    def _is(self, status: os.stat_result) -> bool:
        found = (status.st_dev, status.st_ino, os.getpid())
        return found == (self.device, self.inode, self.pid)

    def remove(self) -> None:
        """Remove it, if it is ours; before the socket is closed."""
        if self.pid == os.getpid():
            with contextlib.suppress(OSError):  # it is gone, or the folder is read-only by now
                with _folder_of(self.path, SHORT_PATIENCE) as folder:
                    if self._is(folder.look()):
                        folder.unlink()

    def check(self) -> None:
        """Once the socket listens: OSError (EADDRINUSE) if another server has got the name."""
        if not self.is_ours():
            raise _in_use(self.path, "another server has just taken it", "listen")


def family() -> int:
    """Of Unix sockets. OSError (EAFNOSUPPORT) where there are none."""
    if not hasattr(socket, "AF_UNIX"):
        raise OSError(errno.EAFNOSUPPORT, "this system has no Unix sockets")
    return socket.AF_UNIX


def bind(
    sock: socket.socket,
    path: str,
    mode: int | None = None,
    owner: str | None = None,
    *,
    backlog: int | None = None,
) -> SocketFile | None:
    """Bind to `path`, and return the file that is to be removed in the end; None: there is none.

    `mode` and `owner` (``user``, ``user:group`` or ``:group``, by name or number): of the file, if
    they are not to be the system's choice. `backlog`: listen, too; a socket that does not may be
    taken for dead, and lose its name. A dead one that has the name is removed first.
    OSError with EADDRINUSE if somebody listens there, or if what is there is no socket. ValueError
    if there is no such user or group.
    """
    ids = (-1, -1) if owner is None else _ids_of(owner)
    syscall = "bind" if backlog is None else "listen"
    file = None
    try:
        if path.startswith("\0"):
            sock.bind(path)
        else:
            with _folder_of(path, PATIENCE) as folder:
                if mode is not None and sys.platform == "linux":
                    os.fchmod(sock.fileno(), mode)  # which the file has from the start
                status = _bind_to_file(sock, folder, path, syscall)
                if (mode, owner) != (None, None) and status.st_uid != os.geteuid():
                    raise _in_use(path, TAKEN, syscall)
                file = SocketFile.at(path, status)
                folder.hand_over(status, ids, mode)
                if backlog is not None:
                    sock.listen(backlog)
    except OSError as error:
        if file is not None:
            file.remove()
        abstract = error.errno == errno.EADDRINUSE and path.startswith("\0")
        raise explain(error, path, syscall, LISTENS if abstract else None) from None
    return file


def _bind_to_file(sock: socket.socket, folder: _Folder, path: str, syscall: str) -> os.stat_result:
    try:
        sock.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        with contextlib.suppress(FileNotFoundError):  # it is gone by itself
            status = folder.look()
            occupant = _occupant(path, status)
            if occupant is not None:
                raise _in_use(path, occupant, syscall) from None
            if _version(folder.look()) == _version(status):
                folder.unlink()
        sock.bind(path)
    status = folder.look()
    if not stat.S_ISSOCK(status.st_mode):
        raise _in_use(path, TAKEN, syscall)
    return status


def _version(status: os.stat_result) -> tuple[int, ...]:
    # The number of a file that is gone may be given to the next one; its time is another.
    return (status.st_dev, status.st_ino, status.st_ctime_ns)


class _Folder:
    """A file in a folder that is held open, so that all calls are about the same folder."""

    def __init__(self, path: str, descriptor: int | None) -> None:
        """`descriptor`: of the folder; None if it cannot be opened."""
        self._path = path
        self._descriptor = descriptor
        self._name = path if descriptor is None else os.path.basename(path) or "."

    def look(self) -> os.stat_result:
        """What has the name; not what a symbolic link points to. OSError if it is gone."""
        return os.stat(self._name, dir_fd=self._descriptor, follow_symlinks=False)

    def unlink(self) -> None:
        """Take away the name."""
        os.unlink(self._name, dir_fd=self._descriptor)

    def hand_over(self, status: os.stat_result, ids: tuple[int, int], mode: int | None) -> None:
        """Give the file that `status` is of its owner and its mode, where it has others.

        OSError if the name is another file's by now.
        """
        owner = (status.st_uid, status.st_gid)
        new_owner = any(new not in (-1, old) for new, old in zip(ids, owner, strict=True))
        new_mode = mode is not None and mode != stat.S_IMODE(status.st_mode)
        if not (new_owner or new_mode):
            return
        with self._reached(status) as (target, options):
            if new_owner:
                os.chown(target, *ids, **options)
            if mode is not None and new_mode:
                os.chmod(target, mode, **options)

    @contextlib.contextmanager
    def _reached(self, status: os.stat_result) -> Iterator[tuple[str, dict[str, Any]]]:
        """How a call names this very file, or at least nothing that a symbolic link points to."""
        if sys.platform != "linux":
            yield self._name, {"dir_fd": self._descriptor, "follow_symlinks": False}
            return
        descriptor = os.open(self._name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self._descriptor)
        try:
            found = os.fstat(descriptor)
            if not os.path.samestat(found, status):
                raise _in_use(self._path, TAKEN, "bind")
            target = f"/proc/self/fd/{descriptor}"
            if not os.path.lexists(target):
                reason = "without /proc, mode and owner cannot be changed safely"
                raise explain(OSError(errno.EOPNOTSUPP, ""), self._path, "bind", reason)
            yield target, {}
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _folder_of(path: str, patience: float) -> Iterator[_Folder]:
    """The folder of `path`, and its lock; where they are not to be had, go on without."""
    descriptor = _opened(os.path.dirname(path) or ".")
    try:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # its file system has no locks
                _lock(descriptor, patience)
        yield _Folder(path, descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _opened(folder: str) -> int | None:
    # O_PATH: a folder that we may not read can be held, but not locked.
    for flag in (os.O_RDONLY, getattr(os, "O_PATH", os.O_RDONLY)):
        with contextlib.suppress(OSError):
            return os.open(folder, flag | os.O_DIRECTORY)
    return None


def _lock(descriptor: int, patience: float) -> None:
    import fcntl  # here because Windows has none

    deadline = Deadline(patience)
    while not deadline.expired():
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(PAUSE)
        else:
            return


def _occupant(path: str, status: os.stat_result) -> str | None:
    """Why nobody else may have the name; None if what has it is dead."""
    if not stat.S_ISSOCK(status.st_mode):
        return "what is there is no socket"
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # else a server whose queue is full makes us wait
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return None
        except FileNotFoundError:
            raise
        except BlockingIOError:  # its queue is full
            pass
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:  # of datagrams, or packets
                return "nobody can tell whether a server listens there"
    return LISTENS


def _in_use(path: str, reason: str, syscall: str) -> OSError:
    return explain(OSError(errno.EADDRINUSE, ""), path, syscall, reason)


def _ids_of(owner: str) -> tuple[int, int]:
    import grp  # here because Windows has neither
    import pwd

    user, _, group = owner.partition(":")
    uid = gid = -1  # chown(2): leave it
    try:
        if user:
            uid = _number(owner, user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
        if group:
            gid = _number(owner, group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise ValueError(f"owner {owner!r}: {error.args[0]}") from None
    return uid, gid


def _number(owner: str, digits: str) -> int:
    if len(digits) > 10 or int(digits) >= 2**32 - 1:  # which would be -1
        raise ValueError(f"owner {owner!r}: {digits} is no number of a user or group")
    return int(digits)


class PeerCredentials(NamedTuple):
    """Which process has connected a Unix socket, and as whom. `pid` None: the system hides it."""

    pid: int | None
    uid: int
    gid: int


def peer_credentials(sock: Any) -> PeerCredentials:
    """Of the other end of a Unix socket, as it was when it connected (unix(7)).

    OSError (EOPNOTSUPP) for any other socket, and where the system cannot tell.
    """
    if sock.family != getattr(socket, "AF_UNIX", None):
        raise OSError(errno.EOPNOTSUPP, "only the peer of a Unix socket has credentials")
    if hasattr(socket, "SO_PEERCRED"):
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return PeerCredentials(*struct.unpack("@iII", data))
    if sys.platform == "darwin" or "bsd" in sys.platform:
        _, uid, _, gid, *_ = _XUCRED.unpack(sock.getsockopt(0, _LOCAL_PEERCRED, _XUCRED.size))
        return PeerCredentials(None, uid, gid)
    raise OSError(errno.EOPNOTSUPP, "this system does not tell who is at the other end")
