"""The drawing of the packages."""

from __future__ import annotations

import subprocess
import sys

from support import PATIENCE, ROOT


def test_the_drawing_of_the_packages_is_current() -> None:
    command = [sys.executable, ROOT / "docs/draw_architecture.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
