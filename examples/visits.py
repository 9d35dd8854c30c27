"""Counts visitors in a SQLite file, which each worker opens at its start and closes at its end.

Start it in a checkout:
python3 -m netkit serve examples.visits:visit 8080 --workers 2 --set greeting=Welcome
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator

import netkit

lock = threading.Lock()  # held while a thread of this process uses the database


@contextlib.contextmanager
def database(server: netkit.Server) -> Iterator[None]:
    db = sqlite3.connect("visits.db", check_same_thread=False)
    with contextlib.closing(db), db:
        db.execute("CREATE TABLE IF NOT EXISTS visits (number INTEGER PRIMARY KEY)")
        server.db = db  # type: ignore[attr-defined] # for the handlers
        yield


def visit(conn: netkit.Connection, greeting: str = "Hello") -> None:
    db = conn.server.db
    with lock, db:  # a transaction
        number = db.execute("INSERT INTO visits VALUES (NULL)").lastrowid
    conn.end(f"{greeting}, visitor {number}\n")


NETKIT_OPTIONS = {"on_start": database, "idle_timeout": 60}
