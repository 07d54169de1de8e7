"""One JSON of a study that ``gpu_study.py`` ran: what each run did, and the study in numbers.

    python benchmarks/gpu_study_summary.py --config configs/nano.yaml --folder work --runs runs \\
        --out nano_study.json --set accelerator=cuda --set "seeds=[0,1,2]"

``--folder`` holds ``models`` and ``episodes``, ``--runs`` the JSON files that ``gpu_study.py --out`` wrote.
Rates, intervals and paired differences are those of rules ``score_episodes`` and ``summarise_study``, written
into the folder too (``scores.parquet``, ``summary.json``). Needs envs/controller, no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from arpo_replica.config.models import StudyConfig, merge  # noqa: E402
from arpo_replica.evaluation.records import Summary  # noqa: E402
from arpo_replica.evaluation.scores import score_episodes  # noqa: E402
from arpo_replica.evaluation.summary import summarise_study  # noqa: E402
from gpu_study import overlay  # noqa: E402

COLUMNS = ("success", "reward_before", "reward_after", "swapped_groups", "all_fail_groups", "buffer_size")
FURTHER = ("env_errors", "entropy", "grad_norm", "probability_difference_mean")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--note", action="append", default=[], help="a sentence for the result")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the config")
    return parser.parse_args()


def rounded(value: Any) -> Any:
    """Four digits are more than any of these numbers is worth."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def stage_of(stage: dict[str, Any]) -> dict[str, Any]:
    """A stage with one list per metric instead of one object per step."""
    steps = stage["steps"]
    columns = {key: [rounded(step.get(key)) for step in steps] for key in (*COLUMNS, *FURTHER)}
    phases = sorted({name for step in steps for name in step["seconds"]})
    columns |= {f"{name}_s": [rounded(step["seconds"].get(name)) for step in steps] for name in phases}
    return {key: stage.get(key) for key in ("name", "seconds", "gates")} | columns


def numbers_of(summary: Summary) -> dict[str, Any]:
    """Rates and paired differences over all seeds and for each, hard protocol, as fractions."""
    rates = [
        {
            **{key: getattr(row, key) for key in ("arm", "seed", "split", "tasks", "valid", "env_errors")},
            "success": [rounded(row.of_valid.value), rounded(row.of_valid.low), rounded(row.of_valid.high)],
            "interval": row.of_valid.method,
        }
        for row in summary.rates
        if row.protocol == "hard" and row.of_valid is not None
    ]
    differences = [
        {
            **{key: getattr(row, key) for key in ("arm", "reference", "seed", "split", "tasks")},
            "difference": [rounded(value) for value in (found.value, found.low, found.high)],
            "interval": found.method,
            "p_value": row.p_value,
            "conditional_se": rounded(row.conditional_se),
        }
        for row in summary.differences
        if row.protocol == "hard" and (found := row.difference) is not None
    ]
    return {"rates": rates, "differences": differences}


def main() -> None:
    """Read, summarise, write."""
    options = parse()
    os.chdir(HERE.parent)
    raw = merge(yaml.safe_load(options.config.read_text()), overlay(options.set))
    config = StudyConfig.model_validate(raw)
    folder: Path = options.folder
    runs = [json.loads(path.read_bytes()) for path in sorted(options.runs.glob("*_[0-9]*.json"))]
    score_episodes(config, [folder / "episodes"], folder / "scores.parquet")
    places = folder / "models"
    summary = summarise_study(
        config,
        folder / "scores.parquet",
        sorted(places.glob("*/seed_*/*/metrics.jsonl")),
        sorted(places.glob("*/seed_*/*/manifest.json")),
        folder / "summary.json",
        reports=sorted(places.glob("*/seed_*/*/stage_report.json")),
    )
    manifests = [json.loads(path.read_bytes()) for path in sorted(places.glob("*/seed_*/*/manifest.json"))]
    result = {
        "notes": options.note,
        "config": str(options.config),
        "cards": runs[0]["cards"],
        "cores": runs[0]["cores"],
        "versions": manifests[-1]["versions"],
        "seeds": config.seeds,
        "trials": config.evaluation.trials,
        "training": runs[-1]["training"],
        **numbers_of(summary),
        "not_run": summary.not_run,
        "runs": [
            {
                **{key: run.get(key) for key in ("command", "arm", "seed", "gpus_seen", "trained_s")},
                **{key: run.get(key) for key in ("episodes", "seconds", "error")},
                "stages": [stage_of(stage) for stage in run["stages"]],
            }
            for run in runs
        ],
        "weights": {
            f"{entry['arm']} seed {entry['seed']} {entry['stage']}": entry["sha256"] for entry in manifests
        },
    }
    text = json.dumps(result, indent=None, separators=(", ", ": "))
    # One line per run and per row: readable, and no line per number.
    for key in ('"rates": [', '"differences": [', '"runs": [', '"weights": {'):
        text = text.replace(key, f"\n{key}", 1)
    text = text.replace('}, {"command"', '},\n {"command"').replace('}, {"arm"', '},\n {"arm"')
    options.out.write_text(text + "\n")
    print(json.dumps(numbers_of(summary)["differences"], indent=1))


if __name__ == "__main__":
    main()
