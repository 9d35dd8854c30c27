"""The events of servers and clients, one class each, and how to observe them.

Each class has the fields of its event, the level of its log record and the text of its log line.
docs/events.md describes all events for users.
"""

from .base import *  # noqa: F403
from .connection import *  # noqa: F403
from .program import *  # noqa: F403
from .server import *  # noqa: F403

# The names of these modules, without what they import. Type checkers must not see the list: they
# would take it for an empty one.
globals()["__all__"] = [
    "Observer",
    *(name for name, it in vars().items() if __name__ in str(getattr(it, "__module__", ""))),
]
