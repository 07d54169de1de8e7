"""``arpo``: the few things that are no rule of the workflow."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from arpo_replica.base.errors import UserError
from arpo_replica.cli_cluster import add_cluster_commands
from arpo_replica.cli_machine import add_machine_commands, write_doctor_page
from arpo_replica.cli_options import add_config
from arpo_replica.cli_osworld import add_osworld_commands
from arpo_replica.cli_report import add_report_commands
from arpo_replica.config import load_config
from arpo_replica.workflow.job import TRY_AGAIN


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="arpo", description="Helpers of the arpo-replica workflow.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="check a config, its tasks, and this machine, without running")
    add_config(check)
    docs = commands.add_parser("docs", help="write the generated pages of configs/ and docs/ anew")
    docs.add_argument("--out", type=Path, default=Path("configs/README.md"))
    docs.add_argument(
        "--results", type=Path, default=Path("docs"), help="folder of results.md, actions.md, schemas"
    )
    docs.add_argument("--parity", type=Path, default=Path("docs/parity.md"))
    make = commands.add_parser("make-tasks", help="write the MiniWoB task files and splits anew")
    make.add_argument("--data", type=Path, default=Path("data"))
    make.add_argument("--check", action="store_true", help="only say whether the committed files still agree")
    add_machine_commands(commands)
    add_cluster_commands(commands)
    add_osworld_commands(commands)
    add_report_commands(commands)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand. A ``UserError`` becomes one sentence and status 2, so does a file that cannot be
    read or written; a signal that ends it gives 75, or 130 for Ctrl-C; a reader that went away (``| head``)
    gives 141, as the shell has it for SIGPIPE."""
    try:
        options = make_parser().parse_args(arguments)
        status = run(options)
        sys.stdout.flush()  # a reader that is gone is noticed here, not at exit
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed
        return 128 + signal.SIGPIPE
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        name = error.filename2 or error.filename
        if name is None:
            raise
        print(f"{name}: {error.strerror}; correct the path or what it names.", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError) as stop:
        print("Stopped by a signal; what is finished is kept.", file=sys.stderr)
        return 130 if isinstance(stop, KeyboardInterrupt) else TRY_AGAIN


def run(options: argparse.Namespace) -> int:
    """Run the subcommand that was asked for; its exit status."""
    if hasattr(options, "run"):
        return int(options.run(options))
    if options.command == "check":
        return check_config(options.config)
    elif options.command == "docs":
        write_docs(options)
    else:
        asyncio.run(make_tasks(options.data, only_check=options.check))
    return 0


def write_docs(options: argparse.Namespace) -> None:
    """Write the generated pages anew."""
    from arpo_replica.actions.compared import write_actions_page
    from arpo_replica.config.docs import render_docs
    from arpo_replica.evaluation.docs import write_results_docs
    from arpo_replica.training.parity import render_parity
    from arpo_replica.validation.fidelity_page import write_fidelity_page

    options.out.write_text(render_docs())
    write_results_docs(options.results)
    write_doctor_page()
    write_fidelity_page()
    write_actions_page(options.results / "actions.md")
    options.parity.write_text(render_parity())


def check_config(paths: list[Path]) -> int:
    """Say whether the workflow would take the config, and what a run would lack here; 1 if anything."""
    from arpo_replica.workflow.study import Study

    files = ", ".join(map(str, paths))
    study = Study(load_config(*paths).model_dump(mode="json"), files)
    study.check()
    trainings = len(study.stages()) + len(study.offline_trainings())
    counts = f"{trainings} trainings, {len(study.all_indexes())} rollout sets"
    print(f"{files}: study '{study.name}', {counts}: fine")
    lacks = study.lacks()
    for sentence in lacks:
        print(f"A run here would refuse to start: {sentence}")
    return int(bool(lacks))


async def make_tasks(data: Path, *, only_check: bool) -> None:
    """Read the MiniWoB++ pages in a desktop; write their task files and splits, or compare them."""
    from arpo_replica.config.models import DesktopConfig
    from arpo_replica.providers.process import ProcessProvider
    from arpo_replica.suites.miniwob.make_tasks import make_files, refuse_drift, write_files
    from arpo_replica.suites.miniwob.pages import blank_task

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
