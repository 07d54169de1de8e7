"""What a stage's replay store begins with, and what is refused before any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.config import load_config
from arpo_replica.config.models import StudyConfig
from arpo_replica.policy.manifest import Manifest
from arpo_replica.rollout.run import describe_sampling, sampled_as_in_training
from arpo_replica.tasks.splits import split_tasks
from arpo_replica.training.metrics import DIFFERENCES, collect
from arpo_replica.training.offline.data import digest, read_rollouts
from arpo_replica.training.preload import check_preload, start_store
from arpo_replica.training.replay import Stored, continued, is_recorded
from arpo_replica.workflow.study import Study
from offline_episodes import BAD, BASE_SHA256, END, GOOD, write_indexes, write_rollout

ARM = "arpo_preload"


@pytest.fixture
def config() -> StudyConfig:
    return load_config(ROOT / "configs/demo.yaml", ROOT / "configs/arms/preload.yaml")


def manifest(arm: str, stage: str, step: int = 0) -> Manifest:
    return Manifest(
        arm=arm, seed=0, stage=stage, step=step, size="nano", model="model", weights={}, sha256=BASE_SHA256,
        parent=None, recipe={}, versions={},
    )  # fmt: skip


def record(config: StudyConfig, root: Path, **changed: Any) -> list[Path]:
    """t1: a failure, then a success. t2: a success with an unparsable reply, then a lost episode."""
    sampling = describe_sampling(sampled_as_in_training(config)) | changed
    write_rollout(root, "t1", 0, [BAD, END], "failure", sampling=sampling)
    write_rollout(root, "t1", 1, [GOOD, END], sampling=sampling)
    write_rollout(root, "t2", 0, [END], format_errors=1, sampling=sampling)
    write_rollout(root, "t2", 1, [BAD], "env_error", sampling=sampling)
    return write_indexes(root)


def start(config: StudyConfig, indexes: list[Path], arm: str = ARM) -> Any:
    return start_store(config, arm, parent=Path("/x"), source=manifest("base", "base"), indexes=indexes)


def test_a_store_begins_with_what_the_replay_rule_would_have_stored(
    config: StudyConfig, tmp_path: Path
) -> None:
    indexes = record(config, tmp_path)
    found = start(config, indexes)
    assert [path.relative_to(tmp_path).as_posix() for path in found.episodes] == [
        "trial_1/d.t1",
        "trial_0/d.t2",
    ]
    successes = [r for r in read_rollouts(indexes, BASE_SHA256) if r.record.outcome == "success"]
    assert found.facts == {"episodes_sha256": digest(successes), "preloaded_successes": 2}


@pytest.mark.parametrize("arm", ["arpo", "grpo"])
def test_other_arms_begin_with_an_empty_one(config: StudyConfig, tmp_path: Path, arm: str) -> None:
    assert start(config, record(config, tmp_path), arm).model_dump() == start(config, [], arm).model_dump()
    assert not start(config, [], arm).episodes


@pytest.mark.parametrize(
    ("key", "value"), [("temperature", 0.6), ("screen", [1920, 1080]), ("max_steps", 15)]
)
def test_episodes_that_were_sampled_otherwise_are_refused(
    config: StudyConfig, tmp_path: Path, key: str, value: Any
) -> None:
    assert key in describe_sampling(config)
    with pytest.raises(UserError, match=rf"trial_0/d.t1 was recorded with {key} .*delete .*trial_0 and run"):
        start(config, record(config, tmp_path, **{key: value}))


def test_episodes_of_another_policy_are_refused(config: StudyConfig, tmp_path: Path) -> None:
    indexes = record(config, tmp_path)
    source = manifest("base", "base").model_copy(update={"sha256": "c" * 64})
    with pytest.raises(UserError, match="was not recorded by the policy"):
        start_store(config, ARM, parent=Path("/x"), source=source, indexes=indexes)


def test_a_policy_without_any_success_is_refused(config: StudyConfig, tmp_path: Path) -> None:
    sampling = describe_sampling(sampled_as_in_training(config))
    write_rollout(tmp_path, "t1", 0, [BAD], "failure", sampling=sampling)
    with pytest.raises(
        UserError, match=r"none of its 1 episodes on 'train_32' is one; raise offline.rollouts"
    ):
        start(config, write_indexes(tmp_path))


def test_a_carried_store_is_that_of_the_stage_before(config: StudyConfig, tmp_path: Path) -> None:
    parent, source = tmp_path / "manifest.json", manifest(ARM, "train_4", 3)
    with pytest.raises(UserError, match=r"replay store of the stage 'train_4'.*train that stage again"):
        start_store(config, ARM, parent=parent, source=source, indexes=[])
    store = tmp_path / "checkpoints/global_step_3/replay.json"
    store.parent.mkdir(parents=True)
    store.write_text("{}")
    found = start_store(config, ARM, parent=parent, source=source, indexes=[])
    assert (found.before, found.stage, found.steps) == (tmp_path, "train_4", 3)
    assert set(found.facts) == {"store_sha256"}
    config.arms[ARM]["replay"]["carry"] = False
    assert not start_store(config, ARM, parent=parent, source=source, indexes=[]).facts


def test_a_carried_success_keeps_its_age() -> None:
    """Stored in the last of three steps and replayed in the next stage's first one: one update old."""
    later = continued("train_4", Stored("000003_ab_000", 3), steps=3)
    assert later == Stored("train_4.000003_ab_000", 0)
    assert is_recorded(continued("train_4", Stored("base_ab_000", 0), 3).name)
    assert not is_recorded(later.name)


