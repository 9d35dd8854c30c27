"""The servers that netkit runs for operators, beside those of the program."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ..core.endpoint import Endpoint
from ..server import log
from ..server.server import Server

Placing = Callable[[Endpoint], Endpoint]
"""Returns where to listen instead of at an address; see `netkit.ops.takeover`."""


def unchanged(endpoint: Endpoint) -> Endpoint:
    """Listen at the address itself."""
    return endpoint


class InternalServer(Server):
    """A server of netkit's own, such as the status endpoint.

    Its events are neither logged nor counted, and a program's observers do not see them. What ends
    a handler is logged at the level debug only.
    """

    unobserved = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the exception being handled, at the level debug."""
        log.logger.debug("a client of an endpoint for operators: %r", sys.exc_info()[1])
