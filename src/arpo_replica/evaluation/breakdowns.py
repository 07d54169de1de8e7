"""The results broken down: by domain, by kind of task, by number of tries, and task by task between arms."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import pandas as pd

from arpo_replica.evaluation import statistics as st
from arpo_replica.evaluation.records import (
    PROTOCOLS,
    DomainDifferenceRow,
    DomainRow,
    FlipRow,
    PassRow,
    Subset,
    SubsetRow,
)
from arpo_replica.evaluation.selection import Checkpoint, Runs, pairs_of, runs_of, select
from arpo_replica.tasks.model import Task

Splits = dict[str, list[Task]]
CHANGES = {
    ("failed", "solved"): "gained",
    ("solved", "failed"): "lost",
    ("solved", "solved"): "kept_solved",
    ("failed", "failed"): "kept_failed",
}
"""(reference, arm) -> what became of a task."""
FLIPS = (*CHANGES.values(), "mixed", "not_comparable")


def name_of(task: Task) -> str:
    """``domain/task``, as the runs are keyed."""
    return f"{task.domain}/{task.id}"


def _part(runs: Runs, names: Collection[str]) -> Runs:
    return {task: outcomes for task, outcomes in runs.items() if task in names}


def _by_domain(tasks: Collection[Task]) -> dict[str, set[str]]:
    """Domain -> names of its tasks, in the order of the split."""
    found: dict[str, set[str]] = {}
    for task in tasks:
        found.setdefault(task.domain, set()).add(name_of(task))
    return found


def _cells(
    table: pd.DataFrame, splits: Splits, checkpoints: list[Checkpoint]
) -> Iterator[tuple[dict[str, Any], list[Task], Runs]]:
    """(place of the row, tasks, runs of all seeds) of every checkpoint, split and protocol."""
    for checkpoint in checkpoints:
        for split, tasks in splits.items():
            episodes = select(table, checkpoint, None, split)
            for protocol in PROTOCOLS:
                yield checkpoint.place(split, protocol), tasks, runs_of(episodes, protocol)


def _pairs(
    table: pd.DataFrame, splits: Splits, checkpoints: list[Checkpoint]
) -> Iterator[tuple[dict[str, Any], list[Task], Runs, Runs]]:
    """(place of the row, tasks, runs, runs of the reference); the untrained policy is the same for every
    seed."""
    for ours, theirs in pairs_of(checkpoints):
        for split, tasks in splits.items():
            sides = [select(table, side, None, split) for side in (ours, theirs)]
            for protocol in PROTOCOLS:
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


def domain_rows(table: pd.DataFrame, splits: Splits, checkpoints: list[Checkpoint]) -> Iterator[DomainRow]:
    """Success per domain."""
    for place, tasks, runs in _cells(table, splits, checkpoints):
        for domain, names in _by_domain(tasks).items():
            yield DomainRow(**place, domain=domain, **_counted(runs, names))


def domain_difference_rows(
    table: pd.DataFrame, splits: Splits, checkpoints: list[Checkpoint]
) -> Iterator[DomainDifferenceRow]:
    """Paired differences per domain, p-values adjusted by Holm over the domains of a split."""
    for place, tasks, arm, reference in _pairs(table, splits, checkpoints):
        found = {
            domain: difference
            for domain, names in _by_domain(tasks).items()
            if (difference := st.paired_difference(_part(arm, names), _part(reference, names))) is not None
        }
        adjusted = st.holm([difference.p_value for difference in found.values()])
        for (domain, difference), p_holm in zip(found.items(), adjusted, strict=True):
            yield DomainDifferenceRow(
                **place,
                domain=domain,
                tasks=difference.tasks,
                difference=difference.interval,
                p_value=difference.p_value,
                p_holm=p_holm,
            )


def subset_rows(
    table: pd.DataFrame, splits: Splits, checkpoints: list[Checkpoint], trained: Collection[str]
) -> Iterator[SubsetRow]:
    """Feasible and infeasible tasks apart, and tasks that some stage trains on apart from the others."""
    for place, tasks, runs in _cells(table, splits, checkpoints):
        subsets: dict[Subset, set[str]] = {
            "feasible": {name_of(task) for task in tasks if not task.infeasible},
            "infeasible": {name_of(task) for task in tasks if task.infeasible},
            "trained_on": {name_of(task) for task in tasks if name_of(task) in trained},
            "not_trained_on": {name_of(task) for task in tasks if name_of(task) not in trained},
        }
        for subset, names in subsets.items():
            if names:
                yield SubsetRow(**place, subset=subset, **_counted(runs, names))


def pass_rows(table: pd.DataFrame, splits: Splits, checkpoints: list[Checkpoint]) -> Iterator[PassRow]:
    """pass@k for k = 1, 2, 4 ... and the number of runs; none where every task has one run."""
    for place, _, runs in _cells(table, splits, checkpoints):
        most = max(map(len, runs.values()), default=0)
        for k in sorted({1, 2, 4, 8, 16, most} if most > 1 else ()):
            enough = {task: outcomes for task, outcomes in runs.items() if len(outcomes) >= k}
            found = st.pass_at_k(enough, k)
            if found is not None:
                yield PassRow(
                    **place,
                    k=k,
                    tasks=len(enough),
                    left_out=len(runs) - len(enough),
                    rate=found,
                )


def flip_rows(table: pd.DataFrame, splits: Splits, checkpoints: list[Checkpoint]) -> Iterator[FlipRow]:
    """Which tasks an arm gained and lost against another."""
    for place, tasks, arm, reference in _pairs(table, splits, checkpoints):
        if arm and reference:
            kinds: dict[str, list[str]] = {kind: [] for kind in FLIPS}
            for name in map(name_of, tasks):
                kinds[change_of(reference.get(name), arm.get(name))].append(name)
            yield FlipRow(
                **place,
                gained=kinds["gained"],
                lost=kinds["lost"],
                mixed=kinds["mixed"],
                kept_solved=len(kinds["kept_solved"]),
                kept_failed=len(kinds["kept_failed"]),
                not_comparable=kinds["not_comparable"],
            )


def change_of(before: list[bool] | None, after: list[bool] | None) -> str:
    """One of ``FLIPS`` from the valid runs of both sides; None or empty: no valid run."""
    if not before or not after:
        return "not_comparable"
    return CHANGES.get((solved(before), solved(after)), "mixed")


def solved(outcomes: list[bool]) -> str:
    """``solved`` or ``failed`` by the majority of runs, ``mixed`` for exactly half."""
    twice = 2 * sum(outcomes)
    return "mixed" if twice == len(outcomes) else "solved" if twice > len(outcomes) else "failed"
