"""Config -> verl's keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from arpo_replica.config import load_config
from arpo_replica.config.models import StudyConfig
from arpo_replica.environments import ROOT
from arpo_replica.errors import UserError
from arpo_replica.training.attempt import environment
from arpo_replica.training.job import Job
from arpo_replica.training.recipe import to_arguments, to_hydra, verl_overrides


def make_job(tmp_path: Path, arm: str = "arpo", config: StudyConfig | None = None, **options: object) -> Job:
    return Job.model_validate(
        {
            "config": config or load_config(ROOT / "configs" / "demo.yaml"),
            "arm": arm,
            "seed": 3,
            "stage_name": "train_4",
            "parent_model": tmp_path / "parent",
            "parent_sha256": "0" * 64,
            "out": tmp_path / "out",
            "scratch": tmp_path / "scratch",
            "attempt": 1,
            **options,
        }
    )


def overrides(job: Job, tasks: int = 4) -> dict[str, object]:
    return verl_overrides(job, tasks=tasks, data=Path("/d.parquet"), agents=Path("/a.yaml"))


def test_the_arms_differ_in_nothing_that_verl_sees(tmp_path: Path) -> None:
    """Replay is the sampler's business; verl gets the same keys but for the run's name."""
    arpo, grpo = (overrides(make_job(tmp_path, arm)) for arm in ("arpo", "grpo"))
    differing = {key for key in arpo | grpo if arpo.get(key) != grpo.get(key)}
    assert differing == {"trainer.experiment_name"}


def test_arpos_settings(tmp_path: Path) -> None:
    found = overrides(make_job(tmp_path))
    actor = "actor_rollout_ref.actor"
    assert found["algorithm.adv_estimator"] == "grpo"
    assert (found[f"{actor}.clip_ratio_low"], found[f"{actor}.clip_ratio_high"]) == (0.2, 0.3)
    assert found[f"{actor}.clip_ratio_c"] == 3.0
    assert found[f"{actor}.use_kl_loss"] is False
    assert found[f"{actor}.loss_agg_mode"] == "seq-mean-token-mean"
    assert found["data.seed"] == 3


def test_resume_names_the_checkpoint(tmp_path: Path) -> None:
    fresh, resumed = overrides(make_job(tmp_path)), overrides(make_job(tmp_path, resume_step=2))
    assert fresh["trainer.resume_mode"] == "disable"
    assert resumed["trainer.resume_mode"] == "resume_path"
    assert str(resumed["trainer.resume_from_path"]).endswith("checkpoints/global_step_2")


def test_epochs_cover_the_steps(tmp_path: Path) -> None:
    assert overrides(make_job(tmp_path), tasks=32)["trainer.total_epochs"] == 2  # 3 steps of 8 an epoch
    assert overrides(make_job(tmp_path), tasks=4)["trainer.total_epochs"] == 4


def test_user_keys_come_last_and_win(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "demo.yaml")
    config.training.verl = {"data.shuffle": False, "+actor_rollout_ref.rollout.limit_images": 3}
    found = overrides(make_job(tmp_path, config=config))
    assert list(found)[-2:] == ["data.shuffle", "+actor_rollout_ref.rollout.limit_images"]
    assert found["data.shuffle"] is False
    assert [key for key in found if key.endswith("limit_images")] == [
        "+actor_rollout_ref.rollout.limit_images"
    ]


def test_a_gpu_is_a_matter_of_configuration(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "demo.yaml")
    config.accelerator = "cuda"
    job = make_job(tmp_path, config=config)
    found = overrides(job)
    assert found["trainer.device"] == "cuda"
    assert found["actor_rollout_ref.rollout.dtype"] == "bfloat16"
    assert not {"VERL_PLATFORM", "VERL_ENGINE_DEVICE"} & environment(job).keys()
    assert environment(make_job(tmp_path))["VERL_PLATFORM"] == "cpu"


@pytest.mark.parametrize(
    ("section", "key", "value", "named"),
    [
        ("training", "tasks_per_step", 8, "tasks_per_step"),
        ("policy", "max_images", 5, "max_images"),
        ("training", "micro_batch", 5, "micro_batch"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tmp_path: Path, section: str, key: str, value: int, named: str
) -> None:
    config = load_config(ROOT / "configs" / "demo.yaml")
    setattr(getattr(config, section), key, value)
    with pytest.raises(UserError, match=named) as caught:
        overrides(make_job(tmp_path, config=config))
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1e-06, "1e-06"),
        (3, "3"),
        ("it's", r"'it\'s'"),
        ("/a b,c=d", "'/a b,c=d'"),
        (["model", "extra"], "['model','extra']"),
        ({"image": 6}, "{image:6}"),
    ],
)
def test_hydra_values(value: object, text: str) -> None:
    assert to_hydra(value) == text


def test_arguments(tmp_path: Path) -> None:
    assert to_arguments({"a.b": 1, "+c": "x"}) == ["a.b=1", "+c='x'"]
    with pytest.raises(UserError, match="backslash"):
        to_hydra("C:\\")
