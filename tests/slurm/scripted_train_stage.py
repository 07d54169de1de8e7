"""In the place of scripts/train_stage.py: the same training on desktops whose every answer follows from what
the policy wrote. Such a training is the same bit for bit, however often it was interrupted."""

from pathlib import Path

from arpo_replica.tasks.splits import read_resolved
from arpo_replica.training.run import train_stage
from arpo_replica.workflow.job import job

with job(snakemake) as config:  # noqa: F821
    train_stage(
        config,
        arm=snakemake.wildcards.arm,  # noqa: F821
        seed=int(snakemake.wildcards.seed),  # noqa: F821
        stage=snakemake.wildcards.stage,  # noqa: F821
        parent=Path(snakemake.input.parent),  # noqa: F821
        split=read_resolved(Path(snakemake.input.split)),  # noqa: F821
        out=Path(snakemake.output.manifest).parent,  # noqa: F821
        provider="training.scripted_desktop:ScriptedProvider",
        parser="training.scripted_desktop:make_parser",
    )
