"""Serve the base policy and collect the episodes that offline arms learn from."""

from pathlib import Path

from arpo_replica.rollout.run import collect_rollouts
from arpo_replica.tasks.splits import read_resolved
from arpo_replica.training.offline.run import episodes_config
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    collect_rollouts(
        episodes_config(config),
        manifest=Path(snakemake.input.manifest),
        splits=[read_resolved(Path(snakemake.input.split))],
        roots=[Path(index).parent for index in snakemake.output],
    )
