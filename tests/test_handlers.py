from support import exchange, serving

import netkit


def test_echo_returns_every_byte() -> None:
    data = bytes(range(256)) * 4096
    with serving(netkit.EchoHandler) as server:
        assert exchange(server, data) == data
