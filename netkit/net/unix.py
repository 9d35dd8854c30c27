"""Unix sockets: creates and removes their files, and reads the credentials of a peer.

Rules:

1. A file is removed only if it is a socket on which nobody listens. To find out, a server connects:
   the kernel refuses the connection if the server of the file has died without removing it.
2. A server locks the folder from its first look at the file until it listens (flock(2): the lock
   ends with its holder). So if several servers start at once, one of them gets the name, and none
   takes it from a server that does not listen yet.
3. The file gets its mode and its owner between ``bind`` and ``listen``, when the kernel refuses all
   clients. The umask, which all threads share, stays. On Linux the file is created with the mode,
   less the umask.
4. A server that stops removes its file while it still listens. Only the process that made the file
   removes it, and only if the name still belongs to that file. The kernel keeps an inode as long as
   its socket is open, so no other file can have its number.
5. Another program may change the name between two system calls. So the folder stays open from the
   first look at a file to its removal, and mode and owner are changed through a descriptor of the
   file. Only ``unlink`` goes by the name; it directly follows the last look.
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
from typing import Any

from ..core.deadline import Deadline
from ..core.record import NamedTuple
from .bind import explain

LISTENS = "another server listens there"
TAKEN = "another program has just taken it"

# A server holds the lock for less than a millisecond, but another program may lock the folder, too.
PATIENCE = 1.0  # the longest wait for the lock (seconds)
SHORT_PATIENCE = 0.02  # when it stops
PAUSE = 0.002  # between two attempts to get the lock

_XUCRED = struct.Struct("@IIhxx16I")  # macOS and FreeBSD, sys/ucred.h: version, uid, groups
_LOCAL_PEERCRED = 1  # sys/un.h there; the level is SOL_LOCAL, 0


class SocketFile(NamedTuple):
    """The file of a socket that this process has bound."""

    path: str  # absolute, since the process may change its directory
    device: int
    inode: int
    pid: int

    def _is(self, status: os.stat_result) -> bool:
        return (status.st_dev, status.st_ino, os.getpid()) == self[1:]

    def is_ours(self) -> bool:
        """Whether this process has made the file, and the name still belongs to it."""
        with contextlib.suppress(OSError):
            return self._is(os.lstat(self.path))
        return False

    def check(self) -> None:
        """OSError (EADDRINUSE) unless `is_ours`: another program has taken the name."""
        if not self.is_ours():
            raise _in_use(self.path, TAKEN, "listen")

    def remove(self) -> None:
        """Remove the file if `is_ours`. To be called before the socket is closed."""
        if self.pid == os.getpid():
            with contextlib.suppress(OSError):  # it is gone, or the folder is read-only by now
                with _folder_of(self.path, SHORT_PATIENCE) as folder:
                    if self._is(folder.look()):
                        folder.unlink()


def left_behind(path: str) -> tuple[SocketFile, ...]:
    """Return the file that another process has made, and leaves to this one. OSError.

    There is none if `path` is empty.
    """
    if not path:
        return ()
    status = os.lstat(path)
    return (SocketFile(os.path.abspath(path), status.st_dev, status.st_ino, os.getpid()),)


def family() -> int:
    """Return the family of Unix sockets. OSError (EAFNOSUPPORT) if the system has none."""
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
    """Bind to `path`, and return its file, which the caller removes in the end.

    None for an abstract name, which has no file. The file of a server that has died is removed
    first. The file gets `mode` and `owner` (``user``, ``user:group`` or ``:group``, by name or
    number), or those that the system chooses. With a `backlog`, the socket also listens; one that
    does not listen looks like that of a dead server to others.

    OSError (EADDRINUSE) if a server listens there, or if the file is not a socket; ValueError for
    an unknown user or group.
    """
    ids = (-1, -1) if owner is None else _ids_of(owner)
    syscall = "bind" if backlog is None else "listen"
    file = None
    try:
        if path.startswith("\0"):
            sock.bind(path)
            if backlog is not None:
                sock.listen(backlog)
            return None
        with _folder_of(path, PATIENCE) as folder:
            if mode is not None and sys.platform == "linux":
                os.fchmod(sock.fileno(), mode)  # which the file has from the start
            status = _bind_to_file(sock, folder, path, syscall)
            if (mode, owner) != (None, None) and status.st_uid != os.geteuid():
                raise _in_use(path, TAKEN, syscall)
            file = SocketFile(os.path.abspath(path), status.st_dev, status.st_ino, os.getpid())
            folder.set_owner_and_mode(status, ids, mode)
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
        with contextlib.suppress(FileNotFoundError):  # another program has removed it
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
    # A new file may get the inode of one that is gone, but not its time.
    return (status.st_dev, status.st_ino, status.st_ctime_ns)


class _Folder:
    """A file in a folder that is kept open, so that all calls refer to the same folder."""

    def __init__(self, path: str, descriptor: int | None) -> None:
        """`descriptor` is the open folder, or None if it cannot be opened."""
        self._path = path
        self._descriptor = descriptor
        self._name = path if descriptor is None else os.path.basename(path) or "."

    def look(self) -> os.stat_result:
        """Return the status of the file or symbolic link. OSError if it is gone."""
        return os.stat(self._name, dir_fd=self._descriptor, follow_symlinks=False)

    def unlink(self) -> None:
        os.unlink(self._name, dir_fd=self._descriptor)

    def set_owner_and_mode(
        self, status: os.stat_result, ids: tuple[int, int], mode: int | None
    ) -> None:
        """Change owner and mode of the file. OSError if the name belongs to another one by now."""
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
        """Yield arguments for `os.chmod` that name this file, and never the target of a link."""
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
    """Open and lock the folder of `path`, as far as that is possible."""
    descriptor = None
    # With O_PATH, a folder that this user may not read can be opened, but not locked.
    for flag in (os.O_RDONLY, getattr(os, "O_PATH", os.O_RDONLY)):
        if descriptor is None:
            with contextlib.suppress(OSError):
                descriptor = os.open(os.path.dirname(path) or ".", flag | os.O_DIRECTORY)
    try:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # its file system has no locks
                _lock(descriptor, patience)
        yield _Folder(path, descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


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
    """Return why the name cannot be taken; None if the server of the file has died."""
    if not stat.S_ISSOCK(status.st_mode):
        return "the file there is not a socket"
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a server whose queue is full would make us wait
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
                return "it is not known whether a server listens there"
    return LISTENS


def _in_use(path: str, reason: str, syscall: str) -> OSError:
    return explain(OSError(errno.EADDRINUSE, ""), path, syscall, reason)


def _ids_of(owner: str) -> tuple[int, int]:
    import grp  # here because Windows has neither
    import pwd

    ids = [-1, -1]  # which chown(2) leaves as they are
    user, _, group = owner.partition(":")
    for at, text in enumerate((user, group)):
        if text.isdecimal():
            if len(text) > 10 or int(text) >= 2**32 - 1:  # which would be -1
                raise ValueError(f"owner {owner!r}: {text} is not a valid user or group number")
            ids[at] = int(text)
        elif text:
            try:
                ids[at] = grp.getgrnam(text).gr_gid if at else pwd.getpwnam(text).pw_uid
            except KeyError:
                kind = "group" if at else "user"
                raise ValueError(f"owner {owner!r}: unknown {kind} {text!r}") from None
    return ids[0], ids[1]


class PeerCredentials(NamedTuple):
    """The process at the other end of a Unix socket (None on macOS and BSD), its user and group."""

    pid: int | None
    uid: int
    gid: int


def peer_credentials(sock: Any) -> PeerCredentials:
    """Return the credentials that the peer of a Unix socket had when it connected (unix(7)).

    OSError (EOPNOTSUPP) for any other socket, and on a system that does not tell them.
    """
    if sock.family != getattr(socket, "AF_UNIX", None):
        raise OSError(errno.EOPNOTSUPP, "only the peer of a Unix socket has credentials")
    if hasattr(socket, "SO_PEERCRED"):
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return PeerCredentials(*struct.unpack("@iII", data))
    if sys.platform == "darwin" or "bsd" in sys.platform:
        _, uid, _, gid, *_ = _XUCRED.unpack(sock.getsockopt(0, _LOCAL_PEERCRED, _XUCRED.size))
        return PeerCredentials(None, uid, gid)
    raise OSError(errno.EOPNOTSUPP, "this system does not tell the credentials of a peer")
