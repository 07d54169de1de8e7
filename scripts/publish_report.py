"""Pack the page and everything behind it."""

from pathlib import Path

from arpo_replica.report.publish import PublishedFiles, publish_report
from arpo_replica.workflow.job import given, job

with job(snakemake) as config:
    files = given(PublishedFiles, snakemake)
    publish_report(config, files, Path(snakemake.output.folder), Path(snakemake.output.archive))
