"""Does a study survive kills? ``python benchmarks/kill_campaign.py --folder F --kills 200`` prints JSON.

Runs the study of the config files (default: configs/ci.yaml; always with one desktop, so that a run repeats
another one reply for reply) once undisturbed, then again and again while SIGKILLs hit it at random times: the
whole study, or a single process of a kind drawn at random (Snakemake, a rule's script, vLLM, verl, a Ray
process, the keeper of the desktops, a desktop's guest, X server, browser). Where Snakemake has ended it is
started again, as its user would. After some kills a round runs to its end, then the next one begins.
Reported are the kills by kind, the starts that a user had to do again, processes left behind, files of
finished evaluation episodes that changed afterwards, and whether replies and manifests equal those of the
undisturbed run.

All of it lies in the folder: after an interruption the same command goes on. ``--begun`` takes a folder where
another run of the study stopped (before a rule of interest, say) as the beginning of every round. With
``--slurm`` the killed rounds run on the virtual Slurm of tests/slurm/cluster.py, which also loses nodes; the
undisturbed run does not. There the jobs outlive the Snakemake that submitted them: they are cancelled first.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from slurm.cluster import Cluster  # noqa: E402

SNAKEMAKE = Path(sys.executable).with_name("snakemake")
PR_SET_CHILD_SUBREAPER = 36
WHOLE = "the whole study"
LOST = "a node with its jobs"
DAEMON = "Slurm"
KINDS = {
    DAEMON: r"slurmctld|slurmd |slurmstepd|munged|\bsrun\b",
    "Snakemake": r"bin/snakemake( |$)",
    "a rule's script": r"\.snakemake/scripts/",
    "vLLM": r"vllm|VLLM|EngineCore|policy\.serve",
    "Ray's raylet": r"raylet/raylet",
    "Ray's gcs": r"gcs_server",
    "a Ray worker": r"ray::",
    "another Ray process": r"raylet|ray/_private|ray/dashboard|runtime_env_agent",
    "the keeper of the desktops": r"keeper",
    "verl": r"verl|fork_server|training\.process",
    "a supervisor": r"supervisor",
    "a desktop's guest": r"-m guest",
    "a desktop's sandbox": r"^bwrap|/bwrap ",
    "an X server": r"Xvfb",
    "a window manager": r"openbox",
    "a browser": r"chrom",
}
"""Kind of a process -> what its command line holds; the first that fits counts."""
CHEAP = {"a desktop's guest", "a desktop's sandbox", "an X server", "a window manager", "a browser", LOST}
"""Drawn four times as often: such a kill costs one episode, others the start of a training. (A lost node
costs more, but is what a cluster adds.)"""
ENDS_WITHIN_S = 30.0
"""A killed study's processes must be gone by then."""


def adopt_orphans() -> None:
    """Whatever a killed process leaves behind becomes a child of this one: nothing escapes the count."""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        sys.exit("prctl(PR_SET_CHILD_SUBREAPER) failed; the campaign needs Linux")


