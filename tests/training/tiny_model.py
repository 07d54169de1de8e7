"""A random Qwen2.5-VL of a million weights with a byte-level tokenizer: starts fast, talks nonsense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from arpo_replica.models.nano.tokenizer import CHAT_TEMPLATE

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TEXTS = [
    "Thought: I press the button.\nAction: click(point='<point>10 20</point>')",
    "You are a GUI agent. You are given a task and your action history, with screenshots. ",
    "You need to perform the next action to complete the task. ## Output Format ## Action Space ## Note",
]
HEAD = 64  # vLLM's CPU attention wants 32, 64, 80, ...


def build_tiny_model(folder: Path) -> None:
    """Write it in Hugging Face format."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = _write_tokenizer(folder)
    pixels = {"min_pixels": 3136, "max_pixels": 100352}
    _write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            **pixels,
            "size": {"shortest_edge": 3136, "longest_edge": 100352},
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    )
    config = transformers.Qwen2_5_VLConfig(
        hidden_size=2 * HEAD,
        intermediate_size=4 * HEAD,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=len(ids),
        max_position_embeddings=4096,
        rope_theta=1e6,
        rope_scaling={"type": "mrope", "mrope_section": [8, 12, 12]},
        tie_word_embeddings=True,
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|im_end|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        vision_token_id=ids["<|vision_pad|>"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "hidden_size": 2 * HEAD,
            "intermediate_size": 4 * HEAD,
            "out_hidden_size": 2 * HEAD,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "in_channels": 3,
            "in_chans": 3,
        },
    )
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16)
    model.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.save_pretrained(folder)


def _write_tokenizer(folder: Path) -> dict[str, int]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    size = tokenizer.get_vocab_size()
    model = json.loads(tokenizer.to_str())["model"]
    _write(folder / "vocab.json", model["vocab"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    flags = dict.fromkeys(["normalized", "lstrip", "rstrip", "single_word"], False)
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "model_max_length": 4096,
            "padding_side": "left",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "bos_token": None,
            "unk_token": None,
            "additional_special_tokens": SPECIAL[1:],
            "added_tokens_decoder": {
                str(size + i): {"content": token, "special": True, **flags} for i, token in enumerate(SPECIAL)
            },
            "chat_template": CHAT_TEMPLATE,
        },
    )
    _write(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    return {**model["vocab"], **{token: size + i for i, token in enumerate(SPECIAL)}}


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
