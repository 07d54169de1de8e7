"""Classes of failure: episodes of real policies, judged by eye, and the same with one thing changed."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from arpo_replica.actions.types import Click, Fail, Finished, TypeText, same_action
from arpo_replica.evaluation.scores import failure_of, failure_rows
from arpo_replica.rollout.records import EpisodeRecord, StepRecord

RECORDED = [
    json.loads(line)
    for line in Path(__file__).with_name("recorded_episodes.jsonl").read_text(encoding="utf-8").splitlines()
]


def read(raw: dict[str, Any]) -> tuple[EpisodeRecord, list[StepRecord]]:
    return EpisodeRecord.model_validate(raw["record"]), [StepRecord.model_validate(s) for s in raw["steps"]]


@pytest.mark.parametrize("raw", RECORDED, ids=lambda raw: raw["class"] or "solved")
def test_recorded_episodes(raw: dict[str, Any]) -> None:
    record, steps = read(raw)
    assert (failure_of(record, steps, record.outcome == "success") or "") == raw["class"]


def test_the_first_class_that_fits_counts() -> None:
    record, steps = read(next(raw for raw in RECORDED if raw["class"] == "repeated action"))
    silent = [step.model_copy(update={"action": None}) for step in steps]
    infeasible = record.model_copy(update={"infeasible": True})
    assert failure_of(infeasible, steps, False) == "missed FAIL"
    assert failure_of(infeasible, silent[:3] + steps[3:], False) == "unparsable"
    assert failure_of(record, silent[:2] + steps[2:], False) == "repeated action"
    refused = infeasible.model_copy(update={"refusal": "This model's maximum context length is 2048 tokens"})
    assert failure_of(refused, silent, False) == "context full"
    assert failure_of(refused, silent, None) == "desktop"
    assert failure_of(refused, silent, True) is None
    assert failure_of(record, steps[:2], False) == "never finished"
    assert failure_of(record, [], False) == "never finished"
    hostile = [step.model_copy(update={"action": {"type": "no such thing"}}) for step in steps]
    assert failure_of(record, hostile, False) == "never finished"


def test_what_counts_as_the_same_action() -> None:
    assert same_action(Click(10, 10), Click(15, 5), 5)
    assert not same_action(Click(10, 10), Click(16, 10), 5)
    assert not same_action(TypeText("a"), TypeText("b"), 5)
    assert same_action(Finished("a"), Finished("b"), 0)
    assert not same_action(Finished(""), Fail(""), 0)


def test_rows_count_episodes_and_name_examples() -> None:
    rows = [
        {"arm": "arpo", "stage": "s", "split": "t", "domain": "d", "task_id": f"t{i % 2}", "failure": kind,
         "directory": f"e{i}"}
        for i, kind in enumerate(["wrong target", "", *["wrong target"] * 3, "desktop"])
    ]  # fmt: skip
    found = list(failure_rows(pd.DataFrame(rows)))
    assert [(row.failure, row.episodes, row.of, row.tasks) for row in found] == [
        ("desktop", 1, 6, 1),
        ("wrong target", 4, 6, 2),
    ]
    assert found[1].examples == ["e0", "e2", "e3"]
