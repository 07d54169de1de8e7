"""Adapters through verl: what is published is a whole model, and a killed training ends with the same one."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = [pytest.mark.cpu_env, pytest.mark.timeout(1500)]
pytest.importorskip("verl")

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from arpo_replica.config.models import StudyConfig  # noqa: E402
from arpo_replica.config.training import LoraConfig as Lora  # noqa: E402
from arpo_replica.training.recipe import LANGUAGE_LAYERS, TOWER_LAYERS  # noqa: E402
from training.stage_process import StageProcess  # noqa: E402
from training.test_resume import OPTIONS, compare, in_update, scripted_config  # noqa: E402

STEPS = 3


def lora_config() -> StudyConfig:
    config = scripted_config()
    config.training.lora = Lora(rank=4, alpha=8)
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
