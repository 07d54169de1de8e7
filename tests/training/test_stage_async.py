"""A stage whose rollouts outlast updates: one task waits for them. One start; with a kill two."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = [pytest.mark.cpu_env, pytest.mark.timeout(900)]
pytest.importorskip("verl")

from arpo_replica.rollout.records import read_episode  # noqa: E402
from arpo_replica.training.gates import checkpoint_problem  # noqa: E402
from training.stage_process import StageProcess  # noqa: E402
from training.test_stage import small_config  # noqa: E402

STEPS = 6


def async_stage(folder: Path) -> StageProcess:
    config = small_config()
    training = config.training
    training.stages[0].steps = STEPS
    training.asynchrony.mode = "partial_rollout"
    training.importance_correction = "truncated"
    config.policy.max_steps = 3
    options = {
        "provider": "training.fake_desktop:FakeProvider",
        "parser": "training.scripted_desktop:make_parser",
    }
    stage = StageProcess(folder / "study", config, **options)
    (folder / "state").mkdir()
    stage.variables = {"FAKE_STATE": str(folder / "state"), "FAKE_SLOW": f"{stage.tasks[0].id}:20"}
    return stage


def check_rows(stage: StageProcess) -> None:
    """Whole groups, no older than allowed, each step once, and replay goes on as ever."""
    rows = stage.rows()
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert (row["groups"], row["rollouts"], row["lost_rollouts"]) == (2, 8, 0)
        lags = [lag for group in row["tasks"] for lag in group["staleness"]]
        assert max(lags) == row["staleness_max"] <= stage.config.training.asynchrony.max_staleness
        assert sum(lag > 0 for lag in lags) == row["stale_rollouts"]
        assert min(lags) >= 0
        assert row["importance_max"] <= stage.config.training.importance_max + 1e-6
    assert sum(row["stale_rollouts"] for row in rows) > 0
    assert any(row["swapped_groups"] for row in rows)
    for row in rows:
        assert all(swap["step"] < row["step"] for swap in row["swaps"])
    work = stage.out / "checkpoints"
    assert checkpoint_problem(work / f"global_step_{STEPS}", work / "replay_items") is None


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> StageProcess:
    """Trained without an interruption."""
    stage = async_stage(tmp_path_factory.mktemp("async"))
    stage.finish()
    return stage


def test_no_rollout_lags_behind_further_than_allowed(stage: StageProcess) -> None:
    check_rows(stage)


def test_trainer_and_vllm_agree_on_replies_of_the_newest_weights(stage: StageProcess) -> None:
    rows = [row for row in stage.rows() if not row["stale_rollouts"] and not row["swapped_groups"]]
    assert rows, "no step without stale or replayed rollouts"
    for row in rows:
        assert row["probability_correlation"] > 0.99


def test_an_episode_says_which_weights_wrote_each_reply(stage: StageProcess) -> None:
    spans = []
    for path in sorted((stage.out / "episodes").glob("step_*/rollout_*/*/episode.json")):
        record, steps = read_episode(path.parent)
        weights = [step.weights for step in steps]
        assert None not in weights
        flat = [version for pair in weights if pair for version in pair]
        assert flat == sorted(flat)
        assert record.checkpoint_sha256.endswith(f"+{flat[0]}")
        spans.append(flat[-1] - flat[0])
    assert max(spans) == 1, "no rollout outlasted an update"
    assert stage.processes() == []


@pytest.mark.slow
def test_a_kill_loses_no_step_and_no_group(tmp_path: Path) -> None:
    """Finished rollouts come back from the checkpoint, those in the middle are begun again."""
    stage = async_stage(tmp_path)
    stage.kill_when(lambda: stage.logged(3))
    stage.finish()
    check_rows(stage)
    assert {row["attempt"] for row in stage.rows()} == {1, 2}
