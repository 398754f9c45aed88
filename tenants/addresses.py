"""Ranges of IP addresses, as keys are narrowed to them."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from tenants.errors import Issue

_MOST = 100
Range = IPv4Network | IPv6Network


def read(text: str) -> Range:
    """A single address, or a range in CIDR form such as 192.0.2.0/24 or 2001:db8::/32.

    Raises:
        ValueError: it is neither, or has bits behind the range.
    """
    return ip_network(text.strip())


def wrong(given: Sequence[str] | None, field: str) -> list[Issue]:
    """What is wrong with ranges that somebody sent, in a field of this name."""
    if given is None:
        return []
    if not 1 <= len(given) <= _MOST:
        return [Issue((field,), f"must be 1 to {_MOST}, or left out")]
    issues = []
    for index, text in enumerate(given):
        try:
            read(text)
        except ValueError:
            message = "must be an address or a range, such as 192.0.2.0/24 or 2001:db8::/32, without bits behind it"
            issues.append(Issue((field, str(index)), message))
    return issues


def within(address: str, ranges: Sequence[Range]) -> bool:
    """Whether an address, as a server tells it, is in one of the ranges; what is no IP address is in none."""
    try:
        known = ip_address(address)
    except ValueError:
        return False
    if isinstance(known, IPv6Address) and known.ipv4_mapped is not None:
        known = known.ipv4_mapped
    return any(known in one for one in ranges)


def inside(inner: Range, outer: Range) -> bool:
    """Whether all of a range lies in another."""
    if isinstance(inner, IPv4Network):
        return isinstance(outer, IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, IPv6Network) and inner.subnet_of(outer)
