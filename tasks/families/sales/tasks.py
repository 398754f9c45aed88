"""The bodies of the sales tasks: services for the data, gateways for what is outside."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any, TypeAlias
from uuid import UUID

from sqlalchemy import text

from tasks import registry
from tasks.engine.context import RunContext
from tasks.engine.outcomes import Fail
from tasks.families.sales import inputs
from tasks.families.sales.service import (
    dashboard,
    exports,
    figures,
    files,
    imports,
    letters,
    orders,
    people,
    periods,
    preferences,
    reports,
    retention,
    rollups,
    stock,
)
from tasks.gateways import cache, mail, pdf, storage, tables
from tenants import names
from tenants.errors import Conflict, InvalidInput, NotFound

Result: TypeAlias = dict[str, Any]
TEMPLATE = Path(__file__).with_name("report.typ")
_CACHE_SECONDS = 300


@registry.body(inputs.REFRESH_REALTIME)
def refresh_realtime(ctx: RunContext, args: inputs.AsOf) -> Result:
    """Replace the hourly figures."""
    return _refresh(ctx, args, rollups.REALTIME)


@registry.body(inputs.REFRESH_DAILY)
def refresh_daily(ctx: RunContext, args: inputs.AsOf) -> Result:
    """Replace the figures by day, country and product."""
    return _refresh(ctx, args, rollups.DAILY)


@registry.body(inputs.REFRESH_ALL)
def refresh_all(ctx: RunContext, args: inputs.AsOf) -> Result:
    """Replace all figures, in one transaction: readers see all old ones or all new ones."""
    return _refresh(ctx, args, rollups.ALL)


@registry.body(inputs.UPDATE_SEGMENTS)
def update_segments(ctx: RunContext, args: inputs.AsOf) -> Result:
    """Replace the customers' segments."""
    return _refresh(ctx, args, rollups.SEGMENTS)


@registry.body(inputs.UPDATE_VALUES)
def update_values(ctx: RunContext, args: inputs.AsOf) -> Result:
    """Replace the customers' lifetime values."""
    return _refresh(ctx, args, rollups.LIFETIMES)


@registry.body(inputs.WARM_CACHE)
def warm_cache(ctx: RunContext, args: inputs.AsOf) -> Result:
    """Keep the answers to the dashboard's usual questions for five minutes."""
    version = dashboard.version(ctx.session)
    for days in dashboard.WARM_DAYS:
        answer = dashboard.read_text(ctx.session, days=days, as_of=args.as_of)
        name = dashboard.cache_name(version, days, args.as_of)
        cache.put(ctx.settings, ctx.tenant, "sales", name, answer, _CACHE_SECONDS)
    rates = cache.rates(ctx.settings, ctx.tenant, "sales")
    return {
        "warmed": len(dashboard.WARM_DAYS),
        "hits": rates.hits,
        "misses": rates.misses,
        "hit_rate": rates.hit_rate,
    }


@registry.body(inputs.MONTHLY_REPORT)
def generate_monthly_report(ctx: RunContext, args: inputs.MonthlyReport) -> Result:
    """Store and mail a month's report."""
    return _deliver(ctx, reports.monthly(ctx.session, args.month, _moment(ctx, args)), args)


@registry.body(inputs.WEEKLY_REPORT)
def weekly_performance_report(ctx: RunContext, args: inputs.Letter) -> Result:
    """Store and mail a week's report."""
    return _deliver(ctx, reports.weekly(ctx.session, _moment(ctx, args)), args)


@registry.body(inputs.EXPORT)
def export_analytics_data(ctx: RunContext, args: inputs.Export) -> Result:
    """Write a table to a file on disk, row by row, and store it."""
    form = tables.FORMATS[args.export_format]
    rows = exports.rows(ctx.session, args.start_date, args.end_date)
    count = 0

    def counted() -> Any:
        nonlocal count
        for row in rows:
            count += 1
            if count % 1_000 == 0:
                ctx.progress(count, message="rows")
            yield row

    with tempfile.TemporaryFile() as file:
        form.write(file, exports.COLUMNS, counted())
        name = f"sales-{args.start_date}-{args.end_date}.{args.export_format}"
        stored = _store(ctx, file, name, form.media_type, files.EXPORT_DAYS)
    return {**stored, "rows": count}


@registry.body(inputs.IMPORT_ORDERS)
def import_orders(ctx: RunContext, args: inputs.OrderFile) -> Result:
    """Read an upload batch by batch, each in a step of its own: a later attempt goes on after the last one kept."""
    path = names.object_path(ctx.tenant, "uploads", args.file)
    zone = periods.zone(ctx.session)
    open_months: set[datetime] = set()
    kept = refused = 0
    last: datetime | None = None
    try:
        import_id = UUID(ctx.step("begin", lambda session: str(imports.begin(session, args.file, args.currency))))
        with storage.open_text(ctx.settings.storage, path) as content:
            for batch in imports.read(content, zone, _moment(ctx, args)):
                months = orders.months(line.placed_at for line in batch.lines) - open_months
                if months:
                    ctx.step(f"months-{batch.first}", partial(orders.open_months, starts=months))
                    open_months |= months
                load = partial(imports.load, import_id=import_id, batch=batch)
                done = ctx.step(f"rows-{batch.first}", load)
                kept, refused = kept + done["kept"], refused + done["refused"]
                last = max((line.placed_at for line in batch.lines), default=last)
                ctx.progress(kept + refused, message="rows")
    except (Conflict, InvalidInput, NotFound) as error:
        raise Fail(error.message) from error
    imports.finish(ctx.session, import_id)
    return {"import": imports.show_id(import_id), "kept": kept, "refused": refused, "last": last and last.isoformat()}


