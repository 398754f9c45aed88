"""Ranges of IP addresses, as keys are narrowed to them."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Range = IPv4Network | IPv6Network


def read(text: str) -> Range:
    """A single address, or a range in CIDR form such as 192.0.2.0/24 or 2001:db8::/32.

    Raises:
        ValueError: it is neither, or has bits behind the range.
    """
    return ip_network(text.strip())


def within(address: str, ranges: Sequence[Range]) -> bool:
    """Whether an address, as a server tells it, is in one of the ranges; what is no IP address is in none."""
    try:
        known = ip_address(address)
    except ValueError:
        return False
    if isinstance(known, IPv6Address) and known.ipv4_mapped is not None:
        known = known.ipv4_mapped
    return any(known in one for one in ranges)
