"""The subcommands around OSWorld: export for its own tools, validation of its tasks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from arpo_replica.cli_options import add_config
from arpo_replica.config import load_config


def add_osworld_commands(commands: Any) -> None:
    """Add the subcommands; each sets ``run``, a function of the options that returns the exit status."""
    add_validation(commands)
    export = commands.add_parser(
        "export-osworld",
        help="write a study's episodes in the folder layout of OSWorld's runners",
        description=(
            "Each arm, seed, stage, split and trial becomes a 'model' below OUT/pyautogui/screenshot, which "
            "OSWorld's show_result.py reads; OUT/index.json says what each is and which tasks have no score."
        ),
    )
    add_config(export, required=True)
    export.add_argument("--out", type=Path, required=True, help="an empty or new folder")
    export.add_argument(
        "--protocol",
        default="standard",
        choices=("standard", "hard"),
        help="what result.txt holds; OSWorld's runners score by standard (default)",
    )
    export.add_argument("--episodes", type=Path, help="default: results/{study}/episodes")
    export.set_defaults(run=run_export)


def run_export(options: argparse.Namespace) -> int:
    """Write the export; say what it holds and how OSWorld's tool reads it."""
    from arpo_replica.evaluation.osworld_export import ACTION_SPACE, OBSERVATION, export_osworld

    config = load_config(*options.config)
    episodes = options.episodes or Path("results", config.name, "episodes")
    index = export_osworld(config, episodes, options.out, options.protocol)
    for run in index.runs:
        lost = f", {len(run.env_errors)} env_error" if run.env_errors else ""
        print(f"{run.model}: {run.scored} of {run.tasks} tasks have a score{lost} [{run.desktop_mark}]")
    print(
        f"Read one with OSWorld's show_result.py: --action_space {ACTION_SPACE} --observation_type "
        f"{OBSERVATION} --result_dir {options.out} --model NAME"
    )
    return 0


def add_validation(commands: Any) -> None:
    """Add the subcommand that runs a split's tasks without a model."""
    validate = commands.add_parser(
        "validate-tasks",
        help="run a split with no action, with FAIL and with the committed scripts",
        description=(
            "Episodes and the result go to results/{study}/validation, as of rule validate_tasks. Exit "
            "status 1: something that data/osworld/known_issues.yaml does not know."
        ),
    )
    add_config(validate, required=True, more="; its desktops are used")
    validate.add_argument("--split", default="smoke_4", help="name in tasks.splits (default: smoke_4)")
    validate.add_argument("--trials", type=int, default=1, help="times that everything is run")
    validate.add_argument("--out", type=Path, help="default: results/{study}/validation/{split}.json")
    validate.set_defaults(run=run_validation)
    compare = commands.add_parser(
        "compare-validations",
        help="compare two results of validate-tasks, of two kinds of desktop",
        description="Exit status 1: a task that both have scored differently.",
    )
    compare.add_argument("first", type=Path)
    compare.add_argument("second", type=Path)
    compare.add_argument("--out", type=Path, help="write the comparison there, as JSON")
    compare.set_defaults(run=run_comparison)


def run_validation(options: argparse.Namespace) -> int:
    """Run it and say what was found; 1 if something was not expected."""
    from arpo_replica.validation.validate import tell, validate_tasks

    config = load_config(*options.config)
    out = options.out or Path("results", config.name, "validation", f"{options.split}.json")
    return tell(validate_tasks(config, options.split, out, trials=options.trials))


def run_comparison(options: argparse.Namespace) -> int:
    """Compare, write, say where the two differ."""
    from arpo_replica.validation.agreement import compare_validations

    document = compare_validations(options.first, options.second)
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    for difference in document["different"]:
        print(f"different scores: {difference}")
    sides = " and ".join(document[side]["kind"] for side in ("first", "second"))
    print(f"{sides}: {len(document['tasks'])} tasks in common, {len(document['different'])} differences")
    return int(bool(document["different"]))
