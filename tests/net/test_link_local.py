"""Link-local addresses (RFC 4291 section 2.5.6) keep their zone, without which nobody reaches them.

The programs run in a network namespace of their own, whose loopback interface has such an address.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support import PATIENCE, ROOT, tool

linux = pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
pytestmark = linux

# Gives the loopback interface the address fe80::1, and starts it: struct in6_ifreq and struct
# ifreq, netdevice(7).
SETUP = """
import fcntl, ipaddress, re, socket, struct, sys, threading
SIOCSIFFLAGS, SIOCSIFADDR, IFF_UP = 0x8914, 0x8916, 1
address = ipaddress.ip_address("fe80::1").packed
with socket.socket(socket.AF_INET6) as sock:
    fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    fcntl.ioctl(sock, SIOCSIFADDR, struct.pack("16sIi", address, 64, socket.if_nametoindex("lo")))

import netkit
name = "fe80::1%lo"
"""


def run_in_namespace(program: str) -> str:
    """What `program` prints to standard output, and to standard error."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = [tool("unshare"), "--net", *user]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        if os.environ.get("CI") == "true":
            pytest.fail("no network namespace can be made")
        pytest.skip("no network namespace can be made")
    done = subprocess.run(
        [*command, sys.executable, "-c", SETUP + program],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_address_of_a_server_can_be_connected_to() -> None:
    program = """
seen = []
def note(conn):
    seen.append(conn.remote_address)
    conn.write(conn.peer + " " + conn.local_address)
with netkit.create_server(note).listen(0, name) as server:
    port = server.address.port
    assert str(server.address) == f"[fe80::1%lo]:{port}", server.address
    with netkit.connect(port, server.address.address) as conn:
        assert conn.remote_address == name, conn.remote_address
        assert conn.attempted_addresses == (f"[fe80::1%lo]:{port}",), conn.attempted_addresses
        assert conn.read().decode() == f"[fe80::1%lo]:{conn.local_port} fe80::1%lo"
assert seen == [name], seen
"""
    assert run_in_namespace(program) == ""


def test_clients_and_servers_of_socketserver_may_have_a_link_local_address() -> None:
    program = """
with netkit.Server((name, 0), netkit.EchoHandler) as server:
    assert server.server_address[:2] == ("fe80::1", server.address.port)
    again = server.address
    threading.Thread(target=server.serve_forever).start()
    with netkit.connect(again.port, again.address, source_address=(name, 0)) as conn:
        assert conn.local_address == name
        conn.end("hello")
        assert conn.read() == b"hello"
    with netkit.BoundSocket(name) as free:
        source = free.address
    options = {"source_address": (source.address, source.port)}
    with netkit.connect(again.port, name, **options) as conn:
        assert (conn.local_address, conn.local_port) == source[:2]
    server.shutdown()
    try:
        netkit.Server((again.address, again.port), netkit.EchoHandler)
    except OSError as error:
        assert error.address == name, error.address
        assert str(again) in str(error), error
    else:
        raise AssertionError("the port is in use")
"""
    assert run_in_namespace(program) == ""


def test_the_command_line_shows_the_zone_and_takes_it() -> None:
    program = """
import subprocess
python = [sys.executable, "-m", "netkit"]
echo = subprocess.Popen([*python, "echo", "[fe80::1%lo]:0"], stderr=subprocess.PIPE, text=True)
with echo:
    port = re.search(r"listening on \\[fe80::1%lo\\]:([0-9]+)\\n", echo.stderr.readline())[1]
    talk = [*python, "connect", "--source", name, name, port]
    print(subprocess.check_output(talk, input="hello\\n", text=True), end="")
    talk[-3] = "[fe80::1%lo]:0"
    print(subprocess.check_output(talk, input="again\\n", text=True), end="")
    echo.terminate()
    echo.stderr.read()
"""
    assert run_in_namespace(program) == "hello\nagain\n"


def test_an_unknown_zone_is_named_in_the_error() -> None:
    program = """
for call in (
    lambda: netkit.Server(("fe80::1%none", 0), netkit.EchoHandler),
    lambda: netkit.connect(1, name, source_address=("fe80::1%none", 0)),
):
    try:
        call()
    except OSError as error:
        print("[fe80::1%none]:0" in str(error))
"""
    assert run_in_namespace(program) == "True\nTrue\n"
