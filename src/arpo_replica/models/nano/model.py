"""The nano policy as a Hugging Face folder: Qwen2.5-VL's architecture with about two million weights.

transformers, vLLM and verl load the folder as they load Qwen2.5-VL-7B. Three choices let a network of this
size learn to see within a few thousand conversations:

- a white pixel is zero (``image_mean`` is 1): most of a page is white, and what stands on it stands out;
- the rotary embedding of the language model has base 10 instead of 10^6: with 6 x 8 tokens per screenshot
  the frequencies of rows and columns then differ by whole radians, not by thousandths;
- the embeddings of numbers begin as waves along the number line, so that neighbours are alike.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arpo_replica.actions.coordinates import Frame
from arpo_replica.base.errors import UserError
from arpo_replica.base.tables import filled, table_of
from arpo_replica.config.models import NanoConfig, StudyConfig
from arpo_replica.config.policy import PolicyConfig
from arpo_replica.models.nano.tokenizer import (
    CHAT_TEMPLATE,
    SPECIAL_TOKENS,
    choose_vocabulary,
    tokenizer_config,
)
from arpo_replica.suites.miniwob.pages import AREA, check_pages

if TYPE_CHECKING:
    import torch

HEAD_SIZE = 64  # one of those that vLLM's CPU attention knows
PATCH = 14
MERGE = 2
IMAGE_MEAN, IMAGE_STD = 1.0, 0.5
EMBEDDING_STD = 0.2
WAVELENGTHS = (6.0, 600.0)
"""Shortest and longest wave of the number embeddings, in pixels."""
FILES = table_of(__file__)
"""What they say, by file."""
_IDS = {token.strip("<|>"): index for index, token in enumerate(SPECIAL_TOKENS)}


def model_config(config: StudyConfig, vocabulary: int) -> Any:
    """``Qwen2_5_VLConfig`` for a vocabulary of that many tokens."""
    from transformers import Qwen2_5_VLConfig

    nano = config.nano
    return Qwen2_5_VLConfig(
        **filled(
            FILES["config"],
            **_IDS,
            nano=nano,
            policy=config.policy,
            patch=PATCH,
            merge=MERGE,
            vocabulary=vocabulary,
            # Inside the gated layers four thirds of the model's width, in steps of 64.
            gate_width=math.ceil(nano.hidden_size * 4 / 3 / 64) * 64,
            heads=nano.hidden_size // HEAD_SIZE,
            vision_width=2 * nano.vision_hidden_size,
            vision_heads=nano.vision_hidden_size // HEAD_SIZE,
            vision_blocks=list(range(nano.vision_layers)),
        )
    )


def new_model(config: StudyConfig, tokenizer: Any, numbers: int) -> Any:
    """A model with fresh weights in float32, decided by ``config.nano.seed`` alone.

    ``tokenizer``: a ``tokenizers.Tokenizer``; ``numbers``: coordinates are below this.
    """
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration(model_config(config, tokenizer.get_vocab_size()))
    generator = torch.Generator().manual_seed(config.nano.seed)
    language, visual = model.model.language_model, model.model.visual
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.ndim > 1 and "embed_tokens" not in name:
                weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
        for layers, parts in (
            (language.layers, ("self_attn.o_proj", "mlp.down_proj")),
            (visual.blocks, ("attn.proj", "mlp.down_proj")),
        ):
            # What a block adds starts small, so that the sum over all blocks keeps its size.
            for layer in layers:
                for part in parts:
                    layer.get_submodule(part).weight.mul_((2 * len(layers)) ** -0.5)
        table = language.embed_tokens.weight
        table.normal_(0, EMBEDDING_STD, generator=generator)
        for prefix in ("", " "):
            ids = [tokenizer.encode(f"{prefix}{number}").ids for number in range(numbers)]
            known = [(number, found[0]) for number, found in enumerate(ids) if len(found) == 1]
            waves = _number_waves(numbers, table.shape[1], generator)
            rows = torch.tensor([number for number, _ in known])
            table[torch.tensor([token for _, token in known])] = (
                waves[rows] * EMBEDDING_STD * table.shape[1] ** 0.5
            )
    return model


def write_folder(model: Any, tokenizer: Any, policy: PolicyConfig, out: Path) -> None:
    """Write everything that a model folder needs; ``out`` must exist."""
    model.generation_config.update(**filled(FILES["generation"], **_IDS))
    model.save_pretrained(out)
    for weights in out.glob("*.safetensors"):
        weights.chmod(0o644)  # written for the owner alone; whoever may enter the folder may read it
    write_processor(tokenizer, policy, out)


def write_processor(tokenizer: Any, policy: PolicyConfig, out: Path) -> None:
    """Tokenizer, chat template and image processor of the folder."""
    tokenizer.save(str(out / "tokenizer.json"))
    _write_json(out / "tokenizer_config.json", tokenizer_config(policy.max_model_len))
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    image = filled(
        FILES["image_processor"], policy=policy, patch=PATCH, merge=MERGE, mean=IMAGE_MEAN, std=IMAGE_STD
    )
    _write_json(out / "preprocessor_config.json", image)
    _write_json(
        out / "video_preprocessor_config.json", image | {"video_processor_type": "Qwen2VLVideoProcessor"}
    )


def count_weights(model: Any) -> int:
    """Number of weights, shared ones once."""
    return sum(weight.numel() for weight in model.parameters())


def check_sizes(nano: NanoConfig) -> None:
    """Raise ValueError for widths that have no whole number of heads."""
    for key in ("hidden_size", "vision_hidden_size"):
        if getattr(nano, key) % HEAD_SIZE:
            raise ValueError(f"nano.{key} is {getattr(nano, key)}; it must be a multiple of {HEAD_SIZE}")


def coordinate_count(config: StudyConfig) -> int:
    """Coordinates of the policy are below this."""
    return min(1000, max(Frame.of(config.policy, config.desktop.screen).extent) + 1)


def check_screen(config: StudyConfig) -> None:
    """Refuse a screen that cannot show a page. Raises ``UserError``."""
    width, height = config.desktop.screen
    if width < AREA[0] or height < AREA[1]:
        raise UserError(
            f"desktop.screen is {width}x{height}; MiniWoB++ pages need {AREA[0]}x{AREA[1]} or more."
        )


def check_nano(config: StudyConfig) -> None:
    """Refuse what no nano policy can be built with, before its demonstrations are recorded.

    Raises ``UserError``.
    """
    check_screen(config)
    check_pages(config.nano.pages, "nano.pages")
    try:
        check_sizes(config.nano)
        choose_vocabulary((), coordinate_count(config), config.nano.vocabulary, config.policy.language)
    except ValueError as error:
        raise UserError(f"{error}.") from error


def _number_waves(count: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """(count, width): each number as sines and cosines of many wavelengths in a random basis, length 1."""
    import torch

    waves = width // 4
    shortest, longest = (math.log10(length) for length in WAVELENGTHS)
    lengths = torch.logspace(shortest, longest, waves)
    angles = torch.arange(count).float().unsqueeze(1) * 2 * math.pi / lengths
    basis = torch.linalg.qr(torch.randn(width, 2 * waves, generator=generator))[0]
    return torch.cat((angles.sin(), angles.cos()), 1) @ basis.T / waves**0.5


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
