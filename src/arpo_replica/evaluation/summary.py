"""The study in numbers: ``summary.json`` from the table of episodes, metrics and manifests.

Rates and paired differences first; then results broken down (by domain, by kind of task, by number of tries,
task by task between arms) and what they took: throughput, machine time, environment failures, replay.
``Checkpoint`` and ``select`` say which episodes stand behind a number.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from arpo_replica.base.checkout import git_state
from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import write_document
from arpo_replica.config.desktop import desktop_mark
from arpo_replica.config.models import BASE_STAGE, GIVEN_STAGES, StudyConfig
from arpo_replica.evaluation import records as r
from arpo_replica.evaluation import statistics as st
from arpo_replica.evaluation.provenance import source_files
from arpo_replica.evaluation.replay_effect import replay_effects, training_outcomes
from arpo_replica.evaluation.scores import (
    failure_rows,
    place_of,
    read_curve,
    read_model,
    read_offline,
    read_scores,
)
from arpo_replica.tasks.model import Task
from arpo_replica.tasks.splits import kept, left_out_of, load_split, read_left_out, read_split, split_size
from arpo_replica.training.gates import StageReport

ROLES = ("benchmark", "selected", "in_domain", "out_of_domain")
"""Keys of `targets` that name a split."""


def summarise_study(
    config: StudyConfig,
    scores: Path,
    metrics: Sequence[Path],
    manifests: Sequence[Path],
    out_json: Path,
    *,
    reports: Sequence[Path] = (),
    learning: Sequence[Path] = (),
) -> r.Summary:
    """Write ``summary.json``: rates, paired differences, effort, curves, what is missing, provenance.

    ``scores`` is the parquet of ``score_episodes``; ``metrics`` and ``manifests`` are the stages'
    ``metrics.jsonl`` and ``manifest.json``, ``reports`` their ``stage_report.json``, ``learning`` the
    offline arms' ``learning.jsonl``; each may be empty.
    Raises ``UserError`` for a file that cannot be read.
    """
    read = [scores, *sorted(metrics), *sorted(manifests), *sorted(reports), *sorted(learning)]
    inputs = [r.input_file(path) for path in read]
    summary = summarise(config, read_scores(scores), metrics, manifests, inputs)
    gates = (StageReport.model_validate_json(path.read_bytes()) for path in reports)
    summary.gates = ordered(config, gates)
    of_stage = {path.parent: path for path in manifests}
    summary.offline = ordered(
        config, (_offline(config, path, of_stage.get(path.parent)) for path in learning)
    )
    summary.not_run += [report.reason for report in summary.gates if report.reason is not None]
    write_document(summary, out_json)
    return summary


def _offline(config: StudyConfig, path: Path, manifest: Path | None) -> r.OfflineTraining:
    arm = place_of(path)[0]
    offline = config.recipe(arm).offline if arm in config.offline_arms else None
    if offline is None:
        raise UserError(f"{path} belongs to '{arm}', which is no offline arm of the config; leave it out.")
    return read_offline(path, offline.method, manifest)


def summarise(
    config: StudyConfig,
    table: pd.DataFrame,
    metrics: Sequence[Path],
    manifests: Sequence[Path],
    inputs: list[r.InputFile],
) -> r.Summary:
    """The same from a table of episodes, without writing."""
    lists = {
        name: load_split(config.tasks.splits[name], config.tasks.root) for name in _splits(config, table)
    }
    # What is run; the lists' own sizes count in "of all" alone.
    splits = {name: kept(config, name, tasks) for name, tasks in lists.items()}
    trained = {
        f"{domain}/{task_id}"
        for split in config.training_splits
        for domain, ids in read_split(config.tasks.splits[split]).tasks.items()
        for task_id in ids
    } - set(read_left_out(config))
    checkpoints = list(checkpoints_of(config, table))
    rates = [row for checkpoint in checkpoints for row in _rates(config, table, lists, checkpoint)]
    curves = ordered(config, map(read_curve, metrics))
    trainings = list(training_outcomes(config, curves))
    code = git_state(ROOT)
    return r.Summary(
        study=config.name,
        size=config.size,
        desktop=config.desktop.kind,
        synthetic=bool(table["synthetic"].any()),
        seeds=config.seeds,
        trials=config.evaluation.trials,
        splits={name: _split_facts(config, name, tasks, trained) for name, tasks in lists.items()},
        distinct_tasks=len({task.name for tasks in splits.values() for task in tasks}),
        rates=rates,
        differences=list(_differences(table, list(splits), checkpoints)),
        effort=sorted(effort_rows(table), key=lambda row: arm_order(config, row.arm)),
        curves=curves,
        models=ordered(config, map(read_model, manifests)),
        not_run=_not_run(config, rates, metrics),
        left_out=list(_left_out(config, list(lists))),
        statistics=r.StatisticsFacts(
            confidence=st.CONFIDENCE,
            resamples=st.RESAMPLES,
            seed=st.SEED,
            scipy=version("scipy"),
            statsmodels=version("statsmodels"),
        ),
        inputs=inputs,
        ran_on=list(ran_on_rows(table)),
        desktops={
            str(name): int(count) for name, count in table["desktop"].value_counts().sort_index().items()
        },
        desktop_marks={str(name): desktop_mark(str(name)) for name in sorted(set(table["desktop"]))},
        domains=list(domain_rows(table, splits, checkpoints)),
        domain_differences=list(domain_difference_rows(table, splits, checkpoints)),
        subsets=list(subset_rows(table, splits, checkpoints, trained)),
        pass_at_k=list(pass_rows(table, splits, checkpoints)),
        flips=list(flip_rows(table, splits, checkpoints)),
        replay=list(replay_rows(curves)),
        trainings=trainings,
        replay_effects=list(replay_effects(config, trainings)),
        throughput=sorted(
            throughput_rows(config, table, curves),
            key=lambda row: (row.phase != "training", arm_order(config, row.arm)),
        ),
        failures=sorted(failure_rows(table), key=lambda row: arm_order(config, row.arm)),
        env_errors=list(env_error_rows(table, curves)),
        commit=code["commit"],
        dirty=code["dirty"],
        files=source_files(table, inputs, config.offline_arms),
    )


def _splits(config: StudyConfig, table: pd.DataFrame) -> list[str]:
    """Splits of the evaluation in the config's order, then any other that has episodes."""
    others = sorted(set(table["split"]) - set(config.evaluation.splits))
    return [*config.evaluation.splits, *others]


