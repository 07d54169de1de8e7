"""Why an episode was not solved: one class for each, from the fields that its record and steps hold.

The classes (``FAILURES``) say what the episode did, never what the policy meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pandas as pd

from arpo_replica.actions.types import from_json, same_action
from arpo_replica.evaluation import records as r
from arpo_replica.rollout.records import EpisodeRecord, StepRecord

REPEATS = 3
"""So many equal actions at the end are a repetition."""
SAME_PLACE = 0.05
"""Points closer than this part of the screen's longer side are one place."""
EXAMPLES = 3
"""Episodes named for each class, arm and list of tasks."""
FAILURES: dict[r.Failure, str] = {
    "desktop": "the desktop or the evaluator broke: nothing is known of the policy, and it is no 0",
    "context full": "the server refused the conversation as too long",
    "unparsable": "at least half of the replies held no valid action",
    "missed FAIL": "the task cannot be done, and the policy did not end with FAIL",
    "repeated action": "the last three replies or more did the same at the same place, without effect",
    "never finished": "the step limit came first",
    "wrong target": "it ended by itself, in a state that the evaluator did not accept",
}
"""Class of failure -> when an episode belongs to it; it belongs to the first that fits."""


def failure_of(record: EpisodeRecord, steps: Sequence[StepRecord], solved: bool | None) -> r.Failure | None:
    """The class of an episode; None if it was solved. ``solved``: None for an environment failure."""
    fits: dict[r.Failure, bool] = {
        "desktop": solved is None,
        "context full": bool(record.refusal),
        "unparsable": bool(steps) and 2 * sum(step.action is None for step in steps) >= len(steps),
        "missed FAIL": record.infeasible,
        "repeated action": _repeated(record, steps),
        "never finished": record.outcome == "truncated",
        "wrong target": True,
    }
    return None if solved else next(kind for kind, here in fits.items() if here)


def _repeated(record: EpisodeRecord, steps: Sequence[StepRecord]) -> bool:
    screen: Any = record.sampling.get("screen") or (0, 0)
    reach = SAME_PLACE * max(screen)
    last = [_actions(step) for step in steps[-REPEATS:]]
    return len(last) == REPEATS and all(
        len(one) == len(other) > 0 and all(same_action(a, b, reach) for a, b in zip(one, other, strict=True))
        for one, other in pairwise(last)
    )


def _actions(step: StepRecord) -> list[Any]:
    try:
        return [from_json(raw) for raw in (step.action, *step.further) if raw is not None]
    except (ValueError, TypeError):
        return []


def failure_rows(table: pd.DataFrame) -> Iterator[r.FailureRow]:
    """Failed episodes by arm, stage, list of tasks and class; classes without one are left out."""
    for (arm, stage, split), episodes in table.groupby(["arm", "stage", "split"], sort=False):
        for kind in FAILURES:
            found = episodes[episodes["failure"] == kind]
            if len(found):
                yield r.FailureRow(
                    arm=str(arm),
                    stage=str(stage),
                    split=str(split),
                    failure=kind,
                    episodes=len(found),
                    of=len(episodes),
                    tasks=int(found[["domain", "task_id"]].drop_duplicates().shape[0]),
                    examples=[str(name) for name in found["directory"].iloc[:EXAMPLES]],
                )
