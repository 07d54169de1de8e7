"""Write the manifest of the policy that all arms start from, or of an arm whose weights are given."""

from pathlib import Path

from arpo_replica.models.weights import check_beside
from arpo_replica.policy.manifest import register_model
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    arm, source = snakemake.wildcards.arm, snakemake.input.source
    folder = Path(source).parent if source else None
    if folder is not None and snakemake.input.beside:
        check_beside(Path(snakemake.input.beside[0]), folder, f"arms.{arm}.weights")
    register_model(config, folder, Path(snakemake.output[0]), arm)
