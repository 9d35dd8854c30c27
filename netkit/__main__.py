"""``python -m netkit``, and the ``netkit`` command.

Nothing else is imported before Ctrl+C is silenced: until the server listens, it just ends the
process, as it would end any other command, without a traceback.
"""

try:
    import signal
except KeyboardInterrupt:  # pragma: no cover - a window of a few milliseconds
    raise SystemExit(130) from None


def run() -> int:
    """Run the command line and return its exit status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from netkit.cli import main

    return main()


if __name__ == "__main__":
    raise SystemExit(run())
