"""``python -m netkit``, and the ``netkit`` command.

Before anything else is imported, Ctrl+C is made to end the process as it ends other commands,
without a traceback, until the server listens. (What comes before this module is Python's own start.
`_signal` is built in: importing `signal` takes long enough for a Ctrl+C.)
"""

import _signal  # type: ignore[import-not-found] # mypy has no stub for it


def run() -> int:
    """Run the command line and return its exit status."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    from netkit.cli import drop_unwritten, main

    try:
        return main()
    finally:
        drop_unwritten()


if __name__ == "__main__":
    raise SystemExit(run())
