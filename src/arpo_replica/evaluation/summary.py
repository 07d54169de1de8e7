"""The study in numbers: ``summary.json`` from the table of episodes, metrics and manifests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation import statistics as st
from arpo_replica.evaluation.curves import read_curve, read_model
from arpo_replica.evaluation.schema import (
    PROTOCOLS,
    DifferenceRow,
    EffortRow,
    IntervalRecord,
    Protocol,
    RateRow,
    SplitFacts,
    StatisticsFacts,
    Summary,
    input_file,
    write_document,
)
from arpo_replica.evaluation.scores import read_scores
from arpo_replica.tasks.model import Task
from arpo_replica.tasks.splits import load_split

UNTRAINED = "base"
"""Arm and stage of the policy before training."""
Runs = dict[str, list[bool]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An arm at a stage, with the training seeds it is measured for."""

    arm: str
    stage: str
    seeds: tuple[int, ...]

    def seed_groups(self) -> list[int | None]:
        """Each seed by itself; with several also all together (None), first."""
        return [None, *self.seeds] if len(self.seeds) > 1 else list(self.seeds)


def summarise_study(
    config: StudyConfig,
    scores: Path,
    metrics: Sequence[Path],
    manifests: Sequence[Path],
    out_json: Path,
) -> Summary:
    """Write ``summary.json``: rates, paired differences, effort, curves, what is missing, provenance.

    ``scores`` is the parquet of ``score_episodes``; ``metrics`` and ``manifests`` are the stages'
    ``metrics.jsonl`` and ``manifest.json``; either may be empty. Raises ``UserError`` for a file that
    cannot be read.
    """
    table = read_scores(scores)
    splits = {
        name: load_split(config.tasks.splits[name], config.tasks.root) for name in _splits(config, table)
    }
    checkpoints = list(_checkpoints(config, table))
    rates = [row for checkpoint in checkpoints for row in _rates(config, table, splits, checkpoint)]
    summary = Summary(
        study=config.study,
        size=config.size,
        desktop=config.desktop.provider,
        seeds=config.seeds,
        trials=config.evaluation.trials,
        splits={name: _split_facts(config, name, tasks) for name, tasks in splits.items()},
        rates=rates,
        differences=list(_differences(table, list(splits), checkpoints)),
        effort=list(_effort(table)),
        curves=sorted(
            (read_curve(path) for path in metrics),
            key=lambda c: (_order(config, c.arm), c.seed, _stage_order(config, c.stage)),
        ),
        models=[read_model(path) for path in sorted(manifests)],
        not_run=_not_run(config, rates, metrics),
        statistics=StatisticsFacts(
            confidence=st.CONFIDENCE,
            resamples=st.RESAMPLES,
            seed=st.SEED,
            scipy=version("scipy"),
            statsmodels=version("statsmodels"),
        ),
        inputs=[input_file(path) for path in [scores, *sorted(metrics), *sorted(manifests)]],
    )
    write_document(summary, out_json)
    return summary


def _splits(config: StudyConfig, table: pd.DataFrame) -> list[str]:
    """Splits of the evaluation in the config's order, then any other that has episodes."""
    others = sorted(set(table["split"]) - set(config.evaluation.splits))
    return [*config.evaluation.splits, *others]


def _checkpoints(config: StudyConfig, table: pd.DataFrame) -> Iterator[Checkpoint]:
    """What was measured, and what the config wants measured: each trained arm after its last stage."""
    for arm in config.arms:
        episodes = table[table["arm"] == arm]
        stages = {str(stage) for stage in episodes["stage"]}
        if arm == UNTRAINED:
            stages = stages or {UNTRAINED}
        else:
            stages.add(config.training.stages[-1].name)
        for stage in sorted(stages, key=lambda name: _stage_order(config, name)):
            seeds = {int(seed) for seed in episodes[episodes["stage"] == stage]["seed"]}
            wanted = set(config.seeds) if arm != UNTRAINED else set()
            yield Checkpoint(arm, stage, tuple(sorted(seeds | wanted)) or (config.seeds[0],))


def _rates(
    config: StudyConfig, table: pd.DataFrame, splits: dict[str, list[Task]], checkpoint: Checkpoint
) -> Iterator[RateRow]:
    for split, tasks in splits.items():
        for seed in checkpoint.seed_groups():
            episodes = _select(table, checkpoint, seed, split)
            runs_per_task = config.evaluation.trials * (len(checkpoint.seeds) if seed is None else 1)
            expected = max(len(tasks) * runs_per_task, len(episodes))
            valid = episodes[episodes["valid"]]
            unscored = expected - len(valid)
            infeasible = valid[valid["infeasible"]]
            for protocol in PROTOCOLS:
                runs = _runs(episodes, protocol)
                column = f"success_{protocol}"
                successes = int(valid[column].sum())
                yield RateRow(
                    arm=checkpoint.arm,
                    stage=checkpoint.stage,
                    seed=seed,
                    split=split,
                    protocol=protocol,
                    tasks=len(tasks),
                    expected=expected,
                    valid=len(valid),
                    env_errors=len(episodes) - len(valid),
                    missing=expected - len(episodes),
                    truncated=int((valid["outcome"] == "truncated").sum()),
                    successes=successes,
                    of_valid=IntervalRecord.of(st.success_rate(runs)) if runs else None,
                    of_all_low=successes / expected,
                    of_all_high=(successes + unscored) / expected,
                    conditional_se=st.conditional_se(runs),
                    infeasible_valid=len(infeasible),
                    infeasible_successes=int(infeasible[column].sum()),
                )


