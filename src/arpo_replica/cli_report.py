"""``arpo compare``: two studies side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_report_commands(commands: Any) -> None:
    """The subcommands about pages."""
    compare = commands.add_parser(
        "compare",
        help="put the results of two studies side by side",
        description=(
            "Print rates with intervals, settings that differ and verdicts of two studies; with --out also "
            "as one HTML file. A and B are folders of results, or folders written by publish_report."
        ),
    )
    compare.add_argument("mine", metavar="A", type=Path)
    compare.add_argument("yours", metavar="B", type=Path)
    compare.add_argument("--out", type=Path, help="an HTML file to write")
    compare.set_defaults(run=run_compare)


def run_compare(options: argparse.Namespace) -> int:
    """Compare, print, and write the page if asked for."""
    from arpo_replica.report.compare import as_text, compare_studies, write_comparison

    found = compare_studies(options.mine, options.yours)
    print(as_text(found), end="")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_comparison(found, options.out)
        print(f"written: {options.out}")
    return 0
