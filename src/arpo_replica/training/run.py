"""Train one stage of one arm; resume it; publish its weights.

{out}/manifest.json        what the finished stage is; written last
{out}/metrics.jsonl        one object per step (``metrics``)
{out}/model/               weights in Hugging Face format
{out}/episodes/step_*/rollout_*/   recorded episodes of training
{out}/checkpoints/         everything that a resume needs, logs included
"""

import json
import logging
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arpo_replica.base.environments import short_root
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import read_tensor_header, write_atomically
from arpo_replica.base.locks import locked
from arpo_replica.base.unfinished import claim_folder
from arpo_replica.base.upstream_guards import VERL_VERSION
from arpo_replica.config.decides import decided
from arpo_replica.config.models import StudyConfig
from arpo_replica.policy.manifest import Manifest, read_manifest, write_manifest
from arpo_replica.providers.pool import load_named
from arpo_replica.tasks.splits import ResolvedSplit
from arpo_replica.training.job import Job, Training, checkpoints
from arpo_replica.training.metrics import collect, to_jsonl, unbroken
from arpo_replica.training.preload import start_store
from arpo_replica.training.process.attempt import Attempt, Notice, PortTaken, listening
from arpo_replica.training.recipe import check_recipe, check_window

logger = logging.getLogger(__name__)

STARTS = 3
"""How often a training is started whose trainers found their port taken."""


def train_stage(
    config: StudyConfig,
    *,
    arm: str,
    seed: int,
    stage: str,
    parent: Path,
    split: ResolvedSplit,
    out: Path,
    episodes: Sequence[Path] = (),
    **options: Any,
) -> Manifest:
    """Train until the stage's last step is saved, going on from the newest complete checkpoint.

    ``parent``: manifest of the model to start from. ``split``: the stage's tasks. ``out``: the stage's
    directory. ``episodes``: indexes of the base policy's recorded ones (``preload``). ``options``: other
    fields of ``Job`` (tests). Raises ``UserError`` for what a user can mend, ``Stopped`` after SIGTERM,
    RuntimeError otherwise.
    """
    source = read_manifest(parent, verify=True)
    out = out.absolute()
    if (folder := config.desktop.remote.folder) is not None:
        config.desktop.remote.pools = folder.absolute()  # the training's processes run in another folder
    out.mkdir(parents=True, exist_ok=True)
    with listening() as notice, locked(out / "train.lock"), short_folder() as scratch:
        job = Job(
            config=config,
            arm=arm,
            seed=seed,
            stage_name=stage,
            split=split.absolute(),
            parent_model=source.model_path(parent.absolute()),
            parent_sha256=source.sha256,
            out=out,
            scratch=scratch,
            attempt=1,
            store=start_store(config, arm, parent=parent.absolute(), source=source, indexes=episodes),
            **{"preload": forkable(config, arm), **options},
        )
        check_gpus(job)
        check_window(job)
        check_recipe(job, len(split.tasks))
        load_named(job.provider, job.config.desktop).check()
        if note := few_desktops(job):
            logger.warning(note)
        prepare_work(job)
        go_on(job, notice)
        return publish(job)


def go_on(job: Job, notice: Notice) -> None:
    """Train from the newest complete checkpoint to the last step. Raises what ``Attempt.wait`` raises."""
    for start in range(1, STARTS + 1):
        job = resume(job)
        if job.resume_step >= job.stage.steps:
            return
        check_processes(job)
        attempt = Attempt(job, notice=notice)
        try:
            attempt.wait()
        except PortTaken as taken:
            if start == STARTS:
                raise
            logger.warning(f"{taken} Starting again.")
        else:
            logger.info(f"peak memory {attempt.peak_mb:.0f} MB")
            return


def forkable(config: StudyConfig, arm: str) -> bool:
    """True if all processes of a training may come from one that imported everything (``fork_server``)."""
    recipe = config.recipe(arm)
    return recipe.nodes == 1 and recipe.speed.preload is not False


def few_desktops(job: Job) -> str | None:
    """One sentence if a step has more rollouts than there are desktops, which only makes it slower."""
    rollouts, desktops = job.recipe.tasks_per_step * job.recipe.rollouts_per_task, job.config.desktop.count
    if rollouts <= desktops:
        return None
    return (
        f"The {rollouts} rollouts of a step (training.tasks_per_step x rollouts_per_task) take turns on "
        f"{desktops} desktops; where there is room for more, raise desktop.count."
    )


def check_gpus(job: Job) -> None:
    """Refuse to start without the GPUs that the config asks for. Raises ``UserError``."""
    if job.config.accelerator == "cpu":
        return
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=60)
        found = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    except (OSError, subprocess.SubprocessError):
        found = 0
    if found < job.recipe.gpus:
        raise UserError(
            f"training.gpus is {job.recipe.gpus}, but this machine has {found} NVIDIA GPUs (nvidia-smi -L); "
            "lower it, run the job on another machine, or set accelerator to 'cpu' (nano only)."
        )


@contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary folder with a short path: UNIX sockets go below it, and their paths end at 107 bytes.

    The guard of the training removes it too, for the case that this process is killed.
    """
    root = short_root()
    with tempfile.TemporaryDirectory(prefix="arpo_train_", dir=root, ignore_cleanup_errors=True) as path:
        Path(path).chmod(0o711)  # desktops below it belong to an unprivileged user
        yield Path(path)


def recipe_of(job: Job) -> dict[str, Any]:
    """Everything that decides the result of the stage, besides the weights that it starts from."""
    return {
        **decided(job.config, "train_stage", arm=job.arm, stage=job.stage_name),
        "tasks": [task.sha256 for task in job.split.tasks],
        "verl": VERL_VERSION,
        **job.store.facts,
    }


def prepare_work(job: Job) -> None:
    """Make the work folder; what another recipe left in it, or another parent, is moved aside and kept."""
    identity = {**recipe_of(job), "arm": job.arm, "seed": job.seed, "parent": job.parent_sha256}
    claim_folder(job.work, identity, beside=[job.out / "episodes"])
    job.steps.mkdir(parents=True, exist_ok=True)


def check_processes(job: Job) -> None:
    """Refuse to go on from a checkpoint of another number of trainers. Raises ``UserError``.

    verl 0.9.1 saves a part per process and reads only as many parts (fsdp_checkpoint_manager.py).
    """
    cpu = job.config.accelerator == "cpu"
    now = job.recipe.nodes * (1 if cpu else job.recipe.gpus)
    for path in (job.checkpoint(job.resume_step) / "actor").glob("model_world_size_*_rank_0.pt"):
        before = int(path.name.split("_")[3])
        if before != now:
            keys = "training.nodes" if cpu else "training.gpus x training.nodes"
            raise UserError(
                f"The checkpoint of step {job.resume_step} is that of {before} trainer processes, and verl "
                f"goes on only with as many, but {keys} is {now}; set it back, or delete {job.work} to begin "
                "the stage anew."
            )


def resume(job: Job) -> Job:
    """The job with its attempt's number and the checkpoint to go on from; later leftovers are removed."""
    logs = job.work / "logs"
    job.save_file.unlink(missing_ok=True)
    attempts = [int(path.stem.rsplit("_", 1)[1]) for path in logs.glob("train_*.log")]
    known = unbroken(collect(logs, job.steps))
    steps = [step for step in checkpoints(job.work) if step <= known]
    step = max(steps, default=0)
    for path in job.work.glob("global_step_*"):
        if int(path.name.rsplit("_", 1)[1]) > step:
            shutil.rmtree(path)
    for path in job.work.glob(".deleted_*"):  # killed while it dropped an old checkpoint
        shutil.rmtree(path)
    for path in [*job.steps.glob("step_*.json"), *(job.out / "episodes").glob("step_*")]:
        if int(path.stem.rsplit("_", 1)[1]) > step:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if step:
        logger.info(f"going on from the checkpoint of step {step}")
    return job.model_copy(update={"attempt": max(attempts, default=0) + 1, "resume_step": step})


def check_tensors(model: Path, parent: Path) -> None:
    """Refuse weights that are not those of the parent's architecture, each in its shape: whatever reads such
    a folder fills what is missing with random numbers. Raises RuntimeError."""
    found, expected = (tensors(folder) for folder in (model, parent))
    if found != expected:
        names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise RuntimeError(
            f"the training wrote {len(found)} weights where its parent has {len(expected)}; "
            f"{len(names)} differ in name or shape, the first is {names[0]} "
            f"({found.get(names[0])} instead of {expected.get(names[0])}); nothing is published"
        )


def tensors(folder: Path) -> dict[str, list[int]]:
    """Name -> shape of every weight of a model folder, by the headers of its files.

    Left out is what versions of transformers do not agree on: where ``model.`` and ``language_model.`` stand
    in a name, and whether a head that is the embedding once more is written.
    """
    config = json.loads((folder / "config.json").read_bytes())
    tied = (config | (config.get("text_config") or {})).get("tie_word_embeddings", False)
    shapes = {}
    for path in folder.glob("*.safetensors"):
        for name, entry in read_tensor_header(path).items():
            known = name.replace("language_model.", "").removeprefix("model.")
            if not (tied and known == "lm_head.weight"):
                shapes[known] = entry["shape"]
    return shapes


def publish_model(job: Training, exported: Path, **facts: Any) -> Manifest:
    """Make the folder ``model/`` of a trained policy and write its manifest, of which ``facts`` are a part.

    Tokenizer, templates and image processor are the parent's, byte for byte; only weights are new.
    """
    model = job.out / "model"
    temporary = model.with_name(".model.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for path in sorted(job.parent_model.iterdir()):
        weights = path.name.endswith((".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth"))
        if path.is_file() and not weights and path.name != "manifest.json":
            shutil.copy2(path, temporary / path.name)
    for path in [*exported.glob("*.safetensors"), *exported.glob("*.safetensors.index.json")]:
        shutil.copy2(path, temporary / path.name)
    check_tensors(temporary, job.parent_model)
    shutil.rmtree(model, ignore_errors=True)
    temporary.rename(model)
    labels = {"arm": job.arm, "seed": job.seed, "size": job.config.size, "parent": job.parent_sha256}
    return write_manifest(job.out / "manifest.json", model, **labels, **facts)


def publish(job: Job) -> Manifest:
    """Put the last step's weights into ``model/`` and write metrics and manifest."""
    rows = collect(job.work / "logs", job.steps)
    steps = job.stage.steps
    if steps not in checkpoints(job.work) or unbroken(rows) < steps:
        raise RuntimeError(f"the training ended without a complete checkpoint of step {steps} in {job.work}")
    write_atomically(job.out / "metrics.jsonl", to_jsonl(rows))
    return publish_model(
        job,
        job.checkpoint(steps) / "actor" / "huggingface",
        stage=job.stage_name,
        step=steps,
        recipe=recipe_of(job),
        versions=json.loads((job.work / "versions.json").read_bytes()),
    )
