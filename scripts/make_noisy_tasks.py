"""Write the noisy variants of a split's tasks and the list of them."""

from arpo_replica.suites.planned import make_noisy_tasks
from arpo_replica.workflow.job import job, logger

with job(snakemake) as config:
    number = make_noisy_tasks(config, snakemake.wildcards.split)
    logger.info(f"{number} noisy tasks in {snakemake.output.split}")
