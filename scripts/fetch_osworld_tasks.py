"""Fetch OSWorld's task files and compare them with the committed hashes."""

from pathlib import Path

from arpo_replica.tasks.osworld_files import fetch_osworld_tasks
from arpo_replica.workflow.job import job, logger

with job(snakemake) as config:
    folder = Path(snakemake.output[0]).parent
    number = fetch_osworld_tasks(config.tasks.osworld, Path(snakemake.input.manifest), folder)
    logger.info(f"{number} task files of OSWorld lie in {folder}")
