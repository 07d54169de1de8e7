"""Write every table as CSV and JSON."""

from pathlib import Path

from arpo_replica.evaluation.tables import write_tables
from arpo_replica.workflow.job import job

with job(snakemake):
    write_tables(
        Path(snakemake.input.summary),
        Path(snakemake.input.claims),
        Path(snakemake.input.scores),
        Path(snakemake.output[0]).parent,
    )
