"""Options that several subcommands have."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from arpo_replica.base.environments import find

DEMO = Path("configs/demo.yaml")
"""The default study's config."""


def add_config(parser: argparse.ArgumentParser, more: str = "", **options: Any) -> None:
    """Add the option for a study's files, one or more as with Snakemake's ``--configfile``.

    ``more``: what else its help says. ``options``: for ``add_argument``.
    """
    text = f"the study's files, later ones over earlier ones{more}"
    if not options:
        options, text = {"default": [find(DEMO)]}, f"{text} (default: {DEMO})"
    parser.add_argument("--config", type=find, nargs="+", metavar="FILE", help=text, **options)