def living() -> dict[int, str]:
    """Pid -> command line of all that descends from this process and has not ended; zombies are collected."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_ZOMBIE:
                if process.ppid() == os.getpid() and process.pid != Study.running:
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(process.pid, os.WNOHANG)
                continue
            command = " ".join(process.cmdline()) or process.name()
            if kind_of(command) != DAEMON:
                found[process.pid] = command
    return found


def kind_of(command: str) -> str:
    """Which of ``KINDS`` a command line is; ``another`` if none."""
    return next((kind for kind, words in KINDS.items() if re.search(words, command)), "another")


class Study:
    """One study in a folder of its own, as its user runs it."""

    running = 0
    """Pid of the Snakemake that runs now; its status is Popen's to collect."""

    def __init__(self, folder: Path, configs: list[str], cluster: Cluster | None = None) -> None:
        self.folder, self.cluster = folder, cluster
        self.options = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", *configs]
        self.environment = cluster.environment if cluster else dict(os.environ)
        if cluster:
            self.options += ["--profile", str(ROOT / "slurm")]
            (folder / "slurm").mkdir(exist_ok=True)
            (folder / "slurm/site.yaml").write_text("check_seconds: 2\njobs: 1\n")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start Snakemake; after a kill of it the folder has to be unlocked first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "campaign.log").open("ab") as log:
            if any(self.folder.glob(".snakemake/locks/*")):
                subprocess.run(
                    [str(SNAKEMAKE), "--unlock", *self.options],
                    cwd=self.folder,
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                    check=False,
                )
            self.process = subprocess.Popen(
                [str(SNAKEMAKE), *self.options],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        Study.running = self.process.pid

    def wait_until_gone(self) -> tuple[float, list[str]]:
        """Seconds until all that it ran is gone, and the kinds of what then is still there and is killed."""
        if self.cluster:
            for job in self.cluster.jobs():
                self.cluster.command("scancel", job, check=False)
        began = time.monotonic()
        while (left := living()) and time.monotonic() < began + ENDS_WITHIN_S:
            time.sleep(0.2)
        end_all(left)
        return round(time.monotonic() - began, 1), [kind_of(command) for command in left.values()]

    @property
    def status(self) -> int | None:
        """Exit status of the Snakemake that was started last; None while it runs."""
        assert self.process is not None
        return self.process.poll()

    @property
    def complete(self) -> bool:
        """True if it has come to its end."""
        return self.status == 0

    def finished(self) -> dict[str, str]:
        """File of a finished evaluation episode -> its sha256."""
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for done in self.folder.glob("results/*/episodes/**/episode.json")
            if not done.parent.name.startswith(".tmp-")
            for path in done.parent.iterdir()
        }

    def replies(self) -> dict[str, list[str]]:
        """Episode of the evaluation -> the policy's replies."""
        return {
            str(path.parent.relative_to(self.folder)): [
                json.loads(line)["text"] for line in path.read_text().split("\n") if line
            ]
            for path in self.folder.glob("results/*/episodes/**/steps.jsonl")
        }

    def manifests(self) -> dict[str, Any]:
        """Manifest of a model -> what it says, but for the commit: a campaign may go on after one."""
        found = {}
        for path in self.folder.glob("results/*/**/manifest.json"):
            said = json.loads(path.read_text())
            said.get("versions", {}).pop("arpo-replica", None)
            found[str(path.relative_to(self.folder))] = said
        return found


def end_all(pids: Iterable[int]) -> None:
    """SIGKILL to each."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def strike(study: Study, dice: random.Random, share_of_whole: float) -> str | None:
    """Kill the whole study or one process; what it was, or None if there was no job to hit."""
    assert study.process is not None
    kinds: dict[str, list[int]] = {}
    for pid, command in living().items():
        kinds.setdefault(kind_of(command), []).append(pid)
    if study.cluster and "a rule's script" in kinds:
        kinds[LOST] = []
    if not kinds.keys() - {"Snakemake"}:
        return None  # no job runs yet: only the start would be tried, again and again
    if not kinds.keys() & CHEAP and dice.random() < 0.8:
        return None  # so does the start of a job, on which most of the time goes by
    if dice.random() < share_of_whole:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(study.process.pid, signal.SIGKILL)
        return WHOLE
    (kind,) = dice.choices(sorted(kinds), [4 if kind in CHEAP else 1 for kind in sorted(kinds)])
    if kind == LOST and study.cluster:
        node = study.cluster.nodes[0]  # where jobs without GPUs go
        study.cluster.lose_node(node)
        time.sleep(5)
        study.cluster.heal_node(node)
        return kind
    try:
        os.kill(dice.choice(sorted(kinds[kind])), signal.SIGKILL)
    except ProcessLookupError:
        return None  # it has ended by itself meanwhile
    return kind


class Journal:
    """What happened, a line of JSON each: ``kill``, ``again``, ``ended`` or ``round``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, event: str, **values: Any) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")
        print(event, *values.values(), file=sys.stderr, flush=True)

    def of(self, event: str) -> list[dict[str, Any]]:
        """All lines of an event."""
        lines = map(json.loads, self.path.read_text().splitlines()) if self.path.exists() else ()
        return [line for line in lines if line["event"] == event]

    def told(self) -> dict[str, Any]:
        """The whole campaign in numbers."""
        kills = self.of("kill")
        ended, rounds = self.of("ended"), self.of("round")
        seconds = [one["seconds"] for one in ended]
        return {
            "kills_in_all": len(kills),
            "kills": dict(Counter(one["kind"] for one in kills).most_common()),
            "started_again_by_hand_after": dict(
                Counter(one["after"] for one in self.of("again")).most_common()
            ),
            "processes_left": dict(Counter(kind for one in ended for kind in one["left"]).most_common()),
            "seconds_until_all_processes_were_gone": {
                "median": statistics.median_high(seconds or [0]),
                "most": max(seconds, default=0),
            },
            "rounds": rounds,
        }


