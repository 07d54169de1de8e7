"""Killed and started again, a training gives the same weights and the same numbers, bit for bit.

Everything that could differ is fixed: seeds for each request, one desktop (so vLLM has one request at a
time), one thread, no prefix cache; the desktop and the parser are functions of what the policy writes
(``scripted_desktop``). The history is shorter than the episodes and importance weights are on, so that
replayed trajectories of several sequences are part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.cpu_env, pytest.mark.timeout(1500)]
pytest.importorskip("verl")

from arpo_replica.base.environments import ROOT  # noqa: E402
from arpo_replica.config import load_config  # noqa: E402
from arpo_replica.config.models import StudyConfig  # noqa: E402
from arpo_replica.policy.manifest import read_manifest  # noqa: E402
from arpo_replica.training.gates import checkpoint_problem  # noqa: E402
from training.stage_process import StageProcess  # noqa: E402

STEPS = 6
OPTIONS = {
    "provider": "training.scripted_desktop:ScriptedProvider",
    "parser": "training.scripted_desktop:make_parser",
}


def scripted_config() -> StudyConfig:
    config = load_config(ROOT / "configs" / "demo.yaml")
    config.tasks.root = config.tasks.root.absolute()
    config.tasks.splits = {name: path.absolute() for name, path in config.tasks.splits.items()}
    config.threads = 1
    config.desktop.count = 1
    config.policy.max_steps, config.policy.max_images, config.policy.max_new_tokens = 3, 2, 12
    training = config.training
    training.tasks_per_step = training.minibatch_tasks = 2
    training.micro_batch = 4
    training.save_every = 1
    training.learning_rate = 1e-3
    training.importance_correction = "truncated"
    # Replay in groups with a few successes too: whether a group fails altogether is a matter of luck, and
    # what the random model writes depends on the processor.
    training.replay.trigger_mean_below, training.replay.trigger_std_below = 0.8, 1.0
    training.loggers = ["tensorboard"]
    training.verl = {"actor_rollout_ref.rollout.enable_prefix_caching": False}
    training.stages[0].steps = STEPS
    return StudyConfig.model_validate(config.model_dump())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> StageProcess:
    """Trained without an interruption."""
    stage = StageProcess(tmp_path_factory.mktemp("whole"), scripted_config(), **OPTIONS)
    stage.finish()
    return stage


def in_rollout(stage: StageProcess, step: int) -> Callable[[], bool]:
    """Some episodes of the step are there, not all."""
    folder = stage.out / "episodes" / f"step_{step:06d}"
    return lambda: len(list(folder.glob("rollout_*/*/episode.json"))) >= 3


def in_update(stage: StageProcess, step: int) -> Callable[[], bool]:
    """The batch of the step is complete, its update is not."""
    return (stage.out / "checkpoints" / "steps" / f"step_{step:06d}.json").is_file


def after_checkpoint(stage: StageProcess, step: int) -> Callable[[], bool]:
    """The checkpoint of the step has just become complete."""
    return (stage.out / "checkpoints" / f"global_step_{step}" / "complete.json").is_file


def results(stage: StageProcess) -> tuple[str, list[dict[str, Any]]]:
    """(identity of the weights, metrics of each step without times and attempts)."""
    times = {"seconds", "rollout_seconds", "attempt"}
    rows = [{k: v for k, v in row.items() if k not in times} for row in stage.rows()]
    return read_manifest(stage.out / "manifest.json", verify=True).sha256, rows


def compare(found: StageProcess, expected: StageProcess) -> None:
    identity, rows = results(found)
    expected_identity, expected_rows = results(expected)
    assert rows == expected_rows
    assert identity == expected_identity
    assert {row["attempt"] for row in found.rows()} > {1}, "nothing was interrupted"


def test_the_uninterrupted_training_has_all_that_a_resume_must_keep(whole: StageProcess) -> None:
    rows = whole.rows()
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert sum(row["swapped_groups"] for row in rows) > 0
    assert sum(row["varying_groups"] for row in rows) > 0
    assert any(row["grad_norm"] > 0 for row in rows)
    assert all(row["sequences"] > row["rollouts"] for row in rows)
    assert all(math.isfinite(row["loss"]) for row in rows)


def test_importance_weights_are_near_one_without_replay_and_bounded_with_it(whole: StageProcess) -> None:
    for row in whole.rows():
        assert row["importance_max"] <= 2.0 + 1e-6
        if not row["swapped_groups"]:
            assert row["importance_mean"] == pytest.approx(1.0, abs=0.03)


def test_checkpoint_and_logs_are_there(whole: StageProcess) -> None:
    work = whole.out / "checkpoints"
    assert checkpoint_problem(work / f"global_step_{STEPS}", work / "replay_items") is None
    assert list((work / "tensorboard").rglob("events.out.tfevents*"))


def test_one_kill_changes_nothing(whole: StageProcess, tmp_path: Path) -> None:
    stage = StageProcess(tmp_path / "killed", scripted_config(), **OPTIONS)
    stage.kill_when(in_update(stage, 3))
    stage.finish()
    compare(stage, whole)


@pytest.mark.slow
def test_three_kills_change_nothing(whole: StageProcess, tmp_path: Path) -> None:
    stage = StageProcess(tmp_path / "killed", scripted_config(), **OPTIONS)
    stage.kill_when(in_rollout(stage, 2))
    stage.kill_when(in_update(stage, 3))
    stage.kill_when(after_checkpoint(stage, 4))
    stage.finish()
    compare(stage, whole)
