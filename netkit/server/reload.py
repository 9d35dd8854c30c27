"""Changes a server while it serves: its options, and the files that they name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..core import events
from ..core.options import Options
from ..net.transport import tls_stream
from .setup import Configuration, Setup

if TYPE_CHECKING:
    import ssl

    from ..core.blocklist import BlockList


def configure(
    configuration: Configuration,
    options: Mapping[str, Any],
    check_layers: Callable[[Setup], object] = bool,
) -> None:
    """As `Server.configure`.

    ``check_layers(setup)`` raises an exception if the listeners cannot have the new setup.
    """
    checked = configuration.setup.options.changed(**options)
    given = {name: getattr(checked, name) for name in options}  # an iterator is read once

    def prepare(setup: Setup) -> Setup:
        new = setup.options.changed(**given)
        of_tls = any(name.startswith("tls") for name in options)
        serve = configuration.adapt(setup.handler, new)
        tls = make_tls_context(new) if of_tls else setup.tls
        changed = setup.with_options(new, tls)._replace(serve=serve)
        check_layers(changed)
        return changed

    configuration.change(prepare)


def reload(configuration: Configuration, server: Any) -> bool:
    """As `Server.reload`. The events name `server`."""
    options = configuration.setup.options
    good = reload_tls(configuration, server)
    for name, addresses in lists_in_files(options).items():
        good = _reloaded(server, f"the list {name!r}", addresses.reload, addresses) and good
    for name, reopen in _to_be_reopened(options):
        good = _reloaded(server, f"the setting {name!r}", reopen) and good
    return good


def reload_tls(configuration: Configuration, server: Any) -> bool:
    """As `Server.reload_tls`. The events name `server`."""

    def prepare(setup: Setup) -> Setup:
        return setup._replace(tls=make_tls_context(setup.options))

    return not _has_files(configuration.setup.options) or _reloaded(
        server, "TLS", lambda: configuration.change(prepare)
    )


def can_reload(options: Options) -> bool:
    """Whether `options` name something that `reload` reads again."""
    return _has_files(options) or bool(lists_in_files(options) or _to_be_reopened(options))


def _reloaded(
    server: Any, what: str, load: Callable[[], object], rules: BlockList | None = None
) -> bool:
    before = None if rules is None else len(rules)
    try:
        load()
    except Exception as error:  # a setting's method may raise anything
        events.emit(events.SettingsKept(what, error), server)
        return False
    after = None if rules is None else len(rules)
    events.emit(events.SettingsReloaded(what, after, before), server)
    return True


def pems_in_memory(options: Options) -> dict[str, Any]:
    """Return the TLS options that name files, with the contents of the files as their values.

    OSError or ValueError if a file cannot be read or has no valid contents.
    """
    if options.tls_cert is None:
        return {}
    from ..tls.pem import contents

    def kept(pem: Any) -> bytes | None:
        return None if pem is None else contents(pem)

    names = ("tls_cert", "tls_key", "tls_client_ca")
    found: dict[str, Any] = {name: kept(getattr(options, name)) for name in names}
    found["tls_sni"] = options.tls_sni and {
        host: (kept(cert), kept(key)) for host, (cert, key) in options.tls_sni.items()
    }
    make_tls_context(options.changed(**found))
    return found


def lists_in_files(options: Options) -> dict[str, BlockList]:
    """Return the options that are lists of addresses and are read from a file."""
    lists = {name: getattr(options, name) for name in ("allow", "deny", "proxy_from")}
    return {name: each for name, each in lists.items() if each is not None and each.path}


def _has_files(options: Options) -> bool:
    """Whether a certificate or a key of TLS is in a file, which can be read again."""
    pems = [options.tls_cert, options.tls_key, options.tls_client_ca]
    for pair in (options.tls_sni or {}).values():
        pems += pair
    return any(not isinstance(pem, (bytes, type(None))) for pem in pems)


def _to_be_reopened(options: Options) -> list[tuple[str, Callable[[], object]]]:
    """Return the settings of the handler that have a method `reopen`, each with that method."""
    found = [(name, getattr(value, "reopen", None)) for name, value in options.handler_args.items()]
    return [(name, reopen) for name, reopen in found if callable(reopen)]


def make_tls_context(options: Options) -> ssl.SSLContext | None:
    """Make the context for TLS with clients; None if the options ask for no TLS.

    OSError, ValueError or `TlsConfigError` if a certificate or a key is missing or invalid.
    """
    if options.tls_cert is None and options.tls is None:
        return None
    tls_stream()  # now: a later import may find no free descriptor
    from ..tls.context import TlsFiles, server_context  # here because most programs do without

    if options.tls_cert is None:
        context: ssl.SSLContext = options.tls
        return context
    return server_context(
        TlsFiles(
            options.tls_cert,
            options.tls_key,
            options.tls_key_password,
            options.tls_client_ca,
            options.tls_sni or {},
            options.tls_alpn,
        )
    )
