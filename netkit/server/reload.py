"""Changes a server while it serves: its options, and the files that they name."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..core import events
from ..core.options import Options, TimeLimits
from ..net.securing import tls_stream
from .adapting import Serve
from .doorway import Doorway

if TYPE_CHECKING:
    import ssl

    from ..core.blocklist import BlockList
    from ..process.semaphore import SharedPlaces


class AdjustableServer(Doorway):
    """The part of `Server` whose methods change it. Not used by itself."""

    def _prepare(self) -> None:
        super()._prepare()
        # Guards what a change sets, and their number. Re-entrant, since a signal handler may make
        # one. What a change depends on is prepared without it, see `_change`.
        self._configuring = threading.RLock()
        self._changes = 0
        self._tls: ssl.SSLContext | None = None
        self._time_limits: TimeLimits | None = None

    def suspend(self) -> None:
        """Accept no client until `resume`: new clients wait in the kernel's queue."""
        self._admission.suspend()
        self._wake_acceptor()

    def resume(self) -> None:
        """Accept clients again."""
        self._admission.resume()

    def configure(self, **options: Any) -> None:
        """Change options of the constructor. They hold for new clients, not for connected ones.

        A `profile` changes all options that it sets, except those given beside it. Errors as there,
        and then nothing is changed. In a worker process: its own, and not how many connections all
        of them may have together.
        """
        checked = self._options.changed(**options)
        given = {name: getattr(checked, name) for name in options}  # an iterator is read once

        def prepare() -> Callable[[], None]:
            new = self._options.changed(**given)
            serve = self._adapted(self._handler_class, new)
            of_tls = any(name.startswith("tls") for name in options)
            tls = make_tls_context(new) if of_tls else self._tls
            return lambda: self._set_options(new, serve, tls)

        self._change(prepare)

    def _change(self, prepare: Callable[[], Callable[[], None]]) -> None:
        """Call what `prepare` returns, if nothing else has been changed since; or else once more.

        `prepare` may run code of the program's, which holds no lock, and reads files. So of two
        changes none is lost, and what was read last counts.
        """
        while True:
            changes = self._changes
            commit = prepare()
            with self._configuring:
                if changes == self._changes:
                    self._changes += 1
                    return commit()

    def _set_options(
        self, options: Options, serve: Serve | None, tls: ssl.SSLContext | None
    ) -> None:
        self._serve = serve
        self._tls = tls
        self._options = options
        self._time_limits = options.time_limits
        self._admission.configure(options)
        for listener in self._listeners if hasattr(self, "socket") else ():
            with contextlib.suppress(OSError):  # it is closed
                self._configure(listener)

    def reload(self) -> bool:
        """Read again what the options name by file: certificates, and lists of addresses.

        A handler's setting (`handler_args`) that has a method `reopen`, such as a log file, is
        reopened. What cannot be read, or is invalid, stays as it is, and the log says so. False if
        there was such a thing. SIGHUP does this, where `run` or `serve` was called.
        """
        good = self.reload_tls()
        for name, addresses in lists_in_files(self._options).items():
            good = self._reloaded(f"the list {name!r}", addresses.reload, addresses) and good
        for name, reopen in _to_be_reopened(self._options):
            good = self._reloaded(f"the setting {name!r}", reopen) and good
        return good

    def reload_tls(self) -> bool:
        """The same, for certificates and keys only. Connections from now on have the new ones."""
        return not _has_files(self._options) or self._reloaded("TLS", self._load_tls)

    def _load_tls(self) -> None:
        def prepare() -> Callable[[], None]:
            tls = make_tls_context(self._options)
            return lambda: setattr(self, "_tls", tls)

        self._change(prepare)

    def _reloaded(
        self, what: str, load: Callable[[], object], rules: BlockList | None = None
    ) -> bool:
        before = None if rules is None else len(rules)
        try:
            load()
        except Exception as error:  # a setting's method may raise anything
            events.emit(events.SettingsKept(what, error), self)
            return False
        after = None if rules is None else len(rules)
        events.emit(events.SettingsReloaded(what, after, before), self)
        return True

    @property
    def can_reload(self) -> bool:
        """Whether there is something to `reload`."""
        options = self._options
        return _has_files(options) or bool(lists_in_files(options) or _to_be_reopened(options))

    def tls_context(self) -> ssl.SSLContext | None:
        """The context for the TLS of new clients; None if the server has no TLS."""
        return self._tls

    def _speaks_tls(self) -> bool:
        """Whether it does so from a connection's first byte on."""
        return self._tls is not None and not self._options.starttls

    def share_places(self, places: SharedPlaces) -> None:
        """Have `max_connections` hold for all worker processes together. For worker processes."""
        self._admission.share(places)


def pems_in_memory(options: Options) -> dict[str, Any]:
    """The options of TLS that name files, with what these have in place of their paths.

    OSError, ValueError if they are no good now.
    """
    if options.tls_cert is None:
        return {}
    from ..tls.context import contents

    def kept(pem: Any) -> bytes | None:
        return None if pem is None else contents(pem)

    names = ("tls_cert", "tls_key", "tls_client_ca")
    found: dict[str, Any] = {name: kept(getattr(options, name)) for name in names}
    found["tls_sni"] = options.tls_sni and {
        host: (kept(cert), kept(key)) for host, (cert, key) in options.tls_sni.items()
    }
    make_tls_context(options._replace(**found))
    return found


def lists_in_files(options: Options) -> dict[str, BlockList]:
    """Those of the options `allow` and `deny` that are read from a file."""
    lists = {"allow": options.allow, "deny": options.deny}
    return {name: each for name, each in lists.items() if each is not None and each.path}


def _has_files(options: Options) -> bool:
    """Whether TLS has a certificate, or a key, that can be read again."""
    pems = [options.tls_cert, options.tls_key, options.tls_client_ca]
    for pair in (options.tls_sni or {}).values():
        pems += pair
    return any(not isinstance(pem, (bytes, type(None))) for pem in pems)


def _to_be_reopened(options: Options) -> list[tuple[str, Callable[[], object]]]:
    found = [(name, getattr(value, "reopen", None)) for name, value in options.handler_args.items()]
    return [(name, reopen) for name, reopen in found if callable(reopen)]


def make_tls_context(options: Options) -> ssl.SSLContext | None:
    if options.tls_cert is None and options.tls is None:
        return None
    tls_stream()  # now: to import it later may take a descriptor that there is not
    from ..tls.context import TlsFiles, server_context  # here because most programs do without

    if options.tls_cert is None:
        return options.tls
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
