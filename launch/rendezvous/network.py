"""What this machine knows of others: which names resolve, and which of its interfaces leads there (Linux)."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
import threading
import time
from collections.abc import Iterable
from pathlib import Path

_SIOCGIFADDR = 0x8915  # <linux/sockios.h>
_IPV6_ADDRESSES = Path("/proc/net/if_inet6")


def find_unknown(names: Iterable[str], seconds: float) -> set[str]:
    """Which of these names do not resolve within so long. A resolver that does not answer would take longer by itself."""
    unknown = set(names)

    def look_up(name: str) -> None:
        try:
            socket.getaddrinfo(name, None)
        except (OSError, UnicodeError):
            return
        unknown.discard(name)

    threads = [threading.Thread(target=look_up, args=(name,), name="resolver", daemon=True) for name in unknown]
    until = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return set(unknown)


def find_interface(host: str) -> str | None:
    """The name of the interface whose address this machine takes when it talks to `host`; None where it is not found.

    Raises OSError where the name does not resolve or nothing leads there.
    """
    family, _, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)  # of a datagram socket: nothing is sent
        ours = ipaddress.ip_address(probe.getsockname()[0].partition("%")[0])
    addresses = _ipv4_addresses() if ours.version == 4 else _ipv6_addresses()
    # An address of its own machine is reached from that very address, which may be another than the interface's first.
    return next((name for name, own in addresses if own == ours), None)


def _ipv4_addresses() -> list[tuple[str, ipaddress.IPv4Address]]:
    """The first address of each interface that has one (netdevice(7))."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
            found.append((name, ipaddress.IPv4Address(answer[20:24])))
    return found


def _ipv6_addresses() -> list[tuple[str, ipaddress.IPv6Address]]:
    lines = _IPV6_ADDRESSES.read_text().splitlines() if _IPV6_ADDRESSES.exists() else []
    return [(line.split()[-1], ipaddress.IPv6Address(int(line.split()[0], 16))) for line in lines]
