"""Write a split with the sha256 of each task file."""

from pathlib import Path

from arpo_replica.tasks.splits import resolve_split
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    resolve_split(Path(snakemake.input.split), config.tasks.root, Path(snakemake.output[0]))
