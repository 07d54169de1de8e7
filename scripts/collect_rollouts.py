"""Serve one checkpoint and collect its episodes of all evaluated splits and trials."""

from pathlib import Path

from arpo_replica.rollout.run import collect_rollouts
from arpo_replica.tasks.splits import read_resolved
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    collect_rollouts(
        config,
        manifest=Path(snakemake.input.manifest),
        splits=[read_resolved(Path(path)) for path in snakemake.input.splits],
        roots=[Path(index).parent for index in snakemake.output],
    )
