"""``arpo``: the few things that are no rule of the workflow.

Each subcommand is a function of the options that returns the exit status. It imports what it needs itself:
``arpo --help`` is quick.
"""

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arpo_replica.base.environments import find
from arpo_replica.base.errors import UserError
from arpo_replica.config import load_config
from arpo_replica.workflow.job import TRY_AGAIN

logger = logging.getLogger(__name__)
DEMO = Path("configs/demo.yaml")
"""The default study's config."""
Run = Callable[[argparse.Namespace], int]
Option = Callable[[argparse.ArgumentParser], object]
COMMANDS: list[Callable[[Any], None]] = []
"""Each adds one subcommand to argparse's subparsers."""


def command(name: str, help: str, *options: Option, description: str | None = None) -> Callable[[Run], Run]:
    """Make a function the subcommand ``name``."""

    def register(run: Run) -> Run:
        def add_to(subparsers: Any) -> None:
            parser = subparsers.add_parser(name, help=help, description=description)
            parser.set_defaults(run=run)
            for add in options:
                add(parser)

        COMMANDS.append(add_to)
        return run

    return register


def option(*names: str, **how: Any) -> Option:
    """As ``add_argument`` takes it."""
    return lambda parser: parser.add_argument(*names, **how)


def config(more: str = "", **how: Any) -> Option:
    """The option for a study's files, one or more as with Snakemake's ``--configfile``.

    ``more``: what else its help says. ``how``: for ``add_argument``.
    """
    text = f"the study's files, later ones over earlier ones{more}"
    if not how:
        how, text = {"default": [find(DEMO)]}, f"{text} (default: {DEMO})"
    return option("--config", type=find, nargs="+", metavar="FILE", help=text, **how)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="arpo", description="Helpers of the arpo-replica workflow.")
    subparsers = parser.add_subparsers(dest="command", required=True)
    for add_to in COMMANDS:
        add_to(subparsers)
    return parser


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


@command("check", "check a config, its tasks, and this machine, without running", config())
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


@command(
    "explain",
    "say what a key of the config means and decides, and what runs again",
    option(
        "key", nargs="?", default="", help="e.g. training.learning_rate, or a section: desktop; none: all"
    ),
)
def run_explain(options: argparse.Namespace) -> int:
    from arpo_replica.config.docs import explain

    print(explain(options.key))
    return 0


@command(
    "plan",
    "say how many jobs, GPU-hours and GB a study would take from here, and what money",
    config("; once more for each further study", action="append"),
    option("--target", nargs="*", default=[], help="other targets than the whole study, e.g. table1"),
    option("--prices", type=Path, help="your prices, in the form of data/cluster/prices.yaml"),
    description="Nothing is started. What is finished is not counted. The numbers are estimates.",
)
def run_plan(options: argparse.Namespace) -> int:
    from arpo_replica.cluster.costs import PRICES_FILE, read_prices
    from arpo_replica.workflow.plan import plan_studies, render_studies

    studies, prices = options.config or [[find(DEMO)]], read_prices(options.prices or PRICES_FILE)
    print(render_studies(plan_studies(studies, options.target), prices), end="")
    return 0


@command(
    "status",
    "say how far a study is, from its files alone",
    config(),
    option("--html", type=Path, metavar="FILE", help="write one page with the latest screens instead"),
    option("--serve", type=int, metavar="PORT", help="serve that page on loopback; 0: any port"),
    option("--watch", type=float, nargs="?", const=10.0, metavar="SECONDS", help="again so often (10)"),
    description="One line per training and evaluation; 'silent' means no sign of life for two minutes.",
)
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


@command(
    "copy",
    "copy a study to another checkout or working folder, where it then goes on",
    config(),
    option("--to", type=Path, metavar="FOLDER", required=True, help="the other checkout or folder"),
    description="With its results go their times and Snakemake's records of them: nothing is run again.",
)
def run_copy(options: argparse.Namespace) -> int:
    from arpo_replica.workflow.copy_study import copy_study

    for folder in copy_study(load_config(*options.config), options.to):
        print(f"{folder} -> {options.to / folder}")
    return 0


