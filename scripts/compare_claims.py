"""Put each claim of the paper beside what was measured."""

from pathlib import Path

from arpo_replica.evaluation.claims import compare_claims
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    # Measured only on demand (`snakemake fig7`): the study does not wait for it.
    throughput = Path(snakemake.input.summary).with_name("throughput.json")
    compare_claims(
        config,
        Path(snakemake.input.summary),
        Path(snakemake.input.claims),
        Path(snakemake.output[0]),
        throughput if throughput.is_file() else None,
    )
