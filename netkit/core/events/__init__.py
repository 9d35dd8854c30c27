"""The events of servers and clients, one class each, and how to observe them.

Each class has the fields of its event, the level of its log record and the text of its log line.
docs/events.md describes all events for users.
"""

from .base import *  # noqa: F403
from .connection import *  # noqa: F403
from .server import *  # noqa: F403

__all__ = [
    *("Observer", "emit"),
    *(
        name
        for name, thing in vars().items()
        if getattr(thing, "__module__", "").startswith(__name__)
    ),
]
