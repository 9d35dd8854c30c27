"""Events as log records: the public face of `netkit.server.log`, and the access log."""

from collections.abc import Callable

from .core.events import show_listeners as show_listeners
from .server.log import logger as logger
from .server.log import write as write


def log_accesses() -> Callable[[], None]:
    """Log each connection of this process when it is over, and each client that is refused.

    The records are of the logger ``netkit.access``, of level INFO; docs/operations.md describes
    their text. The handlers of the program write them. Returns a function that ends this. `run` and
    `serve` do the same, with a file, if they get ``access_log=``.
    """
    from .ops import access  # here because most programs do without

    return access.log_accesses()
