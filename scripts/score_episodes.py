"""Collect the scores of all episodes in one table."""

from pathlib import Path

from arpo_replica.evaluation.scores import score_episodes
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    indexes = [Path(index) for index in snakemake.input.indexes]
    score_episodes(config, indexes, Path(snakemake.output.table))
