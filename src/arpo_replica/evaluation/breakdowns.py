"""The results broken down: by domain, by kind of task, by number of tries, and task by task between arms."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pandas as pd

from arpo_replica.evaluation import statistics as st
from arpo_replica.evaluation.document import PROTOCOLS, IntervalRecord, Protocol
from arpo_replica.evaluation.rows import DomainDifferenceRow, DomainRow, FlipRow, PassRow, Subset, SubsetRow
from arpo_replica.evaluation.selection import UNTRAINED, Checkpoint, Runs, pairs_of, runs_of, select
from arpo_replica.tasks.model import Task

Splits = dict[str, list[Task]]


def name_of(task: Task) -> str:
    """``domain/task``, as the runs are keyed."""
    return f"{task.domain}/{task.id}"


def _rate(runs: Runs) -> IntervalRecord | None:
    return IntervalRecord.of(st.success_rate(runs)) if runs else None


def _part(runs: Runs, names: Collection[str]) -> Runs:
    return {task: outcomes for task, outcomes in runs.items() if task in names}


def _count(runs: Runs) -> tuple[int, int]:
    """(valid runs, successes)."""
    return sum(map(len, runs.values())), sum(map(sum, runs.values()))


def domain_rows(table: pd.DataFrame, splits: Splits, checkpoints: list[Checkpoint]) -> Iterator[DomainRow]:
    """Wilson's interval per domain (clustered where tasks have several runs)."""
    for checkpoint in checkpoints:
        for split, tasks in splits.items():
            episodes = select(table, checkpoint, None, split)
            for protocol in PROTOCOLS:
                runs = runs_of(episodes, protocol)
                for domain in dict.fromkeys(task.domain for task in tasks):
                    names = {name_of(task) for task in tasks if task.domain == domain}
                    here = _part(runs, names)
                    valid, successes = _count(here)
                    yield DomainRow(
                        arm=checkpoint.arm,
                        stage=checkpoint.stage,
                        split=split,
                        protocol=protocol,
                        domain=domain,
                        tasks=len(names),
                        valid=valid,
                        successes=successes,
                        rate=_rate(here),
                    )


def domain_difference_rows(
    table: pd.DataFrame, splits: Splits, checkpoints: list[Checkpoint]
) -> Iterator[DomainDifferenceRow]:
    """Paired differences per domain, p-values adjusted by Holm over the domains of a split."""
    for ours, theirs in pairs_of(checkpoints):
        for split, tasks in splits.items():
            for protocol in PROTOCOLS:
                arm, reference = _both(table, ours, theirs, split, protocol)
                found = {}
                for domain in dict.fromkeys(task.domain for task in tasks):
                    names = {name_of(task) for task in tasks if task.domain == domain}
                    difference = st.paired_difference(_part(arm, names), _part(reference, names))
                    if difference is not None:
                        found[domain] = difference
                adjusted = st.holm([difference.p_value for difference in found.values()])
                for (domain, difference), p_holm in zip(found.items(), adjusted, strict=True):
                    yield DomainDifferenceRow(
                        arm=ours.arm,
                        reference=theirs.arm,
                        stage=ours.stage,
                        reference_stage=theirs.stage,
                        split=split,
                        protocol=protocol,
                        domain=domain,
                        tasks=difference.tasks,
                        difference=IntervalRecord.of(difference.interval),
                        p_value=difference.p_value,
                        p_holm=p_holm,
                    )


def subset_rows(
    table: pd.DataFrame, splits: Splits, checkpoints: list[Checkpoint], trained: Collection[str]
) -> Iterator[SubsetRow]:
    """Feasible and infeasible tasks apart, and tasks that some stage trains on apart from the others."""
    for checkpoint in checkpoints:
        for split, tasks in splits.items():
            episodes = select(table, checkpoint, None, split)
            subsets: dict[Subset, set[str]] = {
                "feasible": {name_of(task) for task in tasks if not task.infeasible},
                "infeasible": {name_of(task) for task in tasks if task.infeasible},
                "trained_on": {name_of(task) for task in tasks if name_of(task) in trained},
                "not_trained_on": {name_of(task) for task in tasks if name_of(task) not in trained},
            }
            for protocol in PROTOCOLS:
                runs = runs_of(episodes, protocol)
                for subset, names in subsets.items():
                    if names:
                        here = _part(runs, names)
                        valid, successes = _count(here)
                        yield SubsetRow(
                            arm=checkpoint.arm,
                            stage=checkpoint.stage,
                            split=split,
                            protocol=protocol,
                            subset=subset,
                            tasks=len(names),
                            valid=valid,
                            successes=successes,
                            rate=_rate(here),
                        )


