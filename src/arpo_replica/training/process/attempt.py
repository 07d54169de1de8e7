"""One attempt at a stage as seen from outside: start it, watch it, end it.

Runs in the light environment; the training itself is ``launch`` in the heavy one, below a guard
(``base.supervisor``) that leaves no process and no scratch file behind, whoever dies first.
"""

import contextlib
import logging
import os
import re
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from arpo_replica.base.environments import heavy_environment, python_of
from arpo_replica.base.errors import Stopped, UserError
from arpo_replica.base.files import write_atomically
from arpo_replica.base.processes import command_of, descendants, is_alive, memory_mb, oom_kills
from arpo_replica.base.supervisor import start_guarded, stop_guarded
from arpo_replica.base.tables import filled, table_of
from arpo_replica.policy.vllm_server import quiet_environment
from arpo_replica.training.job import Job, checkpoints
from arpo_replica.training.metrics import collect, to_jsonl, unbroken
from arpo_replica.training.process.failures import PORT_TAKEN, explain, kernel_killed, known
from arpo_replica.training.process.ray_cluster import OTHER_MAKERS
from arpo_replica.training.recipe import updates_within

logger = logging.getLogger(__name__)

POLL_S = 0.5
GRACE_S = 3
NOISE = re.compile(r"nanobind: | - leaked | - \.\.\. skipped|See https://nanobind")
TAIL_LINES = 40
EXPLAINED_LINES = 400
LOOK_S = 1
"""Seconds between two looks at the processes: one that lives for less than that is not missed later."""
MEASURE_S = 5
"""Seconds between two measurements of their memory."""
ESSENTIAL = re.compile(
    r"^ray::(?:vLLM|\w*WorkerDict|AgentLoopWorker|TaskRunner)|^VLLM::|EngineCore"
    r"|arpo_replica\.training\.process\.keeper"
)
"""Processes that a training cannot go on without, by their titles (Ray, verl 0.9.1 and vLLM set them)."""


GRACE = "ARPO_GRACE_S"
"""Environment variable: seconds between the warning and the end of the job. Set by the cluster's profile."""
WARNING = signal.SIGURG
"""What warns of the time limit; ``--signal=URG@seconds`` in the profile."""
RESERVE_S = 20.0
"""Of these, kept back for ending the processes."""


class Stalled(RuntimeError):
    """A training that made no progress for ``training.stall_timeout_s``."""


class PortTaken(UserError):
    """The trainers could not meet: another program was quicker. The next start asks for another port."""


@dataclass
class Notice:
    """Whether, and when, a signal came that asks the job to end.

    Before a job's time limit Slurm sends the signal that the profile names, to every process of the job. It
    is SIGURG, because all others ignore it: SIGTERM would end Ray and vLLM as well. The training is then
    asked to save after the step that it is at (``Job.save_file``; the sampler looks for it), and ends as
    soon as that checkpoint is whole, or when the time that is left is over. After SIGTERM (pre-emption,
    ``scancel``) it ends at once; the newest checkpoint is what a new run goes on from.
    """

    grace_s: float = 0.0
    """Seconds that a checkpoint may take."""
    came_at: float | None = None
    """``time.monotonic()``."""

    @property
    def came(self) -> bool:
        return self.came_at is not None

    def over(self) -> bool:
        """True if there is no more time to wait for a checkpoint."""
        return self.came_at is not None and time.monotonic() - self.came_at >= self.grace_s

    def give(self, *, at_once: bool = False) -> None:
        """A signal came; a second warning changes nothing. ``at_once``: no time is left."""
        if at_once:
            self.grace_s = 0.0
        if self.came_at is None:
            self.came_at = time.monotonic()


def grace_of(environment: Mapping[str, str] = os.environ) -> float:
    """Seconds in which a training may still save."""
    text = environment.get(GRACE, "")
    return max(0.0, float(text) - RESERVE_S) if text.replace(".", "", 1).isdigit() else 0.0


