"""What the verdicts are worth, in simulated studies: `python benchmarks/verdicts.py [--studies 1000]`.

Writes benchmarks/results/verdicts.json. ``verdicts``: for every family of claims about success, a row for
each truth and spread. In each simulated study all claims of the family are judged from the same episodes,
with Holm over all of them. Truths: what the paper gains over its untrained policy is true, half of it is, or
none of it. Spreads: trainings of one arm differ by a standard deviation of 0, 4 and 8 points.
``power_shown``: what the page says for the same plan. ``coverage``: how often the 95 % interval over
trainings holds the truth without any effect; and how often seeds pooled as further runs of a task, which
this project does not do, would have shown one.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "unit")]

from arpo_replica.base.checkout import git_state  # noqa: E402
from arpo_replica.evaluation.power import SPREADS, ClaimPlan, power_of  # noqa: E402
from arpo_replica.evaluation.published import load_claims  # noqa: E402
from verdict_simulation import Design, Family, coverage, families, verdicts  # noqa: E402

TRUTHS = {"published": 1.0, "half": 0.5, "zero": 0.0}


def power_shown(family: Family, design: Design) -> dict[str, float]:
    """Claim -> power as the page computes it, for trainings that differ as the design says."""
    shown = {}
    for claim in family.claims:
        sides = family.sides(claim)
        trained = tuple(arm != "base" for (arm, _), _, _ in sides)
        rates = tuple(number.value / 100 for _, _, number in sides)
        plan = ClaimPlan(rates, trained, int(sides[0][2].n or 0), claim.margin / 100, len(family.claims))
        spread = design.spread * math.sqrt(max(1, sum(trained)))  # of the difference, as the page has it
        shown[claim.id] = round(power_of(plan, design.trials, design.trainings, spread), 3)
    return shown


def table(studies: int) -> list[dict[str, Any]]:
    """A row per family, truth and spread."""
    rows: list[dict[str, Any]] = []
    for name, family in families(
        *load_claims(ROOT / "data/paper/claims.yaml", ROOT / "data/paper/results.yaml")
    ).items():
        for points in SPREADS:
            design = Design(spread=points / 100)
            for truth, share in TRUTHS.items():
                each, any_claim = verdicts(family, share, design, studies=studies, seed=len(rows))
                row: dict[str, Any] = {"family": name, "truth": truth, "spread_points": points}
                row |= {"claims": each, "any_claim": any_claim}
                if truth == "published":
                    row["power_shown"] = power_shown(family, design)
                rows.append(row)
                print(name, truth, points, any_claim, flush=True)
    return rows


def intervals(studies: int) -> list[dict[str, Any]]:
    """Coverage without any effect; the spread is that of the difference."""
    rows: list[dict[str, Any]] = []
    designs = ((32, 3, 6), (128, 3, 5), (369, 1, 5), (369, 3, 5), (369, 3, 10), (32, 1, 6), (128, 1, 5))
    for tasks, trials, trainings in designs:
        for points in SPREADS:
            for base in (True, False):
                design = Design(trials, trainings, points / 100 / (1 if base else math.sqrt(2)))
                shares = coverage(0.26, tasks, design, against_base=base, studies=studies, seed=len(rows))
                row = {"tasks": tasks, "against_base": base, "spread_of_difference_points": points}
                row |= {"trials": trials, "trainings": trainings}
                rows.append(row | {name: round(found, 4) for name, found in shares.items()})
    return rows


def main() -> None:
    """Simulate and write, a row a line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    design = asdict(Design()) | {"spread": "see the rows", "tasks": "of each claim", "confidence": 0.95}
    lists = {"coverage": intervals(2 * studies), "verdicts": table(studies)}
    body = ",\n".join(
        f'"{name}": [\n ' + ",\n ".join(json.dumps(row) for row in rows) + "\n]"
        for name, rows in lists.items()
    )
    counts = json.dumps({"coverage": 2 * studies, "verdicts": studies})
    source = json.dumps(git_state(ROOT))
    text = f'{{"code": {source},\n"studies": {counts},\n"design": {json.dumps(design)},\n{body}}}\n'
    (ROOT / "benchmarks" / "results" / "verdicts.json").write_text(text)


if __name__ == "__main__":
    main()