def _rates(
    config: StudyConfig, table: pd.DataFrame, lists: dict[str, list[Task]], checkpoint: Checkpoint
) -> Iterator[r.RateRow]:
    for split, tasks in lists.items():
        out = len(left_out_of(config, split))
        for seed in checkpoint.seed_groups():
            episodes = select(table, checkpoint, seed, split)
            runs_per_task = config.evaluation.trials * (len(checkpoint.seeds) if seed is None else 1)
            expected = max(len(tasks) * runs_per_task, len(episodes))
            valid = episodes[episodes["valid"]]
            unscored = expected - len(valid)
            infeasible = valid[valid["infeasible"]]
            for protocol in r.PROTOCOLS:
                runs = runs_of(episodes, protocol)
                column = f"success_{protocol}"
                successes = int(valid[column].sum())
                yield r.RateRow(
                    **checkpoint.place(split, protocol),
                    seed=seed,
                    tasks=len(tasks),
                    expected=expected,
                    valid=len(valid),
                    env_errors=len(episodes) - len(valid),
                    missing=expected - len(episodes) - out * runs_per_task,
                    left_out=out * runs_per_task,
                    tasks_valid=len(runs),
                    truncated=int((valid["outcome"] == "truncated").sum()),
                    cut_by_context=int((valid["refusal"] != "").sum()),
                    successes=successes,
                    of_valid=st.success_rate(runs) if runs else None,
                    of_all_low=successes / expected,
                    of_all_high=(successes + unscored) / expected,
                    conditional_se=st.conditional_se(runs),
                    infeasible_valid=len(infeasible),
                    infeasible_successes=int(infeasible[column].sum()),
                    effective_runs=st.effective_runs(runs) if runs else None,
                    conditional=st.conditional_interval(runs),
                    mean_score=_mean_score(valid, protocol),
                    **_over_trainings(checkpoint, seed, _rate_per_seed(episodes, protocol)),
                    sources=sources_of(episodes),
                )