@contextmanager
def listening() -> Iterator[Notice]:
    """Turn ``WARNING`` and SIGTERM into a notice meanwhile; outside of the main thread nothing can listen."""
    notice = Notice(grace_of())
    if threading.current_thread() is not threading.main_thread():
        yield notice
        return

    def hear(number: int, frame: FrameType | None) -> None:
        notice.give(at_once=number == signal.SIGTERM)

    before = {number: signal.signal(number, hear) for number in (WARNING, signal.SIGTERM)}
    try:
        yield notice
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def environment(job: Job) -> dict[str, str]:
    """The environment of a training: ``environment.yaml`` over that of this process.

    W&B stays offline unless the user's environment says otherwise.
    """
    wandb, wanted = job.recipe.wandb, "wandb" in job.recipe.loggers
    written = table_of(__file__, "environment.yaml")
    named = filled(
        written["all"] | written["loggers"] | written[job.config.accelerator],
        job=job,
        wandb_mode=os.environ.get("WANDB_MODE", "offline") if wanted else "disabled",
        wandb_tags=",".join(wandb.tags),
        wandb_run=run_id(job.work / "wandb_id") if wanted else None,
    )
    return {
        # Slurm names a job's GPUs for every maker at once, which verl refuses.
        **{name: value for name, value in os.environ.items() if name not in OTHER_MAKERS},
        **quiet_environment(job.config, job.scratch),
        **{name: str(value) for name, value in named.items() if value},
    }


