"""Stages that go another way: groups drawn again, desktops that all fail, a vLLM that dies. A start each."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cpu_env, pytest.mark.slow, pytest.mark.timeout(900)]
pytest.importorskip("verl")

from arpo_replica.base.processes import command_of, descendants  # noqa: E402
from training.stage_process import StageProcess  # noqa: E402
from training.test_stage import small_config  # noqa: E402

FAKE = {"provider": "training.fake_desktop:FakeProvider"}


def fake_stage(folder: Path, **training: object) -> StageProcess:
    config = small_config()
    for key, value in training.items():
        setattr(config.training, key, value)
    stage = StageProcess(folder / "study", config, **FAKE)
    state = folder / "state"
    state.mkdir()
    stage.variables = {"FAKE_STATE": str(state)}
    return stage


def test_groups_without_variance_are_drawn_again(tmp_path: Path) -> None:
    """One task never succeeds: other tasks take its place. Failed groups that replay repairs stay, and so do
    those of a task whose desktops always break: they are lost rollouts, no reason to end the training."""
    stage = fake_stage(tmp_path, dynamic_sampling=True, env_error_share_max=0.9)
    hopeless = stage.tasks[0]
    stage.variables["FAKE_HOPELESS"] = hopeless.id
    stage.variables["FAKE_BREAK"] = stage.tasks[1].id
    stage.finish()
    rows = stage.rows()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert sum(row["redrawn_groups"] for row in rows) > 0
    assert sum(row["swapped_groups"] for row in rows) > 0
    limit = stage.config.training.dynamic_sampling_max * stage.config.training.tasks_per_step
    assert sum(row["lost_rollouts"] for row in rows) > 0
    for row in rows:
        assert row["groups"] + row["lost_rollouts"] / 4 == 2
        assert row["redrawn_groups"] <= limit
        if row["redrawn_groups"] < limit:
            assert row["varying_groups"] == row["groups"]
            assert f"{hopeless.domain}/{hopeless.id}" not in {group["task"] for group in row["tasks"]}


def test_a_step_of_lone_rollouts_trains_on_nothing_and_goes_on(tmp_path: Path) -> None:
    """One task a step; the desktops of one task break after its first rollout, so nothing else is left of its
    step. Its reward is -1 or 0: as an advantage it would move the weights."""
    stage = fake_stage(tmp_path, tasks_per_step=1, minibatch_tasks=1, env_error_share_max=0.9)
    lonely = stage.tasks[1]
    stage.variables["FAKE_BREAK_AFTER"] = f"{lonely.id}:1"
    stage.finish()
    rows = stage.rows()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    (alone,) = [row for row in rows if row["lone_groups"]]
    assert alone["tasks"][0]["task"] == f"{lonely.domain}/{lonely.id}"
    assert (alone["rollouts"], alone["lost_rollouts"], alone["grad_norm"]) == (1, 3, 0.0)
    assert all(row["grad_norm"] > 0 for row in rows if row is not alone)


def test_desktops_that_all_fail_stop_the_stage_with_one_sentence(tmp_path: Path) -> None:
    stage = fake_stage(tmp_path)
    stage.variables["FAKE_BREAK"] = ",".join(task.id for task in stage.tasks)
    process = stage.start()
    stage.wait(process, lambda: False)
    assert process.returncode not in (0, None)
    said = (stage.folder / "output.txt").read_text()
    assert "UserError: 100% of the rollouts of the last 1 steps were lost to environment errors" in said
    assert "training.env_error_share_max (50%)" in said
    assert stage.processes() == []


@pytest.mark.parametrize(
    "victim",
    [
        r"^ray::vLLM",
        r"^ray::\w*WorkerDict",
        r"^ray::AgentLoopWorker",
        r"arpo_replica\.training\.process\.keeper",
        "raylet",
    ],
)
def test_a_dead_process_ends_the_stage_and_the_next_run_goes_on(tmp_path: Path, victim: str) -> None:
    """vLLM, trainer, agent loop, the desktops' keeper, Ray itself: found long before the watchdog, nothing is
    left behind, and no step is done twice or missing."""
    stage = fake_stage(tmp_path, dead_after_s=5)
    process = stage.start()
    stage.wait(process, lambda: stage.logged(1))
    below = descendants(process.pid)
    chosen = [found.pid for found in below if re.search(victim, command_of(found))]
    assert chosen, [command_of(found) for found in below]
    began = time.monotonic()
    for pid in chosen:
        os.kill(pid, signal.SIGKILL)
    stage.wait(process, lambda: False)
    assert process.returncode not in (0, None)
    assert time.monotonic() - began < 90
    assert stage.processes() == []
    stage.finish()
    rows = stage.rows()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {row["attempt"] for row in rows} == {1, 2}
