"""What surrounds a training: locks, checkpoints to go on from, publication. No verl here."""

from __future__ import annotations

import json
import multiprocessing
import struct
from pathlib import Path

import pytest
from test_training_metrics import write
from test_training_recipe import make_job

from arpo_replica.base.errors import UserError
from arpo_replica.base.locks import locked
from arpo_replica.training import run
from arpo_replica.training.job import Job
from arpo_replica.training.run import (
    check_gpus,
    check_processes,
    checkpoints,
    few_desktops,
    prepare_work,
    publish,
    resume,
)


def weights(content: bytes, shapes: dict[str, list[int]] | None = None) -> bytes:
    """A file of safetensors with this header; the rest is whatever it is."""
    named = {"w": [2]} if shapes is None else shapes
    ends = {"data_offsets": [0, len(content)]}
    header = json.dumps({name: {"shape": shape, **ends} for name, shape in named.items()}).encode()
    return struct.pack("<Q", len(header)) + header + (content if named else b"")


def add_checkpoint(job: Job, step: int) -> Path:
    """A checkpoint as the sampler's callback leaves it."""
    folder = job.checkpoint(step)
    (folder / "actor" / "huggingface").mkdir(parents=True)
    (folder / "actor" / "huggingface" / "model.safetensors").write_bytes(weights(b"weights of %d" % step))
    (folder / "replay.json").write_text("{}")
    files = [path for path in folder.rglob("*") if path.is_file()]
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    (folder / "complete.json").write_text(json.dumps(sizes))
    return folder


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = make_job(tmp_path)
    prepare_work(job)
    return job


def test_missing_gpus_are_named(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_gpus(job)
    job.config.accelerator = "cuda"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UserError, match=r"training\.gpus is 1, but this machine has 0"):
        check_gpus(job)
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'GPU 0: H200 (UUID: x)'\necho 'GPU 1: H200 (UUID: y)'\n")
    tool.chmod(0o755)
    check_gpus(job)


def test_more_rollouts_than_desktops_are_explained(job: Job) -> None:
    job.config.desktop.count = 3
    sentence = few_desktops(job)
    assert sentence is not None and "\n" not in sentence
    assert "16 rollouts of a step" in sentence and "3 desktops" in sentence and "desktop.count" in sentence
    job.config.desktop.count = 16
    assert few_desktops(job) is None


def test_without_anything_it_begins(job: Job) -> None:
    found = resume(job)
    assert (found.attempt, found.resume_step) == (1, 0)


def test_it_goes_on_from_the_newest_complete_checkpoint(job: Job) -> None:
    logs = job.work / "logs"
    write(logs, 1, [1, 2, 3])
    (logs / "train_001.log").touch()
    for step in (1, 2):
        add_checkpoint(job, step)
    torn = add_checkpoint(job, 3)
    (torn / "replay.json").unlink()
    half = job.work / ".deleted_global_step_0"
    (half / "actor").mkdir(parents=True)
    for step in (2, 3):
        job.step_file(step).write_text('{"groups": [], "swaps": []}')
        job.episodes(step, 0).mkdir(parents=True)
    found = resume(job)
    assert (found.attempt, found.resume_step) == (2, 2)
    assert not torn.exists()
    assert not half.exists()
    assert [path.exists() for path in (job.step_file(2), job.step_file(3))] == [True, False]
    assert [job.episodes(step, 0).exists() for step in (2, 3)] == [True, False]


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_checkpoint_without_its_buffer_is_not_used(job: Job, damage: str) -> None:
    folder = add_checkpoint(job, 1)
    assert checkpoints(job.work) == [1]
    (folder / "replay.json").unlink() if damage == "missing" else (folder / "replay.json").write_text("")
    assert checkpoints(job.work) == []


def test_a_checkpoint_whose_metrics_were_lost_is_not_used(job: Job) -> None:
    """Killed between saving step 2 and logging it: step 2 is done again rather than missing for ever."""
    write(job.work / "logs", 1, [1])
    for step in (1, 2):
        add_checkpoint(job, step)
    assert resume(job).resume_step == 1


