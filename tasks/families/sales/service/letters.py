"""What is written to people: subject and text of each mail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from tasks.families.sales.models import Product
from tasks.families.sales.service import money
from tasks.families.sales.service.figures import PeriodFigures


@dataclass(frozen=True, slots=True)
class Letter:
    """A mail without its envelope."""

    subject: str
    text: str


def low_stock(tenant: str, new: Sequence[Product], all_low: Sequence[Product]) -> Letter:
    """Products that fell below their reorder point, and those that still are."""
    told = {product.sku for product in new}
    before = [product for product in all_low if product.sku not in told]
    lines = ["These products have fallen below their reorder point:", "", *map(_stock_line, new)]
    if before:
        lines += ["", "Still below it:", "", *map(_stock_line, before)]
    count = f"{len(new)} product{'' if len(new) == 1 else 's'}"
    return Letter(f"{tenant}: {count} low on stock", "\n".join(lines))


def daily_summary(tenant: str, day: date, figures: PeriodFigures, before: PeriodFigures) -> Letter:
    """One day's figures beside those of the day before."""
    currency = figures.currency
    lines = [
        f"{tenant} on {day:%A}, {day.day} {day:%B %Y}",
        "",
        f"Revenue              {money.shown(figures.totals.revenue, currency)}"
        f" (the day before: {money.shown(before.totals.revenue, currency)})",
        f"Cancelled            {money.shown(figures.totals.cancelled, currency)}",
        f"Orders               {figures.totals.orders:,} (the day before: {before.totals.orders:,})",
        f"Average order        {currency} {money.mean(figures.totals.revenue, figures.totals.orders, currency):,}",
        f"New customers        {figures.new_customers:,}",
        f"Returning customers  {figures.returning_customers:,}",
    ]
    if figures.top_products:
        lines += ["", "Best sellers:", ""]
        lines += [
            f"{money.shown(p.revenue, currency):>18}  {p.units:>6,} x  {p.description}"
            for p in figures.top_products[:5]
        ]
    return Letter(f"{tenant}: {money.shown(figures.totals.revenue, currency)} on {day.isoformat()}", "\n".join(lines))


def report(tenant: str, title: str, figures: PeriodFigures) -> Letter:
    """What goes with a report's PDF."""
    currency = figures.currency
    lines = [
        f"{title} of {tenant} is attached.",
        "",
        f"Revenue        {money.shown(figures.totals.revenue, currency)}",
        f"Orders         {figures.totals.orders:,}",
        f"Average order  {currency} {money.mean(figures.totals.revenue, figures.totals.orders, currency):,}",
    ]
    return Letter(f"{tenant}: {title}", "\n".join(lines))


def _stock_line(product: Product) -> str:
    return f"{product.stock:>8,} of {product.reorder_point:>6,}  {product.sku}  {product.description}"
