"""Check the tasks of a split and write it with path and sha256 of each task file."""

from pathlib import Path

from arpo_replica.suites.planned import check_tasks
from arpo_replica.tasks.splits import resolve
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    # Task files that a rule makes did not exist when the workflow began and checked the others.
    split = resolve(config, snakemake.wildcards.split)
    check_tasks(split.load())
    split.write(Path(snakemake.output[0]))