def one_round(study: Study, dice: random.Random, journal: Journal, options: argparse.Namespace) -> set[str]:
    """Kill and start again until it is enough, then let the study end; the finished files that changed."""
    changed: set[str] = set()
    known: dict[str, str] = {}
    last, starts = WHOLE, 1
    until = len(journal.of("kill")) + options.kills_per_round
    study.start()
    assert study.process is not None
    while not study.complete:
        if study.status is not None:
            seconds, left = study.wait_until_gone()
            journal.add("ended", seconds=seconds, left=left)
            journal.add("again", after=last)
            starts += 1
            if starts > 2 * options.kills_per_round:
                sys.exit(f"the study ends again and again; its log is {study.folder}/campaign.log")
            study.start()
        pause = options.longest_s ** dice.random()  # most are short, some let a step end
        with contextlib.suppress(subprocess.TimeoutExpired):
            study.process.wait(pause)  # at its end what it ran has ENDS_WITHIN_S from now on
        now = study.finished()
        changed |= {name for name, digest in known.items() if now.get(name) != digest}
        known = now
        kills = len(journal.of("kill"))
        if kills < min(until, options.kills) and study.status is None:
            struck = strike(study, dice, options.share_of_whole)
            if struck is not None:
                last = struck
                journal.add("kill", kind=struck)
    now = study.finished()
    changed |= {name for name, digest in known.items() if now.get(name) != digest}
    seconds, left = study.wait_until_gone()
    journal.add("ended", seconds=seconds, left=left)
    return changed


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names whose values differ, or that only one has."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def main() -> None:
    """Run the undisturbed one, then rounds until all kills are done; compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where all of it lies and goes on")
    parser.add_argument("--config", nargs="+", default=[str(ROOT / "configs/ci.yaml")])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--kills-per-round", type=int, default=50)
    parser.add_argument("--longest-s", type=float, default=40, help="longest pause between kills")
    parser.add_argument("--share-of-whole", type=float, default=0.1, help="of the kills, at the whole study")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--begun", type=Path, help="folder of an unfinished run: each round begins with a copy"
    )
    parser.add_argument("--slurm", type=Path, help="short path of a folder for a virtual Slurm")
    options = parser.parse_args()
    adopt_orphans()
    options.folder.mkdir(parents=True, exist_ok=True)
    one_desktop = options.folder / "one_desktop.yaml"
    one_desktop.write_text("desktop: {count: 1}\n")
    configs = [str(Path(name).resolve()) for name in [*options.config, one_desktop]]
    journal = Journal(options.folder / "journal.jsonl")

    def begin(name: str, cluster: Cluster | None = None) -> Study:
        folder = options.folder / name
        if not folder.exists():
            if options.begun is None:
                folder.mkdir()
            else:
                shutil.copytree(options.begun, folder, symlinks=True)  # with times: they decide what runs
        return Study(folder, configs, cluster)

    whole = begin("undisturbed")
    whole.start()
    assert whole.process is not None
    if whole.process.wait():
        sys.exit("the undisturbed study failed:\n" + (whole.folder / "campaign.log").read_text()[-3000:])
    cluster = Cluster(options.slurm) if options.slurm else None
    if cluster:
        cluster.start()
    try:
        while len(journal.of("kill")) < options.kills:
            number = len(journal.of("round")) + 1
            killed = begin(f"round_{number}", cluster)
            dice = random.Random(f"{options.seed} {number} {len(journal.of('kill'))}")
            changed = one_round(killed, dice, journal, options)
            journal.add(
                "round",
                finished_evaluation_files=len(killed.finished()),
                finished_evaluation_files_changed=sorted(changed),
                episodes_compared=len(whole.replies()),
                replies_that_differ=differing(whole.replies(), killed.replies()),
                manifests_compared=len(whole.manifests()),
                manifests_that_differ=differing(whole.manifests(), killed.manifests()),
            )
    finally:
        end_all(living())
        if cluster:
            cluster.stop()
    print(json.dumps({**journal.told(), "begun": options.begun is not None, "seed": options.seed}, indent=1))


if __name__ == "__main__":
    main()