@pytest.mark.parametrize(
    ("overrides", "split", "words"),
    [
        ({"temperature": 0.5}, None, "arms.arpo_preload.temperature is 0.5, .*training.temperature .1.0."),
        (
            {"importance_correction": "truncated"},
            None,
            "replay.preload and importance_correction 'truncated'",
        ),
        (
            {},
            "test_in",
            "stage 'train_4', but offline.split 'test_in' lacks 4 of these 4 .'click-test-2-s000'",
        ),
    ],
)
def test_a_store_that_cannot_be_filled_is_refused(
    config: StudyConfig, overrides: dict[str, Any], split: str | None, words: str
) -> None:
    stage = config.training.stages[0]
    tasks = split_tasks(config, stage.split)
    check_preload(config, ARM, stage, tasks, split_tasks(config, config.offline_split))
    config.arms[ARM] |= overrides
    config.offline.split = split
    with pytest.raises(UserError, match=words):
        check_preload(config, ARM, stage, tasks, split_tasks(config, config.offline_split))


def test_a_check_of_the_study_refuses_it_too(config: StudyConfig) -> None:
    config.offline.split = "test_in"
    with pytest.raises(UserError, match="lacks 4 of these 4"):
        Study(config).check_training()


def test_the_rule_reads_the_episodes_that_a_stage_begins_with(config: StudyConfig) -> None:
    class Wildcards:
        arm, seed, stage = ARM, "0", "train_4"

    def inputs(arm: str, stage: str) -> list[str]:
        Wildcards.arm, Wildcards.stage = arm, stage
        return Study(config).preloaded_indexes(Wildcards)

    trials = [f"<results>/offline/train_32/trial_{trial}/episodes.jsonl" for trial in range(8)]
    assert inputs(ARM, "train_4") == inputs(ARM, "train_32") == trials
    assert inputs("arpo", "train_4") == []
    config.arms[ARM]["replay"]["carry"] = False
    assert inputs(ARM, "train_32") == []


def test_no_probability_is_told_of_a_step_with_recorded_replies(tmp_path: Path) -> None:
    """Nobody knows with which probability they were sampled."""
    logs, steps = tmp_path / "logs", tmp_path / "steps"
    logs.mkdir(), steps.mkdir()
    data = {"training/rollout_probs_diff_mean": 0.25, "arpo/success": 0.5}
    lines = [json.dumps({"step": step, "data": data}) + "\n" for step in (1, 2)]
    (logs / "verl_001.jsonl").write_text("".join(lines))
    for step, name in ((1, "000000_ab_000"), (2, "train_4.base_ab_000")):
        (steps / f"step_{step:06d}.json").write_text(json.dumps({"groups": [], "swaps": [{"name": name}]}))
    first, second = collect(logs, steps)
    assert first["probability_difference_mean"] == 0.25
    assert [second[key] for key in DIFFERENCES] == [None] * 3
    assert second["success"] == 0.5
