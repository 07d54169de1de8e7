"""``training.speed`` -> verl's keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.config import load_config
from arpo_replica.config.models import StudyConfig, merge
from arpo_replica.policy.vllm_server import graph_config, image_cache_gib
from arpo_replica.training.job import Job
from arpo_replica.training.recipe import ARITHMETIC, ATTENTION, CURRENT_POLICY, Speed, verl_overrides
from arpo_replica.training.run import forkable


def keys(tmp_path: Path, **changes: Any) -> tuple[Job, dict[str, Any]]:
    """A job of the demo with changes to its config, and its verl keys without their prefix."""
    raw = merge(load_config(ROOT / "configs" / "demo.yaml").model_dump(mode="json"), changes)
    job = Job(
        config=StudyConfig.model_validate(raw),
        arm="arpo",
        seed=0,
        stage_name="train_4",
        parent_model=tmp_path,
        parent_sha256="0" * 64,
        out=tmp_path,
        scratch=tmp_path,
        attempt=1,
    )
    found = verl_overrides(job, tasks=4, data=Path("/d"), agents=Path("/a"))
    return job, {key.lstrip("+").removeprefix("actor_rollout_ref."): value for key, value in found.items()}


def test_a_cpu_trains_as_plain_verl_does(tmp_path: Path) -> None:
    _, found = keys(tmp_path)
    assert found["model.use_remove_padding"] is False
    assert found["model.override_config.attn_implementation"] == "sdpa"
    assert found["model.enable_gradient_checkpointing"] is False
    assert "model.use_fused_kernels" not in found
    assert found["algorithm.rollout_correction.bypass_mode"] is False


def test_a_gpu_packs_and_computes_text_logits_only(tmp_path: Path) -> None:
    job, found = keys(tmp_path, accelerator="cuda", serving={"enforce_eager": False})
    speed = Speed.of(job)
    assert (speed.pack, speed.text_log_probs, speed.compact_pixels, speed.freeze_vision) == (
        True,
        True,
        True,
        False,
    )
    assert found["model.use_remove_padding"] is True
    assert found["model.override_config.attn_implementation"] == ATTENTION
    assert found["rollout.engine_kwargs.vllm.distributed_executor_backend"] == "uni"
    assert found["algorithm.rollout_correction.bypass_mode"] is True
    assert found["actor.policy_loss.loss_mode"] == CURRENT_POLICY
    assert found["model.use_fused_kernels"] is True
    assert found["model.enable_gradient_checkpointing"] is True
    graphs = json.loads(found["rollout.engine_kwargs.vllm.compilation_config"])
    assert graphs["mode"] == 0 and graphs["cudagraph_capture_sizes"][-1] == 8
    assert found["ray_kwargs.ray_init.num_cpus"] >= 16


@pytest.mark.parametrize("share, checkpointing, external", [(0, False, False), (0.5, True, True)])
def test_checkpoints(tmp_path: Path, share: float, checkpointing: bool, external: bool) -> None:
    job, found = keys(tmp_path, training={"speed": {"checkpoint_share": share}})
    assert found["model.enable_gradient_checkpointing"] is checkpointing
    assert found["model.external_lib"] == ARITHMETIC
    assert Speed.of(job).changes_model is external


def test_the_pass_for_old_probabilities_stays_where_a_step_has_several_updates(tmp_path: Path) -> None:
    two: dict[str, Any] = {"minibatch_tasks": 2, "micro_batch": 4}
    job, found = keys(tmp_path, accelerator="cuda", training=two)
    assert Speed.of(job).skip_log_probs is found["algorithm.rollout_correction.bypass_mode"] is False
    with pytest.raises(UserError, match=r"training\.speed\.skip_log_probs .* several updates"):
        keys(tmp_path, accelerator="cuda", training={**two, "speed": {"skip_log_probs": True}})


def test_features_come_from_vllm_where_nothing_is_missing_for_it(tmp_path: Path) -> None:
    speed = {"freeze_vision": True, "vision_from_rollout": True}
    _, found = keys(tmp_path, accelerator="cuda", training={"speed": speed})
    connector = json.loads(found["rollout.engine_kwargs.vllm.ec_transfer_config"])
    assert connector["ec_connector"] == "FeatureConnector" and connector["ec_role"] == "ec_both"
    for missing in ("freeze_vision", "named_screenshots", "compact_pixels"):
        with pytest.raises(UserError, match=rf"vision_from_rollout .* training\.speed\.{missing};"):
            keys(tmp_path, accelerator="cuda", training={"speed": {**speed, missing: False}})


def test_they_do_by_themselves_on_a_gpu_where_the_tower_is_frozen(tmp_path: Path) -> None:
    def handed(accelerator: str = "cuda", **training: Any) -> bool:
        job, _ = keys(tmp_path, accelerator=accelerator, training={"micro_batch": 4, **training})
        return Speed.of(job).vision_from_rollout

    frozen = {"freeze_vision": True}
    assert handed(speed=frozen) and not handed(accelerator="cpu", speed=frozen) and not handed()
    for also in ("named_screenshots", "compact_pixels", "vision_from_rollout"):
        assert not handed(speed={**frozen, also: False})
    assert not handed(speed=frozen, gpus=2, tensor_parallel=2)


def test_processes_are_forked_on_one_node(tmp_path: Path) -> None:
    for accelerator in ("cpu", "cuda"):
        job, _ = keys(tmp_path, accelerator=accelerator)
        assert forkable(job.config, "arpo")
    job, _ = keys(tmp_path, accelerator="cuda", training={"speed": {"preload": False}})
    assert not forkable(job.config, "arpo")


def test_vllm_over_two_gpus_has_a_process_for_each(tmp_path: Path) -> None:
    two: dict[str, Any] = {"gpus": 2, "tensor_parallel": 2, "micro_batch": 4}
    _, found = keys(tmp_path, accelerator="cuda", training=two)
    assert found["rollout.engine_kwargs.vllm.distributed_executor_backend"] == "mp"
    assert found["rollout.engine_kwargs.vllm.mm_processor_cache_type"] == "shm"
    with pytest.raises(UserError, match="'uni', one process for one GPU"):
        keys(tmp_path, accelerator="cuda", training={**two, "speed": {"executor": "uni"}})


def test_micro_batches_by_tokens(tmp_path: Path) -> None:
    _, found = keys(tmp_path, training={"speed": {"micro_batch_tokens": 50_000, "rollout_memory": 0.3}})
    assert found["actor.use_dynamic_bsz"] is found["rollout.log_prob_use_dynamic_bsz"] is True
    assert found["actor.ppo_max_token_len_per_gpu"] == 50_000
    assert found["rollout.log_prob_max_token_len_per_gpu"] == 50_000
    assert found["rollout.gpu_memory_utilization"] == 0.3


def test_eager_vllm_gets_no_graphs(tmp_path: Path) -> None:
    _, found = keys(tmp_path, accelerator="cuda")
    assert "rollout.engine_kwargs.vllm.compilation_config" not in found
    assert json.loads(graph_config(1))["cudagraph_capture_sizes"] == [1]


def test_the_cache_holds_the_screenshots_of_all_conversations() -> None:
    config = load_config(ROOT / "configs" / "demo.yaml")
    assert image_cache_gib(config, 8) == 4.0
    config.policy.max_pixels, config.policy.max_images = 2_116_800, 15
    needed = 8 * 15 * (2_116_800 / 196) * 1176 * 4 / 2**30
    assert needed < image_cache_gib(config, 8) < 1.3 * needed
    assert image_cache_gib(config, 500) == 32.0
