"""A service manager for tests: it receives notifications, as systemd does (sd_notify(3))."""

from __future__ import annotations

import socket

from support import PATIENCE


class Manager:
    """A service manager, which receives notifications."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        self._socket.settimeout(PATIENCE)

    def receive(self) -> str:
        """The next notification."""
        return self._socket.recv(10_000).decode()

    def received(self) -> list[str]:
        """The notifications that are there."""
        found = []
        self._socket.setblocking(False)
        try:
            while True:
                found.append(self.receive())
        except BlockingIOError:
            return found
        finally:
            self._socket.settimeout(PATIENCE)

    def close(self) -> None:
        self._socket.close()
