"""Put each claim of the paper beside what was measured."""

from pathlib import Path

from arpo_replica.evaluation.claims import compare_claims
from arpo_replica.evaluation.published import PaperFiles
from arpo_replica.workflow.job import given, job

with job(snakemake) as config:
    measured = snakemake.params.throughput
    compare_claims(
        config,
        Path(snakemake.input.summary),
        given(PaperFiles, snakemake),
        Path(snakemake.output[0]),
        Path(measured["path"]) if measured else None,
    )