def run_id(path: Path) -> str:
    """What W&B knows a training by: drawn at its first attempt, kept for those that go on."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, uuid.uuid4().hex[:16].encode())
    return path.read_text()


class Attempt:
    """A running training."""

    def __init__(self, job: Job, python: Path | None = None, notice: Notice | None = None) -> None:
        """Start it. ``python``: interpreter of the heavy environment. ``notice``: says when to leave."""
        self.job = job
        self.notice = notice or Notice()
        self.log_path = job.work / "logs" / f"train_{job.attempt:03d}.log"
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        job.scratch.mkdir(mode=0o711, exist_ok=True)  # the guard of the attempt before removed it
        (job.scratch / "stacks").mkdir(exist_ok=True)
        job_file = job.work / "job.json"
        write_atomically(job_file, job.model_dump_json(indent=1).encode())
        python = python or python_of(heavy_environment(job.config.accelerator))
        command = [str(python), "-m", "arpo_replica.training.process.launch", str(job_file)]
        self.started = time.monotonic()
        self.rows: list[dict[str, Any]] = []
        self.peak_mb = 0.0
        self._oom_kills = oom_kills()
        self._progress = (self.started, (0, 0))
        self._saved_before = 0
        self._looked = self._measured = 0.0
        self._essential: dict[int, str] = {}
        """pid -> command of the processes that live as long as the training."""
        self._gone_since: float | None = None
        self.process = start_guarded(
            command, GRACE_S, log=self.log_path, scratch=job.scratch, cwd=job.work, env=environment(job)
        )

    def wait(self) -> None:
        """Until it ends well. Prints a line per step.

        Raises ``UserError`` for a key that verl refuses, ``PortTaken``, ``Stalled``, ``Stopped`` after a
        notice, RuntimeError for any other failure.
        """
        try:
            while (status := self._poll()) is None:
                if self.notice.came:
                    self._leave()
                time.sleep(POLL_S)
            self._read()
        finally:
            stop_guarded(self.process, GRACE_S + 30)
        if status != 0 and self.notice.came:
            self._leave(now=True)
        if status != 0:
            if self.job.stop_file.is_file():
                raise UserError(self.job.stop_file.read_text())
            log = self.tail(EXPLAINED_LINES)
            if reason := explain(log, self.job, oom_kills() - self._oom_kills):
                fit = known(log)
                kind = PortTaken if fit is not None and fit[0] == PORT_TAKEN else UserError
                raise kind(f"{reason} The log is {self.log_path}; a new run goes on where this one was.")
            raise RuntimeError(
                f"the training ended with status {status}; its log is {self.log_path}\n{self.tail()}"
            )

    def _leave(self, *, now: bool = False) -> None:
        """Ask for a checkpoint; raise ``Stopped`` once it is there, or no time is left to wait for it.

        ``now``: the signal ended the training as well.
        """
        saved = [step for step in checkpoints(self.job.work) if step <= unbroken(self.rows)]
        if not self.job.save_file.exists():
            self._saved_before = max(saved, default=0)
            self.job.save_file.touch()
            logger.info("a signal asks the job to end")
        newest = max(saved, default=0)
        if now or newest > self._saved_before or self.notice.over():
            raise Stopped(f"The training was stopped by a signal; a new run goes on after step {newest}.")

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The end of its log, without what Triton's bindings say at the end of every process."""
        with self.log_path.open(errors="replace") as file:
            return "".join(deque((line for line in file if not NOISE.match(line)), lines))

    def _poll(self) -> int | None:
        status = self.process.poll()
        self._read()
        now = time.monotonic()
        marks = (len(self.rows), self._episodes())
        if marks != self._progress[1]:
            self._progress = (now, marks)
        elif now - self._progress[0] > self.job.recipe.stall_timeout_s:
            dump = self._dump()
            raise Stalled(
                f"the training made no progress for {self.job.recipe.stall_timeout_s} s "
                f"(training.stall_timeout_s); its state is in {dump}"
            )
        if now - self._looked > LOOK_S:
            self._looked = now
            below = descendants(self.process.pid)
            self._check_alive(below, now)
            if now - self._measured > MEASURE_S:
                self._measured = now
                self.peak_mb = max(self.peak_mb, memory_mb(below))
        return status

    def _check_alive(self, below: list[psutil.Process], now: float) -> None:
        """Raise ``Stalled`` when a process that the training needs has been gone for a while.

        verl waits for ever for a vLLM that died while it was sent weights; nobody else would notice.
        """
        living = {process.pid: process for process in below if is_alive(process)}
        for pid, process in living.items():
            if found := ESSENTIAL.search(command_of(process)):
                self._essential[pid] = found[0]
        gone = [pid for pid in self._essential if pid not in living]
        over = bool(self.rows) and self.rows[-1]["step"] >= self.job.stage.steps
        if not gone or over:
            self._gone_since = None
        elif self._gone_since is None:
            self._gone_since = now
        elif now - self._gone_since > self.job.recipe.dead_after_s:
            names = ", ".join(sorted({self._essential[pid] for pid in gone}))
            killed = oom_kills() - self._oom_kills
            why = f" {kernel_killed(killed)}" if killed else ""
            raise Stalled(
                f"a process of the training died ({names}) and the others wait for it; the state is in "
                f"{self._dump()}.{why}"
            )

    def _read(self) -> None:
        """Take over new steps from the logs: ``metrics.jsonl`` and a line each."""
        rows = collect(self.job.verl_metrics.parent, self.job.steps)
        known = {row["step"] for row in self.rows if row["attempt"] == self.job.attempt}
        new = [r for r in rows if r["attempt"] == self.job.attempt and r["step"] not in known]
        self.rows = rows
        if new:
            write_atomically(self.job.out / "metrics.jsonl", to_jsonl(rows))
        for row in new:
            logger.info(self._line(row))

    def _line(self, row: dict[str, Any]) -> str:
        job, steps = self.job, self.job.stage.steps
        done = row["step"] - job.resume_step
        elapsed = time.monotonic() - self.started
        seconds = [r["seconds"]["total"] or 0.0 for r in self.rows if r["attempt"] == job.attempt]
        pace = sum(seconds[-5:]) / max(1, len(seconds[-5:]))
        start = f", first step after {elapsed:.0f} s" if done == 1 else ""
        return (
            f"{job.arm} seed {job.seed} {job.stage_name}: step {row['step']}/{steps}  "
            f"reward {row['reward_before']:.3f} -> {row['reward_after']:.3f}  success {row['success']:.2f}  "
            f"swapped {row['swapped_groups']}/{row['groups']}  env errors {row['env_errors']}  "
            f"{row['seconds']['total']:.1f} s/step  ETA {pace * (steps - row['step']):.0f} s{start}"
        )

    def _episodes(self) -> int:
        """Recorded episodes of the step that is running, and of those whose rollouts it may wait for."""
        own = [row["step"] for row in self.rows if row["attempt"] == self.job.attempt]
        step = max(own, default=self.job.resume_step) + 1
        begun = range(max(1, step - updates_within(self.job.recipe)), step + 1)
        folders = [self.job.episodes(number, 0).parent for number in begun]
        return sum(1 for folder in folders for _ in folder.glob("rollout_*/*/episode.json"))

    def _dump(self) -> Path:
        """Write process table, stacks and the log's end to a file."""
        below = descendants(self.process.pid)
        stacks = self.job.scratch / "stacks"
        for process in below:
            if (stacks / f"{process.pid}.txt").exists():  # it handles the signal
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGUSR1)
        time.sleep(1)
        parts = ["pid, parent, state, CPU time, command", *map(_line_of, below)]
        for process in below:
            path = stacks / f"{process.pid}.txt"
            if path.exists():
                parts += ["", f"--- stacks of {process.pid} {command_of(process)}", path.read_text()]
        parts += ["", "--- end of the log", self.tail()]
        path = self.job.work / "logs" / f"stall_{self.job.attempt:03d}.txt"
        write_atomically(path, "\n".join(parts).encode())
        return path


def _line_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        busy = times.user + times.system
        return f"{process.pid:8d} {process.ppid():8d} {process.status()} {busy:9.1f} s  {command_of(process)}"
    return f"{process.pid:8d} has ended"
