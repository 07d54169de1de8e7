"""A training that is told to end: it waits for a checkpoint as long as it may, and for nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from test_training_attempt import job, stand_in  # noqa: F401  # a fixture
from test_training_recipe import make_job

from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import Stopped, UserError
from arpo_replica.config import load_config
from arpo_replica.training.job import Job
from arpo_replica.training.process.attempt import Attempt, environment
from arpo_replica.training.process.stop_notice import Notice
from arpo_replica.training.recipe import check_recipe, data_parallel, ray_numbers, verl_overrides
from arpo_replica.training.run import forkable

SAVES = """
while not Path("save_now").exists():
    time.sleep(0.05)
folder = Path("global_step_2")
folder.mkdir()
(folder / "w").write_text("x")
(folder / "complete.json").write_text('{"w": 1}')
time.sleep(600)
"""


def test_it_ends_as_soon_as_the_checkpoint_is_whole(job: Job) -> None:  # noqa: F811
    notice = Notice(grace_s=60)
    notice.give()
    attempt = Attempt(job, stand_in(job, SAVES.replace("{", "{{").replace("}", "}}").format()), notice=notice)
    with pytest.raises(Stopped, match="after step 2"):
        attempt.wait()
    assert time.monotonic() - attempt.started < 30
    assert attempt.process.poll() is not None


def test_it_ends_without_one_when_the_time_is_over(job: Job) -> None:  # noqa: F811
    notice = Notice(grace_s=0.5)
    notice.give()
    attempt = Attempt(job, stand_in(job, "hang()"), notice=notice)
    with pytest.raises(Stopped, match="after step 0"):
        attempt.wait()
    assert job.save_file.exists()


def test_gpus_of_other_makers_are_not_named(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Slurm sets ROCR_VISIBLE_DEVICES beside CUDA_VISIBLE_DEVICES; verl refuses that."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "2,3")
    variables = environment(job)
    assert variables["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "ROCR_VISIBLE_DEVICES" not in variables


def two_nodes(folder: Path, **changes: int) -> Job:
    config = load_config(ROOT / "configs" / "demo.yaml")
    config.training.nodes = 2
    for name, value in changes.items():
        setattr(config.training, name, value)
    return make_job(folder, config=config)


def test_several_nodes_join_a_ray_that_runs(tmp_path: Path) -> None:
    job = two_nodes(tmp_path, micro_batch=8)  # noqa: F811
    overrides = verl_overrides(job, tasks=4, data=Path("d"), agents=Path("a"))
    assert overrides["trainer.nnodes"] == 2
    assert overrides["ray_kwargs.ray_init.num_cpus"] is None, "Ray refuses numbers when it is joined"
    assert not any(key.startswith("+ray_kwargs") for key in overrides)
    assert (data_parallel(job), ray_numbers(job)) == (2, (1, 16))
    assert not forkable(job.config, "arpo")


def test_one_cpu_node_trains_in_one_process(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training\.gpus is 2"):
        check_recipe(two_nodes(tmp_path, gpus=2), 4)
