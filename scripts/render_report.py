"""Render the page."""

from pathlib import Path

from arpo_replica.report.render import render_report
from arpo_replica.report.sources import StudyFiles
from arpo_replica.workflow.job import given, job

with job(snakemake) as config:
    render_report(
        config,
        given(StudyFiles, snakemake),
        Path(snakemake.output[0]),
        deviations=Path(snakemake.input.deviations),
        hyperparameters=Path(snakemake.input.hyperparameters),
    )
