"""``python -m arpo_replica.training.offline.trainers JOB``: one offline arm through TRL's trainers.

Runs in the environment that has torch; what it shares with ``offline`` is the file ``JOB``. All three methods
take the same kind of data set: the prompt and the reply as text, the screenshots as files, which TRL's own
collators for vision models turn into tokens and pixels. Only tokens of replies are learnt from.
"""

import json
import logging
import math
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from arpo_replica.base.environments import as_module
from arpo_replica.base.files import write_atomically
from arpo_replica.base.tables import filled, table_of
from arpo_replica.training.job import PREFIX_TRL, OfflineJob, checkpoints, mark_complete
from arpo_replica.training.offline.data import Sample, Turn, make_samples, read_rollouts

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "tokenizers")


def train(job: OfflineJob) -> dict[str, Any]:
    """Train, going on from the newest complete checkpoint; write weights and what was learnt from.

    Raises ``UserError`` if the episodes hold nothing to learn from.
    """
    import torch
    from datasets import disable_progress_bars
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()  # a resume warns of every weight: see make_trainer
    disable_progress_bars()
    torch.set_num_threads(job.config.threads)
    torch.use_deterministic_algorithms(True)
    samples = make_samples(job.config, job.arm, job.seed, read_rollouts(job.indexes, job.parent_sha256))
    processor = load_processor(job)
    rows = [to_row(sample, processor) for sample in samples]
    facts = {**count_tokens(samples, processor), "packages": {name: version(name) for name in PACKAGES}}
    write_atomically(job.facts_file, json.dumps(facts, indent=1).encode())
    logger.info(
        f"{job.method.method}: {facts['samples']} samples, {facts['inexact_replies']} not token-exact"
    )
    done = checkpoints(job.work, PREFIX_TRL)
    begun = job.checkpoint(done[-1]) if done else None
    if begun is not None:
        logger.info(f"going on from the checkpoint of step {done[-1]}")
    trainer = make_trainer(job, rows, processor, begun)
    trainer.train(resume_from_checkpoint=begun and str(begun))
    parent = json.loads((job.parent_model / "config.json").read_bytes())
    stored = parent.get("dtype") or parent.get("torch_dtype") or "float32"  # the child has the same
    trainer.model.to(getattr(torch, stored))
    trainer.model.save_pretrained(job.weights)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    write_atomically(job.history_file, "".join(json.dumps(entry) + "\n" for entry in history).encode())
    return facts


def load_processor(job: OfflineJob) -> Any:
    """Tokenizer and image processor of the parent, with the image sizes that serving uses."""
    from transformers import AutoProcessor

    policy = job.config.policy
    return AutoProcessor.from_pretrained(
        job.parent_model, min_pixels=policy.min_pixels, max_pixels=policy.max_pixels
    )


def to_row(sample: Sample, processor: Any) -> dict[str, Any]:
    """One row of the data set, in the columns that the method's trainer reads."""
    turn = sample.turn
    row: dict[str, Any] = {
        "prompt": processor.apply_chat_template(turn.messages, tokenize=False, add_generation_prompt=True),
        "images": [str(path) for path in turn.images],
    }
    if sample.rejected is not None:
        return row | {
            "chosen": completion(turn, processor.tokenizer),
            "rejected": completion(sample.rejected, processor.tokenizer),
        }
    row["completion"] = completion(turn, processor.tokenizer)
    return row if sample.label is None else row | {"label": sample.label}


def completion(turn: Turn, tokenizer: Any) -> str:
    """The reply as it was sampled: with its end token, unless it was cut at the longest length."""
    cut = length(turn.reply, tokenizer) >= turn.completion_tokens
    return turn.reply if cut else turn.reply + str(tokenizer.eos_token)


