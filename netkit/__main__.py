"""``python -m netkit``, and the ``netkit`` command.

Until the server listens, Ctrl+C ends the process at once and without a traceback, as it ends other
commands. This is set before anything else is imported. Processes that the module of a handler forks
get Python's own reaction to Ctrl+C. (`_signal` is a part of the interpreter. To import `signal`
takes long enough for a Ctrl+C.)
"""

import _signal  # type: ignore[import-not-found] # mypy has no stub for it


def run() -> int:
    """Run the command line and return its exit status."""
    as_python = _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
    if as_python:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    from netkit.cli.main import drop_unwritten, main
    from netkit.net.forks import undo_in_children

    if as_python:
        undo_in_children(_restore_interrupts)
    try:
        return main()
    finally:
        drop_unwritten()


def _restore_interrupts() -> None:
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)


if __name__ == "__main__":
    raise SystemExit(run())
