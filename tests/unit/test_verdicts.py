"""Truth tables: what simulated studies end with if the published effect is true, half true, or not there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from arpo_replica.evaluation.power import POWER, SPREADS
from arpo_replica.evaluation.published import load_claims
from verdict_simulation import Design, coverage, families, verdicts

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = json.loads((ROOT / "benchmarks/results/verdicts.json").read_text("utf-8"))
FAMILIES = families(*load_claims(ROOT / "data/paper/claims.yaml", ROOT / "data/paper/results.yaml"))
SHOWN = ("same direction", "equivalent")
"""What a true gain should end with."""


def share(row: dict[str, float], *words: str) -> float:
    return sum(row.get(word, 0.0) for word in words)


def test_a_perfect_replication_is_seen_and_nothing_is_not() -> None:
    """Table 1's differences, five trainings that differ by runs alone, three trials, Holm over all six."""
    family = FAMILIES["table1, difference, UI-TARS-1.5-7B"]
    found = {truth: verdicts(family, truth, Design(), studies=300, seed=1) for truth in (1.0, 0.5, 0.0)}
    for claim in ("table1_gain_over_base", "table1_gain_over_grpo"):
        whole, half, none = (share(found[truth][0][claim], *SHOWN) for truth in (1.0, 0.5, 0.0))
        assert whole >= 0.8 > half, claim
        assert share(found[0.0][0][claim], "same direction") <= 0.05
        assert none < half
    assert share(found[0.0][1], "same direction") <= 0.05, "any of the six"


@pytest.mark.parametrize("points", [0, 4, 8])
def test_the_interval_over_trainings_holds_the_truth(points: int) -> None:
    """Four errors of 400 studies: 95 % +- 4.4. The spread is that of the difference."""
    each = Design(spread=points / 100 / math.sqrt(2))
    found = coverage(0.26, 128, each, against_base=False, studies=400, seed=2)
    assert abs(found["over_trainings"] - 0.95) < 0.044
    if points == 8:
        assert found["pooled_false_alarms"] > 0.4
        base = coverage(0.26, 128, Design(spread=0.08), against_base=True, studies=400, seed=3)
        assert base["over_trainings"] > 0.9


def test_the_committed_coverage_is_nominal() -> None:
    """+- 2 % wherever a verdict may be given, one trial per task included."""
    assert {row["trials"] for row in COMMITTED["coverage"] if row["against_base"]} == {1, 3}
    for row in COMMITTED["coverage"]:
        assert 0.93 <= row["over_trainings"] <= 0.97, row


@pytest.mark.parametrize(("tasks", "points"), [(32, 0), (128, 0), (128, 4)])
def test_one_trial_per_task_is_enough_for_the_noise_of_the_untrained_policy(tasks: int, points: int) -> None:
    """Four errors of 2000 studies: 95 % +- 2. The bound of independent tasks would hold the truth in 99 %."""
    design = Design(trials=1, spread=points / 100)
    found = coverage(0.26, tasks, design, against_base=True, studies=2000, seed=4)
    assert abs(found["over_trainings"] - 0.95) < 0.02


def test_the_committed_tables_have_every_claim_of_every_family() -> None:
    rows = COMMITTED["verdicts"]
    asked = {(name, truth, points) for name in FAMILIES for truth in ("published", "half", "zero")
             for points in SPREADS}  # fmt: skip
    assert {(row["family"], row["truth"], row["spread_points"]) for row in rows} == asked
    assert len(rows) == len(asked)
    for row in rows:
        assert set(row["claims"]) == {claim.id for claim in FAMILIES[row["family"]].claims}
        for shares in row["claims"].values():
            assert sum(shares.values()) == pytest.approx(1, abs=0.002)
    assert COMMITTED["design"] | {"trials": 3, "trainings": 5} == COMMITTED["design"]
    assert COMMITTED["studies"]["verdicts"] >= 1000


def by_truth(name: str, points: int) -> dict[str, dict[str, Any]]:
    rows = COMMITTED["verdicts"]
    return {row["truth"]: row for row in rows if (row["family"], row["spread_points"]) == (name, points)}


@pytest.mark.parametrize("points", SPREADS)
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.difference])
def test_the_committed_differences(name: str, points: int) -> None:
    """Nothing is found where nothing is: in at most 5 % of studies any claim of the family ends so. A true
    gain is found as often as the page says, or more, because few claims stand in Holm's hardest place."""
    found = by_truth(name, points)
    assert share(found["zero"]["any_claim"], "same direction") <= 0.05
    for claim, power in found["published"]["power_shown"].items():
        whole, half = (share(found[truth]["claims"][claim], *SHOWN) for truth in ("published", "half"))
        assert whole >= power - 0.05, (claim, whole, power)
        assert whole >= 0.8 or power < POWER, (claim, whole, power)
        assert whole >= half - 0.05, claim


@pytest.mark.parametrize("points", SPREADS)
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.difference])
def test_the_committed_rates(name: str, points: int) -> None:
    """A true rate is contradicted in at most 5 % of studies, any of the family counted."""
    found = by_truth(name, points)
    assert share(found["published"]["any_claim"], "contradicted") <= 0.05
    for claim, power in found["published"]["power_shown"].items():
        assert share(found["published"]["claims"][claim], "equivalent") >= power - 0.1, claim
