"""Train one stage of one arm through verl."""

from pathlib import Path

from arpo_replica.tasks.splits import read_resolved
from arpo_replica.training.gates import require_passed
from arpo_replica.training.run import train_stage
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    if snakemake.input.before:
        require_passed(config, snakemake.wildcards.arm, Path(snakemake.input.parent))
    train_stage(
        config,
        arm=snakemake.wildcards.arm,
        seed=int(snakemake.wildcards.seed),
        stage=snakemake.wildcards.stage,
        parent=Path(snakemake.input.parent),
        split=read_resolved(Path(snakemake.input.split)),
        out=Path(snakemake.output.manifest).parent,
        episodes=[Path(path) for path in snakemake.input.episodes],
    )