def _differences(
    table: pd.DataFrame, splits: list[str], checkpoints: list[Checkpoint]
) -> Iterator[r.DifferenceRow]:
    """Paired differences of every pair of arms, for each seed and for all together."""
    for ours, theirs in pairs_of(checkpoints):
        for split in splits:
            for seed in ours.seed_groups():
                # Base is the same policy for every training seed: all its episodes count.
                their_seed = seed if seed in theirs.seeds and theirs.arm != UNTRAINED else None
                arm = select(table, ours, seed, split)
                reference = select(table, theirs, their_seed, split)
                for protocol in r.PROTOCOLS:
                    found = st.paired_difference(runs_of(arm, protocol), runs_of(reference, protocol))
                    if found is not None:
                        yield r.DifferenceRow(
                            **ours.place_against(theirs, split, protocol),
                            seed=seed,
                            **found._asdict(),
                            **_over_trainings(ours, seed, *_gain_per_seed(arm, reference, theirs, protocol)),
                            sources=sources_of(arm, reference),
                        )


def _rate_per_seed(episodes: pd.DataFrame, protocol: r.Protocol) -> dict[int, float]:
    """Seed -> rate, each task with the same weight."""
    found = {}
    for seed, part in episodes.groupby("seed"):
        runs = runs_of(part, protocol)
        if runs:
            found[int(str(seed))] = statistics.fmean(_rate_per_task(runs).values())
    return found


def _gain_per_seed(
    arm: pd.DataFrame, reference: pd.DataFrame, theirs: Checkpoint, protocol: r.Protocol
) -> tuple[dict[int, float], float]:
    """Seed -> difference on the tasks that both sides have; and the noise that all of them share."""
    base = runs_of(reference, protocol) if theirs.arm == UNTRAINED else {}
    found, rates = {}, []
    for seed, part in arm.groupby("seed"):
        ours = _rate_per_task(runs_of(part, protocol))
        other = _rate_per_task(base or runs_of(reference[reference["seed"] == seed], protocol))
        shared = [task for task in ours if task in other]
        if shared:
            found[int(str(seed))] = statistics.fmean(ours[task] - other[task] for task in shared)
            rates.append(ours)
    if not base or len(found) < st.FEWEST_TRAININGS:
        return found, 0.0
    noise = st.conditional_se(base)
    if noise is None:
        both = pd.DataFrame([_rate_per_task(base), *rates]).dropna(axis="columns").to_numpy()
        noise = float(st.shared_noise(both[0], both[1:]))
    return found, noise


def _rate_per_task(runs: Runs) -> dict[str, float]:
    return {task: statistics.fmean(outcomes) for task, outcomes in runs.items()}


def _over_trainings(
    checkpoint: Checkpoint, seed: int | None, values: dict[int, float], shared: float = 0.0
) -> dict[str, Any]:
    """The fields of a row by which it says how many trainings it rests on and what they show together."""
    if not checkpoint.trained:
        return {"trainings": 0}
    if seed is not None and len(checkpoint.seeds) > 1:
        return {"trainings": 1}
    found = st.over_trainings(list(values.values()), shared)
    return {
        "trainings": len(values),
        "over_trainings": found and found.interval,
        "training_error": found and found.error,
        "training_degrees": found and found.degrees,
    }


def _mean_score(valid: pd.DataFrame, protocol: r.Protocol) -> r.Interval | None:
    """Mean of the scores, some of which lie between 0 and 1; Student's t over tasks."""
    if not len(valid):
        return None
    means = valid.groupby(["domain", "task_id"])[f"{protocol}_score"].mean().astype(float).tolist()
    value = statistics.fmean(means)
    if len(means) < 2 or max(means) - min(means) < st.EQUAL:
        return r.Interval(value, value, value, "no interval (tasks do not vary)")
    return replace(st.clipped(st.clustered_t(means)), value=value)


