"""Parses command lines, and writes their errors.

Rules:

1. Options and other words may come in any order; ``--`` ends the options. An option cannot be
   abbreviated, since a new option must not change the meaning of a script.
2. An error is one line that names the command, and the exit status is 2.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from ..core.addresses import is_ip
from ..core.endpoint import Endpoint
from ..core.text import one_line, said

LONGEST_MESSAGE = 400  # characters; an argument may be as long as the system allows

EXAMPLES = """\
examples:
  netkit echo 8080               then, in another window: netkit connect 8080
  netkit logger 8080 --hex       write the data of clients as a hex dump
  netkit greeter '*:8080'        on every address of this machine
  netkit echo 8080 unix:/tmp/x   on a port and a Unix socket
  netkit serve app:Shout 8080    with the handler Shout, a function or class, of app.py
  netkit connect 8080            talk to a server, as with nc

Ctrl+C stops a server gracefully: clients have --drain-timeout to finish what they have begun.
A second Ctrl+C stops it at once.
"""

MORE = """\
Where the command netkit is not installed, it is python3 -m netkit, or bin/netkit in the source.
Documentation: README.md and docs/ in the source\
"""

# The exceptions that a check of a value may raise.
INVALID = (TypeError, ValueError, LookupError, OSError)


class ArgumentError(Exception):
    """The command line is invalid; the message says why."""


class Parser(argparse.ArgumentParser):
    """Parses options, and returns all other words.

    `hints` maps options of other programs to the advice that their errors give.
    """

    def __init__(self, prog: str, hints: Mapping[str, str] | None = None, **settings: Any) -> None:
        super().__init__(
            prog,
            allow_abbrev=False,
            # With a width, since argparse makes a formatter even if no help is shown, and would
            # import several modules to find the width of the terminal.
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=80),
            **settings,
        )
        self._hints = hints or {}

    def read(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Return the options in `argv`, and the other words. SystemExit if they are invalid."""
        end = list(argv).index("--") if "--" in argv else len(argv)
        self._check_names(argv[:end])
        namespace, words = self.parse_known_args(argv[:end])
        for word in words:
            if _is_option(word):
                name = word.partition("=")[0]  # the value may be a secret
                self.error(f"unknown option {name}{self._similar(name)}")
        return namespace, [*words, *argv[end + 1 :]]

    def _check_names(self, argv: Sequence[str]) -> None:
        """Refuse options of other programs before argparse reports an error of their values."""
        for word in argv:
            name = word.partition("=")[0]
            if name in self._option_string_actions or not _is_option(word):
                continue
            letters = [f"-{letter}" for letter in name[1:]] if name[1] != "-" else []
            for known in (name, *letters):
                if known in self._hints:
                    self.error(f"there is no option {known}: {self._hints[known]}")

    def _similar(self, word: str) -> str:
        names = sorted(self._option_string_actions)
        longer = [name for name in names if word[2:] and name.startswith(word)]
        return f"; did you mean {' or '.join(longer[:3])}?" if longer else similar(word, names)

    def format_help(self) -> str:
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        return super().format_help()

    def print_help(self, file: Any = None) -> None:
        show(self.format_help())

    def error(self, message: str) -> NoReturn:
        complain(f"{message} (see {self.prog} --help)", self.prog)
        raise SystemExit(2)


def _is_option(word: str) -> bool:
    """Whether `word` is an option. A negative number is a port, though an invalid one."""
    return word.startswith("-") and word != "-" and not re.match(r"-\d{2}|-[0-35789]$", word)


def similar(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name; empty if no known name is similar."""
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
    say(f"{prog}: error: {one_line(message)}")


def say(text: str) -> None:
    """Write a line to standard error. A failure is ignored: nothing else could report it."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


# Values


def flag_of(name: str) -> str:
    """Return the flag of an option: ``--max-line`` for ``max_line``."""
    return "--" + name.replace("_", "-")


def checked(check: Callable[[str], Any]) -> Callable[[str], Any]:
    """Make `check` a type for `argparse`, which shows the messages of its errors."""

    def argument(text: str) -> Any:
        try:
            return check(text)
        except INVALID as error:
            raise argparse.ArgumentTypeError(why_invalid(error)) from None

    return argument


def why_invalid(error: Exception) -> str:
    """Return the message of an error of a check, which is one of `INVALID`."""
    return said(error).removeprefix("it: ")


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
            if not re.fullmatch(r"\d+(\?.*)?", word, re.ASCII):
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
    from ..tls import self_signed as certificates

    names = dict.fromkeys(["localhost", "127.0.0.1", "::1", *hosts])
    return b"".join(
        certificates.self_signed([name for name in names if name not in (None, "", "*")])
    )
