# Needs: a valid config. Makes: nothing; what all rules share: the checked study, its paths, its wildcards.
import sys

from arpo_replica.cluster import resources as needs
from arpo_replica.providers.docker_image import image_files
from arpo_replica.base.environments import find
from arpo_replica.base.errors import UserError
from arpo_replica.workflow.study import Study
from snakemake.logging import logger


def refuse(*sentences):
    """End Snakemake with sentences alone: of an exception it would show where in these files it was raised."""
    print(*sentences, sep="\n", file=sys.stderr)
    sys.exit(2)


try:
    study = Study(config, source=", ".join(map(str, workflow.configfiles)))
    if workflow.is_main_process:
        study.check()
        needs.check_jobs(study.config, workflow.resource_settings.overwrite_resources)
        if workflow.output_settings.dryrun:
            for sentence in study.lacks():
                logger.warning(f"A run would refuse to start: {sentence}")
except UserError as error:
    refuse(error)


# Of a run alone, not of a dry run, a lint or a graph: these need nothing but the controller's environment.
onstart:
    if lacks := study.lacks():
        refuse(*lacks)


pathvars:
    results=f"results/{study.name}",
    reports=f"reports/{study.name}",
    logs=f"results/{study.name}/logs",
    benchmarks=f"results/{study.name}/benchmarks",
    episodes="episodes/{arm}/seed_{seed}/stage_{stage}",


wildcard_constraints:
    arm="[a-z0-9_]+",
    seed=r"\d+",
    stage="[a-z0-9_]+",
    split="[a-z0-9_]+",
    trial=r"\d+",


def base_source(wildcards):
    """Where the untrained policy comes from: built here, or a local folder."""
    return study.base_source()


def previous_manifest(wildcards):
    """What a stage starts from: the manifest of the stage before, or of the base policy."""
    return study.previous_manifest(wildcards.arm, wildcards.seed, wildcards.stage)


def previous_metrics(wildcards):
    """What the stage before is judged by; nothing for the first one."""
    return study.previous_metrics(wildcards.arm, wildcards.seed, wildcards.stage)


def stage_split(wildcards):
    """The tasks that a stage trains on."""
    return f"<results>/splits/{study.config.stage(wildcards.stage).split}.json"


def training_params(wildcards):
    """All that decides the result of a stage; a change of anything else trains nothing again."""
    return study.training_params(wildcards.arm, wildcards.stage)


def offline_params(wildcards):
    """All that decides an offline arm, given its episodes."""
    return study.offline_params(wildcards.arm)


def gate_params(wildcards):
    """What a stage is judged by."""
    return study.gate_params(wildcards.arm)


def task_files(wildcards):
    """The task files that a split names."""
    return study.task_files(wildcards.split)


def split_list(wildcards):
    """The committed list of a split."""
    return str(study.config.tasks.splits[wildcards.split])


def left_out(wildcards):
    """The tasks of a split that are not run: another list for other tasks resolves nothing again."""
    return study.left_out(wildcards.split)


def noisy_source(wildcards):
    """The clean tasks of a noisy split, and the list of them."""
    return study.noisy_source(wildcards.split)


def noisy_params(wildcards):
    """What decides a noisy split, given the clean tasks."""
    return study.noisy_params(wildcards.split)


def target_files(wildcards):
    """Exactly what a table or figure of the paper rests on in this study."""
    try:
        return study.target_files(wildcards.target)
    except UserError as error:
        refuse(error)


def train_minutes(wildcards, attempt):
    """Run time of a stage; more at every attempt."""
    return needs.train_minutes(study.config, wildcards.arm, wildcards.stage, attempt)


def train_memory(wildcards, attempt):
    """Main memory of each node of a training."""
    return needs.train_memory(study.config, wildcards.arm, attempt)


def train_nodes(wildcards):
    """Nodes that train together."""
    return study.config.recipe(wildcards.arm).nodes


def train_tasks(wildcards):
    """One task on each node."""
    return needs.train_tasks(study.config, wildcards.arm)


def train_gpus(wildcards):
    """GPUs of each node of a training."""
    return needs.gres(needs.train_gpus(study.config, wildcards.arm)[1])


def rollout_minutes(wildcards, attempt):
    """Run time of a checkpoint's evaluation."""
    return needs.rollout_minutes(study.config, wildcards.arm, attempt)


def rollout_memory(wildcards, attempt):
    """Main memory of the job that serves a checkpoint."""
    return needs.rollout_memory(study.config, attempt)


def rollout_gpus(wildcards):
    """GPUs of the job that serves a checkpoint."""
    return needs.rollout_gres(study.config, wildcards.get("arm", "base"))


def offline_gpus(wildcards):
    """An offline arm trains on one GPU."""
    return needs.gres(1 if study.config.accelerator == "cuda" else 0)


def longer_minutes(wildcards, attempt):
    """Two hours, and more at every attempt."""
    return needs.capped(120 * attempt, gpus=study.config.accelerator == "cuda")
