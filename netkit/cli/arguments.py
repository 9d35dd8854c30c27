"""Reads command lines, with options and words in any order, and reports errors.

Rules:

1. Options and words may stand in any order; ``--`` ends the options. An option cannot be
   abbreviated: a new one must not change the meaning of a script.
2. An error is one line that names the command, and the exit status is 2.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from ..core.addresses import is_ip
from ..core.endpoint import Endpoint
from ..core.options import Flag
from ..core.text import printable

LONGEST_MESSAGE = 400  # characters; an argument may be as long as the system allows

_TIME = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h)", re.ASCII)
_UNITS = {"ms": (1, 1000), "s": (1, 1), "m": (60, 1), "h": (3600, 1)}
_NUMBERS = {
    "SECONDS": "a time such as 30, 500ms, 5m or 2h",
    "BYTES": "a number of bytes",
    "N": "a number",
}
_PORT = re.compile(r"\d+(\?.*)?", re.ASCII)


class ArgumentError(Exception):
    """The command line is wrong; the message says why."""


class Parser(argparse.ArgumentParser):
    """Reads options, and returns all other words.

    `hints` maps options of other programs to advice.
    """

    def __init__(self, prog: str, hints: Mapping[str, str] | None = None, **settings: Any) -> None:
        super().__init__(
            prog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **settings,
        )
        self._hints = hints or {}

    def read(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The values of the options in `argv`, and the other words. SystemExit for an error."""
        end = list(argv).index("--") if "--" in argv else len(argv)
        self._check_names(argv[:end])
        namespace, words = self.parse_known_args(argv[:end])
        for word in words:
            if _is_option(word):
                self.error(f"unknown option {word}{self._similar(word)}")
        return namespace, [*words, *argv[end + 1 :]]

    def _check_names(self, argv: Sequence[str]) -> None:
        """Refuse options of other programs first: else `argparse` would report their values."""
        for word in argv:
            name = word.partition("=")[0]
            if name in self._option_string_actions or not _is_option(word):
                continue
            letters = [f"-{letter}" for letter in name[1:]] if name[1] != "-" else []
            for known in (name, *letters):
                if known in self._hints:
                    self.error(f"there is no option {known}: {self._hints[known]}")

    def _similar(self, word: str) -> str:
        names, word = sorted(self._option_string_actions), word.partition("=")[0]
        longer = [name for name in names if word[2:] and name.startswith(word)]
        return f"; did you mean {' or '.join(longer[:3])}?" if longer else similar(word, names)

    def print_help(self, file: Any = None) -> None:
        show(self.format_help())

    def error(self, message: str) -> NoReturn:
        complain(f"{message} (see {self.prog} --help)", self.prog)
        raise SystemExit(2)


def _is_option(word: str) -> bool:
    """Whether `word` is an option. A negative number is not: it may be meant as a port."""
    return word.startswith("-") and word != "-" and not re.match(r"-\d{2}|-[0-35789]$", word)


def similar(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name. Empty if no known name is similar."""
    import difflib  # here because only a mistake needs it

    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def show(text: str) -> None:
    """Write `text` to standard output. SystemExit if that is not possible."""
    if sys.stdout is None:
        complain("standard output is closed")
        raise SystemExit(1)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        complain(f"cannot write to standard output: {os.strerror(error.errno or 0).lower()}")
        raise SystemExit(1) from None


def complain(message: str, prog: str = "netkit") -> None:
    """Write an error to standard error, as one line of printable characters."""
    if len(message) > LONGEST_MESSAGE:
        half = LONGEST_MESSAGE // 2
        message = f"{message[:half]} ... {message[-half:]}"
    line = printable(message).replace(r"\\", "\\")
    say(f"{prog}: error: {line}")


def say(text: str) -> None:
    """Write a line to standard error. A failure is ignored: there is the exit status, too."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


# Values


def checked(check: Callable[[str], Any]) -> Callable[[str], Any]:
    """Make `check` a type for `argparse`, which shows the messages of its errors."""

    def argument(text: str) -> Any:
        try:
            return check(text)
        except (TypeError, ValueError, LookupError, OSError) as error:
            text = str(error)
            if isinstance(error, OSError):
                text = f"{error.strerror}: {error.filename!r}"
            raise argparse.ArgumentTypeError(text.removeprefix("it: ")) from None

    return argument


def flag_value(flag: Flag) -> Callable[[str], Any]:
    """The type for `argparse` of an option of `options.FLAGS`. ``off`` stands for None."""
    is_number = flag.type in (int, float)
    can_be_off = is_number and _allows_none(flag)

    def value(text: str) -> Any:
        if can_be_off and text == "off":
            return None
        try:
            found = _convert(text, flag)
        except ValueError:
            if not is_number:
                raise
            or_off = " or 'off'" if can_be_off else ""
            raise ValueError(f"it must be {_NUMBERS[flag.metavar]}{or_off}, not {text!r}") from None
        flag.check("it", found)
        return found

    return checked(value)


def _allows_none(flag: Flag) -> bool:
    try:
        flag.check("it", None)
    except TypeError:
        return False
    return True


def _convert(text: str, flag: Flag) -> Any:
    time = _TIME.fullmatch(text) if "SECONDS" in flag.metavar else None
    if time:  # a multiple of a part of a second is not exact: 700 * 0.001
        number, (factor, divisor) = float(time[1]), _UNITS[time[2]]
        return number * factor / divisor
    if flag.type is bool:
        if text not in ("on", "off"):
            raise ValueError(f"it must be on or off, not {text!r}")
        return text == "on"
    found = flag.type(text)
    if isinstance(found, float) and not math.isfinite(found):  # `off` means no limit
        raise ValueError(text)
    return found


def count(text: str) -> int:
    """Convert a whole number that is not negative. ValueError."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"it must be 0 or more, not {text!r}")
    return int(text)


# Addresses


def endpoints(words: Iterable[str]) -> list[Endpoint]:
    """Parse addresses, each of which is one word or a host and a port. ValueError."""
    found, host = [], None
    for word in words:
        if host is not None:
            if not _PORT.fullmatch(word):
                break
            found.append(
                Endpoint.parse(f"[{host}]:{word}" if is_ip(host) == 6 else f"{host}:{word}")
            )
            host = None
        elif _is_host(word):
            host = word
        else:
            found.append(Endpoint.parse(word))
    if host is None:
        return found
    if is_ip(host) == 6:
        return [Endpoint.parse(host)]  # raises an error that shows the right form
    raise ValueError(f"{host!r} has no port: write HOST:PORT, HOST PORT, or PORT alone")


def _is_host(word: str) -> bool:
    bracketed = word.startswith("[") and word.endswith("]")
    return bracketed or is_ip(word) != 0 or not re.search(r"[:/@?]|^-?\d*$", word)


# Certificates


def self_signed(*hosts: str | None) -> bytes:
    """Make a certificate for `hosts` and this machine, with its key, in PEM.

    MissingExtraError, TlsConfigError.
    """
    from ..tls import context

    names = dict.fromkeys(["localhost", "127.0.0.1", "::1", *hosts])
    return b"".join(context.self_signed([name for name in names if name not in (None, "", "*")]))
