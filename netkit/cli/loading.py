"""Loads what ``netkit serve`` serves with: a handler, a server, or a factory of either.

Rules:

1. ``MODULE:NAME`` is the object of this name; ``MODULE:NAME()`` is what the object returns when it
   is called. Only the parentheses tell a factory: a function with a default for its argument may be
   a handler or a factory.
2. Of an option, the flag counts, then the variable of the environment, then `NETKIT_OPTIONS` of the
   module, then what a server of the module has, then the profile, then the default.
3. A fault of the command line is an `ArgumentError`, one of the module a `Failure`. What code of
   the module raises is logged with its traceback, without the frames of netkit.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..core.endpoint import Endpoint
from ..core.errors import Failure, TlsConfigError
from ..core.options import Options
from ..core.record import NamedTuple
from ..core.text import said
from ..process.application import Application
from ..process.hooks import Hooks
from ..server.adapting import problem_of_result, signature_of
from ..server.log import logger
from ..server.server import Server
from ..server.serving import no_handler
from .arguments import ArgumentError, flag_of, similar
from .environment import variable_of
from .flags import Flags, check_effects, check_layers
from .settings import converted

OPTIONS = "NETKIT_OPTIONS"  # the name of a module's options
_HOOKS = ("on_start", "on_stop")
_OF_CERTIFICATE = ("tls", "tls_key", "tls_key_password")
_FORM = "MODULE:NAME, such as app:Shout, or MODULE:NAME() for a factory"


class Target(NamedTuple):
    """What the command line names."""

    module: str
    name: str
    is_factory: bool = False

    def __str__(self) -> str:
        return f"{self.module}:{self.name}{'()' if self.is_factory else ''}"


def target_of(text: str) -> Target:
    """Parse ``MODULE:NAME`` or ``MODULE:NAME()``. ValueError for anything else."""
    file = re.fullmatch(r"(?:\./)?([\w/]+)\.py(?::([\w.]*)(\(\))?)?", text)
    if file:  # a file, not a module `py` in a package
        name = f"{file[1].replace('/', '.')}:{file[2] or 'NAME'}{file[3] or ''}"
        raise ValueError(f"a handler is named MODULE:NAME, without .py: {name}, not {text!r}")
    if re.fullmatch(r"[\w.]+:[\w.]+\(.+\)", text):
        raise ValueError(f"a factory is called without arguments: {text.partition('(')[0]}()")
    name = text.removesuffix("()")
    if name.count(":") != 1 or not all(map(str.isidentifier, re.split("[.:]", name))):
        raise ValueError(f"a handler is named {_FORM}, not {text!r}")
    module, _, attribute = name.partition(":")
    return Target(module, attribute, is_factory=name != text)


class Given(NamedTuple):
    """What the command line and the environment say about the application."""

    settings: Mapping[str, str]
    """The texts of ``--set``."""
    set_by: str
    """The flag or the variable that has them, for errors."""
    options: frozenset[str]
    """The names of the options of the server that a flag or a variable has set."""
    flags: frozenset[str]
    """Those of them that a flag has set."""
    addresses: list[Endpoint]
    """Where the server is to listen."""


def load(target: Target, given: Given) -> Application:
    """Import the module, call the factory if there is one, and return the application.

    The application's `complete` raises `Failure` and `ArgumentError`, too.
    """
    found = _resolve(target)
    served = _made(found, target) if target.is_factory else found
    if isinstance(served, Server):
        _check_server(served, target)
    options, hooks = options_of(target.module)
    return Application(partial(_complete, target, served, given, options), hooks.reporting())


def _complete(
    target: Target, served: Any, given: Given, options: Mapping[str, Any], base: Server
) -> Server:
    """Return `base` with the handler `served`, or the server `served` with options of `base`."""
    is_server = isinstance(served, Server)
    server, handler = (served, served.RequestHandlerClass) if is_server else (base, served)
    changes = {name: value for name, value in options.items() if name not in given.options}
    if "tls_cert" in given.options:  # and these belong to the certificate of the module
        changes.update((name, None) for name in _OF_CERTIFICATE if name not in given.options)
    if is_server:
        changes.update((name, getattr(base._options, name)) for name in given.options)
    settings = converted(given.settings, handler, given.set_by)
    if settings:
        before = changes.get("handler_args", server._options.handler_args)
        changes["handler_args"] = {**before, **settings}
    try:
        if changes:
            server.configure(**changes)
    except TlsConfigError:
        raise
    except (TypeError, ValueError, OSError) as error:
        raise Failure(f"{target.module}: {said(error)}") from None
    if not is_server:
        _set_handler(server, handler, target, "handler_args" in options)
    check_effects(given.flags, server._options)
    check_layers(given.flags, server._options, given.addresses)
    return server


def _set_handler(server: Server, handler: Any, target: Target, has_arguments: bool) -> None:
    """Set the handler. `has_arguments` tells whether the options of the module have any for it."""
    try:
        server.RequestHandlerClass = handler
    except TypeError as error:
        if has_arguments and callable(handler):
            raise Failure(f"{target.module}.{OPTIONS}: handler_args: {error}") from None
        if target.is_factory and not callable(handler):
            text = f"{target} has returned {handler!r}, neither a handler nor a netkit.Server"
            raise Failure(text) from None
        is_factory = callable(handler) and not isinstance(handler, type) and _binds(handler)
        hint = f"; a factory is named {target}()" if is_factory and not target.is_factory else ""
        raise ArgumentError(f"{error}{hint}") from None


def _binds(function: Any, *arguments: Any) -> bool:
    """Whether `function` can be called with `arguments`, as far as that can be known."""
    signature = signature_of(function)
    try:
        if signature is not None:
            signature.bind(*arguments)
    except TypeError:
        return False
    return True


def _made(factory: Any, target: Target) -> Any:
    """Return what the factory returns. Failure if it raises."""
    if not callable(factory):
        raise ArgumentError(f"{target.name} is no factory: {factory!r} cannot be called")
    if not _binds(factory):
        plain = target._replace(is_factory=False)
        raise ArgumentError(f"{target.name} is no factory, since it needs arguments: write {plain}")
    problem = problem_of_result(factory)
    if problem:
        raise Failure(f"{target} must call a plain function: {problem.partition(';')[0]}")
    try:
        return factory()
    except Exception as error:
        _log(f"{target} failed", error)
        raise Failure(f"{target} failed, see above") from None


def _check_server(server: Server, target: Target) -> None:
    if server.listening:
        text = (
            f"{target} listens already, on {server._listeners.describe()}: leave out its listen()"
        )
        raise Failure(f"{text}, and give the address to this command")
    if server.RequestHandlerClass is no_handler:
        raise Failure(f"{target} has no handler: give one to create_server()")


# The options of the module


def options_of(module: str) -> tuple[dict[str, Any], Hooks]:
    """Return the options of the server in the module's `NETKIT_OPTIONS`, and the hooks there."""
    options, where = getattr(sys.modules[module], OPTIONS, {}), f"{module}.{OPTIONS}"
    if not isinstance(options, Mapping):
        raise Failure(f"{where} must be a dictionary, not {options!r}")
    try:
        hooks = Hooks(*map(options.get, _HOOKS))
        for name in options:
            if name not in _HOOKS:
                _check_option(name, options[name])
    except (TypeError, ValueError, LookupError, OSError) as error:
        raise Failure(f"{where}: {said(error)}") from None
    return {name: value for name, value in options.items() if name not in _HOOKS}, hooks