@command(
    "doctor",
    "say what this machine lacks for a config, one line each, with the fix",
    config(),
    option("--json", action="store_true", help="print one JSON document"),
    option("--only", default="", metavar="NAMES", help="run these checks only, comma-separated"),
    option("--list", action="store_true", help="list all checks and what each is for"),
    description="Exit status 0: nothing fails; 1: something does. All checks: docs/doctor.md.",
)
def run_doctor(options: argparse.Namespace) -> int:
    """Print the findings; 1 if any of them is a failure."""
    from arpo_replica.doctor.examine import run

    text, status = run(options.config, as_json=options.json, only=options.only, only_list=options.list)
    print(text)
    return status


@command(
    "serve-desktops",
    "lend this machine's desktops to studies that run elsewhere (desktop.provider: remote)",
    config("; the section 'desktop' says what is lent", required=True),
    option("--host", help="address to listen on (default: loopback; with --announce this machine's)"),
    option("--port", type=int, help="0: any free one (default: 8700; with --announce 0)"),
    option("--allow-network", action="store_true", help="let --host be another than loopback"),
    option("--lease-seconds", type=float, default=30.0, help="silence that ends a client's lease"),
    option("--tasks", type=Path, action="append", default=[], help="further folder of task files"),
    option(
        "--announce", type=Path, help="folder that desktop.remote.pools names: say there where it listens"
    ),
    option("--idle-minutes", type=float, default=0.0, help="end when nothing was lent for so long; 0: never"),
    option("--drain-seconds", type=float, default=0.0, help="what is lent may be used so long after SIGTERM"),
    description="Needs a token in the environment variable that desktop.remote.token_variable names; with "
    "--announce it is that of the folder.",
)
def run_service(options: argparse.Namespace) -> int:
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


@command(
    "serve-policy",
    "serve a finished model of a study to studies that run elsewhere (policy.endpoint)",
    config("; its sections 'policy' and 'serving' say how", required=True),
    option("--manifest", type=Path, required=True, help="results/{study}/models/.../manifest.json"),
    option("--name", default="policy", help="what the other side calls it: policy.served_model"),
    option("--port", type=int, default=8000, help="on loopback alone; use a tunnel"),
    description="Needs a key in the environment variable that policy.api_key_variable names.",
)
def run_server(options: argparse.Namespace) -> int:
    from arpo_replica.policy.vllm_server import serve_policy

    asyncio.run(serve_policy(load_config(*options.config), options.manifest, options.port, options.name))
    return 0


@command(
    "validate-tasks",
    "run a split with no action, with FAIL and with the committed scripts",
    config("; its desktops are used", required=True),
    option("--split", default="smoke_4", help="name in tasks.splits (default: smoke_4)"),
    option("--trials", type=int, default=1, help="times that everything is run"),
    option("--out", type=Path, help="default: results/{study}/validation/{split}.json"),
    description=(
        "Episodes and the result go to results/{study}/validation, as of rule validate_tasks. Exit status 1: "
        "something that data/osworld/known_issues.yaml does not know."
    ),
)
def run_validation(options: argparse.Namespace) -> int:
    """Run it and say what was found; 1 if something was not expected."""
    from arpo_replica.cluster.pools import prepare
    from arpo_replica.tasks.splits import resolve
    from arpo_replica.validation.validate import tell, validate_tasks

    config = load_config(*options.config)
    out = options.out or Path("results", config.name, "validation", f"{options.split}.json")
    prepare(config)
    return tell(validate_tasks(config, resolve(config, options.split), out, trials=options.trials))


@command(
    "compare-validations",
    "compare two results of validate-tasks, of two kinds of desktop",
    option("first", type=Path),
    option("second", type=Path),
    option("--out", type=Path, help="write the comparison there, as JSON"),
    description="Exit status 1: a task that both have scored differently.",
)
def run_comparison(options: argparse.Namespace) -> int:
    from arpo_replica.validation.validate import compare_validations

    document = compare_validations(options.first, options.second)
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    for difference in document["different"]:
        print(f"different scores: {difference}")
    sides = " and ".join(document[side]["kind"] for side in ("first", "second"))
    print(f"{sides}: {len(document['tasks'])} tasks in common, {len(document['different'])} differences")
    return int(bool(document["different"]))


