"""Which episodes stand behind a number: checkpoints, pairs of them, runs per task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.records import Protocol

UNTRAINED = "base"
"""Arm and stage of the policy before training."""
Runs = dict[str, list[bool]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An arm at a stage, with the training seeds it is measured for."""

    arm: str
    stage: str
    seeds: tuple[int, ...]

    def place(self, split: str, protocol: Protocol) -> dict[str, Any]:
        """The fields by which a row of results says where it belongs."""
        return {"arm": self.arm, "stage": self.stage, "split": split, "protocol": protocol}

    def place_against(self, theirs: Checkpoint, split: str, protocol: Protocol) -> dict[str, Any]:
        """The same for a row that compares it with another checkpoint."""
        return self.place(split, protocol) | {"reference": theirs.arm, "reference_stage": theirs.stage}

    def seed_groups(self) -> list[int | None]:
        """Each seed by itself; with several also all together (None), first."""
        return [None, *self.seeds] if len(self.seeds) > 1 else list(self.seeds)


def checkpoints_of(config: StudyConfig, table: pd.DataFrame) -> Iterator[Checkpoint]:
    """What was measured, and what the config wants measured: each trained arm after its last stage."""
    for arm in config.arms:
        episodes = table[table["arm"] == arm]
        stages = {str(stage) for stage in episodes["stage"]}
        if arm == UNTRAINED:
            stages = stages or {UNTRAINED}
        else:
            stages.add(config.training.stages[-1].name)
        for stage in sorted(stages, key=lambda name: stage_order(config, name)):
            seeds = {int(seed) for seed in episodes[episodes["stage"] == stage]["seed"]}
            wanted = set(config.seeds) if arm != UNTRAINED else set()
            yield Checkpoint(arm, stage, tuple(sorted(seeds | wanted)) or (config.seeds[0],))


def pairs_of(checkpoints: list[Checkpoint]) -> Iterator[tuple[Checkpoint, Checkpoint]]:
    """Every trained arm against base; arpo against every other trained arm at the same stage."""
    for ours in checkpoints:
        for theirs in checkpoints:
            against_base = ours.arm != UNTRAINED and theirs.arm == UNTRAINED
            others = theirs.arm not in (UNTRAINED, "arpo")
            replay = ours.arm == "arpo" and others and ours.stage == theirs.stage
            if against_base or replay:
                yield ours, theirs


def select(table: pd.DataFrame, checkpoint: Checkpoint, seed: int | None, split: str) -> pd.DataFrame:
    """Episodes of a checkpoint on a split; ``seed`` None: of all its seeds."""
    mask = (table["arm"] == checkpoint.arm) & (table["stage"] == checkpoint.stage) & (table["split"] == split)
    return table[mask] if seed is None else table[mask & (table["seed"] == seed)]


def runs_of(episodes: pd.DataFrame, protocol: Protocol) -> Runs:
    """Task (``domain/task``) -> success of each valid episode. Tasks without a valid episode are absent."""
    runs: Runs = {}
    valid = episodes[episodes["valid"]]
    for domain, task, success in zip(
        valid["domain"], valid["task_id"], valid[f"success_{protocol}"], strict=True
    ):
        runs.setdefault(f"{domain}/{task}", []).append(bool(success))
    return runs


def sources_of(*episodes: pd.DataFrame) -> list[str]:
    """Paths of the indexes that the episodes were read from."""
    return sorted({str(path) for part in episodes for path in part["index"].unique() if path})


def arm_order(config: StudyConfig, arm: str) -> int:
    """Place of an arm in the config; unknown ones last."""
    arms = list(config.arms)
    return arms.index(arm) if arm in arms else len(arms)


def stage_order(config: StudyConfig, stage: str) -> int:
    """Place of a stage in the config; the untrained policy first."""
    names = [s.name for s in config.training.stages]
    return names.index(stage) if stage in names else -1
