"""Judge a finished stage: may the next one build on it?"""

from pathlib import Path

from arpo_replica.training.gates import check_stage
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    check_stage(
        config,
        snakemake.wildcards.arm,
        snakemake.wildcards.stage,
        Path(snakemake.input.manifest),
        Path(snakemake.output[0]),
    )
