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
from types import MappingProxyType
from typing import Any, NoReturn

from ..core.addresses import is_ip
from ..core.endpoint import Endpoint
from ..core.errors import Failure
from ..core.text import one_line, said

# The commands, and the first lines of their help.
COMMANDS = {
    "echo": "Send every client back what it sends.",
    "logger": "Report each client that comes and goes, and write the data of clients.",
    "greeter": "Greet every client and hang up.",
    "serve": """\
Serve with a handler of your own: a function or class NAME of MODULE, which is a module in the
current directory or an installed one. NAME may also be a netkit.Server that does not listen, and
NAME() calls a function that returns a handler or a server. Options may be in the dictionary
NETKIT_OPTIONS of the module, and on_start and on_stop, which are called in each process; flags and
the environment win. With --workers, 1 included, SIGHUP loads new code: see docs/serve.md.""",
    "connect": "Talk to a server: send standard input, and write the data that comes back.",
    "ctl": "Give a command to a running server, through its control socket, and print the answer.",
    "top": "Watch the clients of a running server, through its control socket.",
}

EXAMPLES = """\
examples:
  netkit echo 8080               then, in another window: netkit connect 8080
  netkit logger 8080 --hex       write the data of clients as a hex dump
  netkit greeter '*:8080'        on every address of this machine
  netkit echo 8080 unix:/tmp/x   on a port and a Unix socket
  netkit serve app:Shout 8080    with the handler Shout, a function or class, of app.py
  netkit connect 8080            talk to a server, as with nc
  netkit ctl /run/app.ctl conns  the clients of a server with --control /run/app.ctl
  netkit top /run/app.ctl        the same on a screen that is kept up to date

Ctrl+C stops a server gracefully: clients have --drain-timeout to finish what they have begun.
A second Ctrl+C stops it at once.
"""

MORE = """\
Where the command netkit is not installed, it is python3 -m netkit, or bin/netkit in the source.
Documentation: README.md and docs/ in the source\
"""


class ArgumentError(Failure):
    """The command line is invalid; the message says why."""

    exit_status = 2


class Parser(argparse.ArgumentParser):
    """Parses options, and returns all other words.

    `hints` maps options of other programs to the advice that their errors give.
    """

    def __init__(
        self, prog: str, hints: Mapping[str, str] = MappingProxyType({}), **settings: Any
    ) -> None:
        # With a width, since argparse makes a formatter even if no help is shown, and would import
        # several modules to find the width of the terminal.
        formatter = partial(argparse.RawDescriptionHelpFormatter, width=80)
        super().__init__(prog, allow_abbrev=False, formatter_class=formatter, **settings)
        self._hints = hints

    def read(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Return the options in `argv`, and the other words. SystemExit if they are invalid."""
        end = list(argv).index("--") if "--" in argv else len(argv)
        self._check_names(argv[:end])
        namespace, words = self.parse_known_args(argv[:end])
        for word in filter(_is_option, words):
            name = word.partition("=")[0]  # without its value, which may be a secret
            names = sorted(self._option_string_actions)
            longer = [known for known in names if name[2:] and known.startswith(name)]
            hint = f"; did you mean {' or '.join(longer[:3])}?" if longer else similar(name, names)
            self.error(f"unknown option {name}{hint}")
        return namespace, [*words, *argv[end + 1 :]]

    def _check_names(self, argv: Sequence[str]) -> None:
        """Refuse options of other programs before argparse reports an error of their values."""
        for name in (word.partition("=")[0] for word in argv if _is_option(word)):
            if name not in self._option_string_actions:
                letters = [f"-{letter}" for letter in name[1:]] if name[1] != "-" else []
                for known in filter(self._hints.get, (name, *letters)):
                    self.error(f"there is no option {known}: {self._hints[known]}")

    def print_help(self, file: Any = None) -> None:
        self.formatter_class = argparse.RawDescriptionHelpFormatter
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
    if len(message) > 400:  # an argument may be as long as the system allows
        message = f"{message[:200]} ... {message[-200:]}"
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
    """Make `check` a type for `argparse`: its errors become ArgumentTypeError."""

    def argument(text: str) -> Any:
        try:
            return check(text)
        except (TypeError, ValueError, LookupError, OSError) as error:
            raise argparse.ArgumentTypeError(said(error).removeprefix("it: ")) from None

    return argument


def count(text: str) -> int:
    """Convert a whole number that is not negative. ValueError."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"it must be 0 or more, not {text!r}")
    return int(text)


# Addresses


def endpoints(words: Iterable[str]) -> list[Endpoint]:
    """Parse addresses, each of which is one word or a host and a port. ValueError."""
    found, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if _is_host(word):
            if rest and re.fullmatch(r"\d+(\?.*)?", rest[0], re.ASCII):
                word = f"[{word}]:{rest.pop(0)}" if is_ip(word) == 6 else f"{word}:{rest.pop(0)}"
            elif is_ip(word) != 6:  # else the error of `Endpoint.parse` shows the right form
                text = f"{word!r} has no port: write HOST:PORT, HOST PORT, or PORT alone"
                raise ValueError(text)
        found.append(endpoint := Endpoint.parse(word))
        names_place = (endpoint.port or endpoint.path) and not endpoint.reuse_port
        if names_place and found.count(endpoint) > 1:
            raise ValueError(f"{word} is given twice")
    return found


def _is_host(word: str) -> bool:
    bracketed = word.startswith("[") and word.endswith("]")
    return bracketed or is_ip(word) != 0 or not re.search(r"[:/@?]|^-?\d*$", word)


def self_signed(*hosts: str | None) -> bytes:
    """Make a certificate for `hosts` and this machine, with its key, in PEM.

    MissingExtraError, TlsConfigError.
    """
    from ..tls import self_signed as certificates

    names = dict.fromkeys(["localhost", "127.0.0.1", "::1", *filter(None, hosts)])
    names.pop("*", None)
    return b"".join(certificates.self_signed(list(names)))
