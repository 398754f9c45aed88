"""The sales dashboard on a terminal."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Console
from rich.table import Table

QUERY = """
query {
  salesDashboard {
    currency firstDay lastDay revenue cancelled orders averageOrder newCustomers
    byCountry { country revenue orders } topProducts { description revenue units } segments { segment customers }
  }
}"""
"""What to ask for."""
_TOTALS = {
    "Revenue": "revenue",
    "Cancelled": "cancelled",
    "Average order": "averageOrder",
    "Orders": "orders",
    "New customers": "newCustomers",
}
_TABLES = {
    "byCountry": {"Country": "country", "Orders": "orders", "Revenue": "revenue"},
    "topProducts": {"Best seller": "description", "Units": "units", "Revenue": "revenue"},
    "segments": {"Segment": "segment", "Customers": "customers"},
}
_ROWS = 5


def show(console: Console, found: dict[str, Any]) -> None:
    """Print what `salesDashboard` answered: totals, countries, best sellers, segments."""
    unit = found["currency"]
    totals = _table(f"{found['firstDay']} to {found['lastDay']}", unit)
    for label, name in _TOTALS.items():
        totals.add_row(label, _worded(found[name]))
    tables = [totals]
    for name, columns in _TABLES.items():
        table = _table(*columns)
        for row in found[name][:_ROWS]:
            table.add_row(*(_worded(row[column]) for column in columns.values()))
        tables.append(table)
    console.print(Columns(tables, padding=(0, 3)))


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _worded(value: str | int) -> str:
    """A count or an amount with its thousands apart, a name as it is."""
    if isinstance(value, int):
        return f"{value:,}"
    try:
        return f"{Decimal(value):,}"
    except InvalidOperation:
        return value
