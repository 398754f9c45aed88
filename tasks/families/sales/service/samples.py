"""A made-up shop: products, customers and orders up to now, the same for the same seed and moment."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random

from sqlalchemy.orm import Session

from tasks.families.sales.service import imports, orders, stock

DAYS = 120
_STYLES = ("Classic", "Walnut", "Linen", "Copper", "Indigo")
_GOODS = (
    ("Teapot", "24.90"),
    ("Mug", "8.50"),
    ("Cushion", "19.00"),
    ("Lantern", "14.75"),
    ("Notebook", "6.20"),
    ("Candle", "9.90"),
    ("Apron", "22.00"),
    ("Tray", "17.40"),
    ("Clock", "39.00"),
    ("Blanket", "54.50"),
)
_COUNTRIES = {"United Kingdom": 46, "Germany": 16, "France": 12, "Netherlands": 8, "Spain": 7, "Norway": 5, "Japan": 4}
_HOURS = (1, 1, 1, 1, 1, 1, 2, 4, 7, 9, 10, 11, 12, 11, 9, 8, 8, 9, 11, 12, 10, 7, 4, 2)
"""How busy the shop is in each hour of a day."""


def fill(session: Session, now: datetime, *, count: int = 3_000, seed: int = 7) -> int:
    """Write the shop's orders of the last 120 days and its stock; returns the number of order lines.

    The months must be open (`orders.open_months` for `months(now)`).

    Args:
        now: no order is later.
        count: how many orders.
    """
    import_id = imports.begin(session, "samples")
    lines = list(_lines(now, count, Random(seed)))  # noqa: S311 - a shop, not a secret
    orders.write(session, import_id, lines)
    imports.finish(session, import_id)
    stock.record(session, _counts(sorted({line.sku for line in lines}), Random(seed)))  # noqa: S311 - the same
    return len(lines)


def months(now: datetime) -> set[datetime]:
    """The months that the orders fall into."""
    return orders.months(now - timedelta(days=days) for days in range(DAYS + 1))


def _lines(now: datetime, count: int, random: Random) -> Iterator[orders.Line]:
    prices = {f"{style} {good}": Decimal(price) for good, price in _GOODS for style in _STYLES}
    codes = {name: f"{20_000 + 37 * place}" for place, name in enumerate(prices)}
    customers = {f"{12_000 + place}": _country(random) for place in range(count // 6)}
    loyalty = [random.paretovariate(1.2) for _ in customers]
    row = 0
    for place, moment in enumerate(_moments(now, count, random)):
        guest = random.random() < 0.08
        customer = None if guest else random.choices(list(customers), loyalty)[0]
        cancellation = random.random() < 0.03
        number = f"{'C' if cancellation else ''}{700_000 + place}"
        country = _country(random) if customer is None else customers[customer]
        for name in random.sample(list(prices), random.choice((1, 1, 2, 2, 3, 4, 6))):
            row += 1
            quantity = random.choice((1, 1, 1, 2, 2, 3, 4, 6, 12))
            yield orders.Line(
                row=row,
                number=number,
                placed_at=moment,
                customer=customer,
                country=country,
                cancellation=cancellation,
                sku=codes[name],
                description=name,
                stocked=True,
                quantity=-quantity if cancellation else quantity,
                unit_price=prices[name],
            )


def _moments(now: datetime, count: int, random: Random) -> list[datetime]:
    """Times of orders: more towards the present, fewer at weekends, by the hours of a day; the last is a minute ago."""
    start = now - timedelta(days=DAYS)
    found = [now - timedelta(minutes=1)]
    while len(found) < count:
        day = start + timedelta(days=random.triangular(0, DAYS, DAYS))
        if day.weekday() >= 5 and random.random() < 0.4:
            continue
        hour = random.choices(range(24), _HOURS)[0]
        moment = day.astimezone(UTC).replace(hour=hour, minute=random.randrange(60), second=random.randrange(60))
        if start < moment < now:
            found.append(moment)
    return sorted(found)


def _country(random: Random) -> str:
    return random.choices(list(_COUNTRIES), list(_COUNTRIES.values()))[0]


def _counts(skus: list[str], random: Random) -> list[stock.Count]:
    """One product in nine stands below its reorder point."""
    return [
        stock.Count(sku, random.randrange(5, 20) if place % 9 == 4 else random.randrange(40, 400), 25)
        for place, sku in enumerate(skus)
    ]
