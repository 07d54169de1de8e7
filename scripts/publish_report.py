"""Pack the page and everything behind it."""

from pathlib import Path

from arpo_replica.report.publish import publish_report
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    publish_report(
        config,
        Path(snakemake.input.scores).parent,
        Path(snakemake.input.page),
        Path(snakemake.output.folder),
        Path(snakemake.output.archive),
    )
