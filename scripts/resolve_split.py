"""Check the tasks of a split and write it with the sha256 of each task file."""

from pathlib import Path

from arpo_replica.suites.planned import check_tasks
from arpo_replica.tasks.left_out import split_tasks
from arpo_replica.tasks.splits import resolve_split
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    # Task files that a rule makes did not exist when the workflow began and checked the others.
    tasks = split_tasks(config, snakemake.wildcards.split)
    check_tasks(tasks)
    resolve_split(Path(snakemake.input.split), tasks, Path(snakemake.output[0]))
