"""The events of servers and clients, as classes, and `subscribe`; docs/events.md explains them.

The public face of `netkit.core.events`.
"""

from .core.events import *  # noqa: F403
