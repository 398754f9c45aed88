"""Sales: orders in, dashboard figures, customer segments, reports and exports out."""

from tasks.families.sales import inputs
from tasks.registry import Family

FAMILY = Family(
    name="sales",
    description="Dashboard figures, customer segments, reports and exports from your orders.",
    tasks=(
        inputs.REFRESH_REALTIME,
        inputs.REFRESH_DAILY,
        inputs.REFRESH_ALL,
        inputs.WARM_CACHE,
        inputs.MONTHLY_REPORT,
        inputs.EXPORT,
        inputs.IMPORT_ORDERS,
        inputs.UPDATE_SEGMENTS,
        inputs.UPDATE_VALUES,
        inputs.CLEAN_PARTITIONS,
        inputs.CLEAN_FILES,
        inputs.CHECK_STOCK,
        inputs.DAILY_SUMMARY,
        inputs.WEEKLY_REPORT,
        inputs.DROP_PARTITIONS,
    ),
)
