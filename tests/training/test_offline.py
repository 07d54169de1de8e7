"""Rejection sampling, DPO and KTO through TRL on a random model: what moves, what is learnt, resuming."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.cpu_env, pytest.mark.timeout(300)]
pytest.importorskip("trl")

import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from arpo_replica.policy.manifest import hash_weights  # noqa: E402
from arpo_replica.training.job import PREFIX_TRL, OfflineJob, checkpoints  # noqa: E402
from arpo_replica.training.offline.data import Turn, make_samples, read_rollouts  # noqa: E402
from arpo_replica.training.offline.run import prepare_work, publish, recipe_of  # noqa: E402
from arpo_replica.training.offline.trainers import (  # noqa: E402
    completion,
    load_processor,
    make_trainer,
    to_row,
    train,
)
from offline_episodes import BAD, END, GOOD, offline_config, write_indexes, write_rollout  # noqa: E402
from training.tiny_model import build_tiny_model  # noqa: E402

METHODS = ("rejection", "dpo", "kto")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def indexes(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four tasks, each with a success of two replies and a failure of one; the second reply was cut off."""
    root = tmp_path_factory.mktemp("episodes")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    _, identity = hash_weights(model)
    good, end, bad = (len(tokenizer(text)["input_ids"]) for text in (GOOD, END, BAD))
    for number in range(4):
        task = f"task{number}"
        write_rollout(root, task, 0, [GOOD, END], tokens=[good + 1, end], checkpoint=identity)
        write_rollout(root, task, 1, [BAD], "failure", tokens=[bad + 1], checkpoint=identity)
    return write_indexes(root)


def make_job(method: str, model: Path, indexes: list[Path], out: Path) -> OfflineJob:
    config = offline_config(
        method,
        {"learning_rate": 1e-3, "save_every": 2},
        batch_size=4,
        micro_batch=2,
        epochs=4 if method == "dpo" else 2,
    )
    config.threads = 1
    job = OfflineJob(
        config=config,
        arm=method,
        seed=0,
        parent_model=model,
        parent_sha256=hash_weights(model)[1],
        indexes=indexes,
        out=out,
    )
    job.work.mkdir(parents=True, exist_ok=True)
    return job


@pytest.fixture(scope="module")
def trained(
    model: Path, indexes: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, OfflineJob]:
    """One training of each method, uninterrupted."""
    jobs = {}
    for method in METHODS:
        job = make_job(method, model, indexes, tmp_path_factory.mktemp(method))
        train(job)
        jobs[method] = job
    return jobs


def log_probability(processor: Any, network: Any, turn: Turn) -> float:
    """Of a reply, its end token included, computed without TRL."""
    said = completion(turn, processor.tokenizer)
    prompt = processor.apply_chat_template(turn.messages, tokenize=False, add_generation_prompt=True)
    images = [Image.open(path).convert("RGB") for path in turn.images]
    inputs = processor(text=[prompt + said], images=images, return_tensors="pt")
    length = len(processor.tokenizer(said)["input_ids"])
    with torch.no_grad():
        logits = network(**inputs).logits[0, -length - 1 : -1].log_softmax(-1)
    return float(logits.gather(1, inputs["input_ids"][0, -length:, None]).sum())


