# Needs: a valid config. Makes: nothing; what all rules share: the checked study, its paths, its wildcards.
from pathlib import Path

from arpo_replica.errors import UserError
from arpo_replica.workflow.study import Study
from snakemake.exceptions import WorkflowError

try:
    study = Study(config, source=", ".join(map(str, workflow.configfiles)))
    if workflow.is_main_process:
        study.check()
except UserError as error:
    raise WorkflowError(str(error)) from None


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


def stage_split(wildcards):
    """The tasks that a stage trains on."""
    return f"<results>/splits/{study.config.stage(wildcards.stage).split}.json"


def training_params(wildcards):
    """All that decides the result of a stage; a change of anything else trains nothing again."""
    return study.training_params(wildcards.arm, wildcards.stage)


def task_files(wildcards):
    """The task files that a split names."""
    return study.task_files(wildcards.split)


def split_list(wildcards):
    """The committed list of a split."""
    return str(study.config.tasks.splits[wildcards.split])
