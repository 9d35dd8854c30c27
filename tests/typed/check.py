"""Checks the programs in this folder, and the examples, by mypy and pyright.

    python tests/typed/check.py      # exit status 1 if a report differs from what is expected

The programs are what users write, and never run. Each type checker must report an error for every
line that ends with ``# error``, and for no other line. The mistake in a line that ends with
``# error: pyright`` is reported by pyright only.

pyright needs Node.js. If one of them is missing, this checks with mypy only, and says so; with
CI=true it fails.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TYPED = sorted(set(HERE.glob("*.py")) - {Path(__file__).resolve()})
PROGRAMS = [*TYPED, *sorted((ROOT / "examples").glob("*.py"))]
OLDEST = "3.10"

Errors = dict[tuple[str, int], str]  # by file and line: the messages


def output_of(module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", module, *arguments, *map(str, PROGRAMS)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{module} has failed:\n{done.stdout}")
    return done.stdout


def found_by_mypy() -> Errors:
    errors: Errors = {}
    output = output_of("mypy", "--strict", "--python-version", OLDEST, "--no-pretty")
    for path, line, message in re.findall(r"^(.+?):(\d+): error: (.*)$", output, re.MULTILINE):
        errors[path, int(line)] = message
    return errors


def found_by_pyright() -> Errors:
    """Each program says itself that it is checked strictly."""
    errors: Errors = {}
    output = output_of("pyright", "--pythonversion", OLDEST, "--outputjson")
    for each in json.loads(output)["generalDiagnostics"]:
        line = each["range"]["start"]["line"] + 1
        errors[os.path.relpath(each["file"], ROOT), line] = each["message"].splitlines()[0]
    return errors


def expected(checker: str) -> Errors:
    errors: Errors = {}
    for path in PROGRAMS:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            marker = re.search(r"# error(?:: (\w+))?$", line)
            if marker and marker[1] in (None, checker):
                errors[str(path.relative_to(ROOT)), number] = line.strip()
    return errors


def differs(checker: str, found: Errors) -> bool:
    wanted = expected(checker)
    for file, line in sorted(found.keys() ^ wanted.keys()):
        where = f"{file}:{line}"
        if (file, line) in wanted:
            print(f"{where}: {checker} reports no error: {wanted[file, line]}")
        else:
            print(f"{where}: {checker}: {found[file, line]}")
    if found.keys() != wanted.keys():
        return True
    print(f"{checker}: {len(PROGRAMS)} programs, {len(wanted)} errors, as expected")
    return False


def main() -> int:
    failed = differs("mypy", found_by_mypy())
    missing = None if shutil.which("node") else "Node.js"
    if importlib.util.find_spec("pyright") is None:
        missing = "pyright"
    if missing:
        needed = os.environ.get("CI") == "true"
        print(f"pyright: {'failed' if needed else 'skipped'}, since {missing} is missing")
        failed = failed or needed
    else:
        failed = differs("pyright", found_by_pyright()) or failed
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
