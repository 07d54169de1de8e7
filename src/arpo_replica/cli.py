"""``arpo``: the few things that are no rule of the workflow.

Each subcommand is a function of the options that returns the exit status; ``cli.yaml`` has the options. It
imports what it needs itself: ``arpo --help`` is quick.
"""

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from arpo_replica.base.environments import find
from arpo_replica.base.errors import UserError
from arpo_replica.base.tables import table_of
from arpo_replica.config import load_config
from arpo_replica.workflow.job import TRY_AGAIN

logger = logging.getLogger(__name__)
DEMO = Path("configs/demo.yaml")
"""The default study's config."""
COMMANDS: dict[str, dict[str, Any]] = table_of(__file__)
TYPES = {"int": int, "float": float, "path": Path}


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="arpo", description="Helpers of the arpo-replica workflow.")
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, said in COMMANDS.items():
        one = subparsers.add_parser(name, help=said["help"], description=said.get("description"))
        one.set_defaults(run=globals()[f"run_{name.replace('-', '_')}"])
        for option, how in said.get("options", {}).items():
            kind = {"type": TYPES[how["type"]]} if "type" in how else {}
            one.add_argument(option, **(files(**how) if option == "--config" else how | kind))
    return parser


def files(more: str = "", **how: Any) -> dict[str, Any]:
    """For ``add_argument``: a study's files, one or more as with Snakemake's ``--configfile``; the demo's if
    nothing else is said."""
    text = f"the study's files, later ones over earlier ones{more}"
    if not how:
        how, text = {"default": [find(DEMO)]}, f"{text} (default: {DEMO})"
    return {"type": find, "nargs": "+", "metavar": "FILE", "help": text, **how}


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand. A ``UserError`` becomes one sentence and status 2, so does a file that cannot be
    read or written; a signal that ends it gives 75, or 130 for Ctrl-C; a reader that went away (``| head``)
    gives 141, as the shell has it for SIGPIPE."""
    try:
        options = make_parser().parse_args(arguments)
        status = int(options.run(options))
        sys.stdout.flush()  # a reader that is gone is noticed here, not at exit
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed
        return 128 + signal.SIGPIPE
    except UserError as error:
        logger.error(str(error))
        return 2
    except OSError as error:
        name = error.filename2 or error.filename
        if name is None:
            raise
        logger.error(f"{name}: {error.strerror}; correct the path or what it names.")
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError) as stop:
        logger.error("Stopped by a signal; what is finished is kept.")
        return 130 if isinstance(stop, KeyboardInterrupt) else TRY_AGAIN


def run_check(options: argparse.Namespace) -> int:
    """Say whether the workflow would take the config, and what a run would lack here; 1 if anything."""
    from arpo_replica.workflow.study import Study

    files = ", ".join(map(str, options.config))
    study = Study(load_config(*options.config))
    study.check()
    trainings = len(study.stages()) + len(study.offline_trainings())
    counts = f"{trainings} trainings, {len(study.all_indexes())} rollout sets"
    print(f"{files}: study '{study.name}', {counts}: fine")
    lacks = study.lacks()
    for sentence in lacks:
        print(f"A run here would refuse to start: {sentence}")
    return int(bool(lacks))


def run_explain(options: argparse.Namespace) -> int:
    from arpo_replica.config.docs import explain

    print(explain(options.key))
    return 0


def run_plan(options: argparse.Namespace) -> int:
    from arpo_replica.cluster.costs import PRICES_FILE, read_prices
    from arpo_replica.workflow.plan import plan_studies, render_studies

    studies, prices = options.config or [[find(DEMO)]], read_prices(options.prices or PRICES_FILE)
    print(render_studies(plan_studies(studies, options.target), prices), end="")
    return 0


def run_status(options: argparse.Namespace) -> int:
    """Print the screen, or write or serve the page; with ``--watch`` until everything is done."""
    from arpo_replica.base.files import write_atomically
    from arpo_replica.base.slurm import read_jobs
    from arpo_replica.workflow.status import Line, render, study_status

    config = load_config(*options.config)
    results = Path("results") / config.name

    def page(lines: list[Line]) -> str:
        from arpo_replica.report.live import live_page

        return live_page(config, lines, read_jobs(results), results, options.watch or 10.0)

    if options.serve is not None:
        from arpo_replica.report.live import serve

        serve(lambda: page(study_status(config)), options.serve)
    while True:
        lines = study_status(config)
        if options.html is not None:
            write_atomically(options.html, page(lines).encode())
        else:
            print(render(config, lines, read_jobs(results)), end="", flush=True)
        if options.watch is None or all(line.state == "done" for line in lines):
            return 0
        time.sleep(options.watch)


def run_copy(options: argparse.Namespace) -> int:
    from arpo_replica.workflow.copy_study import copy_study

    for folder in copy_study(load_config(*options.config), options.to):
        print(f"{folder} -> {options.to / folder}")
    return 0


def run_doctor(options: argparse.Namespace) -> int:
    """Print the findings; 1 if any of them is a failure."""
    from arpo_replica.doctor.examine import run

    text, status = run(options.config, as_json=options.json, only=options.only, only_list=options.list)
    print(text)
    return status


def run_serve_desktops(options: argparse.Namespace) -> int:
    from arpo_replica.providers.remote_service import serve_desktops

    serve_desktops(
        load_config(*options.config),
        host=options.host,
        port=options.port,
        allow_network=options.allow_network,
        lease_s=options.lease_seconds,
        roots=options.tasks,
        announce=options.announce,
        idle_minutes=options.idle_minutes,
        drain_s=options.drain_seconds,
    )
    return 0


def run_serve_policy(options: argparse.Namespace) -> int:
    from arpo_replica.policy.vllm_server import serve_policy

    asyncio.run(serve_policy(load_config(*options.config), options.manifest, options.port, options.name))
    return 0


def run_validate_tasks(options: argparse.Namespace) -> int:
    """Run it and say what was found; 1 if something was not expected."""
    from arpo_replica.cluster.pools import prepare
    from arpo_replica.tasks.splits import resolve
    from arpo_replica.validation.validate import tell, validate_tasks

    config = load_config(*options.config)
    out = options.out or Path("results", config.name, "validation", f"{options.split}.json")
    prepare(config)
    return tell(validate_tasks(config, resolve(config, options.split), out, trials=options.trials))


def run_compare_validations(options: argparse.Namespace) -> int:
    from arpo_replica.validation.validate import compare_validations

    document = compare_validations(options.first, options.second)
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    for difference in document["different"]:
        print(f"different scores: {difference}")
    sides = " and ".join(document[side]["kind"] for side in ("first", "second"))
    print(f"{sides}: {len(document['tasks'])} tasks in common, {len(document['different'])} differences")
    return int(bool(document["different"]))


def run_export_osworld(options: argparse.Namespace) -> int:
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


def run_export_episode(options: argparse.Namespace) -> int:
    from arpo_replica.report.film import export_animation

    export_animation(options.episodes, options.out, seconds=options.seconds, width=options.width)
    print(f"written: {options.out} ({options.out.stat().st_size / 1000:.0f} kB)")
    return 0


def run_compare(options: argparse.Namespace) -> int:
    from arpo_replica.report.compare import as_text, compare_studies, write_comparison

    found = compare_studies(options.mine, options.yours)
    print(as_text(found), end="")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_comparison(found, options.out)
        print(f"written: {options.out}")
    return 0


def run_replay_study(options: argparse.Namespace) -> int:
    from arpo_replica.evaluation.replay_effect import analyse

    files = [folder and folder / "summary.json" for folder in (options.steady, options.collapse)]
    found = analyse(*files, without=options.without, without_collapse=options.without_collapse)
    print(json.dumps(found, indent=1))
    return 0


def run_docs(options: argparse.Namespace) -> int:
    from arpo_replica.actions.compared import render_actions
    from arpo_replica.config.docs import render_reruns
    from arpo_replica.doctor.examine import fill
    from arpo_replica.evaluation.tables import write_results_docs
    from arpo_replica.training.parity import render_parity
    from arpo_replica.validation.fidelity_page import write_fidelity_page

    pages = {"what_reruns": render_reruns, "actions": render_actions, "parity": render_parity}
    for name, render in pages.items():
        Path("docs", f"{name}.md").write_text(render())
    write_results_docs(Path("docs"))
    page = Path("docs/doctor.md")
    page.write_text(fill(page.read_text()))
    write_fidelity_page()
    return 0


def run_make_tasks(options: argparse.Namespace) -> int:
    """Read the MiniWoB++ pages in a desktop; write their task files and splits, or compare them."""
    from arpo_replica.config.desktop import DesktopConfig
    from arpo_replica.providers.process import ProcessProvider
    from arpo_replica.suites.miniwob.make_tasks import PLAN, make_files, read_plan, refuse_drift, write_files
    from arpo_replica.suites.miniwob.pages import blank_task

    data = options.data
    plan = read_plan(data / PLAN)
    provider = ProcessProvider(DesktopConfig(screen=(168, 224)))
    provider.check()

    async def read_pages() -> dict[str, bytes]:
        desktop = await provider.start("make-tasks")
        try:
            await desktop.reset(blank_task())
            return await make_files(desktop.devtools, plan)
        finally:
            await desktop.close()

    files = asyncio.run(read_pages())
    if options.check:
        refuse_drift(files, data)
        print(f"{len(files)} files under {data} are what the pages say")
    else:
        write_files(files, data)
        print(f"{len(files)} files written under {data}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
