"""The three kinds of handlers, and how each of them is called.

A handler is a `socketserver.BaseRequestHandler` class (or can be called like one), a `Handler`
class, or a function that takes a `Connection`. `adapt` finds the kind, once for each server, and
refuses a handler that cannot serve a client.
"""

from __future__ import annotations

import functools
import socketserver
from collections.abc import Callable, Mapping
from types import AsyncGeneratorType, CodeType, CoroutineType, FunctionType, GeneratorType
from typing import TYPE_CHECKING, Any

from ..net.connection import Connection
from .handlers import Handler, served_by

if TYPE_CHECKING:
    import inspect

Serve = Callable[[Connection], object]


def adapt(handler: Any, arguments: Mapping[str, Any], check: bool) -> Serve | None:
    """Return a function that serves a `Connection` by `handler`.

    None if the handler takes the socket, as in `socketserver`. With `check`, TypeError if the
    handler cannot serve a client, or does not take `arguments`. A server that overrides
    `finish_request` does without the check, since it may call the handler in another way.
    """
    is_ours = isinstance(handler, type) and issubclass(handler, Handler)
    takes_socket = not is_ours and _takes_socket(handler, arguments)
    if check:
        _check_kind(handler)
        if is_ours and handler.__init__ is Handler.__init__:
            handler.check_settings(arguments)
        else:
            _check_call(handler, (None, None, None) if takes_socket else (None,), arguments)
    if is_ours:
        return served_by(handler, arguments)
    if takes_socket:
        return None
    if not arguments:
        return handler  # type: ignore[no-any-return] # the least stack for each client
    return lambda conn: handler(conn, **arguments)


def error_of_handle(error: BaseException) -> BaseException:
    """Return the error of a request handler's `handle`, if its `finish` has raised `error`.

    Otherwise return `error` itself. `socketserver` calls `finish` in a ``finally`` block, where a
    second error replaces the first.
    """
    first = error.__context__
    if first is None or first.__traceback__ is None:
        return error
    # The outermost frame is that of the constructor if the error left `handle`. An error that
    # `handle` caught has another one.
    code = first.__traceback__.tb_frame.f_code
    return first if code is socketserver.BaseRequestHandler.__init__.__code__ else error


def _takes_socket(handler: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether `handler` is called as ``handler(request, client_address, server)``.

    That is so if it needs more than one argument, or takes any number of them, as a wrapper around
    a request handler class does.
    """
    is_class = isinstance(handler, type)
    signature = signature_of(handler)
    if signature is None or (is_class and issubclass(handler, socketserver.BaseRequestHandler)):
        return True
    required = [name for name in _required(signature) if name not in arguments]
    return len(required) > 1 or any(
        parameter.kind is parameter.VAR_POSITIONAL for parameter in signature.parameters.values()
    )


def signature_of(function: Any) -> inspect.Signature | None:
    """Return the signature; None if `function` cannot be called, or is written in C without one."""
    import inspect  # here, since a server with a `Handler` class does not need it

    try:
        return inspect.signature(function)
    except NameError:  # pragma: no cover - an annotation for type checkers alone, from 3.14 on
        lenient: Any = {"annotation_format": inspect.Format.FORWARDREF}  # type: ignore[attr-defined]
        return inspect.signature(function, **lenient)
    except (TypeError, ValueError):
        return None


def _required(signature: inspect.Signature) -> list[str]:
    return [
        p.name
        for p in signature.parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]


def _check_kind(handler: Any) -> None:
    """Raise TypeError for a handler that cannot serve a client, whatever its parameters are."""
    if isinstance(handler, type):
        problem = _problem_of_class(handler)
    elif isinstance(handler, (Handler, socketserver.BaseRequestHandler)):
        problem = "it is a handler already: give its class, which is called for each client"
    elif not callable(handler):
        raise TypeError(f"a handler must be a class or a function, not {handler!r}")
    else:
        problem = problem_of_result(handler)
    if problem:
        raise TypeError(f"{_name(handler)} cannot serve a client: {problem}")


def _problem_of_class(handler: type) -> str | None:
    if issubclass(handler, socketserver.BaseServer):
        return "it is a server: give the class or the function that serves one client"
    if issubclass(handler, socketserver.DatagramRequestHandler):
        return "it is for datagrams, not for connections"
    if not issubclass(handler, (Handler, socketserver.BaseRequestHandler)):
        if handler.__init__ is object.__init__ or not hasattr(handler.__init__, "__code__"):
            return "derive it from netkit.Handler or from socketserver.BaseRequestHandler"
        return None
    for name in ("setup", "connected", "handle", "received", "finish", "closed"):
        method = getattr(handler, name, None)
        problem = problem_of_result(method) or _problem_of_method(handler, name)
        if problem:
            return f"{name}: {problem}"
    return None


def _problem_of_method(handler: type, name: str) -> str | None:
    """Return why a method of a program cannot be called as netkit calls it; None if it can."""
    given = ("self", "data") if name == "received" else ("self",)
    method = next((vars(kind)[name] for kind in handler.__mro__ if name in vars(kind)), None)
    if type(method) is not FunctionType:
        return None
    code, most = method.__code__, method.__code__.co_argcount
    least, takes_any = most - len(method.__defaults__ or ()), code.co_flags & 0x04  # CO_VARARGS
    if least <= len(given) and (len(given) <= most or takes_any):
        return None
    return f"it is called as {name}({', '.join(given[1:])}); write def {name}({', '.join(given)})"


# The flags `inspect.CO_GENERATOR`, `CO_COROUTINE` and `CO_ASYNC_GENERATOR` of a code object.
_DEFERRED = {
    0x20: "it is a generator function, which does nothing when it is called",
    0x80: "it is a coroutine function; a handler is a plain function, which may block",
    0x200: "it is an asynchronous generator; a handler is a plain function, which may block",
}


def problem_of_result(function: Any) -> str | None:
    """Return why a call of `function` would not run its body; None if it would."""
    while isinstance(function, functools.partial):
        function = function.func
    for called in (function, type(function).__call__):
        code = getattr(called, "__code__", None)
        for flag, text in _DEFERRED.items():
            if isinstance(code, CodeType) and code.co_flags & flag:
                return text
    return None


def check_result(result: object, of: str = "the handler") -> None:
    """Raise TypeError if `result` is a coroutine or a generator, of which nothing has run."""
    if isinstance(result, (CoroutineType, GeneratorType, AsyncGeneratorType)):
        if not isinstance(result, AsyncGeneratorType):
            result.close()  # else Python warns that it was never awaited
        raise TypeError(f"{of} has returned {result!r}, of which nothing has run")


def _name(handler: Any) -> str:
    return getattr(handler, "__name__", None) or repr(handler)


def _check_call(handler: Any, positional: tuple[Any, ...], arguments: Mapping[str, Any]) -> None:
    signature = signature_of(handler)
    if signature is None:
        return
    try:
        signature.bind(*positional, **arguments)
    except TypeError as error:
        name = _name(handler)
        if isinstance(handler, type) or len(_required(signature)) in (1, 3):
            raise TypeError(f"handler {name} cannot be called: {error}") from None
        shown = f"{name}({', '.join(signature.parameters)})"
        text = "a handler takes one argument, the connection; further ones come from handler_args"
        raise TypeError(f"{shown} cannot serve a client: {text}") from None
