"""metrics.jsonl after crashes and resumes: no step lost, none twice."""

from __future__ import annotations

import json
from pathlib import Path

from arpo_replica.base.files import read_rows
from arpo_replica.training.metrics import KEYS, SECONDS, collect, to_jsonl, unbroken


def write(logs: Path, attempt: int, steps: list[int], reward: float = 0.0, partial: str = "") -> None:
    logs.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"step": step, "data": {"arpo/reward_before": reward, "timing_s/step": 2.5}})
        for step in steps
    ]
    (logs / f"verl_{attempt:03d}.jsonl").write_text("".join(line + "\n" for line in lines) + partial)


def rows(tmp_path: Path) -> list[tuple[int, int]]:
    return [(row["step"], row["attempt"]) for row in collect(tmp_path / "logs", tmp_path / "steps")]


def test_a_resume_replaces_what_it_does_again(tmp_path: Path) -> None:
    write(tmp_path / "logs", 1, [1, 2, 3])
    write(tmp_path / "logs", 2, [3, 4], reward=1.0)  # went on from the checkpoint of step 2
    assert rows(tmp_path) == [(1, 1), (2, 1), (3, 2), (4, 2)]


def test_an_attempt_that_died_before_its_first_step_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "logs", 1, [1, 2])
    write(tmp_path / "logs", 2, [])
    assert rows(tmp_path) == [(1, 1), (2, 1)]


def test_later_steps_of_an_older_attempt_are_dropped(tmp_path: Path) -> None:
    write(tmp_path / "logs", 1, [1, 2, 3, 4])
    write(tmp_path / "logs", 2, [2])
    assert rows(tmp_path) == [(1, 1), (2, 2)]


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    write(tmp_path / "logs", 1, [1], partial='{"step": 2, "data": {"arpo/')
    assert rows(tmp_path) == [(1, 1)]
    assert read_rows(tmp_path / "none.jsonl") == []


def test_rows_are_complete_and_carry_the_steps_details(tmp_path: Path) -> None:
    write(tmp_path / "logs", 1, [1])
    (tmp_path / "steps").mkdir()
    details = {"groups": [{"task": "d/t", "scores": [0.0, 1.0]}], "swaps": []}
    (tmp_path / "steps" / "step_000001.json").write_text(json.dumps(details))
    (row,) = collect(tmp_path / "logs", tmp_path / "steps")
    assert set(KEYS) <= set(row)
    assert set(row["seconds"]) == set(SECONDS)
    assert row["seconds"]["total"] == 2.5
    assert row["tasks"] == details["groups"]
    assert json.loads(to_jsonl([row])) == row


def test_unbroken() -> None:
    assert unbroken([]) == 0
    assert unbroken([{"step": 1}, {"step": 2}, {"step": 4}]) == 2
    assert unbroken([{"step": 2}]) == 0
