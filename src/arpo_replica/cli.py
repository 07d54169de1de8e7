"""``python -m arpo_replica``: the few things that are no rule of the workflow."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from arpo_replica.config import load_config
from arpo_replica.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand. A ``UserError`` becomes one sentence and status 2."""
    parser = argparse.ArgumentParser(prog="arpo", description="Helpers of the arpo-replica workflow.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="check a config, its tasks, and this machine, without running")
    check.add_argument("config", type=Path)
    docs = commands.add_parser("docs", help="write configs/README.md from the config models")
    docs.add_argument("--out", type=Path, default=Path("configs/README.md"))
    make = commands.add_parser("make-tasks", help="write the MiniWoB task files and splits anew")
    make.add_argument("--data", type=Path, default=Path("data"))
    make.add_argument("--check", action="store_true", help="only say whether the committed files still agree")
    options = parser.parse_args(arguments)
    try:
        if options.command == "check":
            check_config(options.config)
        elif options.command == "docs":
            from arpo_replica.config.docs import render_docs

            options.out.write_text(render_docs())
        else:
            asyncio.run(make_tasks(options.data, only_check=options.check))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def check_config(path: Path) -> None:
    """Everything that the workflow would refuse, and what the desktops need of this machine."""
    from arpo_replica.workflow.study import Study

    study = Study(load_config(path).model_dump(mode="json"), str(path))
    study.check()
    counts = f"{len(study.stages())} trainings, {len(study.all_indexes())} rollout sets"
    print(f"{path}: study '{study.name}', {counts}: fine")


async def make_tasks(data: Path, *, only_check: bool) -> None:
    """Read the MiniWoB++ pages in a desktop; write their task files and splits, or compare them."""
    from arpo_replica.config.models import DesktopConfig
    from arpo_replica.desktop.process import ProcessProvider
    from arpo_replica.tasks.make_miniwob import make_files, refuse_drift, write_files
    from arpo_replica.tasks.miniwob import blank_task

    provider = ProcessProvider(DesktopConfig(screen=(168, 224)))
    provider.check()
    desktop = await provider.start("make-tasks")
    try:
        await desktop.reset(blank_task())
        files = await make_files(desktop.devtools)
    finally:
        await desktop.close()
    if only_check:
        refuse_drift(files, data)
        print(f"{len(files)} files under {data} are what the pages say")
    else:
        write_files(files, data)
        print(f"{len(files)} files written under {data}")


if __name__ == "__main__":
    sys.exit(main())
