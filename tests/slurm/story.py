"""A small study on the virtual cluster, and what can befall it; told once, for all tests of ``test_study``.

From an empty folder to the page, with one ``snakemake --profile slurm``: the node of the first rollouts has
a vLLM that does not start, then a full disk; the training is told to end (as before a time limit), then its
node loses power. Meanwhile the same study runs without a cluster and without accidents.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import psutil

from arpo_replica.base.slurm import read_jobs
from arpo_replica.training.job import checkpoints
from slurm.conftest import SITE, Checkout, end

STUDY = Path("results/slurm")
STAGE = STUDY / "models/arpo/seed_0/stage_train_4"
BASE = STUDY / "episodes/base/seed_0/stage_base"
NO_VLLM = '[ ! -e {mark} ] || [ -n "$CUDA_VISIBLE_DEVICES" ] || export VLLM_LOGGING_LEVEL=broken'
"""Shell: while the file is there, vLLM ends as soon as it starts on nodes without GPUs."""
SMALL_DISK = "size=72k"
"""vLLM's log and some episodes of the base policy, not all."""


class Story:
    """What happened."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout, self.root, self.stage = checkout, checkout.root, checkout.root / STAGE
        self.home = checkout.root.parent / "home"
        self.process: subprocess.Popen[bytes] | None = None
        self.saved_at_notice: list[int] = []
        self.left_after_accident: list[str] = []
        self.said_without_vllm = self.said_with_full_disk = ""
        self.kept: dict[Path, bytes] = {}
        """Files of the episodes that were finished when the disk was full."""

    # --- questions -------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """Steps of the training so far."""
        path = self.stage / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def steps_of(self, attempt: int) -> int:
        """Steps that an attempt has finished."""
        return sum(row["attempt"] == attempt for row in self.rows())

    def jobs(self, rule: str, arm: str) -> list[dict[str, Any]]:
        """The recorded jobs of a rule, oldest first."""
        recorded = read_jobs(self.root / STUDY)
        return [job for job in recorded if job["rule"] == rule and f"/{arm}/" in job["output"]]

    def processes(self) -> list[str]:
        """Living processes of the training."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("ARPO_JOB", "").startswith(str(self.stage))
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found

    def output_of(self, job: str) -> str:
        """What a job said."""
        logs = (self.root / "results" / "slurm_logs").rglob(f"{job}.log")
        return "".join(path.read_text(errors="replace") for path in logs)

    def episodes(self) -> dict[Path, bytes]:
        """The files of the base policy's finished episodes."""
        ended = (self.root / BASE).glob("*/trial_*/*/episode.json")
        return {
            path: path.read_bytes()
            for episode in ended
            if not episode.parent.name.startswith(".")
            for path in episode.parent.iterdir()
        }

    def wait_for(self, condition: Callable[[], object], seconds: float) -> None:
        """Poll until true, as long as the study runs; fails with what was said last."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                logs = sorted(
                    (self.root / "results/slurm_logs").rglob("*.log"), key=lambda log: log.stat().st_mtime
                )
                tails = [path.read_text(errors="replace")[-2000:] for path in logs[-2:]]
                raise AssertionError("\n".join([self.checkout.said()[-3000:], *tails]))
            time.sleep(0.2)

    # --- the story -------------------------------------------------------------------------------

    def tell(self, model: Path) -> None:
        """Run it all. ``model``: folder of the policy."""
        self.checkout.prepare(model)
        broken = self.root / "no_vllm"
        broken.touch()
        (self.root / "slurm/site.yaml").write_text(SITE + f"setup: ['{NO_VLLM.format(mark=broken)}']\n")
        disk = self.root / BASE
        disk.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", SMALL_DISK, "tmpfs", str(disk)], check=True)
        self.home.mkdir()
        self.process = self.checkout.start("--set-resources", "train_stage:gres='gpu:2'", HOME=str(self.home))
        try:
            with ThreadPoolExecutor() as pool:
                scenes = [pool.submit(self.break_rollouts, broken), pool.submit(self.break_training)]
                try:
                    for scene in as_completed(scenes):
                        scene.result()
                except BaseException:
                    end(self.process)  # the other scene then ends as well
                    raise
            assert self.process.wait(600) == 0, self.checkout.said()[-3000:]
        finally:
            end(self.process)
            # What is on that disk goes where the disk was.
            subprocess.run(["cp", "-a", str(disk), f"{disk}.copy"], check=True)
            subprocess.run(["umount", str(disk)], check=True)
            disk.rmdir()
            Path(f"{disk}.copy").rename(disk)

    def break_rollouts(self, broken: Path) -> None:
        """The first job of the base policy has no vLLM, the second a disk that is too small."""

        def said(attempt: int) -> str:
            jobs = self.jobs("collect_rollouts", "base")
            return self.output_of(jobs[attempt]["job"]) if len(jobs) > attempt else ""

        self.wait_for(lambda: "vLLM ended with status" in said(0), 600)
        broken.unlink()
        self.wait_for(lambda: "The disk is full" in said(1), 600)
        self.kept = self.episodes()
        subprocess.run(["mount", "-o", "remount,size=100m", str(self.root / BASE)], check=True)
        self.said_without_vllm, self.said_with_full_disk = said(0), said(1)

    def break_training(self) -> None:
        """The training is told to end, and its next job loses its node."""
        cluster = self.checkout.cluster
        self.wait_for(lambda: self.steps_of(1) >= 1, 600)
        first = self.jobs("train_stage", "arpo")[-1]["job"]
        cluster.command("scancel", "--signal=URG", first)
        self.wait_for(lambda: first not in cluster.jobs(), 90)
        self.saved_at_notice = checkpoints(self.stage / "checkpoints")
        self.wait_for(lambda: self.steps_of(2) >= 1, 600)
        second = self.jobs("train_stage", "arpo")[-1]["job"]
        node = cluster.show(second)["BatchHost"]
        cluster.lose_node(node)
        deadline = time.monotonic() + 40
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.2)
        self.left_after_accident = self.processes()
        cluster.heal_node(node)


def equal_parts(study: Path) -> dict[str, Any]:
    """What must be the same in two runs of a study, whatever befell them.

    That is all but times (seconds, and the throughput made of them), numbers of attempts, and hashes of files
    that hold these. Policies (``manifest.json``) are compared byte for byte.
    """
    summary = json.loads((study / "summary.json").read_bytes())
    for name in ("throughput", "files", "inputs"):
        del summary[name]
    summary["effort"] = [
        {name: value for name, value in row.items() if not name.endswith("_seconds")}
        for row in summary["effort"]
    ]
    for curve in summary["curves"]:
        for point in curve["points"]:
            del point["seconds"], point["other"]["attempt"]
    claims = json.loads((study / "claims.json").read_bytes())
    del claims["inputs"]
    texts = {}
    for path in sorted((study / "episodes").rglob("steps.jsonl")):
        steps = [json.loads(line) for line in path.read_text().splitlines()]
        texts[str(path.relative_to(study))] = [step["text"] for step in steps]
    manifests = {
        str(path.relative_to(study)): path.read_text() for path in study.glob("models/**/manifest.json")
    }
    return {"summary": summary, "claims": claims, "texts": texts, "manifests": manifests}
