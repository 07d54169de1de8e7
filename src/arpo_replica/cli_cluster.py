"""Subcommands for long studies: ``plan`` and ``status``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from arpo_replica.base.environments import find
from arpo_replica.cli_options import DEMO, add_config
from arpo_replica.config import load_config


def add_cluster_commands(commands: Any) -> None:
    """Add the subcommands; each sets ``run``, a function of the options that returns the exit status."""
    plan = commands.add_parser(
        "plan",
        help="say how many jobs, GPU-hours and GB a study would take from here",
        description="Nothing is started. What is finished is not counted. The numbers are estimates.",
    )
    add_config(plan, action="append", more="; once more for each further study")
    plan.add_argument(
        "--target", nargs="*", default=[], help="other targets than the whole study, e.g. table1"
    )
    plan.set_defaults(run=run_plan)
    status = commands.add_parser(
        "status",
        help="say how far a study is, from its files alone",
        description="One line per training and evaluation; 'silent' means no sign of life for two minutes.",
    )
    add_config(status)
    status.set_defaults(run=run_status)


def run_plan(options: argparse.Namespace) -> int:
    """Print the plan."""
    from arpo_replica.workflow.plan import plan_studies, render_studies

    studies = options.config or [[find(DEMO)]]
    print(render_studies(plan_studies(studies, options.target)), end="")
    return 0


def run_status(options: argparse.Namespace) -> int:
    """Print the screen."""
    from arpo_replica.base.allocation import read_jobs
    from arpo_replica.workflow.status import render, study_status

    config = load_config(*options.config)
    jobs = read_jobs(Path("results") / config.name)
    print(render(config, study_status(config), jobs), end="")
    return 0
