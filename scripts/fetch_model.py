"""Bring a named model here, pinned and checked, or make its shape with random weights."""

from pathlib import Path

from arpo_replica.models.weights import fetch_model
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    fetch_model(config.of_arm(snakemake.wildcards.of.removeprefix("_")), Path(snakemake.output[0]))