def test_another_parent_starts_anew_and_the_old_work_is_kept(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    add_checkpoint(job, 1)
    job.episodes(1, 0).mkdir(parents=True)
    prepare_work(job)
    assert job.checkpoint(1).exists()
    for parent in "12":  # of two that give way the newer one is kept
        other = job.model_copy(update={"parent_sha256": parent * 64})
        prepare_work(other)
        assert not job.checkpoint(1).exists()
        assert not (job.out / "episodes").exists()
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1
        assert "(parent " in said and "kept as checkpoints.before" in said
        kept = job.out / "checkpoints.before" / "global_step_1"
        assert kept.exists() is (parent == "1")
        add_checkpoint(job, 2)
    assert (job.out / "checkpoints.before" / "global_step_2").exists()
    assert (job.out / "episodes.before").exists()


def test_a_folder_that_does_not_say_whose_it_is_gives_way(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    add_checkpoint(job, 1)
    (job.work / "identity.json").write_text("0123")
    prepare_work(job)
    assert "does not say what it was made with" in capsys.readouterr().err
    assert (job.out / "checkpoints.before" / "global_step_1").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"micro_batch": 1},
        {"offload": True},
        {"gpus": 2},
        {"sequence_parallel": 2},
        {"tensor_parallel": 2},
        {"speed": {"checkpoint_share": 1.0, "rollout_memory": 0.2, "micro_batch_tokens": 4096}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_a_full_memory_asks_for_loses_nothing(job: Job, change: dict[str, object]) -> None:
    """The stage goes on from its checkpoint when a key changes that decides speed and memory alone."""
    folder = add_checkpoint(job, 1)
    changed = job.model_copy(update={"config": job.config.model_copy(deep=True)})
    changed.config.arms["arpo"] = changed.config.arms["arpo"] | change
    vars(changed).pop("recipe", None)
    assert changed.recipe != job.recipe
    prepare_work(changed)
    assert folder.exists()


@pytest.mark.parametrize("change", [{"learning_rate": 1e-3}, {"speed": {"freeze_vision": True}}])
def test_what_decides_the_result_begins_anew(job: Job, change: dict[str, object]) -> None:
    folder = add_checkpoint(job, 1)
    changed = job.model_copy(update={"config": job.config.model_copy(deep=True)})
    changed.config.arms["arpo"] = changed.config.arms["arpo"] | change
    vars(changed).pop("recipe", None)
    prepare_work(changed)
    assert not folder.exists()


def test_another_number_of_trainers_is_refused_and_nothing_is_lost(job: Job) -> None:
    folder = add_checkpoint(job, 2)
    (folder / "actor" / "model_world_size_4_rank_0.pt").touch()
    job.config.accelerator = "cuda"
    at = job.model_copy(update={"resume_step": 2})
    with pytest.raises(UserError, match=r"of 4 trainer processes.*training\.gpus x training\.nodes is 1"):
        check_processes(at)
    assert folder.exists()
    at.config.arms["arpo"] = at.config.arms["arpo"] | {"gpus": 4}
    vars(at).pop("recipe", None)
    check_processes(at)


def hold(path: str, ready: object, done: object) -> None:
    with locked(Path(path)):
        ready.set()  # type: ignore[attr-defined]
        done.wait(20)  # type: ignore[attr-defined]


def test_two_trainings_of_one_stage_exclude_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    path = tmp_path / "train.lock"
    holder = context.Process(target=hold, args=(str(path), ready, done))
    holder.start()
    try:
        assert ready.wait(20)
        with pytest.raises(UserError, match=r"train\.lock"), locked(path):
            pass
    finally:
        done.set()
        holder.join(20)
    with locked(path):
        assert holder.exitcode == 0


def test_publication(job: Job) -> None:
    job.parent_model.mkdir()
    (job.parent_model / "config.json").write_text("{}")
    (job.parent_model / "tokenizer.json").write_text("parent's")
    (job.parent_model / "model.safetensors").write_bytes(weights(b"old"))
    (job.work / "versions.json").write_text('{"verl": "0.9.1"}')
    add_checkpoint(job, 3)
    with pytest.raises(RuntimeError, match="step 3"):
        publish(job)  # its metrics are missing
    write(job.work / "logs", 1, [1, 2, 3])
    manifest = publish(job)
    model = job.out / "model"
    assert (model / "model.safetensors").read_bytes() == weights(b"weights of 3")
    assert (model / "tokenizer.json").read_text() == "parent's"
    found = run.read_manifest(job.out / "manifest.json", verify=True)
    assert found == manifest
    assert (found.step, found.parent, found.stage) == (3, job.parent_sha256, "train_4")
    assert len((job.out / "metrics.jsonl").read_text().splitlines()) == 3
    again = publish(job)
    assert again.sha256 == manifest.sha256


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({"model.layers.0.q_proj.weight": [2, 4]}, r"1 differ.* layers\.0\.q_proj\.weight \(\[2, 4\]"),
        ({"base_model.model.model.layers.0.q_proj.base_layer.weight": [4, 4]}, r"2 differ"),
        ({}, r"wrote 0 weights where its parent has 1"),
    ],
)
def test_weights_that_are_not_the_parents_in_name_and_shape_are_not_published(
    job: Job, shapes: dict[str, list[int]], says: str
) -> None:
    """As adapters end, which nothing that loads a model would notice."""
    job.parent_model.mkdir()
    (job.parent_model / "config.json").write_text('{"tie_word_embeddings": true}')
    # Names as transformers 5 writes them, and the shared head that only some versions write.
    parents = {"model.language_model.layers.0.q_proj.weight": [4, 4], "lm_head.weight": [9, 4]}
    (job.parent_model / "model.safetensors").write_bytes(weights(b"old", parents))
    exported = job.work / "exported"
    exported.mkdir()
    (exported / "model.safetensors").write_bytes(weights(b"new", shapes))
    with pytest.raises(RuntimeError, match=says):
        run.publish_model(job, exported, stage="train_4", step=1, recipe={}, versions={})
    assert not (job.out / "model").exists()
    (exported / "model.safetensors").write_bytes(weights(b"new", {"model.layers.0.q_proj.weight": [4, 4]}))
    run.publish_model(job, exported, stage="train_4", step=1, recipe={}, versions={})
