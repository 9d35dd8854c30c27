"""Events as log records: the public face of `netkit.server.log`."""

from .core.events import show_listeners as show_listeners
from .server.log import logger as logger
from .server.log import write as write
