"""asyncio's protocols: `asyncio_protocol.py asyncio|uvloop PORT KIND [AMOUNT]`."""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from typing import ClassVar, cast

from work import BACKLOG, HOST, from_arguments


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if work.kind == "sleep":
            asyncio.get_running_loop().call_later(work.seconds, self.transport.write, data)
            return
        work.block()
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class Broadcast(asyncio.Protocol):
    members: ClassVar[set[asyncio.Transport]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.members.add(self.transport)

    def data_received(self, data: bytes) -> None:
        for member in self.members:
            member.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.members.discard(self.transport)


async def main() -> None:
    kind = Broadcast if work.kind == "broadcast" else Echo
    server = await asyncio.get_running_loop().create_server(kind, HOST, port, backlog=BACKLOG)
    await server.serve_forever()


port, work = from_arguments(1)
import_module(sys.argv[1]).run(main())
