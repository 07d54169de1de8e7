"""Write the manifest of the policy that all arms start from."""

from pathlib import Path

from arpo_replica.manifest import register_model
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    register_model(config, Path(snakemake.input[0]).parent, Path(snakemake.output[0]))