@command(
    "export-osworld",
    "write a study's episodes in the folder layout of OSWorld's runners",
    config(required=True),
    option("--out", type=Path, required=True, help="an empty or new folder"),
    option(
        "--protocol",
        default="standard",
        choices=("standard", "hard"),
        help="what result.txt holds; OSWorld's runners score by standard (default)",
    ),
    option("--episodes", type=Path, help="default: results/{study}/episodes"),
    description=(
        "Each arm, seed, stage, split and trial becomes a 'model' below OUT/pyautogui/screenshot, which "
        "OSWorld's show_result.py reads; OUT/index.json says what each is and which tasks have no score."
    ),
)
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


@command(
    "export-episode",
    "write episodes of one task as an animation, side by side",
    option("episodes", nargs="+", type=Path, metavar="FOLDER", help="an episode; several: in this order"),
    option("--out", type=Path, required=True, help="file to write: .webp or .gif"),
    option("--seconds", type=float, default=1.2, help="how long each step stays (default: 1.2)"),
    option("--width", type=int, default=336, help="of each screen in pixels (default: 336)"),
    description=(
        "FOLDER: results/STUDY/episodes/ARM/seed_N/stage_S/SPLIT/trial_N/DOMAIN.TASK, as the page names it. "
        "Each arm's first action unlike the first folder's is marked."
    ),
)
def run_film(options: argparse.Namespace) -> int:
    from arpo_replica.report.film import export_animation

    export_animation(options.episodes, options.out, seconds=options.seconds, width=options.width)
    print(f"written: {options.out} ({options.out.stat().st_size / 1000:.0f} kB)")
    return 0


@command(
    "compare",
    "put the results of two studies side by side",
    option("mine", metavar="A", type=Path),
    option("yours", metavar="B", type=Path),
    option("--out", type=Path, help="an HTML file to write"),
    description=(
        "Print rates with intervals, settings that differ and verdicts of two studies; with --out also as "
        "one HTML file. A and B are folders of results, or folders written by publish_report."
    ),
)
def run_compare(options: argparse.Namespace) -> int:
    from arpo_replica.report.compare import as_text, compare_studies, write_comparison

    found = compare_studies(options.mine, options.yours)
    print(as_text(found), end="")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_comparison(found, options.out)
        print(f"written: {options.out}")
    return 0


@command(
    "replay-study",
    "print the analysis that docs/replay_study.md registered, as JSON",
    option("steady", metavar="A", type=Path, help="e.g. results/replay"),
    option("collapse", metavar="B", type=Path, nargs="?", help="e.g. results/replay_collapse"),
    *(
        option(
            name,
            type=int,
            nargs="+",
            default=[],
            metavar="SEED",
            help=f"seeds of pairs of {regime} that could not be ended: left out, and named",
        )
        for name, regime in (("--without", "A"), ("--without-collapse", "B"))
    ),
    description=(
        "A and B are folders of results of the two regimes. Differences are fractions. As long as a "
        "registered pair is unfinished there is no answer, and before A's first twelve are finished no mean."
    ),
)
def run_replay_study(options: argparse.Namespace) -> int:
    from arpo_replica.evaluation.replay_effect import analyse

    files = [folder and folder / "summary.json" for folder in (options.steady, options.collapse)]
    found = analyse(*files, without=options.without, without_collapse=options.without_collapse)
    print(json.dumps(found, indent=1))
    return 0


@command("docs", "write the generated pages of docs/ anew")
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


@command(
    "make-tasks",
    "write the MiniWoB task files and splits anew",
    option(
        "--data",
        type=Path,
        default=Path("data"),
        help="folder with the plan splits/miniwob.yaml (docs/tasks.md), where tasks/ and splits/ are written",
    ),
    option("--check", action="store_true", help="only say whether the committed files still agree"),
)
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
