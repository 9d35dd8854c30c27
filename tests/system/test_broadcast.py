"""Messages for a thousand members, a hundred of whom read nothing: memory is bounded."""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
import sys
from pathlib import Path

import pytest
from support import PATIENCE, Program

MEMBERS, SILENT = 1000, 100
MESSAGES, SIZE = 200, 4000
MAX_BYTES = 64 * 1024

SERVER = f"""
import os, resource, socket, sys, threading, time
import netkit

group, readers = netkit.Group(), netkit.Group()

def serve(conn):
    conn.outbox.max_bytes = {MAX_BYTES}
    kind = conn.readexactly(1)
    if kind != b"r":
        conn.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        conn.outbox.when_full = "drop" if kind == b"d" else "disconnect"
    with group.member(conn), (readers if kind == b"r" else group).member(conn):
        conn.read()

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def messages():
    for number in range({MESSAGES}):
        yield number.to_bytes(4, "big") * ({SIZE} // 4)

server = netkit.create_server(serve).listen(0, "127.0.0.1")
with server:
    print(f"listening on 127.0.0.1:{{server.address.port}}", file=sys.stderr, flush=True)
    while len(group) < {MEMBERS}:
        time.sleep(0.01)
    before, most = resident(), 0
    for message in messages():
        group.post(message)
        most = max(most, max(conn.outbox.queued for conn in group))
        while any(conn.outbox.queued for conn in readers):
            time.sleep(0.001)
    # The same for each member as an object of its own: nothing is shared.
    for message in messages():
        for conn in group:
            if conn not in readers:
                try:
                    conn.post(message + b"!")
                except OSError:
                    group.discard(conn)
    for conn in group:
        most = max(most, conn.outbox.queued)
        conn.cut() if conn not in readers else conn.end()
    print(resident() - before, most, len(readers), flush=True)
    sys.stdin.read()
"""


def connect(port: int, kind: bytes) -> socket.socket:
    sock = socket.socket()
    if kind != b"r":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(PATIENCE)
    sock.connect(("127.0.0.1", port))
    sock.sendall(kind)
    return sock


@pytest.mark.skipif(sys.platform != "linux", reason="/proc as Linux has it")
def test_a_hundred_members_that_read_nothing_cost_no_more_than_their_outboxes(
    tmp_path: Path,
) -> None:
    """All others get everything in order."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    expected = b"".join(number.to_bytes(4, "big") * (SIZE // 4) for number in range(MESSAGES))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        program = stack.enter_context(Program(sys.executable, script))
        selector = stack.enter_context(selectors.DefaultSelector())
        for number in range(MEMBERS):
            kind = b"r" if number >= SILENT else b"d" if number % 2 else b"c"
            sock = stack.enter_context(connect(program.port, kind))
            if kind == b"r":
                selector.register(sock, selectors.EVENT_READ, [0])
        while selector.get_map():
            for key, _ in selector.select(PATIENCE):
                data = key.fileobj.recv(1 << 18)  # type: ignore[union-attr]
                at = key.data[0]
                assert data == expected[at : at + len(data)]
                key.data[0] += len(data)
                if not data:
                    assert at == len(expected)
                    selector.unregister(key.fileobj)
        assert program.process.stdout and program.process.stdin
        grown, most, readers = map(int, program.process.stdout.readline().split())
        assert readers == MEMBERS - SILENT
        assert most <= MAX_BYTES + SIZE
        # As much again for the threads of the outboxes, and for what the interpreter keeps.
        assert grown < SILENT * MAX_BYTES * 2 + 20_000_000
        program.process.stdin.close()
        assert program.wait() == 0
