"""What the verdicts are worth, in simulated studies of five trainings and three trials.

    envs/controller/.venv/bin/python benchmarks/verdicts.py [--studies 2000]

Writes benchmarks/results/verdicts.json. ``verdicts``: for the paper's differences, if the published effect
is true, if half of it is, if none is, with trainings that differ by 0, 4 and 8 points: the share of studies
that end with each verdict, alone and as the hardest of its family of claims, beside the power that the page
shows. ``coverage``: how often the 95 % interval over trainings holds the truth; and how often seeds pooled
as further runs of a task, which this project does not do, would have shown an effect where there is none.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "unit")]

from arpo_replica.evaluation.power import SPREADS, Plan, power_of  # noqa: E402
from arpo_replica.evaluation.published import load_claims  # noqa: E402
from verdict_simulation import Setup, coverage, truths, verdicts  # noqa: E402

HEADLINES = (
    "table1_gain_over_base",
    "table1_gain_over_grpo",
    "table1_grpo_gain_over_base",
    "readme_gain_128",
    "readme_gain_over_grpo",
)
FAMILY = {"table1": 6, "readme128": 3}
"""Differences of one model in each table."""


def table(studies: int) -> list[dict[str, Any]]:
    """A row per claim, truth and spread."""
    claims, published = load_claims(ROOT / "data/paper/claims.yaml", ROOT / "data/paper/results.yaml")
    rows = []
    for claim in (claim for name in HEADLINES for claim in claims if claim.id == name):
        numbers = [published[name] for name in claim.published]
        rates = (numbers[0].value / 100, numbers[1].value / 100)
        tasks, family = int(numbers[0].n or 0), FAMILY[str(claim.target)]
        base = claim.measure is not None and claim.measure.reference == "base"
        for points in SPREADS:
            setup = Setup(*rates, against_base=base, tasks=tasks, spread=points / 100)
            plan = Plan(rates, (True, not base), tasks, claim.margin / 100, family)
            for truth, true in truths(setup, rates).items():
                seed = len(rows)
                margin = claim.margin / 100
                alone = verdicts(true, rates, margin, studies=studies, seed=seed)
                hardest = verdicts(true, rates, margin, studies=studies, seed=seed, family=family)
                rows.append(
                    {"claim": claim.id, "truth": truth, "spread_points": points, "alone": alone}
                    | {"in_family": hardest, "power_shown": round(power_of(plan, 3, 5, points / 100), 3)}
                )
                print(rows[-1], flush=True)
    return rows


def intervals(studies: int) -> list[dict[str, Any]]:
    """Coverage without any effect."""
    rows = []
    for tasks, trials, trainings in ((32, 3, 6), (128, 3, 5), (369, 1, 5), (369, 3, 5), (369, 3, 10)):
        for points in SPREADS:
            for base in (True, False):
                setup = Setup(0.26, 0.26, base, tasks, trials, trainings, points / 100)
                shares = coverage(setup, studies, seed=len(rows))
                rows.append({**asdict(setup), **{name: round(share, 4) for name, share in shares.items()}})
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=2000)
    studies = parser.parse_args().studies
    found = {"studies": studies, "coverage": intervals(studies), "verdicts": table(studies)}
    out = ROOT / "benchmarks" / "results" / "verdicts.json"
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