def length(text: str, tokenizer: Any) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def count_tokens(samples: Sequence[Sample], processor: Any) -> dict[str, int]:
    """How large the data set is, and how many replies are other tokens than were sampled.

    Records hold text. Tokenised again, a text has as many tokens as were sampled, the end token included, if
    the policy wrote it in the usual way; other replies are learnt from as the tokenizer writes them.
    """
    turns = [turn for sample in samples for turn in (sample.turn, sample.rejected) if turn is not None]
    inexact = sum(
        length(completion(turn, processor.tokenizer), processor.tokenizer) != turn.completion_tokens
        for turn in turns
    )
    return {
        "samples": len(samples),
        "replies": len(turns),
        "desirable": sum(sample.label is not False for sample in samples),
        "inexact_replies": inexact,
        "completion_tokens": sum(turn.completion_tokens for turn in turns),
    }


def make_trainer(
    job: OfflineJob, rows: list[dict[str, Any]], processor: Any, begun: Path | None = None
) -> Any:
    """The method's trainer of TRL over the rows. ``begun``: the checkpoint to go on from.

    transformers 5.9 saves the weights of Qwen-VL under other names than it looks for on a resume, and then
    goes on, with a warning, from those that the trainer was made with: so these are the checkpoint's own. The
    optimiser, the learning rate, the random states and the position in the data come from it too.
    """
    import trl
    from datasets import Dataset, Image, List
    from transformers import AutoModelForImageTextToText, PrinterCallback

    recipe = job.method
    data = Dataset.from_list(rows).cast_column("images", List(Image()))
    load = AutoModelForImageTextToText.from_pretrained
    model = load(begun or job.parent_model, dtype="float32")
    reference = {} if recipe.method == "rejection" else {"ref_model": load(job.parent_model, dtype="float32")}
    common = common_arguments(job, len(rows))
    name = {"rejection": "SFT", "dpo": "DPO", "kto": "KTO"}[recipe.method]
    trainer_class, config_class = getattr(trl, f"{name}Trainer"), getattr(trl, f"{name}Config")
    if recipe.method != "rejection":
        common["beta"] = recipe.beta
    if recipe.method == "kto":
        common |= kto_arguments(rows)
    trainer = trainer_class(
        model=model,
        args=config_class(**common),
        train_dataset=data,
        processing_class=processor,
        callbacks=[_complete_callback()],
        **reference,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def common_arguments(job: OfflineJob, samples: int) -> dict[str, Any]:
    """Arguments that all three trainers share, by their names in TRL."""
    recipe, training = job.method, job.config.recipe(job.arm)
    gpu = job.config.accelerator == "cuda"
    updates = recipe.epochs * math.ceil(samples / recipe.batch_size)
    return filled(
        table_of(__file__),
        recipe=recipe,
        training=training,
        folder=str(job.work),
        accumulated=recipe.batch_size // recipe.micro_batch,
        warm_up=round(training.lr_warmup_ratio * updates),
        seed=job.seed,
        cpu=not gpu,
        gpu=gpu,
    )


def kto_arguments(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """KTO's own: both kinds of replies weigh the same in all, whatever their numbers (arXiv 2402.01306).

    The order is that of the rows, because TRL pairs neighbours to estimate the KL term.
    """
    good = sum(row["label"] for row in rows)
    bad = len(rows) - good
    return {
        "desirable_weight": max(1.0, bad / good),
        "undesirable_weight": max(1.0, good / bad),
        "train_sampling_strategy": "sequential",
    }


def _complete_callback() -> Any:
    """Marks a checkpoint as whole once all of it is written, and says how each update went."""
    from transformers import TrainerCallback

    class Complete(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            mark_complete(Path(args.output_dir) / f"{PREFIX_TRL}{state.global_step}")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                logger.info(f"update {state.global_step}/{state.max_steps}, loss {float(logs['loss']):.4f}")

    return Complete()


def main(job: str) -> None:
    """Entry point of the rule. ``job``: path of the job's file."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that sleep: see nano/build.py
    # One process on one GPU: TRL refuses to run with several in sight.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    train(OfflineJob.model_validate_json(Path(job).read_bytes()))


if __name__ == "__main__":
    as_module(main)
