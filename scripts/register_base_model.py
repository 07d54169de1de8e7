"""Write the manifest of the policy that all arms start from."""

from pathlib import Path

from arpo_replica.policy.manifest import register_model
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    folder = Path(snakemake.input[0]).parent if snakemake.input else None
    register_model(config, folder, Path(snakemake.output[0]))
