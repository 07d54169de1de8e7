"""Run the tasks of a split without a model: no action, FAIL, and the committed scripts."""

from pathlib import Path

from arpo_replica.tasks.splits import read_resolved
from arpo_replica.validation.validate import tell, validate_tasks
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    # What was not expected is part of the result; the command of the same name fails on it.
    split = read_resolved(Path(snakemake.input.split))
    known = Path(snakemake.input.known)
    tell(validate_tasks(config, split, Path(snakemake.output[0]), known=known))
