"""Tasks for people who try an installation, for tests and for benchmarks; also the smallest example of a family."""

from tasks.families.diagnostics import inputs
from tasks.registry import Family
from tenants import settings

FAMILY = Family(
    name="diagnostics",
    description="Try an installation: echo, sleep, fail, crash, count.",
    tasks=inputs.TASKS,
    available=lambda: settings.current().diagnostics,
)
