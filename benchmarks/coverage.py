"""Coverage of the report's intervals in simulated studies: how often a 95 % interval holds the truth.

    envs/controller/.venv/bin/python benchmarks/coverage.py [--studies 2000]

Writes benchmarks/results/coverage.json. Difficulty of tasks is Beta-distributed and U-shaped; every
combination of tasks and runs is an invented study, repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "unit")]

from test_comparison import coverage  # noqa: E402


def main() -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    options = parser.parse_args()
    rows = []
    for tasks in (10, 32, 128, 369):
        for runs in (2, 3, 5):
            found = coverage(studies=options.studies, tasks=tasks, runs=runs, seed=tasks * 10 + runs)
            rows.append(
                {
                    "tasks": tasks,
                    "runs": runs,
                    **{name: round(float(share), 4) for name, share in found.items()},
                }
            )
            print(rows[-1], flush=True)
    out = ROOT / "benchmarks" / "results" / "coverage.json"
    out.write_text(
        json.dumps({"studies": options.studies, "confidence": 0.95, "coverage": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
