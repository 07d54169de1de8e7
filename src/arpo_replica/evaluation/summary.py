"""The study in numbers: ``summary.json`` from the table of episodes, metrics and manifests."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from arpo_replica.base.checkout import git_state
from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import write_document
from arpo_replica.config.desktop import desktop_mark
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation import breakdowns as b
from arpo_replica.evaluation import records as r
from arpo_replica.evaluation import statistics as st
from arpo_replica.evaluation.curves import place_of, read_curve, read_model, read_offline
from arpo_replica.evaluation.failures import failure_rows
from arpo_replica.evaluation.provenance import source_files
from arpo_replica.evaluation.replay_effect import replay_effects, training_outcomes
from arpo_replica.evaluation.scores import read_scores
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
    summary.gates = b.ordered(config, gates)
    of_stage = {path.parent: path for path in manifests}
    summary.offline = b.ordered(
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
    checkpoints = list(b.checkpoints_of(config, table))
    rates = [row for checkpoint in checkpoints for row in _rates(config, table, lists, checkpoint)]
    curves = b.ordered(config, map(read_curve, metrics))
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
        effort=sorted(b.effort_rows(table), key=lambda row: b.arm_order(config, row.arm)),
        curves=curves,
        models=b.ordered(config, map(read_model, manifests)),
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
        ran_on=list(b.ran_on_rows(table)),
        desktops={
            str(name): int(count) for name, count in table["desktop"].value_counts().sort_index().items()
        },
        desktop_marks={str(name): desktop_mark(str(name)) for name in sorted(set(table["desktop"]))},
        domains=list(b.domain_rows(table, splits, checkpoints)),
        domain_differences=list(b.domain_difference_rows(table, splits, checkpoints)),
        subsets=list(b.subset_rows(table, splits, checkpoints, trained)),
        pass_at_k=list(b.pass_rows(table, splits, checkpoints)),
        flips=list(b.flip_rows(table, splits, checkpoints)),
        replay=list(b.replay_rows(curves)),
        trainings=trainings,
        replay_effects=list(replay_effects(config, trainings)),
        throughput=sorted(
            b.throughput_rows(config, table, curves),
            key=lambda row: (row.phase != "training", b.arm_order(config, row.arm)),
        ),
        failures=sorted(failure_rows(table), key=lambda row: b.arm_order(config, row.arm)),
        env_errors=list(b.env_error_rows(table, curves)),
        commit=code["commit"],
        dirty=code["dirty"],
        files=source_files(table, inputs, config.offline_arms),
    )


def _splits(config: StudyConfig, table: pd.DataFrame) -> list[str]:
    """Splits of the evaluation in the config's order, then any other that has episodes."""
    others = sorted(set(table["split"]) - set(config.evaluation.splits))
    return [*config.evaluation.splits, *others]


def _rates(
    config: StudyConfig, table: pd.DataFrame, lists: dict[str, list[Task]], checkpoint: b.Checkpoint
) -> Iterator[r.RateRow]:
    for split, tasks in lists.items():
        out = len(left_out_of(config, split))
        for seed in checkpoint.seed_groups():
            episodes = b.select(table, checkpoint, seed, split)
            runs_per_task = config.evaluation.trials * (len(checkpoint.seeds) if seed is None else 1)
            expected = max(len(tasks) * runs_per_task, len(episodes))
            valid = episodes[episodes["valid"]]
            unscored = expected - len(valid)
            infeasible = valid[valid["infeasible"]]
            for protocol in r.PROTOCOLS:
                runs = b.runs_of(episodes, protocol)
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
                    effective_runs=_effective(runs),
                    conditional=st.conditional_interval(runs),
                    mean_score=_mean_score(valid, protocol),
                    **_over_trainings(checkpoint, seed, _rate_per_seed(episodes, protocol)),
                    sources=b.sources_of(episodes),
                )


def _differences(
    table: pd.DataFrame, splits: list[str], checkpoints: list[b.Checkpoint]
) -> Iterator[r.DifferenceRow]:
    """Paired differences of every pair of arms, for each seed and for all together."""
    for ours, theirs in b.pairs_of(checkpoints):
        for split in splits:
            for seed in ours.seed_groups():
                # Base is the same policy for every training seed: all its episodes count.
                their_seed = seed if seed in theirs.seeds and theirs.arm != b.UNTRAINED else None
                arm = b.select(table, ours, seed, split)
                reference = b.select(table, theirs, their_seed, split)
                for protocol in r.PROTOCOLS:
                    found = st.paired_difference(b.runs_of(arm, protocol), b.runs_of(reference, protocol))
                    if found is not None:
                        yield r.DifferenceRow(
                            **ours.place_against(theirs, split, protocol),
                            seed=seed,
                            **found._asdict(),
                            **_over_trainings(ours, seed, *_gain_per_seed(arm, reference, theirs, protocol)),
                            sources=b.sources_of(arm, reference),
                        )


def _rate_per_seed(episodes: pd.DataFrame, protocol: r.Protocol) -> dict[int, float]:
    """Seed -> rate, each task with the same weight."""
    found = {}
    for seed, part in episodes.groupby("seed"):
        runs = b.runs_of(part, protocol)
        if runs:
            found[int(str(seed))] = statistics.fmean(_rate_per_task(runs).values())
    return found


def _gain_per_seed(
    arm: pd.DataFrame, reference: pd.DataFrame, theirs: b.Checkpoint, protocol: r.Protocol
) -> tuple[dict[int, float], float]:
    """Seed -> difference on the tasks that both sides have; and the noise that all of them share."""
    base = b.runs_of(reference, protocol) if theirs.arm == b.UNTRAINED else {}
    found, rates = {}, []
    for seed, part in arm.groupby("seed"):
        ours = _rate_per_task(b.runs_of(part, protocol))
        other = _rate_per_task(base or b.runs_of(reference[reference["seed"] == seed], protocol))
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


def _rate_per_task(runs: b.Runs) -> dict[str, float]:
    return {task: statistics.fmean(outcomes) for task, outcomes in runs.items()}


def _over_trainings(
    checkpoint: b.Checkpoint, seed: int | None, values: dict[int, float], shared: float = 0.0
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
    found = st.clustered_t(means)
    return r.Interval(value, max(0.0, found.low), min(1.0, found.high), found.method)


def _effective(runs: b.Runs) -> float | None:
    """Independent runs that the interval of the rate stands for."""
    if not runs:
        return None
    means = [statistics.fmean(outcomes) for outcomes in runs.values()]
    single = all(len(outcomes) == 1 for outcomes in runs.values())
    return float(len(runs)) if single or max(means) - min(means) < st.EQUAL else st.effective_runs(runs)


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
