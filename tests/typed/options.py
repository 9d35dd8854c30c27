# pyright: strict
"""A program that gives options to servers and clients, with the mistakes that one makes."""

import ssl
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import netkit

if TYPE_CHECKING:
    from typing_extensions import Unpack, assert_type


def shout(conn: netkit.Connection) -> None:
    conn.write("hello")


# Servers

server = netkit.create_server(shout, drain_timeout=3, idle_timeout=None, when_full="refuse")
assert_type(server, netkit.Server)
assert_type(server.listen(8080), netkit.Server)
netkit.create_server(shout, drain_timeot=3)  # error
netkit.create_server(shout, drain_timeout="3")  # error
netkit.create_server(shout, drain_timeout=None)  # error
netkit.create_server(shout, max_line=1.5)  # error
netkit.create_server(shout, when_full="drop")  # error
netkit.create_server(shout, profile="private")  # error
netkit.create_server(shout, handler_args=["hello"])  # error
netkit.create_server(shout, deny=netkit.BlockList(["10.0.0.0/8"]), allow=Path("addresses"))
netkit.create_server(shout, deny="10.0.0.0/8", allow=[ip_network("10.0.0.0/24"), "::1"])
netkit.create_server(shout, deny=10)  # error
netkit.create_server(shout, tls=ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
netkit.create_server(shout, tls_cert=Path("cert.pem"), tls_sni={"a.example": ("a.pem", None)})
netkit.create_server(shout, tls=True)  # error

netkit.Server(("127.0.0.1", 8080), shout, read_timeout=10, encoding="latin-1")
netkit.Server(("127.0.0.1", 8080), shout, read_time=10)  # error

server.configure(max_connections=100, lifetime=None)
server.configure(max_connection=100)  # error

netkit.serve(shout, port="8080", host="127.0.0.1", workers="auto", min_rate=1000)
netkit.serve(shout, port=8080, workres=2)  # error
netkit.serve(shout, idle_timeout="soon")  # error
netkit.serve(shout, workers="all")  # error
assert_type(server.address.port, int | Any)
assert_type(netkit.run(server, workers=2), netkit.RunReport)
assert_type(netkit.run(server, server, drain_timeout=5), netkit.RunReport)
netkit.run(server, server, workers=2)  # error
netkit.run(server, on_start=5)  # error
netkit.run(shout)  # error
netkit.run(server, max_line=100)  # error
netkit.create_sever(shout)  # error


workers = netkit.Workers(server, "auto", load=lambda: shout)
workers.resize(2)
workers.resize("all")  # error
netkit.Workers(server, 2, load=shout)  # error
netkit.Workers(server, 2, load=lambda: 42)  # error


# Options that are passed on

OPTIONS: netkit.ServerOptions = {"max_line": 100, "no_delay": True}
netkit.create_server(shout, **OPTIONS)
WRONG: netkit.ServerOptions = {"max_lines": 100}  # error


def create(**options: "Unpack[netkit.ServerOptions]") -> netkit.Server:
    return netkit.create_server(shout, **options)


create(starttls=True)
create(starttls="yes")  # error


class Shouter(netkit.Server):
    def __init__(self, port: int, **options: "Unpack[netkit.ServerOptions]") -> None:
        super().__init__(("127.0.0.1", port), shout, **options)


Shouter(8080, keep_alive=False)
Shouter(8080, keepalive=False)  # error


# Clients

conn = netkit.connect(8080, "localhost", connect_timeout=5, tls=True, keep_alive=(60, 10, None))
assert_type(conn, netkit.Connection)
netkit.connect(path="/run/app.sock", cancel=netkit.Cancel(), family=6)
netkit.connect(8080, timeout=5)  # error
netkit.connect(8080, connect_timeout="5")  # error
netkit.connect(8080, family=5)  # error
netkit.connect(8080, drain_timeout=5)  # error
netkit.connect(8080, source_address="127.0.0.1")  # error


def resolve(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


def resolve_host(host: str) -> list[str]:
    return ["127.0.0.1"]


netkit.connect(8080, resolver=resolve)
netkit.connect(8080, resolver=resolve_host)  # error


def reach(**options: "Unpack[netkit.ClientOptions]") -> netkit.Connection:
    return netkit.connect(8080, **options)


reach(retry=3)
reach(retries=3)  # error
