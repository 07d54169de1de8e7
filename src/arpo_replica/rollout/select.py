"""Which tasks to train on: those that the untrained policy does sometimes, as the paper chose its 128.

ARPO (§4.1) lets UI-TARS-1.5 try every task 16 times and keeps those with at least one success. The list that
comes of it says what every task scored, so a reader can choose otherwise and see what that would change.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from arpo_replica.base.errors import UserError
from arpo_replica.base.files import read_rows, write_atomically
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.tasks import SelectedTasksConfig
from arpo_replica.policy.manifest import read_manifest
from arpo_replica.rollout.run import collect_rollouts, sampled_as_in_training
from arpo_replica.tasks.splits import ResolvedSplit


@dataclass
class Tried:
    successes: int = 0
    failures: int = 0
    lost: int = 0
    """Episodes that an environment failure ended: they are no failures."""

    def verdict(self, settings: SelectedTasksConfig) -> bool | None:
        """True: kept; False: dropped; None: the lost episodes could decide either way."""
        most = settings.rollouts if settings.successes_max is None else settings.successes_max
        ends = {settings.successes_min <= self.successes + more <= most for more in range(self.lost + 1)}
        return ends.pop() if len(ends) == 1 else None


def select_tasks(
    config: StudyConfig, name: str, *, manifest: Path, source: ResolvedSplit, out: Path
) -> tuple[int, int]:
    """Collect the episodes beside ``out`` (finished ones are kept) and write the list.

    Returns the numbers of tasks kept and tried. Raises ``UserError`` if none or too few for a step are kept.
    """
    settings = config.tasks.selected[name]
    roots = [out.with_suffix("") / settings.source / f"trial_{trial}" for trial in range(settings.rollouts)]
    collect_rollouts(sampled_as_in_training(config), manifest=manifest, splits=[source], roots=roots)
    records = chain.from_iterable(read_rows(root / "episodes.jsonl") for root in roots)
    tried = count(records, config.evaluation.success_above)
    document = selected_split(name, settings, tried, read_manifest(manifest).sha256)
    kept = sum(map(len, document["tasks"].values()))
    if kept < config.training.tasks_per_step:
        raise UserError(
            f"tasks.selected.{name} keeps {kept} of {len(tried)} tasks, but training.tasks_per_step is "
            f"{config.training.tasks_per_step}; widen the bounds or give a larger source."
        )
    write_atomically(out, (json.dumps(document, indent=1) + "\n").encode())
    return kept, len(tried)


def count(records: Iterable[Mapping[str, Any]], success_above: float) -> dict[tuple[str, str], Tried]:
    """(domain, id) -> what became of its episodes, hard protocol, in the order of the records."""
    tried: dict[tuple[str, str], Tried] = {}
    for record in records:
        task = tried.setdefault((record["domain"], record["task_id"]), Tried())
        if record["hard_score"] is None:
            task.lost += 1
        elif record["hard_score"] > success_above:
            task.successes += 1
        else:
            task.failures += 1
    return tried


def selected_split(
    name: str, settings: SelectedTasksConfig, tried: Mapping[tuple[str, str], Tried], checkpoint: str
) -> dict[str, Any]:
    """The split's list, as JSON. ``checkpoint``: sha256 of the untrained policy."""
    verdicts = {task: found.verdict(settings) for task, found in tried.items()}
    listed: dict[str, list[str]] = {}
    for (domain, task_id), kept in sorted(verdicts.items()):
        if kept:
            listed.setdefault(domain, []).append(task_id)
    undecided = sorted(f"{domain}/{task_id}" for (domain, task_id), kept in verdicts.items() if kept is None)
    bound = "" if settings.successes_max is None else f" and at most {settings.successes_max}"
    notes = [f"Not kept, because lost episodes could decide: {', '.join(undecided)}."] if undecided else []
    return {
        "name": name,
        "source": f"ours: the tasks of {settings.source} with at least {settings.successes_min}{bound} "
        f"successes in {settings.rollouts} episodes of the untrained policy",
        "grade": "made by rule select_tasks",
        "notes": notes,
        "tasks": listed,
        "checkpoint_sha256": checkpoint,
        "tried": {f"{domain}/{task_id}": vars(found) for (domain, task_id), found in sorted(tried.items())},
    }
