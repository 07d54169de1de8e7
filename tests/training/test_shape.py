"""Random weights in a known architecture: the right size, loadable, and marked as what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu_env
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from arpo_replica.base.environments import ROOT  # noqa: E402
from arpo_replica.base.errors import UserError  # noqa: E402
from arpo_replica.config import load_config  # noqa: E402
from arpo_replica.config.models import StudyConfig  # noqa: E402
from arpo_replica.models.shape import NOTE, architecture, make_shape  # noqa: E402
from arpo_replica.models.weights import (  # noqa: E402
    ModelDescription,
    check_folder,
    fetch,
    read_description,
)


@pytest.mark.parametrize("name", ["UI-TARS-2B-SFT", "UI-TARS-1.5-7B"])
def test_the_architectures_have_the_published_number_of_weights(name: str) -> None:
    description = read_description(name, ROOT)
    assert description is not None
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(architecture(description))
    assert sum(weight.numel() for weight in model.parameters()) == description.parameters


def shrink(name: str) -> ModelDescription:
    """The same architecture, small enough to be written here."""
    description = read_description(name, ROOT)
    assert description is not None
    config = json.loads(json.dumps(description.config))
    config |= {"num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 256, "vocab_size": 4096}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    vision = config["vision_config"]
    vision |= {"depth": 1}
    if name == "UI-TARS-2B-SFT":
        vision |= {"hidden_size": 256, "embed_dim": 160, "num_heads": 2}
    else:
        vision |= {"hidden_size": 160, "out_hidden_size": 256, "num_heads": 2, "intermediate_size": 160}
        vision |= {"fullatt_block_indexes": [0]}
    return description.model_copy(update={"config": config})


def shape_config(name: str, size: str) -> StudyConfig:
    raw = load_config(ROOT / "configs" / "demo.yaml").model_dump()
    raw["policy"]["model"], raw["size"], raw["model"] = name, size, {"shape_only": True}
    return StudyConfig.model_validate(raw)


@pytest.mark.parametrize(("name", "size"), [("UI-TARS-2B-SFT", "2b_random"), ("UI-TARS-1.5-7B", "7b_random")])
def test_a_shape_is_a_whole_model_folder(tmp_path: Path, name: str, size: str) -> None:
    from PIL import Image

    folder = tmp_path / "shape"
    make_shape(shape_config(name, size), shrink(name), folder)
    check_folder(folder)
    assert "random weights" in (folder / NOTE).read_text()
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert model.config.architectures == shrink(name).config["architectures"]
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Click."}]}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=[Image.new("RGB", (224, 224))], return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 64
    logits = model(**inputs).logits
    assert logits.shape[-1] == 4096 and bool(torch.isfinite(logits).all())
    before = (folder / NOTE).stat().st_mtime_ns
    make_shape(shape_config(name, size), shrink(name), folder)
    assert (folder / NOTE).stat().st_mtime_ns == before, "what is there is not made again"


def test_without_a_network_the_message_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"cannot be fetched .* set policy\.model to the folder\.$") as caught:
        fetch("ByteDance-Seed/UI-TARS-2B-SFT", "0" * 40, tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m").exists()
