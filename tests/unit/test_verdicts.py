"""Truth tables: what simulated studies end with when the published effect is true, and when there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from arpo_replica.evaluation.power import POWER, Plan, power_of
from verdict_simulation import Setup, coverage, truths, verdicts

COMMITTED = json.loads(
    (Path(__file__).resolve().parents[2] / "benchmarks/results/verdicts.json").read_text("utf-8")
)
STUDIES = 300
HEADLINES = {"over grpo": ((0.299, 0.260), False, 6), "over base": ((0.299, 0.235), True, 6)}


@pytest.mark.parametrize("name", list(HEADLINES))
def test_a_perfect_replication_is_seen_and_nothing_is_not(name: str) -> None:
    """369 tasks, five trainings that differ by runs alone, three trials, hardest place of the family."""
    rates, base, family = HEADLINES[name]
    setup = Setup(*rates, against_base=base)
    assert power_of(Plan(rates, (True, not base), 369, 0.03, family), 3, 5, 0.0) >= POWER
    found = {
        truth: verdicts(true, rates, 0.03, studies=STUDIES, seed=1, family=family)
        for truth, true in truths(setup, rates).items()
    }
    assert found["published"]["same direction"] >= 0.8
    assert found["zero"].get("same direction", 0.0) <= 0.05
    assert found["published"]["same direction"] >= found["half"].get("same direction", 0.0)


@pytest.mark.parametrize("spread", [0.0, 0.04, 0.08])
def test_the_interval_over_trainings_holds_the_truth(spread: float) -> None:
    """Four errors of 400 studies: 95 % +- 4.4."""
    setup = Setup(0.26, 0.26, against_base=False, tasks=128, spread=spread)
    found = coverage(setup, studies=400, seed=2)
    assert abs(found["over_trainings"] - 0.95) < 0.044
    if spread == 0.08:
        assert coverage(setup, studies=400, seed=2)["pooled_false_alarms"] > 0.4
        assert coverage(replace(setup, against_base=True), studies=400, seed=3)["over_trainings"] > 0.9


def test_the_committed_tables_say_the_same() -> None:
    """Nominal +- 2 % where a verdict may be given; with one trial the untrained policy's noise is a bound."""
    for row in COMMITTED["coverage"]:
        most = 1.0 if row["against_base"] and row["trials"] == 1 else 0.97
        assert 0.93 <= row["over_trainings"] <= most, row
    for row in COMMITTED["verdicts"]:
        alone, family = row["alone"].get("same direction", 0), row["in_family"].get("same direction", 0)
        if row["truth"] == "zero":
            assert max(alone, family) <= 0.05, row
        elif row["truth"] == "published":
            if row["power_shown"] >= POWER:
                assert family >= 0.8, row
            assert abs(family - row["power_shown"]) < 0.13, row  # trainings clipped at 0 and 1 differ less
