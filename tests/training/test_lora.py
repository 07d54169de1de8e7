"""Adapters through verl: what is published is a whole model, and a killed training ends with the same one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cpu_env, pytest.mark.timeout(1500)]
pytest.importorskip("verl")

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from arpo_replica.config.models import StudyConfig  # noqa: E402
from arpo_replica.config.training import LoraConfig as Lora  # noqa: E402
from arpo_replica.policy.endpoint import Endpoint  # noqa: E402
from arpo_replica.policy.manifest import read_manifest  # noqa: E402
from arpo_replica.policy.vllm_server import SERVED_NAME, VllmServer  # noqa: E402
from arpo_replica.training.recipe import LANGUAGE_LAYERS, TOWER_LAYERS  # noqa: E402
from training.stage_process import StageProcess  # noqa: E402
from training.test_resume import OPTIONS, compare, in_update, scripted_config  # noqa: E402
from training.test_serving import by_transformers, noise, replies  # noqa: E402

STEPS = 3


def lora_config() -> StudyConfig:
    config = scripted_config()
    config.training.lora = Lora(rank=4, alpha=8)
    config.training.loggers = ["wandb"]
    config.training.stages[0].steps = STEPS
    return StudyConfig.model_validate(config.model_dump())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> StageProcess:
    """Trained without an interruption."""
    stage = StageProcess(tmp_path_factory.mktemp("whole"), lora_config(), **OPTIONS)
    stage.finish()
    return stage


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def test_the_published_model_is_the_parent_but_for_the_layers_with_adapters(whole: StageProcess) -> None:
    parent, published = weights(whole.folder / "model"), weights(whole.out / "model")
    assert {k: v.shape for k, v in published.items()} == {k: v.shape for k, v in parent.items()}
    changed = {name for name in parent if not torch.equal(parent[name].float(), published[name].float())}
    layers = {*LANGUAGE_LAYERS, *TOWER_LAYERS["qwen2_5_vl"]}
    expected = {
        name
        for name in parent
        if any(part in name for part in (".layers.", ".blocks.")) and name.endswith(".weight")
        if name.split(".")[-2] in layers
    }
    assert any("visual" in name for name in expected)
    assert changed == expected
    for row in whole.rows():
        assert row["probability_correlation"] > 0.99, "vLLM has other weights than the trainer"


def test_one_kill_changes_nothing(whole: StageProcess, tmp_path: Path) -> None:
    stage = StageProcess(tmp_path / "killed", lora_config(), **OPTIONS)
    stage.kill_when(in_update(stage, 2))
    stage.finish()
    compare(stage, whole)
    runs = list((stage.out / "checkpoints" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 2 and len({path.name for path in runs}) == 1, "W&B would show two trainings"


def test_the_next_stage_goes_on_from_the_whole_weights_and_replays(
    whole: StageProcess, tmp_path: Path
) -> None:
    config = lora_config()
    config.training.stages[1].steps = 1
    config.training.replay.carry = True
    stage = StageProcess(
        tmp_path / "next", config, **OPTIONS, stage="train_32", parent="before/manifest.json"
    )
    (stage.folder / "before").symlink_to(whole.out)
    stage.finish()
    manifest = read_manifest(stage.out / "manifest.json", verify=True)
    assert manifest.parent == read_manifest(whole.out / "manifest.json").sha256
    before, after = weights(whole.out / "model"), weights(stage.out / "model")
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    (row,) = stage.rows()
    assert row["probability_correlation"] > 0.99


def test_vllm_serves_the_trained_policy_and_not_its_parent(whole: StageProcess, tmp_path: Path) -> None:
    shots = [noise(1), noise(2)]

    async def said(model: Path) -> list[str]:
        async with VllmServer(whole.config, model, tmp_path / "vllm.log") as server:
            await server.ready()
            async with Endpoint(
                server.url, model=SERVED_NAME, api_key=server.api_key, timeout_s=60.0, connections=2
            ) as endpoint:
                return await replies(endpoint, whole.config, shots, temperature=0.0)

    model = whole.out / "model"
    served = asyncio.run(said(model))
    _, expected = by_transformers(model, shots[:1], [])
    _, parents = by_transformers(whole.folder / "model", shots[:1], [])
    assert served[0] == expected
    assert served[0] != parents
