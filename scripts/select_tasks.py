"""Let the untrained policy try the tasks of a split, and list those that it can do sometimes."""

from pathlib import Path

from arpo_replica.rollout.select import select_tasks
from arpo_replica.tasks.splits import read_resolved
from arpo_replica.workflow.job import job, logger

with job(snakemake) as config:
    kept, tried = select_tasks(
        config,
        snakemake.wildcards.split,
        manifest=Path(snakemake.input.manifest),
        source=read_resolved(Path(snakemake.input.source)),
        out=Path(snakemake.output[0]),
    )
    logger.info(f"{kept} of {tried} tasks kept in {snakemake.output[0]}")