def _split_facts(config: StudyConfig, name: str, tasks: list[Task], trained: set[str]) -> r.SplitFacts:
    run = kept(config, name, tasks)
    digest = hashlib.sha256("".join(task.sha256 for task in run).encode()).hexdigest()
    return r.SplitFacts(
        tasks=len(tasks),
        infeasible=sum(task.infeasible for task in run),
        list_sha256=hashlib.sha256(config.tasks.splits[name].read_bytes()).hexdigest(),
        tasks_sha256=digest,
        trained_on=name in config.training_splits,
        tasks_trained_on=sum(task.name in trained for task in tasks),
        roles=[role for role in ROLES if getattr(config.targets, role) == name],
        left_out=len(tasks) - len(run),
    )


def _left_out(config: StudyConfig, evaluated: list[str]) -> Iterator[r.LeftOutRow]:
    for split in dict.fromkeys([*evaluated, *config.training_splits]):
        out = left_out_of(config, split)
        tasks = split_size(config, split) + len(out)
        for entry in out:
            words = {"task": entry.task, "because": entry.because, "detail": entry.detail}
            yield r.LeftOutRow(split=split, tasks=tasks, **words, path=r.shown_path(entry.path))


def _not_run(config: StudyConfig, rates: list[r.RateRow], metrics: Sequence[Path]) -> list[str]:
    sentences = []
    if not metrics and config.trained_arms:
        sentences.append("No training metrics were found: there are no learning curves.")
    for row in rates:
        if row.protocol != "hard" or (row.seed is None):
            continue
        where = f"{row.arm}, stage {row.stage}, seed {row.seed}, {row.split}"
        planned = row.expected - row.left_out
        if row.missing == planned:
            sentences.append(f"{where}: no episode was run ({planned} expected).")
        elif row.missing:
            was = "was" if row.missing == 1 else "were"
            sentences.append(f"{where}: {row.missing} of {planned} episodes {was} not run.")
        if row.env_errors and not row.valid:
            sentences.append(f"{where}: every episode ended in an environment failure, so there is no rate.")
        elif row.env_errors:
            ended = "is an environment failure" if row.env_errors == 1 else "are environment failures"
            sentences.append(f"{where}: {row.env_errors} of {planned} episodes {ended}.")
    return sentences


# --- which episodes stand behind a number ---------------------------------------------------------------

UNTRAINED = BASE_STAGE
"""Arm and stage of the policy before training."""
Runs = dict[str, list[bool]]
Ordered = TypeVar("Ordered")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An arm at a stage, with the training seeds it is measured for."""

    arm: str
    stage: str
    seeds: tuple[int, ...]

    @property
    def trained(self) -> bool:
        """Whether a training of the study made it."""
        return self.stage not in GIVEN_STAGES

    def place(self, split: str, protocol: r.Protocol) -> dict[str, Any]:
        """The fields by which a row of results says where it belongs."""
        return {"arm": self.arm, "stage": self.stage, "split": split, "protocol": protocol}

    def place_against(self, theirs: Checkpoint, split: str, protocol: r.Protocol) -> dict[str, Any]:
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
            stages.add(config.measured(arm)[1])
        for stage in sorted(stages, key=lambda name: stage_order(config, name)):
            seeds = {int(seed) for seed in episodes[episodes["stage"] == stage]["seed"]}
            wanted = set(config.measured(arm)[0]) if arm != UNTRAINED else set()
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


def runs_of(episodes: pd.DataFrame, protocol: r.Protocol) -> Runs:
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


def ordered(config: StudyConfig, trainings: Iterable[Ordered]) -> list[Ordered]:
    """Anything with arm, seed and stage by the config's arms, then by seed, then by the config's stages."""

    def place(found: Any) -> tuple[int, int, int]:
        return arm_order(config, found.arm), found.seed, stage_order(config, found.stage)

    return sorted(trainings, key=place)


# --- breakdowns -------------------------------------------------------------------------------------------

Splits = dict[str, list[Task]]
CHANGES = {
    ("failed", "solved"): "gained",
    ("solved", "failed"): "lost",
    ("solved", "solved"): "kept_solved",
    ("failed", "failed"): "kept_failed",
}
"""(reference, arm) -> what became of a task."""
FLIPS = (*CHANGES.values(), "mixed", "not_comparable")


def _part(runs: Runs, names: Collection[str]) -> Runs:
    return {task: outcomes for task, outcomes in runs.items() if task in names}


def _by_domain(tasks: Collection[Task]) -> dict[str, set[str]]:
    """Domain -> names of its tasks, in the order of the split."""
    found: dict[str, set[str]] = {}
    for task in tasks:
        found.setdefault(task.domain, set()).add(task.name)
    return found


def _cells(
    table: pd.DataFrame, splits: Splits, checkpoints: list[Checkpoint]
) -> Iterator[tuple[dict[str, Any], list[Task], Runs]]:
    """(place of the row, tasks, runs of all seeds) of every checkpoint, split and protocol."""
    for checkpoint in checkpoints:
        for split, tasks in splits.items():
            episodes = select(table, checkpoint, None, split)
            for protocol in r.PROTOCOLS:
                yield checkpoint.place(split, protocol), tasks, runs_of(episodes, protocol)


def _pairs(
    table: pd.DataFrame, splits: Splits, checkpoints: list[Checkpoint]
) -> Iterator[tuple[dict[str, Any], list[Task], Runs, Runs]]:
    """(place of the row, tasks, runs, runs of the reference); the untrained policy is the same for every
    seed."""
    for ours, theirs in pairs_of(checkpoints):
        for split, tasks in splits.items():
            sides = [select(table, side, None, split) for side in (ours, theirs)]
            for protocol in r.PROTOCOLS:
                arm, reference = (runs_of(side, protocol) for side in sides)
                yield ours.place_against(theirs, split, protocol), tasks, arm, reference


def _counted(runs: Runs, names: Collection[str]) -> dict[str, Any]:
    """Rate of the runs of these tasks: Wilson's interval, clustered where tasks have several runs."""
    here = _part(runs, names)
    return {
        "tasks": len(names),
        "valid": sum(map(len, here.values())),
        "successes": sum(map(sum, here.values())),
        "rate": st.success_rate(here) if here else None,
    }