def _check_option(name: Any, value: Any) -> None:
    if name in Flags.rows:
        where = f"{flag_of(name)} or {variable_of(name)}"
        raise ValueError(f"{name} is no option of a server; it is set by {where}")
    if name not in Options.rows:
        hint = similar(str(name), (*Options.rows, *_HOOKS))
        names = f"; the options are {', '.join((*Options.rows, *_HOOKS))}"
        raise ValueError(f"unknown option {name!r}{hint or names}")
    Options.rows[name].check(name, value)


# The module


def _resolve(target: Target) -> Any:
    """Return the object that `target` names. Failure if it does not exist.

    The module may be in the current folder, which comes before the folders of installed modules
    but after the standard library: no file in the current folder can replace a part of that.
    """
    try:
        folder = os.getcwd()
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise Failure(f"cannot look for the handler in the current folder: {reason}") from None
    if "" not in sys.path and folder not in sys.path:
        library = os.path.dirname(os.__file__)
        parts = (library, os.path.join(library, "lib-dynload"))
        behind = [index for index, entry in enumerate(sys.path, 1) if entry in parts]
        sys.path.insert(max(behind, default=len(sys.path)), folder)
    module, attribute = target.module, target.name
    _import(module, folder)
    try:
        return pkgutil.resolve_name(f"{module}:{attribute}")
    except AttributeError as error:
        hint = similar(error.name or "", dir(error.obj))
        file = f"{module.partition('.')[0]}.py"
        if file[:-3] in sys.stdlib_module_names and os.path.exists(os.path.join(folder, file)):
            hint = f": it is Python's own module {file[:-3]}; give {file} here another name"
        raise Failure(f"{module} has no {attribute}{hint}") from None


def _import(name: str, folder: str) -> None:
    try:
        importlib.import_module(name)
        return
    except Exception as error:
        failure = error
    if isinstance(failure, ModuleNotFoundError) and f"{name}.".startswith(f"{failure.name}."):
        # This module is missing, and not one that it imports.
        text = f"no module named {failure.name!r}, neither here ({folder}) nor installed"
        raise Failure(text)
    _log(f"{name} could not be imported", failure)
    raise Failure(f"{name} could not be imported, see above")


def _log(text: str, error: Exception) -> None:
    """Log an error of the module, with its traceback but without the frames of netkit."""
    trace = error.__traceback__
    while trace is not None and _is_importing(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    logger.error("%s", text, exc_info=error.with_traceback(trace))


def _is_importing(filename: str) -> bool:
    return filename in (__file__, importlib.__file__) or filename.startswith("<frozen importlib")
