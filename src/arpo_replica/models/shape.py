"""``python -m arpo_replica.models.shape CONFIG_JSON FOLDER``: a known architecture with random weights.

For speed and memory only. Needs as much main memory as the weights take in bfloat16 (2B: 4.5 GB, 7B: 17 GB).
"""

import json
import shutil
from pathlib import Path
from typing import Any

from arpo_replica.base.environments import as_module
from arpo_replica.base.errors import UserError
from arpo_replica.base.tables import table_of
from arpo_replica.config.models import StudyConfig
from arpo_replica.models.weights import ModelDescription, read_description

FILES = table_of(__file__)
NUMBERS = 1000
VOCABULARY = 4096
NOTE = "RANDOM_WEIGHTS.txt"


def make_shape(config: StudyConfig, description: ModelDescription, folder: Path) -> None:
    """Write the model folder, whole or not at all; one that is there already stays."""
    if (folder / NOTE).is_file():
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_tokenizer(config, partial)
    preprocessor = {
        **description.preprocessor,
        "processor_class": description.processor_class,
        "min_pixels": config.policy.min_pixels,
        "max_pixels": config.policy.max_pixels,
        "size": {"shortest_edge": config.policy.min_pixels, "longest_edge": config.policy.max_pixels},
    }
    (partial / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=1))
    write_weights(description, partial)
    (partial / NOTE).write_text(
        f"{description.hub}: the architecture with random weights; no result counts.\n"
    )
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def write_tokenizer(config: StudyConfig, folder: Path) -> None:
    """The given tokenizer, or one with a token for each number and each phrase of the prompt."""
    if config.model.tokenizer is not None:
        for name in FILES["tokenizer_files"]:
            if (config.model.tokenizer / name).is_file():
                shutil.copy2(config.model.tokenizer / name, folder / name)
        return
    from arpo_replica.models.nano.model import write_processor
    from arpo_replica.models.nano.tokenizer import build_tokenizer, choose_vocabulary

    pieces = choose_vocabulary([], NUMBERS, VOCABULARY, config.policy.language)
    write_processor(build_tokenizer(pieces), config.policy, folder)
    (folder / "video_preprocessor_config.json").unlink()


def architecture(description: ModelDescription) -> Any:
    from transformers import AutoConfig

    values = {key: value for key, value in description.config.items() if key != "model_type"}
    return AutoConfig.for_model(description.config["model_type"], **values)


def write_weights(description: ModelDescription, folder: Path) -> None:
    """Random weights in bfloat16; the ids of special tokens follow the tokenizer in ``folder``."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = architecture(description)
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in FILES["tokens"].items()}
    if None in ids.values():
        lacking = next(FILES["tokens"][key] for key, found in ids.items() if found is None)
        raise UserError(f"model.tokenizer has no token {lacking}; give one of the Qwen2-VL family.")
    for key, found in ids.items():
        for part in (config, config.get_text_config()):
            if hasattr(part, key) or key in ("bos_token_id", "eos_token_id"):
                setattr(part, key, found)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.generation_config.update(
        bos_token_id=ids["bos_token_id"],
        pad_token_id=ids["bos_token_id"],
        eos_token_id=[ids["eos_token_id"], ids["bos_token_id"]],
    )
    model.save_pretrained(folder)


def main(config_json: str, folder: str) -> None:
    """Make the shape that ``policy.model`` of the config names."""
    config = StudyConfig.model_validate_json(config_json)
    description = read_description(config.policy.model)
    assert description is not None, "fetch_model has looked"
    make_shape(config, description, Path(folder))


if __name__ == "__main__":
    as_module(main)
