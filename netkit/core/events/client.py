"""The events of `netkit.connect` until it is connected. No server emits them."""

from __future__ import annotations

from ..text import said
from .base import DEBUG, Event


class Resolved(Event):
    """A client has found the addresses of `host`, in the order in which they are tried."""

    host: str
    addresses: tuple[str, ...]
    level = DEBUG

    def _text(self) -> str:
        return f"{self.host} is {', '.join(self.addresses)}"


class AttemptStarted(Event):
    """A client tries to connect to `address`."""

    address: str
    level = DEBUG
    line = "connecting to {address}"


class AttemptFailed(Event):
    """A client could not connect to `address`."""

    address: str
    error: OSError
    level = DEBUG

    def _text(self) -> str:
        return f"{self.address}: {said(self.error)}"