@registry.body(inputs.CLEAN_PARTITIONS)
def clean_old_order_partitions(ctx: RunContext, args: inputs.AsOf) -> Result:
    """Remove orders past the retention, each month in a step of its own, and what is known of imports as old."""
    before = retention.cutoff(ctx.session, _moment(ctx, args))
    removed = 0
    for place in itertools.count(1):
        month = retention.oldest_month(ctx.session, before)
        if month is None:
            break
        removed += ctx.step(f"month-{place}", partial(retention.remove_month, month=month, before=before))
        ctx.progress(removed, message="orders")
    forgotten = imports.forget(ctx.session, before)
    return {"before": before.isoformat(), "removed": removed, "imports": forgotten}


@registry.body(inputs.CLEAN_FILES)
def clean_expired_files(ctx: RunContext, args: inputs.AsOf) -> Result:
    """Remove the objects first: a note without an object is found again, an object without a note never."""
    expired = files.expired(ctx.session, _moment(ctx, args))
    storage.delete(ctx.settings.storage, [file.path for file in expired])
    files.forget(ctx.session, [file.id for file in expired])
    return {"removed": len(expired)}


@registry.body(inputs.CHECK_STOCK)
def check_low_stock_products(ctx: RunContext, args: inputs.Letter) -> Result:
    """Tell of products that are newly low; nobody is told twice of the same fall."""
    new = stock.raise_alerts(ctx.session, _moment(ctx, args))
    all_low = stock.low(ctx.session)
    told = 0
    if new:
        told = _send(ctx, args, letters.low_stock(people.tenant_name(ctx.session), new, all_low))
    return {"low": len(all_low), "new": [product.sku for product in new], "mails": told}


@registry.body(inputs.DAILY_SUMMARY)
def send_daily_summary(ctx: RunContext, args: inputs.Letter) -> Result:
    """Mail the figures of the last day that is over."""
    day = periods.yesterday(_moment(ctx, args), periods.zone(ctx.session))
    currency = preferences.read(ctx.session).currency
    now, before = (figures.of_period(ctx.session, period) for period in (day, periods.before(day)))
    letter = letters.daily_summary(people.tenant_name(ctx.session), day.first, now, before)
    return {
        "day": day.first.isoformat(),
        "revenue": str(now.totals.revenue),
        "currency": currency,
        "orders": now.totals.orders,
        "mails": _send(ctx, args, letter),
    }


@registry.body(inputs.DROP_PARTITIONS)
def drop_empty_order_partitions(ctx: RunContext, args: inputs.AsOf) -> Result:
    """Drop the months that hold no order of any tenant, over the operators' door."""
    with ctx.system.begin() as connection:
        dropped = connection.execute(
            text("SELECT drop_empty_order_partitions(:before)"), {"before": _moment(ctx, args)}
        ).scalar_one()
    return {"dropped": dropped}


def _moment(ctx: RunContext, args: inputs.AsOf) -> datetime:
    return (args.as_of or ctx.now).astimezone(UTC)


def _refresh(ctx: RunContext, args: inputs.AsOf, views: tuple[rollups.View, ...]) -> Result:
    moment = _moment(ctx, args)
    rows = {}
    ctx.progress(0, len(views), views[0].name)
    for done, (view, count) in enumerate(rollups.refresh(ctx.session, views, moment), 1):
        rows[view.name] = count
        ctx.progress(done, len(views), view.name)
    return {"as_of": moment.isoformat(), "rows": rows}


def _deliver(ctx: RunContext, report: reports.Report, args: inputs.Letter) -> Result:
    document = pdf.render(TEMPLATE, report.data)
    name = f"{report.title.lower().replace(' ', '-')}.pdf"
    stored = _store(ctx, BytesIO(document), name, "application/pdf", files.REPORT_DAYS)
    letter = letters.report(people.tenant_name(ctx.session), report.title, report.figures)
    attachment = mail.Attachment(name, "application/pdf", document)
    return {**stored, "title": report.title, "mails": _send(ctx, args, letter, [attachment])}


def _store(ctx: RunContext, content: IO[bytes], name: str, media_type: str, days: int) -> Result:
    """Put a file where every attempt of the run puts it, and note it."""
    path = names.object_path(ctx.tenant, "sales", ctx.run_id, name)
    size = storage.put(ctx.settings.storage, path, content)
    found = files.record(ctx.session, name=name, path=path, media_type=media_type, size=size, now=ctx.now, days=days)
    return {"file": files.show_id(found), "name": name, "size": size}


def _send(
    ctx: RunContext, args: inputs.Letter, letter: letters.Letter, attachments: Sequence[mail.Attachment] = ()
) -> int:
    """Mail a letter to each recipient once, however often the run is tried; returns how many there are."""
    recipients = args.recipients or people.responsible(ctx.session)
    for to in recipients:
        message = mail.Message(to, letter.subject, letter.text, attachments)
        ctx.effect(f"mail:{to}", partial(mail.send, ctx.settings.mail, message, now=ctx.now))
    return len(recipients)
