"""The examples of the documentation run, and every name in it exists."""

from __future__ import annotations

import builtins
import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import PATIENCE, ROOT

import netkit
from netkit.client.options import ConnectOptions
from netkit.core import events
from netkit.core.options import Options

DOCS = sorted((ROOT / "docs").glob("*.md"))
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in DOCS}


PUBLIC = (netkit.BlockList, netkit.BoundSocket, netkit.SocketAddress, events, logging, socket)
SERVES = r"netkit\.(serve|run)\(|\.run\(|Workers\(|__main__"  # these run until a signal


def programs() -> list[tuple[str, str]]:
    """The examples that are whole programs and end by themselves."""
    found = []
    for name, text in TEXTS.items():
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            if "import netkit" in block and not re.search(SERVES, block):
                found.append((name, block))
    return found


@pytest.mark.parametrize(("name", "program"), programs())
def test_an_example_runs(name: str, program: str, tmp_path: Path) -> None:
    program = re.sub(r"\b80[0-9]{2}\b", "0", program)  # a port that is free
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=PATIENCE,
        text=True,
    )
    assert done.returncode == 0, (name, done.stderr)


def test_every_public_name_in_the_documentation_exists() -> None:
    for name, text in TEXTS.items():
        for word in re.findall(r"(?<!logger )`netkit\.(\w+)", text):
            assert hasattr(netkit, word) or (ROOT / f"netkit/{word}.py").exists(), (name, word)


def test_every_name_in_the_tables_of_nodes_features_exists() -> None:
    rows = re.findall(r"^\| (.+?) \| (.*?) \|", TEXTS["node.md"], re.MULTILINE)
    known = {
        *dir(netkit),
        *(
            name
            for each in (netkit.Connection, netkit.Server, netkit.Handler)
            for name in dir(each)
        ),
        *(name for each in PUBLIC for name in dir(each)),
        *ConnectOptions.rows,
        *Options.rows,
        *dir(builtins),
    }
    assert len(rows) > 120
    for node, ours in rows:
        for called in re.findall(r"`(?:\w+\.)?([a-z_]+|[A-Z]\w+)\(", ours):
            assert called in known, (node, called)


def test_each_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in TEXTS:
        assert f"docs/{name}" in readme, name


def test_every_module_and_member_in_the_page_of_the_architecture_exists() -> None:
    page = TEXTS["architecture.md"]
    for path in re.findall(r"`(\w+/(?:\w+\.py)?)`", page):
        assert (ROOT / "netkit" / path).exists() or (ROOT / path).exists(), path
    source = "\n".join(path.read_text() for path in (ROOT / "netkit").rglob("*.py"))
    members = re.findall(r"`([A-Z]\w+)\.(\w+)`", page)
    assert len(members) > 15
    for owner, member in members:
        body = re.search(rf"^class {owner}\b.*?(?=^\S|\Z)", source, re.MULTILINE | re.DOTALL)
        assert body, owner
        is_there = re.search(rf"\bdef {member}\b|self\.{member}\b", body[0])
        assert is_there or hasattr(getattr(netkit, owner), member), (owner, member)
