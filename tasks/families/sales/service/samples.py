"""A made-up shop: its orders up to now as a file to import, and its stock; the same for the same seed and moment."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random

from tasks.families.sales.service import imports
from tasks.families.sales.service.stock import Count

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
_PRODUCTS = {
    f"{style} {good}": (f"{20_000 + 37 * place}", price)
    for place, ((good, price), style) in enumerate(itertools.product(_GOODS, _STYLES))
}
"""Name → stock code and price."""
_COUNTRIES = {"United Kingdom": 46, "Germany": 16, "France": 12, "Netherlands": 8, "Spain": 7, "Norway": 5, "Japan": 4}
_HOURS = (1, 1, 1, 1, 1, 1, 2, 4, 7, 9, 10, 11, 12, 11, 9, 8, 8, 9, 11, 12, 10, 7, 4, 2)
"""How busy the shop is in each hour of a day."""


def orders(now: datetime, *, count: int = 3_000, seed: int = 7) -> str:
    """The shop's orders of the last 120 days, as a CSV file.

    Args:
        now: no order is later.
        count: how many orders.
    """
    file = io.StringIO()
    rows = csv.writer(file)
    rows.writerow(imports.COLUMNS)
    rows.writerows(_rows(now, count, Random(seed)))  # noqa: S311 - a shop, not a secret
    return file.getvalue()


def counts(*, seed: int = 7) -> list[Count]:
    """What was counted of each product; one in nine stands below its reorder point."""
    random = Random(seed)  # noqa: S311 - the same
    return [
        Count(sku, random.randrange(5, 20) if place % 9 == 4 else random.randrange(40, 400), 25)
        for place, (sku, _) in enumerate(_PRODUCTS.values())
    ]


def _rows(now: datetime, count: int, random: Random) -> Iterator[tuple[object, ...]]:
    """The file's rows: the values of `imports.COLUMNS`."""
    customers = {f"{12_000 + place}": _country(random) for place in range(count // 6)}
    loyalty = [random.paretovariate(1.2) for _ in customers]
    for place, moment in enumerate(_moments(now, count, random)):
        guest = random.random() < 0.08
        customer = "" if guest else random.choices(list(customers), loyalty)[0]
        cancellation = random.random() < 0.03
        number = f"{'C' if cancellation else ''}{700_000 + place}"
        country = customers.get(customer) or _country(random)
        for name in random.sample(list(_PRODUCTS), random.choice((1, 1, 2, 2, 3, 4, 6))):
            sku, price = _PRODUCTS[name]
            quantity = random.choice((1, 1, 1, 2, 2, 3, 4, 6, 12))
            signed = -quantity if cancellation else quantity
            yield number, sku, name, signed, moment.isoformat(), price, customer, country


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
