"""Train an offline arm: rejection sampling, DPO or KTO on episodes of the base policy, through TRL.

{out}/manifest.json     what the finished arm is; written last
{out}/learning.jsonl    one object per update, as TRL logs it
{out}/model/            weights in Hugging Face format
{out}/checkpoints/      everything that a resume needs

The manifest has the shape of a stage's, so that serving, evaluation and report treat the arm like any other.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arpo_replica.base.checkout import code_version
from arpo_replica.base.environments import heavy_environment, run_module
from arpo_replica.base.files import read_rows, write_atomically
from arpo_replica.base.locks import locked
from arpo_replica.base.unfinished import claim_folder
from arpo_replica.config.decides import decided
from arpo_replica.config.models import StudyConfig
from arpo_replica.policy.manifest import Manifest, read_manifest
from arpo_replica.rollout.run import sampled_as_in_training
from arpo_replica.training.job import COMPLETE_FILE, PREFIX_TRL, OfflineJob
from arpo_replica.training.offline.data import digest, make_samples, read_rollouts
from arpo_replica.training.run import publish_model

TRL_VERSION = "1.16.0"
"""As locked in envs/cpu and envs/gpu."""


def episodes_config(config: StudyConfig) -> StudyConfig:
    """The study's config for collecting what offline arms learn from: sampled as in training."""
    like_training = sampled_as_in_training(config)
    evaluation = like_training.evaluation.model_copy(update={"splits": [config.offline_split]})
    return like_training.model_copy(update={"evaluation": evaluation})


def train_offline(
    config: StudyConfig, *, arm: str, seed: int, stage: str, parent: Path, indexes: Sequence[Path], out: Path
) -> Manifest:
    """Train the arm in one go, from the newest complete checkpoint if there is one.

    ``parent``: manifest of the base policy. ``indexes``: its episodes. ``out``: the arm's directory. Raises
    ``UserError`` if the episodes hold nothing to learn from, RuntimeError if the training fails.
    """
    source = read_manifest(parent, verify=True)
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / "train.lock"):
        job = OfflineJob(
            config=config,
            arm=arm,
            seed=seed,
            parent_model=source.model_path(parent.absolute()),
            parent_sha256=source.sha256,
            indexes=[path.absolute() for path in indexes],
            out=out,
        )
        rollouts = read_rollouts(job.indexes, job.parent_sha256)
        make_samples(job.config, arm, seed, rollouts)  # refuses before torch is loaded
        recipe = recipe_of(job, digest(rollouts))
        prepare_work(job, recipe)
        described = job.work / "job.json"
        write_atomically(described, job.model_dump_json().encode())
        environment = heavy_environment(config.accelerator)
        run_module(environment, "arpo_replica.training.offline.trainers", described, threads=config.threads)
        return publish(job, recipe, stage)


def recipe_of(job: OfflineJob, episodes_sha256: str) -> dict[str, Any]:
    """Everything that decides the result, besides the weights that it starts from."""
    return {
        **decided(job.config, "train_offline", arm=job.arm),
        "episodes_sha256": episodes_sha256,
        "trl": TRL_VERSION,
    }


def prepare_work(job: OfflineJob, recipe: dict[str, Any]) -> None:
    """Make the work folder. What another recipe left there is moved aside and kept; checkpoints that are not
    whole are dropped."""
    claim_folder(job.work, {**recipe, "arm": job.arm, "seed": job.seed, "parent": job.parent_sha256})
    for folder in job.work.glob(f"{PREFIX_TRL}*"):
        if not (folder / COMPLETE_FILE).is_file():
            shutil.rmtree(folder)


def publish(job: OfflineJob, recipe: dict[str, Any], stage: str) -> Manifest:
    """Put the weights into ``model/`` and write learning curve and manifest."""
    facts = json.loads(job.facts_file.read_bytes())
    write_atomically(job.out / "learning.jsonl", job.history_file.read_bytes())
    manifest = publish_model(
        job,
        job.weights,
        stage=stage,
        step=read_rows(job.history_file)[-1]["step"],
        recipe={**recipe, "data": {key: facts[key] for key in facts if key != "packages"}},
        versions={"arpo-replica": code_version(), **facts["packages"]},
    )
    shutil.rmtree(job.weights)
    return manifest
