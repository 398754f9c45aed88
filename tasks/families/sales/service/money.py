"""Money as people read it: an exact amount rounded to its currency's minor units."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

_WHOLE = frozenset("BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF".split())
_THOUSANDTHS = frozenset("BHD IQD JOD KWD LYD OMR TND".split())
"""Currencies whose minor unit is not a hundredth. Source: ISO 4217."""


def rounded(amount: Decimal, currency: str) -> Decimal:
    """The amount in whole minor units, halves away from zero."""
    digits = 0 if currency in _WHOLE else 3 if currency in _THOUSANDTHS else 2
    return amount.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)


def mean(amount: Decimal, count: int, currency: str) -> Decimal:
    """The amount shared out over a count, rounded; zero if the count is."""
    return rounded(amount / count if count else Decimal(0), currency)


def shown(amount: Decimal, currency: str) -> str:
    """Such as `GBP 1,234.50`."""
    return f"{currency} {rounded(amount, currency):,}"
