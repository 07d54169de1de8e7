"""Adapters through verl: what is published is a whole model, and a killed training ends with the same one."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cpu_env, pytest.mark.timeout(1500)]
pytest.importorskip("verl")

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForImageTextToText  # noqa: E402

from arpo_replica.base.environments import ROOT  # noqa: E402
from arpo_replica.config.models import StudyConfig  # noqa: E402
from arpo_replica.config.training import LoraConfig as Lora  # noqa: E402
from arpo_replica.models.shape import architecture  # noqa: E402
from arpo_replica.models.weights import read_description  # noqa: E402
from arpo_replica.policy.endpoint import Endpoint, Reply  # noqa: E402
from arpo_replica.policy.manifest import read_manifest  # noqa: E402
from arpo_replica.policy.vllm_server import SERVED_NAME, VllmServer  # noqa: E402
from arpo_replica.training.job import outline  # noqa: E402
from arpo_replica.training.lora import merged_weights  # noqa: E402
from arpo_replica.training.recipe import (  # noqa: E402
    LANGUAGE_LAYERS,
    TOWER_LAYERS,
    adapted_layers,
)
from training.stage_process import StageProcess  # noqa: E402
from training.test_resume import OPTIONS, compare, in_update, scripted_config  # noqa: E402
from training.test_serving import by_transformers, noise, replies  # noqa: E402
from training.tiny_model import build_tiny_model  # noqa: E402

STEPS = 3


def lora_config() -> StudyConfig:
    config = scripted_config()
    config.training.lora = Lora(rank=4, alpha=8)
    config.training.loggers = ["wandb"]
    config.training.learning_rate = 1e-2
    config.training.stages[0].steps = STEPS
    return StudyConfig.model_validate(config.model_dump())


@pytest.mark.parametrize("name", ["UI-TARS-2B-SFT", "UI-TARS-1.5-7B"])
def test_the_layers_that_can_have_adapters_are_the_models_own(name: str) -> None:
    description = read_description(name, ROOT)
    assert description is not None
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(architecture(description))
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and re.search(r"[.](layers|blocks)[.][0-9]+[.]", path):
            found["visual" in path].add(path.rpartition(".")[2])
    assert found[False] == set(LANGUAGE_LAYERS)
    assert found[True] == set(TOWER_LAYERS[description.config["model_type"]])


def test_whole_weights_answer_as_the_model_with_adapters_does(tmp_path: Path) -> None:
    build_tiny_model(tmp_path / "model")
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32)
    names = {name: value.shape for name, value in plain.state_dict().items()}
    targets = adapted_layers(outline(lora_config(), "arpo", "train_4"))
    adapted = get_peft_model(plain, LoraConfig(r=4, lora_alpha=8, target_modules=targets)).eval()
    ids = torch.arange(5, 25).unsqueeze(0)
    with torch.no_grad():
        untrained = adapted(input_ids=ids).logits
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
        expected = adapted(input_ids=ids).logits
        merged = dict(merged_weights(adapted))
        assert {name: value.shape for name, value in merged.items()} == names
        assert torch.equal(adapted(input_ids=ids).logits, expected), "the trained model was changed"
        other = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
        other.load_state_dict(merged)
        torch.testing.assert_close(other(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(untrained, expected, atol=1e-3)


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
    assert row["swapped_groups"] or row["probability_correlation"] > 0.99


def test_vllm_serves_the_published_model_and_not_its_parent(whole: StageProcess, tmp_path: Path) -> None:
    shots = [noise(1), noise(2)]

    async def said(model: Path) -> tuple[list[Reply], list[Reply]]:
        """Replies of greatest probability, and drawn ones."""
        async with VllmServer(whole.config, model, tmp_path / "vllm.log") as server:
            await server.ready()
            async with Endpoint(
                server.url, model=SERVED_NAME, api_key=server.api_key, timeout_s=60.0, connections=2
            ) as endpoint:
                greedy = await replies(endpoint, whole.config, shots, temperature=0.0)
                return greedy, await replies(endpoint, whole.config, shots, temperature=1.0)

    model = whole.out / "model"
    greedy, drawn = asyncio.run(said(model))
    assert greedy[0].text == by_transformers(model, shots[:1], [])[1]
    _, parents = asyncio.run(said(whole.folder / "model"))
    assert [reply.text for reply in drawn] != [reply.text for reply in parents]