@pytest.mark.parametrize("method", METHODS)
def test_good_replies_become_likelier_and_bad_ones_not(
    method: str, trained: dict[str, OfflineJob], model: Path, indexes: list[Path]
) -> None:
    job = trained[method]
    processor = load_processor(job)
    load = transformers.AutoModelForImageTextToText.from_pretrained
    before, after = (load(folder, dtype="float32") for folder in (model, job.weights))
    config = offline_config("kto")
    samples = make_samples(config, "kto", 0, read_rollouts(indexes, job.parent_sha256))
    gains = []
    for text in (GOOD, BAD):
        turn = next(sample.turn for sample in samples if sample.turn.reply == text)
        gains.append(log_probability(processor, after, turn) - log_probability(processor, before, turn))
    assert gains[0] > 1.0, "the reply of the successes is not likelier than before"
    assert gains[0] > gains[1] + 1.0, "the reply of the failures gained as much"
    if method != "rejection":
        assert gains[1] < 0.0


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_ends_in_the_same_weights(
    method: str, trained: dict[str, OfflineJob], model: Path, indexes: list[Path], tmp_path: Path
) -> None:
    """Killed while the second of two checkpoints was written: equal to the bit, weights and losses."""
    whole = trained[method]
    job = make_job(method, model, indexes, tmp_path)
    recipe = {"any": "recipe"}
    prepare_work(job, recipe)
    first, second = checkpoints(whole.work, PREFIX_TRL)
    shutil.copytree(whole.checkpoint(first), job.checkpoint(first))
    shutil.copytree(whole.checkpoint(second), job.checkpoint(second))
    (job.checkpoint(second) / "complete.json").unlink()
    (job.checkpoint(second) / "optimizer.pt").write_bytes(b"half")
    prepare_work(job, recipe)
    assert checkpoints(job.work, PREFIX_TRL) == [first]
    train(job)
    ours, theirs = (load_file(next(found.weights.glob("*.safetensors"))) for found in (job, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    losses = [[json.loads(line)["loss"] for line in found.history_file.open()] for found in (job, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == second > first > 0


@pytest.mark.parametrize("method", METHODS)
def test_only_the_tokens_of_replies_are_learnt(
    method: str, model: Path, indexes: list[Path], tmp_path: Path
) -> None:
    """What TRL's collator marks, decoded, is the replies as they were sampled: one of them without end."""
    job = make_job(method, model, indexes, tmp_path)
    processor = load_processor(job)
    samples = make_samples(job.config, job.arm, 0, read_rollouts(indexes, job.parent_sha256))
    trainer = make_trainer(job, [to_row(sample, processor) for sample in samples], processor)
    rows = [trainer.train_dataset[index] for index in range(len(samples))]
    batch = trainer.data_collator([dict(row) for row in rows])
    marked = batch["labels"] != -100 if method == "rejection" else batch["completion_mask"].bool()
    said = [
        processor.tokenizer.decode(ids[mask]) for ids, mask in zip(batch["input_ids"], marked, strict=True)
    ]
    ends = {GOOD: f"{GOOD}<|im_end|>", BAD: f"{BAD}<|im_end|>", END: END}
    turns = [sample.turn for sample in samples]
    turns += [sample.rejected for sample in samples if sample.rejected is not None]
    assert said == [ends[turn.reply] for turn in turns]
    # Every screenshot of every row is there, as the image processor makes it for serving.
    assert len(batch["image_grid_thw"]) == sum(len(turn.images) for turn in turns)


def test_the_finished_arm_is_a_model_folder_like_a_stage(
    trained: dict[str, OfflineJob], model: Path, tmp_path: Path
) -> None:
    job = trained["dpo"].model_copy(update={"out": tmp_path})
    shutil.copytree(trained["dpo"].work, job.work)
    manifest = publish(job, recipe_of(job, "e" * 64), "one")
    assert hash_weights(tmp_path / "model") == (manifest.weights, manifest.sha256)
    assert manifest.sha256 != job.parent_sha256 == manifest.parent
    assert manifest.recipe["data"]["samples"] == 4
    assert manifest.recipe["data"]["inexact_replies"] == 0
    assert manifest.versions["trl"] == manifest.recipe["trl"]
    new, old = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", model))
    assert {name: value.dtype for name, value in new.items()} == {n: v.dtype for n, v in old.items()}
    for path in model.iterdir():
        if path.suffix != ".safetensors":
            assert (tmp_path / "model" / path.name).read_bytes() == path.read_bytes()
    rows = (tmp_path / "learning.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, manifest.step + 1))
