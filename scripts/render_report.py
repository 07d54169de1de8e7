"""Render the page."""

from pathlib import Path

from arpo_replica.report.render import render_report
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    results = Path(snakemake.input.scores).parent
    render_report(config, results, Path(snakemake.output[0]))