def domain_rows(table: pd.DataFrame, splits: Splits, checkpoints: list[Checkpoint]) -> Iterator[r.DomainRow]:
    """Success per domain."""
    for place, tasks, runs in _cells(table, splits, checkpoints):
        for domain, names in _by_domain(tasks).items():
            yield r.DomainRow(**place, domain=domain, **_counted(runs, names))


def domain_difference_rows(
    table: pd.DataFrame, splits: Splits, checkpoints: list[Checkpoint]
) -> Iterator[r.DomainDifferenceRow]:
    """Paired differences per domain, p-values adjusted by Holm over the domains of a split."""
    for place, tasks, arm, reference in _pairs(table, splits, checkpoints):
        found = {
            domain: difference
            for domain, names in _by_domain(tasks).items()
            if (difference := st.paired_difference(_part(arm, names), _part(reference, names))) is not None
        }
        adjusted = st.holm([difference.p_value for difference in found.values()])
        for (domain, one), p_holm in zip(found.items(), adjusted, strict=True):
            values = {name: getattr(one, name) for name in ("tasks", "difference", "p_value")}
            yield r.DomainDifferenceRow(**place, domain=domain, **values, p_holm=p_holm)


def subset_rows(
    table: pd.DataFrame, splits: Splits, checkpoints: list[Checkpoint], trained: Collection[str]
) -> Iterator[r.SubsetRow]:
    """Feasible and infeasible tasks apart, and tasks that some stage trains on apart from the others."""
    for place, tasks, runs in _cells(table, splits, checkpoints):
        subsets: dict[r.Subset, set[str]] = {
            "feasible": {task.name for task in tasks if not task.infeasible},
            "infeasible": {task.name for task in tasks if task.infeasible},
            "trained_on": {task.name for task in tasks if task.name in trained},
            "not_trained_on": {task.name for task in tasks if task.name not in trained},
        }
        for subset, names in subsets.items():
            if names:
                yield r.SubsetRow(**place, subset=subset, **_counted(runs, names))


