"""Two stages through verl whose store begins with recorded episodes and goes on; the first one is killed.

No rollout ever succeeds, so all that replay can give back was recorded, and each step's swaps follow from the
replay rule alone. Three starts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.cpu_env, pytest.mark.slow, pytest.mark.timeout(1500)]
pytest.importorskip("verl")

from arpo_replica.config.models import StudyConfig  # noqa: E402
from arpo_replica.rollout.run import describe_sampling, sampled_as_in_training  # noqa: E402
from arpo_replica.training.replay import Group, ReplayBuffer, Stored, continued  # noqa: E402
from offline_episodes import END, GOOD, write_indexes, write_rollout  # noqa: E402
from training.stage_process import StageProcess  # noqa: E402
from training.test_stage import small_config  # noqa: E402


def preloading() -> StudyConfig:
    config = small_config()
    config.arms = {"base": {}, "arpo": {"replay": {"enabled": True, "preload": True, "carry": True}}}
    config.tasks.splits["train_32"] = config.tasks.splits["train_4"]
    config.training.stages[1].steps = 2
    config.training.gates.varying_groups_min = 0
    return StudyConfig.model_validate(config.model_dump())


def record(stage: StageProcess) -> None:
    """Two successes of the first task, one of the second, a failure of the third, nothing of the fourth."""
    sampling = describe_sampling(sampled_as_in_training(stage.config))
    for number, trial, outcome in (
        (0, 0, "success"),
        (0, 1, "success"),
        (1, 1, "success"),
        (2, 0, "failure"),
    ):
        task = stage.tasks[number]
        tokens = [len(f"{text}<") for text in (GOOD, END)]  # the tiny model's tokens are bytes
        fields = {"domain": task.domain, "instruction": task.instruction, "sampling": sampling}
        write_rollout(
            stage.folder / "offline", task.id, trial, [GOOD, END], outcome, tokens=tokens,
            checkpoint=stage.parent.sha256, **fields,
        )  # fmt: skip
    write_indexes(stage.folder / "offline")


def expected(stage: StageProcess, stored: list[tuple[str, Stored]]) -> list[list[dict[str, Any]]]:
    """The swaps of each logged step, if the store begins with these and the rule is followed."""
    buffer = ReplayBuffer(stage.config.recipe("arpo").replay, seed=5)
    for task, success in stored:
        buffer.store(task, success)
    found = []
    for row in stage.rows():
        plan = buffer.plan([Group(group["task"], tuple(group["scores"])) for group in row["tasks"]])
        assert not plan.store
        found.append(
            [
                {"group": s.group, "rollout": s.rollout, "name": s.stored.name, "step": s.stored.step}
                for s in plan.swaps
            ]
        )
    return found


def test_a_store_begins_with_recorded_episodes_and_goes_on(tmp_path: Path) -> None:
    options = {"provider": "training.fake_desktop:FakeProvider"}
    indexes = [f"offline/trial_{trial}/episodes.jsonl" for trial in range(2)]
    first = StageProcess(tmp_path / "study", preloading(), episodes=indexes, **options)
    (tmp_path / "state").mkdir()
    first.variables = {
        "FAKE_STATE": str(tmp_path / "state"),
        "FAKE_HOPELESS": ",".join(task.id for task in first.tasks),
    }
    record(first)
    first.kill_when(lambda: first.logged(1))
    first.finish()

    names = [f"{task.domain}/{task.id}" for task in first.tasks]
    store = json.loads((first.out / "checkpoints/global_step_4/replay.json").read_bytes())["tasks"]
    stored = [(task, Stored(**entry)) for task, queue in store.items() for entry in queue]
    assert [(task, s.step, s.name[:5], s.name[-3:]) for task, s in stored] == [
        (task, 0, "base_", trial)
        for task, trial in sorted([(names[0], "000"), (names[0], "001"), (names[1], "001")])
    ]
    rows = first.rows()
    assert [row["swaps"] for row in rows] == expected(first, stored)
    assert sum(row["swapped_groups"] for row in rows[:2]) == 2, "each of the two tasks, when first seen"
    assert all(row["success"] == 0 and row["buffer_size"] == 3 for row in rows)
    for row in rows:
        assert (row["probability_difference_mean"] is None) == bool(row["swaps"])
        assert (row["score_after"] > 0) == bool(row["swaps"])
        assert (row["grad_norm"] > 0) == (row["varying_groups"] > 0)
    recipe = json.loads((first.out / "manifest.json").read_bytes())["recipe"]
    assert recipe["preloaded_successes"] == 3 and len(recipe["episodes_sha256"]) == 64

    second = StageProcess.__new__(StageProcess)
    second.__dict__ = first.__dict__ | {
        "out": first.folder / "next",
        "options": options | {"stage": "train_32", "parent": "stage/manifest.json", "out": "next"},
    }
    second.finish()
    carried = [(task, continued("train_4", success, 4)) for task, success in stored]
    assert [row["swaps"] for row in second.rows()] == expected(second, carried)
    assert sum(row["swapped_groups"] for row in second.rows()) == 2
    assert "store_sha256" in json.loads((second.out / "manifest.json").read_bytes())["recipe"]