def pass_rows(table: pd.DataFrame, splits: Splits, checkpoints: list[Checkpoint]) -> Iterator[PassRow]:
    """pass@k for k = 1, 2, 4 ... and the number of runs; none where every task has one run."""
    for checkpoint in checkpoints:
        for split in splits:
            episodes = select(table, checkpoint, None, split)
            for protocol in PROTOCOLS:
                runs = runs_of(episodes, protocol)
                most = max(map(len, runs.values()), default=0)
                for k in sorted({1, 2, 4, 8, 16, most} if most > 1 else ()):
                    enough = {task: outcomes for task, outcomes in runs.items() if len(outcomes) >= k}
                    found = st.pass_at_k(enough, k)
                    if found is not None:
                        yield PassRow(
                            arm=checkpoint.arm,
                            stage=checkpoint.stage,
                            split=split,
                            protocol=protocol,
                            k=k,
                            tasks=len(enough),
                            left_out=len(runs) - len(enough),
                            rate=IntervalRecord.of(found),
                        )


def flip_rows(table: pd.DataFrame, splits: Splits, checkpoints: list[Checkpoint]) -> Iterator[FlipRow]:
    """Which tasks an arm gained and lost against another."""
    for ours, theirs in pairs_of(checkpoints):
        for split, tasks in splits.items():
            for protocol in PROTOCOLS:
                arm, reference = _both(table, ours, theirs, split, protocol)
                if arm and reference:
                    yield _flips(
                        ours,
                        theirs,
                        split,
                        protocol,
                        names=[name_of(task) for task in tasks],
                        sides=(arm, reference),
                    )


def _flips(
    ours: Checkpoint,
    theirs: Checkpoint,
    split: str,
    protocol: Protocol,
    *,
    names: list[str],
    sides: tuple[Runs, Runs],
) -> FlipRow:
    kinds: dict[str, list[str]] = {}
    for name in names:
        after, before = (solved(side[name]) if name in side else None for side in sides)
        if after is None or before is None:
            kind = "not_comparable"
        elif "mixed" in (after, before):
            kind = "mixed"
        else:
            kind = {
                ("failed", "solved"): "gained",
                ("solved", "failed"): "lost",
                ("solved", "solved"): "kept_solved",
                ("failed", "failed"): "kept_failed",
            }[before, after]
        kinds.setdefault(kind, []).append(name)
    return FlipRow(
        arm=ours.arm,
        reference=theirs.arm,
        stage=ours.stage,
        reference_stage=theirs.stage,
        split=split,
        protocol=protocol,
        gained=kinds.get("gained", []),
        lost=kinds.get("lost", []),
        mixed=kinds.get("mixed", []),
        kept_solved=len(kinds.get("kept_solved", [])),
        kept_failed=len(kinds.get("kept_failed", [])),
        not_comparable=kinds.get("not_comparable", []),
    )


def solved(outcomes: list[bool]) -> str:
    """``solved`` or ``failed`` by the majority of runs, ``mixed`` for exactly half."""
    twice = 2 * sum(outcomes)
    return "mixed" if twice == len(outcomes) else "solved" if twice > len(outcomes) else "failed"


def _both(
    table: pd.DataFrame, ours: Checkpoint, theirs: Checkpoint, split: str, protocol: Protocol
) -> tuple[Runs, Runs]:
    """Runs of both sides, all seeds together; the untrained policy is the same for every seed."""
    assert ours.arm != UNTRAINED
    return (
        runs_of(select(table, ours, None, split), protocol),
        runs_of(select(table, theirs, None, split), protocol),
    )
