"""Questions to a process that serves, and its answers, on a socket of their own.

A message is its size in 4 bytes, and a JSON object:

| from   | members                                | meaning                                        |
|--------|----------------------------------------|------------------------------------------------|
| asker  | `id`, `command`, `arguments`, `until`  | a question, void after `until` (`monotonic`)   |
| worker | `id`, `value`, `error`                 | the answer                                     |
| worker | `final`                                | its figures at its end: the answer to          |
|        |                                        | ``"metrics"``                                  |
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from typing import Any

from ..net import sockopts
from ..net.forks import do_not_undo, undo_in_children
from .local import LocalProgram

MAX_SIZE = 1 << 28  # bytes of one message: more than a list of 65,536 connections needs
METRICS = "metrics"
_SIZE = struct.Struct("!I")
_SECONDS = 5.0  # that a worker waits for an asker that does not read


def packed(message: dict[str, Any]) -> bytes:
    """Return the bytes of a message. ValueError if it is too long."""
    text = json.dumps(message).encode()
    if len(text) > MAX_SIZE:
        raise ValueError(f"the answer has {len(text)} bytes, and may have {MAX_SIZE}")
    return _SIZE.pack(len(text)) + text


def receive(sock: socket.socket) -> dict[str, Any]:
    """Wait for a message. EOFError at the end of input, ValueError for an invalid one, OSError."""
    (size,) = _SIZE.unpack(_receive(sock, _SIZE.size))
    if size > MAX_SIZE:
        raise ValueError("a message that is too long")
    try:
        message = json.loads(_receive(sock, size))
    except RecursionError:
        raise ValueError("a message that is nested too deeply") from None
    if not isinstance(message, dict):
        raise ValueError("a message that is no object")
    return message


def _receive(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(min(size - len(data), 1 << 20))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


class Responder:
    """Answers the questions of the front process, in a worker. Thread-safe.

    There is one socket at a time: a new front process, with a new socket, comes after the old one.
    """

    def __init__(self, program: LocalProgram) -> None:
        self._program = program
        self._lock = threading.Lock()  # guards the socket, and is held for the whole of a message
        self._socket: socket.socket | None = None

    def serve(self, sock: socket.socket) -> None:
        """Answer the questions that come on `sock` from now on, in a thread, and close it."""
        sockopts.limit_wait(sock, socket.SO_SNDTIMEO, _SECONDS)
        undo_in_children(sock.close)
        with self._lock:
            self._socket = sock
        name = "netkit-answers"
        try:
            threading.Thread(target=self._run, args=(sock,), name=name, daemon=True).start()
        except RuntimeError:  # the system gives no thread
            self._close(sock)

    def _run(self, sock: socket.socket) -> None:
        with contextlib.suppress(EOFError, OSError, ValueError):
            while True:
                self._answer(sock, receive(sock))
        self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        with self._lock:
            if self._socket is sock:
                self._socket = None
            do_not_undo(sock.close)
            sock.close()

    def _answer(self, sock: socket.socket, question: dict[str, Any]) -> None:
        if time.monotonic() > question["until"]:  # this process was stopped, or very busy
            return
        (answer,) = self._program.ask(question["command"], question["arguments"])
        number = question["id"]
        try:
            message = packed({"id": number, "value": answer.value, "error": answer.error})
        except (TypeError, ValueError) as error:
            message = packed({"id": number, "value": None, "error": str(error)})
        self._send(sock, message)

    def _send(self, sock: socket.socket, message: bytes) -> None:
        with self._lock:
            sock.sendall(message)

    def finish(self) -> None:
        """Send the last figures. Waits for at most a few seconds."""
        with self._lock:
            sock = self._socket
        if sock is not None:
            (answer,) = self._program.ask(METRICS)
            with contextlib.suppress(OSError, TypeError, ValueError):
                self._send(sock, packed({"final": answer.value}))
