"""Every part is replaced by a new copy of itself, one after another, while work goes on. Row 48."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest

from tenants.context import Principal
from tests.faults.callers import Patient
from tests.faults.invariants import assert_invariants
from tests.support import apis
from tests.support.installations import Installation, eventually
from tests.support.tiers import Tier

pytestmark = pytest.mark.timeout(300)
WRITE = {"key": "k", "value": "v", "hold_seconds": 0.05}


def test_row_48_everything_is_restarted_in_turn_and_no_mutation_fails_for_good(
    installation: Installation, tenant: Principal, other_tenant: Principal, tier: Tier
) -> None:
    over = threading.Event()

    def call(caller: Patient) -> int:
        made = 0
        while not over.wait(0.05):
            caller.trigger("diagnostics.write", WRITE)
            made += 1
        return made

    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        copies = [stack.enter_context(apis.running(installation, name)) for name in ("a1", "a2")]
        starts: dict[str, Callable[[], None]] = {
            name: partial(start, name)
            for name, start in (
                ("d1", installation.start_dispatcher),
                ("w1", installation.start_worker),
                ("d2", installation.start_dispatcher),
                ("w2", installation.start_worker),
            )
        }
        for start in starts.values():
            start()
        starts |= {api.name: partial(apis.start, api) for api in copies}
        callers = [Patient(installation, principal, copies) for principal in (tenant, other_tenant)]
        loads = [pool.submit(call, caller) for caller in callers]
        try:
            for name in [*starts] * tier(1, 5):
                installation.kill(name, signal.SIGTERM, group=False)
                installation.processes[name].wait(30)
                starts[name]()
                before = _succeeded(installation)
                eventually(lambda before=before: _succeeded(installation) > before)  # type: ignore[misc]
        finally:
            over.set()
        made = [load.result(60) for load in loads]
        assert_invariants(installation)
    assert sum(made) == len(installation.accepted)
    assert min(made) > 0


def _succeeded(installation: Installation) -> int:
    ((count,),) = installation.rows("SELECT count(*) FROM runs WHERE state = 'SUCCEEDED'")
    return int(count)