def pass_rows(table: pd.DataFrame, splits: Splits, checkpoints: list[Checkpoint]) -> Iterator[r.PassRow]:
    """pass@k for k = 1, 2, 4 ... and the number of runs, by seed; none where every task has one run."""
    for checkpoint, seed in ((one, seed) for one in checkpoints for seed in one.seeds):
        for place, _, runs in _cells(table[table["seed"] == seed], splits, [checkpoint]):
            most = max(map(len, runs.values()), default=0)
            for k in sorted({1, 2, 4, 8, 16, most} if most > 1 else ()):
                enough = {task: outcomes for task, outcomes in runs.items() if len(outcomes) >= k}
                if (rate := st.pass_at_k(enough, k)) is not None:
                    out = len(runs) - len(enough)
                    yield r.PassRow(**place, seed=seed, k=k, tasks=len(enough), left_out=out, rate=rate)


def flip_rows(table: pd.DataFrame, splits: Splits, checkpoints: list[Checkpoint]) -> Iterator[r.FlipRow]:
    """Which tasks an arm gained and lost against another."""
    for place, tasks, arm, reference in _pairs(table, splits, checkpoints):
        if arm and reference:
            kinds: dict[str, list[str]] = {kind: [] for kind in FLIPS}
            for name in (task.name for task in tasks):
                kinds[change_of(reference.get(name), arm.get(name))].append(name)
            kept = {kind: len(kinds.pop(kind)) for kind in ("kept_solved", "kept_failed")}
            yield r.FlipRow(**place | kinds | kept)


def change_of(before: list[bool] | None, after: list[bool] | None) -> str:
    """One of ``FLIPS`` from the valid runs of both sides; None or empty: no valid run."""
    if not before or not after:
        return "not_comparable"
    return CHANGES.get((solved(before), solved(after)), "mixed")


def solved(outcomes: list[bool]) -> str:
    """``solved`` or ``failed`` by the majority of runs, ``mixed`` for exactly half."""
    twice = 2 * sum(outcomes)
    return "mixed" if twice == len(outcomes) else "solved" if twice > len(outcomes) else "failed"


# --- what it took -----------------------------------------------------------------------------------------

COUNTS = ("format_errors", "failed_attempts", "completion_tokens")
SECONDS = {
    "episode": "duration_s", "model": "model_s", "env": "env_s", "reset": "reset_s", "evaluate": "evaluate_s",
}  # fmt: skip
"""What of an episode took time -> column of the table of episodes."""
KIND = re.compile(r"[:\d]")
"""Ends the kind of an error message; what follows differs from case to case."""


