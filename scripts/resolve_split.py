"""Check the tasks of a split and write it with the sha256 of each task file."""

from pathlib import Path

from arpo_replica.tasks.planned import check_tasks
from arpo_replica.tasks.splits import load_split, resolve_split
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    # Task files that a rule makes did not exist when the workflow began and checked the others.
    check_tasks(load_split(Path(snakemake.input.split), config.tasks.root))
    resolve_split(Path(snakemake.input.split), config.tasks.root, Path(snakemake.output[0]))
