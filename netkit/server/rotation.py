"""When a new log file is begun, for the files of `netkit.server.log_files`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.record import NamedTuple

if TYPE_CHECKING:
    from logging.handlers import RotatingFileHandler, TimedRotatingFileHandler


class Rotation(NamedTuple):
    """When a new file is begun, and how many of the former files are kept."""

    size: int | None = None
    """The most bytes of a file. A longer line has a file to itself."""
    when: str | None = None
    """A time as for `logging.handlers.TimedRotatingFileHandler`."""
    keep: int = 7

    def of(self, path: str) -> RotatingFileHandler | TimedRotatingFileHandler | None:
        """Return a handler that renames and removes the files of `path`, and opens none."""
        if self == (None, None, self.keep):
            return None
        # Here because the module takes milliseconds to import.
        from logging.handlers import RotatingFileHandler, TimedRotatingFileHandler

        if self.when is not None:
            # By UTC, since the hour that local time has twice would give two files one name.
            by_utc: dict[str, Any] = {"utc": True, "backupCount": self.keep, "delay": True}
            return TimedRotatingFileHandler(path, self.when, **by_utc)
        size = self.size or 0
        return RotatingFileHandler(path, "a", size, backupCount=self.keep, delay=True)