def _select(table: pd.DataFrame, checkpoint: Checkpoint, seed: int | None, split: str) -> pd.DataFrame:
    mask = (table["arm"] == checkpoint.arm) & (table["stage"] == checkpoint.stage) & (table["split"] == split)
    return table[mask] if seed is None else table[mask & (table["seed"] == seed)]


def _runs(episodes: pd.DataFrame, protocol: Protocol) -> Runs:
    """Task -> success of each valid episode. Tasks without a valid episode are absent."""
    runs: Runs = {}
    valid = episodes[episodes["valid"]]
    for domain, task, success in zip(
        valid["domain"], valid["task_id"], valid[f"success_{protocol}"], strict=True
    ):
        runs.setdefault(f"{domain}/{task}", []).append(bool(success))
    return runs


def _differences(
    table: pd.DataFrame, splits: list[str], checkpoints: list[Checkpoint]
) -> Iterator[DifferenceRow]:
    """Every trained arm against base; arpo against grpo at the same stage."""
    for ours, theirs in _pairs(checkpoints):
        for split in splits:
            for seed in ours.seed_groups():
                # Base is the same policy for every training seed: all its episodes count.
                their_seed = seed if seed in theirs.seeds and theirs.arm != UNTRAINED else None
                for protocol in PROTOCOLS:
                    found = st.paired_difference(
                        _runs(_select(table, ours, seed, split), protocol),
                        _runs(_select(table, theirs, their_seed, split), protocol),
                    )
                    if found is not None:
                        yield DifferenceRow(
                            arm=ours.arm,
                            reference=theirs.arm,
                            stage=ours.stage,
                            reference_stage=theirs.stage,
                            seed=seed,
                            split=split,
                            protocol=protocol,
                            tasks=found.tasks,
                            dropped=list(found.dropped),
                            difference=IntervalRecord.of(found.interval),
                            bootstrap=None if found.bootstrap is None else IntervalRecord.of(found.bootstrap),
                            p_value=found.p_value,
                        )


def _pairs(checkpoints: list[Checkpoint]) -> Iterator[tuple[Checkpoint, Checkpoint]]:
    for ours in checkpoints:
        for theirs in checkpoints:
            against_base = ours.arm != UNTRAINED and theirs.arm == UNTRAINED
            replay = ours.arm == "arpo" and theirs.arm == "grpo" and ours.stage == theirs.stage
            if against_base or replay:
                yield ours, theirs


def _effort(table: pd.DataFrame) -> Iterator[EffortRow]:
    for (arm, stage, split), episodes in table.groupby(["arm", "stage", "split"], sort=True):
        yield EffortRow(
            arm=str(arm),
            stage=str(stage),
            split=str(split),
            episodes=len(episodes),
            steps=int(episodes["n_steps"].sum()),
            format_errors=int(episodes["format_errors"].sum()),
            retried=int((episodes["attempts"] > 1).sum()),
            failed_attempts=int(episodes["failed_attempts"].sum()),
            episode_seconds=round(float(episodes["duration_s"].sum()), 3),
            model_seconds=round(float(episodes["model_s"].sum()), 3),
            env_seconds=round(float(episodes["env_s"].sum()), 3),
            completion_tokens=int(episodes["completion_tokens"].sum()),
        )


def _split_facts(config: StudyConfig, name: str, tasks: list[Task]) -> SplitFacts:
    digest = hashlib.sha256("".join(task.sha256 for task in tasks).encode()).hexdigest()
    return SplitFacts(
        tasks=len(tasks),
        infeasible=sum(task.infeasible for task in tasks),
        list_sha256=hashlib.sha256(config.tasks.splits[name].read_bytes()).hexdigest(),
        tasks_sha256=digest,
        trained_on=any(stage.split == name for stage in config.training.stages),
    )


def _not_run(config: StudyConfig, rates: list[RateRow], metrics: Sequence[Path]) -> list[str]:
    sentences = []
    if not metrics and set(config.arms) - {UNTRAINED}:
        sentences.append("No training metrics were found: there are no learning curves.")
    for row in rates:
        if row.protocol != "hard" or (row.seed is None):
            continue
        where = f"{row.arm}, stage {row.stage}, seed {row.seed}, {row.split}"
        if row.missing == row.expected:
            sentences.append(f"{where}: no episode was run ({row.expected} expected).")
        elif row.missing:
            sentences.append(f"{where}: {row.missing} of {row.expected} episodes were not run.")
        if row.env_errors and not row.valid:
            sentences.append(f"{where}: every episode ended in an environment failure, so there is no rate.")
        elif row.env_errors:
            sentences.append(
                f"{where}: {row.env_errors} of {row.expected} episodes are environment failures."
            )
    return sentences


def _order(config: StudyConfig, arm: str) -> int:
    arms = list(config.arms)
    return arms.index(arm) if arm in arms else len(arms)


def _stage_order(config: StudyConfig, stage: str) -> int:
    names = [s.name for s in config.training.stages]
    return names.index(stage) if stage in names else -1
