"""The README's picture of a run's life is the table that the code goes by."""

from __future__ import annotations

import re

from tasks.engine import states
from tasks.engine.states import MOVES, TERMINAL, RunState
from tests.support.folders import ROOT


def test_the_readme_shows_the_table_of_moves() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## The life of a run")[2].partition("\n## ")[0]
    block = re.search(r"```[a-z]*\n(.*?)\n```", section, re.DOTALL)
    assert block is not None
    assert block.group(1) == states.diagram()


def test_every_state_is_in_the_table_and_every_end_can_be_reached() -> None:
    assert set(MOVES) == set(RunState)
    reached = {RunState.SCHEDULED, RunState.QUEUED}
    for _ in RunState:
        reached |= {state for before in reached for state in MOVES[before]}
    assert reached == set(RunState)
    assert {state for state in RunState if state not in TERMINAL} == {state for state, moves in MOVES.items() if moves}


def test_whatever_has_not_ended_can_be_cancelled() -> None:
    assert {state for state, moves in MOVES.items() if RunState.CANCELLED in moves} == set(RunState) - TERMINAL


def test_the_functions_speak_of_no_other_states() -> None:
    words = set()
    for path in (ROOT / "tasks/engine/sql").glob("*.sql"):
        words |= set(re.findall(r"state(?: IN \(| = | <> |\) VALUES \()'([A-Z_]+)'", path.read_text(encoding="utf-8")))
    assert words
    assert words <= set(RunState)