def _by_place(table: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """The episodes of each arm, stage and split, trials and seeds together."""
    names = ["arm", "stage", "split"]
    for values, episodes in table.groupby(names, sort=True):
        yield dict(zip(names, map(str, values), strict=True)), episodes


def effort_rows(table: pd.DataFrame) -> Iterator[r.EffortRow]:
    """Sums over the episodes of each arm, stage and split."""
    for place, episodes in _by_place(table):
        sums: dict[str, Any] = {name: int(episodes[name].sum()) for name in COUNTS}
        sums |= {f"{name}_seconds": round(float(episodes[of].sum()), 3) for name, of in SECONDS.items()}
        yield r.EffortRow(
            **place,
            episodes=len(episodes),
            steps=int(episodes["n_steps"].sum()),
            retried=int((episodes["attempts"] > 1).sum()),
            **sums,
        )


def ran_on_rows(table: pd.DataFrame) -> Iterator[r.RanOn]:
    """Episodes by where their desktops came from."""
    for place, count in table["ran_on"].value_counts().sort_index().items():
        if place != "{}":
            yield r.RanOn(**json.loads(str(place)), episodes=int(count))


def replay_rows(curves: Sequence[r.Curve]) -> Iterator[r.ReplayRow]:
    """When replay fired in each training, and how old the trajectories were."""
    for curve in curves:
        swaps = [(point.step, swap) for point in curve.points for swap in point.swaps]
        ages = [swap.age for _, swap in swaps]
        yield r.ReplayRow(
            **curve.place,
            steps=len(curve.points),
            groups=_total(curve.points, "groups"),
            all_fail_groups=_sum(point.all_fail_groups for point in curve.points),
            fired=len(swaps),
            first_step=swaps[0][0] if swaps else None,
            age_mean=statistics.fmean(ages) if ages else None,
            age_median=float(statistics.median(ages)) if ages else None,
            age_max=max(ages, default=None),
            buffer_size=_sum([curve.points[-1].buffer_size]) if curve.points else None,
            source=curve.source,
        )


def throughput_rows(
    config: StudyConfig, table: pd.DataFrame, curves: Sequence[r.Curve]
) -> Iterator[r.ThroughputRow]:
    """Trajectories per hour of training rollouts and of evaluations, and the desktop hours."""
    desktops = config.desktop.count
    for curve in curves:
        yield r.ThroughputRow(
            phase="training",
            **curve.place,
            split=None,
            rollout_hours=_hours(curve.points, "rollout"),
            total_hours=_hours(curve.points, "total"),
            **_per_hour(_total(curve.points, "rollouts"), _hours(curve.points, "total"), desktops),
        )
    for place, episodes in _by_place(table):
        # Trials and seeds may run on different days: idle time between folders of episodes is no time of
        # theirs. They may also run side by side: that time counts once.
        spans = [
            (float(part["started_at"].min()), float((part["started_at"] + part["duration_s"]).max()))
            for _, part in episodes.groupby(["seed", "trial"])
        ]
        hours = covered(spans) / 3600
        busy = float(episodes["duration_s"].sum()) / 3600
        yield r.ThroughputRow(
            phase="evaluation",
            **place,
            seed=None,
            rollout_hours=hours,
            total_hours=hours,
            **_per_hour(len(episodes), hours, desktops),
            desktop_busy=min(1.0, busy / (hours * desktops)) if hours > 0 else None,
            steps=int(episodes["n_steps"].sum()),
            prompt_tokens=int(episodes["prompt_tokens"].sum()),
            completion_tokens=int(episodes["completion_tokens"].sum()),
            minutes_per_trajectory=float(episodes["duration_s"].mean()) / 60,
        )


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of what spans of time (begin, end) cover together; overlaps count once, gaps not at all."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def env_error_rows(table: pd.DataFrame, curves: Sequence[r.Curve]) -> Iterator[r.EnvErrorRow]:
    """Environment failures by arm, stage, split and kind; those of training as one row each."""
    for place, episodes in _by_place(table):
        kinds: dict[str, list[tuple[str, str, bool]]] = {}
        for row in episodes.itertuples():
            errors = [str(error) for error in json.loads(str(row.errors))]
            for number, error in enumerate(errors, start=1):
                given_up = number == len(errors) and not row.valid
                kinds.setdefault(kind_of(error), []).append((f"{row.domain}/{row.task_id}", error, given_up))
        for kind, met in sorted(kinds.items()):
            yield r.EnvErrorRow(
                phase="evaluation",
                **place,
                kind=kind,
                attempts=len(met),
                lost=sum(given_up for _, _, given_up in met),
                tasks=len({task for task, _, _ in met}),
                example=met[0][1][:300],
            )
    for curve in curves:
        attempts = _sum(point.env_errors for point in curve.points) or 0
        lost = _sum(point.lost_rollouts for point in curve.points) or 0
        if attempts or lost:
            yield r.EnvErrorRow(
                phase="training",
                arm=curve.arm,
                stage=curve.stage,
                split=None,
                kind="any",
                attempts=attempts,
                lost=lost,
                tasks=0,
                example=f"training of {curve.arm}, seed {curve.seed}: its log names each",
            )


def kind_of(message: str) -> str:
    """``desktop: the guest ...`` -> ``desktop``; at most 60 characters."""
    return KIND.split(message, maxsplit=1)[0].strip()[:60] or "unnamed"


def _per_hour(trajectories: int | None, hours: float | None, desktops: int) -> dict[str, Any]:
    found = {"desktops": desktops, "trajectories": trajectories or 0}
    if not trajectories or not hours:
        return found
    return found | {
        "trajectories_per_hour": trajectories / hours,
        "per_desktop_hour": trajectories / hours / desktops,
        "desktop_hours": hours * desktops,
    }


def _hours(points: Sequence[r.CurvePoint], phase: str) -> float | None:
    found = [point.seconds[phase] for point in points if phase in point.seconds]
    return sum(found) / 3600 if found else None


def _total(points: Sequence[r.CurvePoint], name: str) -> int | None:
    return _sum(point.other.get(name) for point in points)


def _sum(values: Iterable[float | None]) -> int | None:
    known = [value for value in values if value is not None]
    return round(sum(known)) if known else None
