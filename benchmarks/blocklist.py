"""What a look-up in a `BlockList` costs, beside a scan of ``ipaddress`` networks.

    python -m benchmarks.blocklist [--rules 100000]

Both look up the same addresses, half of which some rule matches. The scan is what one writes at
first: ``any(address in network for network in networks)``.
"""

from __future__ import annotations

import argparse
import ipaddress
import random
import statistics
import time
from collections.abc import Callable

import netkit

ROUNDS = 5
SCANNED = 20  # addresses: a scan takes long


def per_call(check: Callable[[str], bool], addresses: list[str]) -> float:
    """Seconds."""
    began = time.perf_counter()
    for address in addresses:
        check(address)
    return (time.perf_counter() - began) / len(addresses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rules", type=int, default=100_000)
    count = parser.parse_args().rules
    rng = random.Random(1)
    networks = [
        ipaddress.IPv4Network((rng.getrandbits(32), rng.randint(16, 32)), strict=False)
        for _ in range(count)
    ]
    rules = netkit.BlockList()
    began = time.perf_counter()
    rules.add_many(map(str, networks))
    print(f"{count} rules read in {time.perf_counter() - began:.2f} s")
    some = [str(network.network_address) for network in rng.sample(networks, 500)]
    others = [str(ipaddress.IPv4Address(rng.getrandbits(32))) for _ in range(500)]
    addresses = some + others

    def scan(text: str) -> bool:
        address = ipaddress.ip_address(text)
        return any(address in network for network in networks)

    def few() -> list[str]:
        return rng.sample(addresses, SCANNED)

    ours = statistics.median(per_call(rules.check, addresses) for _ in range(ROUNDS))
    theirs = statistics.median(per_call(scan, few()) for _ in range(ROUNDS))
    print(f"look-up: BlockList {ours * 1e6:.1f} us, scan {theirs * 1e6:.0f} us", end="")
    print(f" (1 : {theirs / ours:.0f})")
    one = netkit.BlockList()
    one.add("192.0.2.1")
    alone = statistics.median(per_call(one.check, addresses) for _ in range(ROUNDS))
    print(f"with a single rule: BlockList {alone * 1e6:.1f} us")


if __name__ == "__main__":
    main()
