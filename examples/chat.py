"""A chat: the others get what a member types. A member who does not read delays nobody.

Start it in a checkout: python3 -m netkit serve examples.chat:chat 8080
Then join it with `python3 -m netkit connect 8080`, in two windows.
"""

import netkit

room = netkit.Group()


def chat(conn: netkit.Connection) -> None:
    lines = conn.lines()
    conn.write("your name?\n")
    name = next(lines, "")
    with room.member(conn):
        room.post(f"* {name} joins: {len(room)} here\n")
        try:
            for line in lines:
                room.post(f"{name}: {line}\n", but=conn)
        finally:
            room.post(f"* {name} leaves\n", but=conn)


if __name__ == "__main__":
    netkit.serve(chat, port=8080, host="127.0.0.1")
