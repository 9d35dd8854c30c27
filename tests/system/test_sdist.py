"""The source distribution: it has all files of the project, and its tests pass without git."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

BUILD = "from setuptools import build_meta; print(build_meta.build_sdist('..'))"
LONG = 60.0  # seconds that building, or a small part of the tests, may take


def is_of_the_project(path: Path) -> bool:
    """Whether a file or folder belongs to the project, and was not made by a tool."""
    if path.name in (".ci", ".gitignore"):
        return True
    made = path.name in ("build", "dist", "__pycache__") or path.suffix == ".egg-info"
    return not made and not path.name.startswith(".")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def run(*command: str, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COVERAGE", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LONG,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the files of the project. The source distribution is unpacked beside it."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("sdist") / "checkout"
    folder.mkdir()
    for path in filter(is_of_the_project, ROOT.iterdir()):
        if path.is_dir():
            made = shutil.ignore_patterns("__pycache__", ".*", "*.so")
            shutil.copytree(path, folder / path.name, ignore=made)
        else:
            shutil.copy(path, folder)
    yield folder
    shutil.rmtree(folder.parent)


@pytest.fixture(scope="module")
def unpacked(checkout: Path) -> Path:
    files_before = files(checkout)
    archive = run("-c", BUILD, cwd=checkout).split()[-1]
    for name in files(checkout) - files_before:  # what the build has left there
        (checkout / name).unlink()
    run("-m", "tarfile", "-e", archive, cwd=checkout.parent)
    return checkout.parent / archive.removesuffix(".tar.gz")


def test_it_has_every_file_of_the_project(checkout: Path, unpacked: Path) -> None:
    missing = files(checkout) - files(unpacked)
    assert missing == set()
    for folder in ("tests", "docs", "bin", "benchmarks", ".ci"):
        assert any(name.startswith(f"{folder}/") for name in files(unpacked)), folder
    assert os.access(unpacked / "bin/test", os.X_OK)


@pytest.mark.timeout(2 * LONG)
def test_the_tests_in_it_pass(unpacked: Path) -> None:
    some = [
        "tests/core/test_deadline.py",
        "tests/system/test_bin.py::test_a_script_works_through_symbolic_links",
    ]
    assert re.search(r"\n[1-9]\d* passed in ", run("-m", "pytest", "-q", *some, cwd=unpacked))


def test_the_page_on_an_index_has_no_relative_links(unpacked: Path) -> None:
    page = (unpacked / "PKG-INFO").read_text(encoding="utf-8")
    assert "docs/framing.md" in page
    assert re.findall(r"\]\((?!https?:)[^)]*\)", page) == []


def test_the_classifiers_are_the_versions_of_python_in_the_readme(unpacked: Path) -> None:
    page = (unpacked / "PKG-INFO").read_text(encoding="utf-8")
    oldest, latest = re.findall(r"CPython 3\.(\d+) to 3\.(\d+)", page)[0]
    assert re.findall(r"^Classifier: .*:: 3\.(\d+)$", page, re.MULTILINE) == [
        str(minor) for minor in range(int(oldest), int(latest) + 1)
    ]
