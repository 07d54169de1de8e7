"""One stage with what is off by default: KL, TensorBoard, W&B offline, lost rollouts begun again.

One task's desktops break in all attempts of the first round, another's in all but the very first attempt.
"""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.cpu_env, pytest.mark.timeout(600)]
pytest.importorskip("verl")

from arpo_replica.base.files import read_rows  # noqa: E402
from arpo_replica.rollout.records import finished_episodes, read_episode  # noqa: E402
from training.stage_process import StageProcess  # noqa: E402
from training.test_stage import small_config  # noqa: E402


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> StageProcess:
    """Trained for two steps, in which each of the four tasks has its turn."""
    folder = tmp_path_factory.mktemp("options")
    config = small_config()
    training = config.training
    training.stages[0].steps, training.save_every, training.learning_rate = 2, 2, 1e-3
    training.loggers, training.kl_weight = ["tensorboard", "wandb"], 0.1
    training.lost_rollout_refills = 1
    stage = StageProcess(folder / "study", config, provider="training.fake_desktop:FakeProvider")
    state = folder / "state"
    state.mkdir()
    first_round = training.rollouts_per_task * (config.rollout.env_error_retries + 1)
    stage.variables = {
        "FAKE_STATE": str(state),
        "FAKE_BREAK_FIRST": f"{stage.tasks[0].id}:{first_round}",
        "FAKE_BREAK_AFTER": f"{stage.tasks[1].id}:1",
        "WANDB_MODE": "offline",
    }
    stage.finish()
    return stage


def row_of(stage: StageProcess, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics of the step in which a task had its turn, and its group."""
    name = f"{stage.tasks[number].domain}/{stage.tasks[number].id}"
    for row in stage.rows():
        for group in row["tasks"]:
            if group["task"] == name:
                return row, group
    raise AssertionError(f"no group of {name}: {stage.rows()}")


def logged(stage: StageProcess, step: int) -> dict[str, Any]:
    """verl's own metrics of a step."""
    logs = (stage.out / "checkpoints" / "logs").glob("verl_*.jsonl")
    data: dict[str, Any] = next(
        line["data"] for path in logs for line in read_rows(path) if line["step"] == step
    )
    return data


def test_lost_rollouts_are_begun_again_once_the_others_are_through(stage: StageProcess) -> None:
    row, group = row_of(stage, 0)
    assert len(group["scores"]) == stage.config.training.rollouts_per_task
    assert row["refilled_rollouts"] == stage.config.training.rollouts_per_task
    for rollout in range(4):
        found = [
            read_episode(path)[0]
            for step in (1, 2)
            for (_, task), path in finished_episodes(
                stage.out / "episodes" / f"step_{step:06d}" / f"rollout_{rollout:03d}"
            ).items()
            if task == stage.tasks[0].id
        ]
        assert [(record.attempts, record.outcome != "env_error") for record in found] == [(4, True)]


def test_a_rollout_left_alone_in_its_group_is_not_trained_on(stage: StageProcess) -> None:
    """Its advantage would be its reward, -1 or 0. A group with one success in four has 1.5 and -0.5; it is
    half of the step's eight rows and all that is trained on, so each of its rows counts twice in verl's mean.
    """
    row, group = row_of(stage, 1)
    assert len(group["scores"]) == 1
    assert (row["lone_groups"], row["lost_rollouts"]) == (1, 3)
    attempts = 2 * (stage.config.rollout.env_error_retries + 1)
    refilled = row["refilled_rollouts"] * (stage.config.rollout.env_error_retries + 1)
    assert row["env_errors"] == 3 * attempts + refilled
    data = logged(stage, row["step"])
    assert data["critic/advantages/min"] == pytest.approx(2 * -0.5, abs=0.02)
    assert data["critic/advantages/max"] == pytest.approx(2 * 1.5, abs=0.02)


def test_the_kl_term_pulls_once_the_policy_has_moved(stage: StageProcess) -> None:
    first, second = stage.rows()
    assert first["kl_loss"] == pytest.approx(0.0, abs=1e-6)
    assert second["kl_loss"] > 1e-5
    whole = logged(stage, 2)["actor/loss"]
    assert whole == pytest.approx(second["loss"] + 0.1 * second["kl_loss"], abs=1e-7)
    assert whole != pytest.approx(second["loss"], rel=1e-3)


def test_both_loggers_write_below_checkpoints(stage: StageProcess) -> None:
    work = stage.out / "checkpoints"
    assert list((work / "tensorboard").rglob("events.out.tfevents*"))
    runs = list((work / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 1
    assert runs[0].stat().st_size > 1000
    assert runs[0].name == f"run-{(work / 'wandb_id').read_text()}.wandb"
