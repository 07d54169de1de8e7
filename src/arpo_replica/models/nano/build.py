"""``python -m arpo_replica.models.nano.build CONFIG_JSON DEMONSTRATIONS OUT``: demonstrations -> a model."""

import logging
import os
import shutil
from importlib.metadata import version
from pathlib import Path

from arpo_replica.actions.coordinates import Frame
from arpo_replica.base.checkout import code_version
from arpo_replica.base.environments import as_module
from arpo_replica.base.errors import UserError
from arpo_replica.config.models import StudyConfig
from arpo_replica.policy.manifest import Manifest, write_manifest

logger = logging.getLogger(__name__)


def build_nano_model(config: StudyConfig, demonstrations: Path, out: Path) -> Manifest:
    """Train the nano policy on recorded demonstrations and write its folder with ``manifest.json``.

    ``demonstrations``: folder of episode records. ``out``: becomes a model folder in Hugging Face format;
    what lay there before is replaced, the manifest is written last. Raises ``UserError`` for a config or
    demonstrations that cannot work.
    """
    import torch
    from transformers import AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from arpo_replica.models.nano import data, train
    from arpo_replica.models.nano.model import (
        check_sizes,
        coordinate_count,
        count_weights,
        new_model,
        write_folder,
        write_processor,
    )
    from arpo_replica.models.nano.tokenizer import build_tokenizer, choose_vocabulary

    torch.set_num_threads(config.threads)
    disable_progress_bar()
    nano, policy = config.nano, config.policy
    frame = Frame.of(policy, config.desktop.screen)
    numbers = coordinate_count(config)
    episodes, digest = data.read_demonstrations(demonstrations)
    texts = [text for e in episodes for text in (e.record.instruction, *(step.text for step in e.steps))]
    try:
        check_sizes(nano)
        pieces = choose_vocabulary(texts, numbers, nano.vocabulary, policy.language)
    except ValueError as error:
        raise UserError(f"{error}.") from error

    partial = out.with_name(f".{out.name}.partial")
    for old in (partial, out):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(parents=True)
    tokenizer = build_tokenizer(pieces)
    write_processor(tokenizer, policy, partial)
    chat = AutoTokenizer.from_pretrained(partial)
    screenshots = data.Screenshots(frame)
    conversations = [
        conversation
        for episode in episodes
        for conversation in data.make_conversations(episode, chat, policy, screenshots)
    ]
    longest = max(len(conversation.ids) for conversation in conversations)
    if longest > policy.max_model_len:
        raise UserError(
            f"policy.max_model_len is {policy.max_model_len}, but a demonstration has {longest} tokens; "
            "raise it."
        )
    model = new_model(config, tokenizer, numbers)
    tokens = train.NumberTokens(tokenizer, numbers)
    learned = train.train(model, conversations, screenshots, tokens, nano, progress=logger.info)
    write_folder(model, tokenizer, policy, partial)
    partial.rename(out)
    manifest = write_manifest(
        out / "manifest.json",
        out,
        arm="nano",
        seed=nano.seed,
        stage="supervised",
        step=learned["conversations_seen"] // nano.batch_size,
        size=config.size,
        parent=None,
        recipe={
            "nano": nano.model_dump(mode="json"),
            "weights": count_weights(model),
            "vocabulary": tokenizer.get_vocab_size(),
            "demonstrations": len(episodes),
            "demonstrations_sha256": digest,
            **learned,
            "threads": config.threads,
        },
        versions={"arpo-replica": code_version()}
        | {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    )
    logger.info(
        f"nano: {count_weights(model):,} weights, {tokenizer.get_vocab_size()} tokens, "
        f"{len(episodes)} demonstrations, model in {out}"
    )
    return manifest


def main(config_json: str, demonstrations: str, out: str) -> None:
    """Entry point of the rule."""
    # Set before torch loads OpenMP: on a busy machine, threads that spin for each other at every operation
    # made training ten times slower than threads that sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    build_nano_model(StudyConfig.model_validate_json(config_json), Path(demonstrations), Path(out))


if __name__ == "__main__":
    as_module(main)
