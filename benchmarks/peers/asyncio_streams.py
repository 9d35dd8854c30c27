"""asyncio's streams, on either loop: `asyncio_streams.py asyncio|uvloop PORT KIND [AMOUNT]`.

`sleep` is awaited. `sleep-to-thread` is the same wait in a call that blocks, as a driver without
asyncio has, in asyncio.to_thread; `sleep-to-pool` gives that more threads than the default.
"""

from __future__ import annotations

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

from work import BACKLOG, CHUNK, HOST, from_arguments

POOL = 256  # threads: more than any scenario with this work has clients


async def wait() -> None:
    if work.kind == "sleep":
        await asyncio.sleep(work.seconds)
    elif work.kind.startswith("sleep-to-"):
        await asyncio.to_thread(time.sleep, work.seconds)
    else:
        work.block()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        await wait()
        writer.write(data)
        await writer.drain()
    writer.close()


async def main() -> None:
    if work.kind == "sleep-to-pool":
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(POOL))
    server = await asyncio.start_server(serve, HOST, port, backlog=BACKLOG)
    await server.serve_forever()


port, work = from_arguments(1)
import_module(sys.argv[1]).run(main())
