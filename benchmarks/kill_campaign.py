"""Does a study survive kills? ``python benchmarks/kill_campaign.py --kills 200`` prints JSON.

Runs the study of the config files (default: configs/ci.yaml; always with one desktop, so that a run repeats
another one reply for reply) twice, each in an empty folder: once undisturbed, and once while SIGKILLs hit
it at random times: the whole study, or a single process of a kind drawn at random (Snakemake, a rule's
script, vLLM, verl, a Ray process, the keeper of the desktops, a desktop's guest, X server, browser). Where
Snakemake has ended it is started again, as its user would. After the last kill the study runs to its end.
Reported are the kills by kind, the starts that a user had to do again, processes left behind, files of
finished evaluation episodes that changed afterwards, and whether replies and manifests equal those of the
undisturbed run.

``--undisturbed FOLDER`` takes a finished run instead of making one, ``--begun FOLDER`` begins the killed
one where another stopped. ``--minutes`` ends the kills early.
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
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
PR_SET_CHILD_SUBREAPER = 36
WHOLE = "the whole study"
KINDS = {
    "Snakemake": r"bin/snakemake( |$)",
    "a rule's script": r"\.snakemake/scripts/",
    "vLLM": r"vllm|VLLM|EngineCore",
    "a Ray process": r"ray::|raylet|gcs_server|ray/_private|ray/dashboard|runtime_env_agent",
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
            found[process.pid] = " ".join(process.cmdline()) or process.name()
    return found


def kind_of(command: str) -> str:
    """Which of ``KINDS`` a command line is; ``another`` if none."""
    return next((kind for kind, words in KINDS.items() if re.search(words, command)), "another")


class Study:
    """One study in a folder of its own, as its user runs it."""

    running = 0
    """Pid of the Snakemake that runs now; its status is Popen's to collect."""

    def __init__(self, folder: Path, configs: list[str]) -> None:
        self.folder = folder
        self.options = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", *configs]
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self) -> None:
        """Start Snakemake; after a kill of it the folder has to be unlocked first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "campaign.log").open("ab") as log:
            if self.starts:
                subprocess.run(
                    [str(SNAKEMAKE), "--unlock", *self.options],
                    cwd=self.folder,
                    stdout=log,
                    stderr=log,
                    check=False,
                )
            self.process = subprocess.Popen(
                [str(SNAKEMAKE), *self.options],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        Study.running = self.process.pid
        self.starts += 1

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

    def manifests(self) -> dict[str, str]:
        """Manifest of a model -> its text."""
        paths = self.folder.glob("results/*/**/manifest.json")
        return {str(path.relative_to(self.folder)): path.read_text() for path in paths}


def wait_until_gone(seconds: float) -> list[str]:
    """Kinds of the processes that are still there when the time is up; they are killed then."""
    deadline = time.monotonic() + seconds
    while (left := living()) and time.monotonic() < deadline:
        time.sleep(0.2)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [kind_of(command) for command in left.values()]


def strike(study: Study, dice: random.Random, share_of_whole: float) -> str | None:
    """Kill the whole study or one process; what it was, or None if there was no job to hit."""
    assert study.process is not None
    kinds: dict[str, list[int]] = {}
    for pid, command in living().items():
        kinds.setdefault(kind_of(command), []).append(pid)
    if not kinds.keys() - {"Snakemake"}:
        return None  # no job runs yet: only the start would be tried, again and again
    if dice.random() < share_of_whole:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(study.process.pid, signal.SIGKILL)
        return WHOLE
    kind = dice.choice(sorted(kinds))
    try:
        os.kill(dice.choice(sorted(kinds[kind])), signal.SIGKILL)
    except ProcessLookupError:
        return None  # it has ended by itself meanwhile
    return kind


def campaign(study: Study, options: argparse.Namespace) -> dict[str, Any]:
    """Kill and start again until enough is done, then let the study end."""
    dice = random.Random(options.seed)
    kills: Counter[str] = Counter()
    again: Counter[str] = Counter()
    left: list[str] = []
    changed: set[str] = set()
    known: dict[str, str] = {}
    last = WHOLE
    until = time.monotonic() + 60 * options.minutes
    study.start()
    while not study.complete:
        if study.status is not None:
            again[last] += 1
            left += wait_until_gone(ENDS_WITHIN_S)
            if again.total() > 2 * options.kills:
                sys.exit(f"the study ends again and again; its log is {study.folder}/campaign.log")
            study.start()
        time.sleep(dice.uniform(0, 2 * options.every_s))
        now = study.finished()
        changed |= {name for name, digest in known.items() if now.get(name) != digest}
        known = now
        if kills.total() < options.kills and time.monotonic() < until and study.status is None:
            struck = strike(study, dice, options.share_of_whole)
            if struck is not None:
                last = struck
                kills[struck] += 1
                print(f"{kills.total()} kills, last: {struck}", file=sys.stderr, flush=True)
        elif study.status is None:
            time.sleep(2)
    now = study.finished()
    changed |= {name for name, digest in known.items() if now.get(name) != digest}
    left += wait_until_gone(ENDS_WITHIN_S)
    return {
        "kills": dict(kills.most_common()),
        "kills_in_all": kills.total(),
        "started_again_by_hand_after": dict(again.most_common()),
        "processes_left": dict(Counter(left).most_common()),
        "finished_evaluation_files": len(now),
        "finished_evaluation_files_changed": sorted(changed),
    }


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names whose values differ, or that only one has."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def main() -> None:
    """Run both, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", nargs="+", default=[str(ROOT / "configs/ci.yaml")])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=180, help="no kills after that time")
    parser.add_argument("--every-s", type=float, default=15, help="seconds between kills, on average")
    parser.add_argument("--share-of-whole", type=float, default=0.15, help="of the kills, at the whole study")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--begun", type=Path, help="folder of an unfinished run: a copy of it is what is killed"
    )
    parser.add_argument("--undisturbed", type=Path, help="folder of a finished run of the same config")
    options = parser.parse_args()
    adopt_orphans()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="campaign-") as scratch:
        one_desktop = Path(scratch, "one_desktop.yaml")
        one_desktop.write_text("desktop: {count: 1}\n")
        configs = [*(str(Path(name).resolve()) for name in options.config), str(one_desktop)]
        whole = Study(options.undisturbed or Path(scratch, "undisturbed"), configs)
        if options.undisturbed is None:
            whole.start()
            assert whole.process is not None
            if whole.process.wait():
                sys.exit(
                    "the undisturbed study failed:\n" + (whole.folder / "campaign.log").read_text()[-3000:]
                )
        killed = Study(Path(scratch, "killed"), configs)
        if options.begun is not None:
            shutil.copytree(options.begun, killed.folder, symlinks=True)  # with times: they decide what runs
        try:
            result = campaign(killed, options)
        finally:
            wait_until_gone(0)
        result |= {
            "replies_that_differ": differing(whole.replies(), killed.replies()),
            "episodes_compared": len(whole.replies()),
            "manifests_that_differ": differing(whole.manifests(), killed.manifests()),
            "manifests_compared": len(whole.manifests()),
        }
    result |= {
        "begun": options.begun is not None,
        "seed": options.seed,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
