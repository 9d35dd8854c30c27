"""trio's streams, a task for each client."""

from __future__ import annotations

from functools import partial

import trio
from work import BACKLOG, CHUNK, HOST, from_arguments


async def serve(stream: trio.SocketStream) -> None:
    while data := await stream.receive_some(CHUNK):
        if work.kind == "sleep":
            await trio.sleep(work.seconds)
        else:
            work.block()
        await stream.send_all(data)


port, work = from_arguments()
trio.run(partial(trio.serve_tcp, serve, port, host=HOST, backlog=BACKLOG))
