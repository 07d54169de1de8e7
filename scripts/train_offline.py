"""Train one arm on recorded episodes, through TRL."""

from pathlib import Path

from arpo_replica.training.offline.run import train_offline
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    train_offline(
        config,
        arm=snakemake.wildcards.arm,
        seed=int(snakemake.wildcards.seed),
        stage=snakemake.wildcards.stage,
        parent=Path(snakemake.input.parent),
        indexes=[Path(path) for path in snakemake.input.episodes],
        out=Path(snakemake.output.manifest).parent,
    )
