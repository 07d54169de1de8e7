"""One attempt at a stage, as its processes see it: ``job.json``, named by ``ARPO_JOB``.

The process that trains, the agent loop and the sampler live in different processes; what they share is
this file, never an argument list. And which checkpoints of a training are whole.
"""

import json
import os
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from arpo_replica.base.files import write_atomically
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.training import OfflineConfig, StageConfig, TrainingConfig
from arpo_replica.tasks.splits import ResolvedSplit

VARIABLE = "ARPO_JOB"
COMPLETE_FILE = "complete.json"
"""Written last into a checkpoint: its files and their sizes."""
REPLAY_FILE = "replay.json"
"""The replay store in a checkpoint of verl."""
PREFIX_VERL = "global_step_"
PREFIX_TRL = "checkpoint-"


def mark_complete(folder: Path) -> None:
    """Write the list of a checkpoint's files and sizes, last: a killed writer leaves part of one."""
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != COMPLETE_FILE
    }
    write_atomically(folder / COMPLETE_FILE, json.dumps(sizes, indent=1).encode())


def checkpoints(work: Path, prefix: str = PREFIX_VERL) -> list[int]:
    """Steps of the complete checkpoints: all files that ``complete.json`` lists, in their sizes."""
    found = []
    for path in work.glob(f"{prefix}*"):
        marker = path / COMPLETE_FILE
        if not marker.is_file():
            continue
        sizes = json.loads(marker.read_bytes())
        if all((path / name).is_file() and (path / name).stat().st_size == n for name, n in sizes.items()):
            found.append(int(path.name.removeprefix(prefix)))
    return sorted(found)


class StartStore(BaseModel):
    """What the sampler fills the store of a stage with before its first step."""

    model_config = ConfigDict(extra="forbid")

    episodes: list[Path] = []
    """Folders of recorded successes, in the order in which they are stored. Absolute."""
    before: Path | None = None
    """Folder of the stage whose last store goes on; absolute."""
    stage: str = ""
    """Its name ..."""
    steps: int = 0
    """... and its updates."""
    facts: dict[str, Any] = {}
    """Where it comes from: part of the training's identity and of its manifest."""


class Training(BaseModel):
    """One training of an arm. All paths are absolute."""

    model_config = ConfigDict(extra="forbid")

    config: StudyConfig
    arm: str
    seed: int
    parent_model: Path
    """Model folder that it starts from, Hugging Face format."""
    parent_sha256: str
    """Identity of those weights."""
    out: Path
    """Where its result goes."""

    @cached_property
    def recipe(self) -> TrainingConfig:
        return self.config.recipe(self.arm)

    @property
    def work(self) -> Path:
        """Resumable state: checkpoints, replay items, logs. Unknown to Snakemake."""
        return self.out / "checkpoints"


class Job(Training):
    """What decides an attempt at a stage."""

    stage_name: str
    split: ResolvedSplit = ResolvedSplit(split="", tasks=[])
    """The tasks of the stage; none in an outline."""
    scratch: Path
    """Short path for sockets and logs of this attempt; removed afterwards."""
    attempt: int
    """1, 2, ... counted over resumes."""
    resume_step: int = 0
    """Step of the checkpoint that the attempt goes on from; 0 = from the beginning."""
    provider: str = "arpo_replica.providers.pool:make_provider"
    """``module:function`` that makes the desktops' provider from ``config.desktop``."""
    parser: str = "arpo_replica.training.agent_loop:make_parser"
    """``module:function`` that makes the parser of replies from ``config`` (benchmarks have their own)."""
    store: StartStore = StartStore()
    """What the replay store begins with."""
    preload: bool = True
    """Import the heavy packages once and fork the processes of the training from there (``fork_server``)."""

    @property
    def stage(self) -> StageConfig:
        return self.config.stage(self.stage_name)

    @property
    def items(self) -> Path:
        """Stored trajectories of the replay buffer."""
        return self.work / "replay_items"

    @property
    def steps(self) -> Path:
        """One JSON file per step with what verl's metrics cannot hold."""
        return self.work / "steps"

    @property
    def verl_metrics(self) -> Path:
        """verl's own metrics of this attempt, JSON lines."""
        return self.work / "logs" / f"verl_{self.attempt:03d}.jsonl"

    @property
    def stop_file(self) -> Path:
        """One sentence for the user, written by a training that stops itself for something to be mended."""
        return self.work / "logs" / f"stop_{self.attempt:03d}.txt"

    @property
    def save_file(self) -> Path:
        """Exists while the training shall save after every step, because the job must end soon."""
        return self.work / "save_now"

    def checkpoint(self, step: int) -> Path:
        return self.work / f"global_step_{step}"

    def step_file(self, step: int) -> Path:
        return self.steps / f"step_{step:06d}.json"

    def episodes(self, step: int, rollout: int) -> Path:
        """Root of the recorded episodes of one rollout index of one step."""
        return self.out / "episodes" / f"step_{step:06d}" / f"rollout_{rollout:03d}"


class OfflineJob(Training):
    """A training of an offline arm, as its two processes see it: ``job.json``."""

    indexes: list[Path]
    """Indexes of the episodes."""

    @property
    def method(self) -> OfflineConfig:
        found = self.recipe.offline
        assert found is not None
        return found

    @property
    def weights(self) -> Path:
        """Where the trained weights are written."""
        return self.work / "weights"

    @property
    def facts_file(self) -> Path:
        """What was learnt from, in numbers; packages."""
        return self.work / "facts.json"

    @property
    def history_file(self) -> Path:
        """One object per update."""
        return self.work / "history.jsonl"

    def checkpoint(self, step: int) -> Path:
        return self.work / f"{PREFIX_TRL}{step}"


def outline(config: StudyConfig, arm: str, stage: str, parent_model: Path = Path()) -> Job:
    """A job without places: enough for what depends on the config alone."""
    return Job(
        config=config,
        arm=arm,
        seed=config.seeds[0],
        stage_name=stage,
        parent_model=parent_model,
        parent_sha256="0" * 64,
        out=Path(),
        scratch=Path(),
        attempt=1,
    )


@lru_cache(maxsize=1)
def current_job() -> Job:
    return Job.model_validate_json(Path(os.environ[VARIABLE]).read_bytes())
