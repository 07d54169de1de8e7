"""Config -> verl's keys."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.config import load_config
from arpo_replica.config.models import StudyConfig, merge
from arpo_replica.training.job import Job
from arpo_replica.training.process.attempt import environment
from arpo_replica.training.process.launch import check_loggers
from arpo_replica.training.recipe import (
    check_recipe,
    check_window,
    data_parallel,
    ray_numbers,
    to_arguments,
    to_hydra,
    verl_overrides,
)
from arpo_replica.training.run import forkable


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
    assert found["algorithm.adv_estimator"] == "episodes"
    assert (found[f"{actor}.clip_ratio_low"], found[f"{actor}.clip_ratio_high"]) == (0.2, 0.3)
    assert found[f"{actor}.clip_ratio_c"] == 3.0
    assert found[f"{actor}.use_kl_loss"] is False
    assert found[f"{actor}.loss_agg_mode"] == "seq-mean-token-mean"


def test_resume_names_the_checkpoint(tmp_path: Path) -> None:
    fresh, resumed = overrides(make_job(tmp_path)), overrides(make_job(tmp_path, resume_step=2))
    assert fresh["trainer.resume_mode"] == "disable"
    assert resumed["trainer.resume_mode"] == "resume_path"
    assert str(resumed["trainer.resume_from_path"]).endswith("checkpoints/global_step_2")


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
        ("training", "micro_batch", 5, "micro_batch"),
        ("training", "gpus", 2, "accelerator"),
        ("policy", "max_new_tokens", 2048, "max_model_len"),
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
    ("changes", "named"),
    [
        ({"gpus": 3, "micro_batch": 1}, "data-parallel GPUs .1 x 3."),
        ({"gpus": 8}, r"training\.micro_batch x data-parallel GPUs .4 x 8."),
        ({"gpus": 4, "sequence_parallel": 3}, "sequence_parallel"),
        ({"gpus": 4, "tensor_parallel": 8}, "tensor_parallel"),
    ],
)
def test_gpus_that_do_not_divide_the_batch_are_refused(
    tmp_path: Path, changes: dict[str, int], named: str
) -> None:
    """16 rollouts per update."""
    config = load_config(ROOT / "configs" / "demo.yaml")
    config.accelerator = "cuda"
    config.training.micro_batch = 4
    for key, value in changes.items():
        setattr(config.training, key, value)
    with pytest.raises(UserError, match=named):
        overrides(make_job(tmp_path, config=config))


def test_several_gpus(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "demo.yaml")
    config.accelerator = "cuda"
    training = config.training
    training.gpus, training.nodes, training.sequence_parallel, training.tensor_parallel = 4, 2, 2, 2
    training.micro_batch, training.offload = 2, True
    job = make_job(tmp_path, config=config)
    found = overrides(job)
    assert data_parallel(job) == 4
    assert (found["trainer.n_gpus_per_node"], found["trainer.nnodes"]) == (4, 2)
    assert found["actor_rollout_ref.actor.ulysses_sequence_parallel_size"] == 2
    assert found["actor_rollout_ref.rollout.tensor_model_parallel_size"] == 2
    assert found["actor_rollout_ref.actor.fsdp_config.optimizer_offload"] is True


def test_ablations_reach_verl(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "demo.yaml")
    plain = overrides(make_job(tmp_path, config=config))
    assert plain["algorithm.rollout_correction.rollout_is"] is None
    assert plain["trainer.logger"] == ["console", "file"]
    assert "data.gen_batch_size" not in plain
    training = config.training
    training.importance_correction, training.importance_max = "truncated", 5.0
    training.kl_weight, training.dynamic_sampling, training.lr_warmup_ratio = 0.01, True, 0.05
    training.loggers = ["tensorboard", "wandb"]
    found = overrides(make_job(tmp_path, config=config))
    assert found["algorithm.rollout_correction.rollout_is"] == "token"
    assert found["algorithm.rollout_correction.rollout_is_threshold"] == 5.0
    assert found["algorithm.rollout_correction.bypass_mode"] is False  # old log-probs stay recomputed
    assert found["actor_rollout_ref.actor.use_kl_loss"] is True
    assert found["actor_rollout_ref.actor.kl_loss_coef"] == 0.01
    assert found["actor_rollout_ref.actor.optim.lr_warmup_steps_ratio"] == 0.05
    assert found["data.gen_batch_size"] == 1
    assert found["trainer.logger"] == ["console", "file", "tensorboard", "wandb"]


def test_a_kl_term_brings_its_reference_model(tmp_path: Path) -> None:
    """verl refuses one without a micro batch; on a CPU it computes in float32, as the actor does."""
    config = load_config(ROOT / "configs" / "demo.yaml")
    ref = "actor_rollout_ref.ref"
    assert not [key for key in overrides(make_job(tmp_path, config=config)) if key.startswith(ref)]
    config.training.kl_weight = 0.01
    found = overrides(make_job(tmp_path, config=config))
    assert found[f"{ref}.log_prob_micro_batch_size_per_gpu"] == config.training.micro_batch
    assert found[f"{ref}.fsdp_config.dtype"] == "float32"
    assert found["actor_rollout_ref.actor.kl_loss_type"] == "low_var_kl"
    config.accelerator, config.training.offload = "cuda", True
    found = overrides(make_job(tmp_path, config=config))
    assert f"{ref}.fsdp_config.dtype" not in found
    assert found[f"{ref}.fsdp_config.param_offload"] is True


def test_rollouts_beside_updates_are_verls_colocated_trainer(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "demo.yaml")
    plain = overrides(make_job(tmp_path, config=config))
    assert not [key for key in plain if "trainer_mode" in key or "max_off_policy" in key]
    assert plain["trainer.v1.sampler.custom_sampler.name"] == "ReplaySampler"
    asynchrony = config.training.asynchrony
    asynchrony.mode, asynchrony.max_staleness = "partial_rollout", 2
    found = overrides(make_job(tmp_path, config=config))
    assert found["trainer.v1.trainer_mode"] == "colocate_async"
    assert found["trainer.v1.sampler.custom_sampler.name"] == "AsyncReplaySampler"
    # a rollout begun with version v and trained on two updates later spans v, v + 1, v + 2
    assert found["trainer.v1.sampler.max_off_policy_threshold"] == 3
    assert found["trainer.v1.sampler.max_off_policy_strategy"] == "wait"
    config.training.dynamic_sampling = True
    with pytest.raises(
        UserError, match=r"training\.dynamic_sampling .* training\.asynchrony\.mode"
    ) as caught:
        overrides(make_job(tmp_path, config=config))
    assert "\n" not in str(caught.value)


def test_a_logger_that_is_not_installed_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(ROOT / "configs" / "demo.yaml")
    config.training.loggers = ["tensorboard", "wandb"]
    job = make_job(tmp_path, config=config)
    job.stop_file.parent.mkdir(parents=True)
    installed = {"tensorboard", "wandb"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in installed else None)
    check_loggers(job)
    assert not job.stop_file.exists()
    installed.remove("wandb")
    with pytest.raises(SystemExit):
        check_loggers(job)
    assert job.stop_file.read_text() == (
        "training.loggers names 'wandb', but the environment that trains has no package wandb; install it "
        "there or drop it from the key."
    )


def test_loggers_stay_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(ROOT / "configs" / "demo.yaml")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert environment(make_job(tmp_path, config=config))["WANDB_MODE"] == "disabled"
    config.training.loggers = ["wandb"]
    job = make_job(tmp_path, config=config)
    assert environment(job)["WANDB_MODE"] == "offline"
    assert Path(environment(job)["WANDB_DIR"]).is_relative_to(job.work)
    monkeypatch.setenv("WANDB_MODE", "online")
    assert environment(job)["WANDB_MODE"] == "online"


def test_wandb_knows_study_arm_and_seed_and_that_a_training_goes_on(tmp_path: Path) -> None:
    wandb = {"entity": "team", "tags": ["osworld", "arpo"], "notes": "a line"}
    job = make_job(tmp_path, config=with_training(loggers=["wandb"], wandb=wandb))
    found = environment(job)
    assert (found["WANDB_ENTITY"], found["WANDB_TAGS"], found["WANDB_NOTES"]) == (
        "team",
        "osworld,arpo",
        "a line",
    )
    assert (found["WANDB_RUN_GROUP"], found["WANDB_JOB_TYPE"]) == ("demo/arpo/seed_3", "train_4")
    assert found["WANDB_RESUME"] == "allow"
    again = environment(make_job(tmp_path, config=job.config, attempt=2))
    assert again["WANDB_RUN_ID"] == found["WANDB_RUN_ID"]
    other = environment(make_job(tmp_path / "other", config=job.config))
    assert other["WANDB_RUN_ID"] != found["WANDB_RUN_ID"]
    with pytest.raises(ValidationError, match="tags"):
        with_training(wandb={"tags": ["a,b"]})


def test_a_window_shorter_than_the_conversation_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    job.parent_model.mkdir()
    (job.parent_model / "config.json").write_text('{"text_config": {"max_position_embeddings": 1024}}')
    with pytest.raises(UserError, match=r"policy\.max_model_len is 2048, .* ends at 1024"):
        check_window(job)
    (job.parent_model / "config.json").write_text('{"max_position_embeddings": 4096}')
    check_window(job)


@pytest.mark.parametrize(("key", "parts"), [("sequence_parallel", 8), ("tensor_parallel", 8)])
def test_parts_that_do_not_divide_the_models_heads_are_refused(tmp_path: Path, key: str, parts: int) -> None:
    """28 heads, as a 7B has them: 8 GPUs cannot share one trajectory, 4 can."""
    config = load_config(ROOT / "configs" / "demo.yaml")
    config.accelerator, config.training.gpus = "cuda", 8
    setattr(config.training, key, parts)
    job = make_job(tmp_path, config=config)
    job.parent_model.mkdir()
    (job.parent_model / "config.json").write_text('{"text_config": {"num_attention_heads": 28}}')
    with pytest.raises(UserError, match=rf"training\.{key} \(8\) must divide the model's 28") as caught:
        check_window(job)
    assert "\n" not in str(caught.value)
    vars(job).pop("recipe")
    setattr(config.training, key, 4)
    check_window(make_job(tmp_path, config=config))


def test_a_history_that_can_never_fit_is_refused(tmp_path: Path) -> None:
    """Ten screenshots of 1920x1080 are 26,910 tokens; fifteen do not fit into 32,768."""
    config = load_config(ROOT / "configs" / "seed_2b.yaml")
    job = make_job(tmp_path, config=config)
    overrides(job)
    config.policy.max_images = 15
    with pytest.raises(
        UserError, match=r"15 screenshots of 2691 tokens .*policy\.max_model_len \(32768\); raise it"
    ) as caught:
        overrides(job)
    assert "\n" not in str(caught.value)
    config.policy.max_steps = 11
    overrides(job)


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


def two_nodes(folder: Path, **changes: int) -> Job:
    config = load_config(ROOT / "configs" / "demo.yaml")
    config.training.nodes = 2
    for name, value in changes.items():
        setattr(config.training, name, value)
    return make_job(folder, config=config)


def test_several_nodes_join_a_ray_that_runs(tmp_path: Path) -> None:
    job = two_nodes(tmp_path, micro_batch=8)
    found = overrides(job)
    assert found["trainer.nnodes"] == 2
    assert found["ray_kwargs.ray_init.num_cpus"] is None, "Ray refuses numbers when it is joined"
    assert not any(key.startswith("+ray_kwargs") for key in found)
    assert (data_parallel(job), ray_numbers(job)) == (2, (1, 16))
    assert not forkable(job.config, "arpo")


def test_one_cpu_node_trains_in_one_process(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training\.gpus is 2"):
        check_recipe(two_nodes(tmp_path, gpus=2), 4)


def with_training(**keys: object) -> StudyConfig:
    """The demo with other keys of the section ``training``."""
    raw = load_config(ROOT / "configs" / "demo.yaml").model_dump()
    return StudyConfig.model_validate(merge(raw, {"training": keys}))


def test_adapters_are_told_to_verl_by_the_layers_whole_path(tmp_path: Path) -> None:
    key = "actor_rollout_ref.model.target_modules"
    plain = overrides(make_job(tmp_path))
    assert not any("lora" in name for name in plain)
    found = overrides(make_job(tmp_path, config=with_training(lora={"rank": 4, "alpha": 8})))
    assert (found["actor_rollout_ref.model.lora_rank"], found["actor_rollout_ref.model.lora_alpha"]) == (4, 8)
    layer = re.compile(str(found[key]))
    assert layer.fullmatch("model.language_model.layers.11.self_attn.q_proj")
    assert layer.fullmatch("model.visual.blocks.3.attn.proj")
    assert not layer.fullmatch("model.visual.patch_embed.proj")
    frozen = overrides(
        make_job(tmp_path, config=with_training(lora={"rank": 4, "alpha": 8}, speed={"freeze_vision": True}))
    )
    assert not re.fullmatch(str(frozen[key]), "model.visual.blocks.3.attn.proj")


@pytest.mark.parametrize(
    ("kind", "frozen", "targets", "strange"),
    [
        ("qwen2_5_vl", False, ["q_proj", "query"], "query"),
        ("qwen2_5_vl", False, ["fc1"], "fc1"),
        ("qwen2_5_vl", True, ["qkv"], "qkv"),
        ("qwen2_vl", False, ["fc1", "qkv", "down_proj"], None),
    ],
)
def test_a_layer_that_the_model_lacks_is_refused(
    tmp_path: Path, kind: str, frozen: bool, targets: list[str], strange: str | None
) -> None:
    job = make_job(
        tmp_path,
        config=with_training(
            lora={"rank": 4, "alpha": 8, "targets": targets}, speed={"freeze_vision": frozen}
        ),
    )
    described = {"model_type": kind, "num_attention_heads": 2}
    if strange is None:
        check_window(job, described)
    else:
        with pytest.raises(UserError, match=rf"training\.lora\.targets names '{strange}'.*q_proj"):
            check_window(job, described)


def test_adapters_behind_the_configs_back_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training\.verl sets actor_rollout_ref\.model\.lora_rank"):
        overrides(make_job(tmp_path, config=with_training(verl={"actor_rollout_ref.model.lora_rank": 8})))
