"""Render the page."""

from pathlib import Path

from arpo_replica.report.render import render_report
from arpo_replica.report.sources import PageFiles
from arpo_replica.workflow.job import given, job

with job(snakemake) as config:
    render_report(config, given(PageFiles, snakemake), Path(snakemake.output[0]))
