"""Model folders of the real shapes with random weights, so that speed can be measured without the weights.

    python benchmarks/gpu_shapes.py 2b FOLDER          config, tokenizer, image processor, weights (bfloat16)
    python benchmarks/gpu_shapes.py 7b FOLDER --empty  the same without weights (vLLM: --load-format dummy)

Sizes are those of the published config.json of Qwen2-VL-2B-Instruct and Qwen2.5-VL-7B-Instruct, which
UI-TARS-2B-SFT and UI-TARS-1.5-7B were trained from. The tokenizer has the vocabulary's size and its special
tokens at their ids; the other entries are made-up words. ``nano`` and ``nano_7b`` (the 7B's class, untied)
are for dry runs without a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

FIRST_SPECIAL = 151_643
LOGIT_SCALE = 5.0
"""Weight of the last norm: logits then have a deviation of some 4, as a trained policy's may, so that the
probabilities of vLLM and trainer can be compared. With 1 all tokens are about equally likely."""

TEXT = {
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    "use_sliding_window": False,
    "bos_token_id": FIRST_SPECIAL,
    "eos_token_id": FIRST_SPECIAL + 2,
    "pad_token_id": FIRST_SPECIAL,
}
VISION = {"depth": 32, "in_channels": 3, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "2b": {
        "class": "Qwen2VL",
        "tied": True,
        "text": TEXT
        | {
            "vocab_size": 151_936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
        },
        "vision": VISION | {"embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4},
    },
    "7b": {
        "class": "Qwen2_5_VL",
        "tied": False,
        "text": TEXT
        | {
            "vocab_size": 152_064,
            "hidden_size": 3584,
            "intermediate_size": 18_944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
        "vision": VISION
        | {
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "out_hidden_size": 3584,
            "num_heads": 16,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    },
    "nano": {
        "class": "Qwen2VL",
        "tied": True,
        "text": TEXT
        | {
            "vocab_size": 151_936,
            "hidden_size": 128,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
        },
        "vision": VISION | {"depth": 2, "embed_dim": 128, "hidden_size": 128, "num_heads": 2, "mlp_ratio": 2},
    },
}
SHAPES["nano_7b"] = {
    "class": "Qwen2_5_VL",
    "tied": False,
    "text": SHAPES["nano"]["text"],
    "vision": VISION
    | {
        "depth": 2,
        "hidden_size": 128,
        "intermediate_size": 256,
        "out_hidden_size": 128,
        "num_heads": 2,
        "window_size": 112,
        "fullatt_block_indexes": [1],
    },
}


def model_config(shape: str) -> Any:
    """The transformers config of a shape."""
    import transformers

    sizes = SHAPES[shape]
    return getattr(transformers, f"{sizes['class']}Config")(
        text_config=sizes["text"] | {"tie_word_embeddings": sizes["tied"]},
        vision_config=sizes["vision"],
        vision_start_token_id=FIRST_SPECIAL + 9,
        vision_end_token_id=FIRST_SPECIAL + 10,
        vision_token_id=FIRST_SPECIAL + 11,
        image_token_id=FIRST_SPECIAL + 12,
        video_token_id=FIRST_SPECIAL + 13,
        tie_word_embeddings=sizes["tied"],
        architectures=[f"{sizes['class']}ForConditionalGeneration"],
        dtype="bfloat16",
    )


def made_up_word(index: int) -> str:
    """Vocabulary entry of a space and letters, which the pre-tokenizer leaves in one piece."""
    letters = [chr(ord("a") + index // 26**place % 26) for place in range(4)]
    return "\u0120zq" + "".join(letters)  # byte-level BPE's sign for a space


def write_tokenizer(shape: str, folder: Path, min_pixels: int, max_pixels: int) -> None:
    """Tokenizer, chat template and image processor."""
    from arpo_replica.models.nano.tokenizer import (
        CHAT_TEMPLATE,
        SPECIAL_TOKENS,
        build_tokenizer,
        choose_vocabulary,
        tokenizer_config,
    )

    sizes = SHAPES[shape]
    tokenizer = build_tokenizer(choose_vocabulary([], 1000, FIRST_SPECIAL, "English"))
    data = json.loads(tokenizer.to_str())
    made = [token for token in data["model"]["vocab"] if token not in SPECIAL_TOKENS]
    # A random policy's reply comes back as text in the next prompt and must be as many tokens as before.
    made += [made_up_word(index) for index in range(len(made), FIRST_SPECIAL)]
    vocabulary = {token: index for index, token in enumerate([*made, *SPECIAL_TOKENS])}
    for index in range(len(vocabulary), sizes["text"]["vocab_size"]):
        vocabulary[made_up_word(index)] = index
    data["model"]["vocab"] = vocabulary
    for entry in data["added_tokens"]:
        entry["id"] = vocabulary[entry["content"]]
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False))
    processor = f"{sizes['class']}Processor"
    write_json(folder / "tokenizer_config.json", tokenizer_config(131_072) | {"processor_class": processor})
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    image = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": processor,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": min_pixels, "longest_edge": max_pixels},
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    write_json(folder / "preprocessor_config.json", image)
    write_json(
        folder / "video_preprocessor_config.json", image | {"video_processor_type": "Qwen2VLVideoProcessor"}
    )


def build_model(shape: str) -> Any:
    """The model with random weights in bfloat16, on the GPU if there is one (a 7B on a CPU takes minutes)."""
    import torch
    import transformers

    config = model_config(shape)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = getattr(transformers, config.architectures[0])(config)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        model.model.language_model.norm.weight.fill_(LOGIT_SCALE)
    return model


def build_shape(
    shape: str, folder: Path, *, weights: bool, min_pixels: int = 78_400, max_pixels: int = 2_116_800
) -> Path:
    """Write the folder in Hugging Face format; returns it."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(shape, folder, min_pixels, max_pixels)
    config = model_config(shape)
    if weights:
        build_model(shape).save_pretrained(folder, max_shard_size="5GB")
        gc.collect()
        torch.cuda.empty_cache()  # torch would keep the model's room on the card from vLLM's process
    else:
        config.save_pretrained(folder)
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": FIRST_SPECIAL,
            "pad_token_id": FIRST_SPECIAL,
            "eos_token_id": [FIRST_SPECIAL + 2, FIRST_SPECIAL],
            "do_sample": True,
        },
    )
    return folder


def weight_counts(shape: str) -> dict[str, int]:
    """Weights of the parts: ``embedding`` (once, if tied), ``language`` (blocks), ``vision``."""
    import torch
    import transformers

    config = model_config(shape)
    with torch.device("meta"):
        model = getattr(transformers, config.architectures[0])(config)
    # A tied head is no parameter of its own before tie_weights has run on real tensors: count by name.
    counts = {"embedding": 0, "language": 0, "vision": 0}
    for name, weight in model.named_parameters():
        if "lm_head" in name and SHAPES[shape]["tied"]:
            continue
        part = (
            "vision"
            if ".visual." in name
            else "embedding"
            if "embed_tokens" in name or "lm_head" in name
            else "language"
        )
        counts[part] += weight.numel()
    return counts


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Build one folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--empty", action="store_true", help="no weights")
    options = parser.parse_args()
    began = time.perf_counter()
    build_shape(options.shape, options.folder, weights=not options.empty)
    counts = weight_counts(options.shape)
    print(json.dumps({"shape": options.shape, "weights": counts, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
