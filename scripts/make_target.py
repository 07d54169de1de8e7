"""Make one of the paper's tables or figures from this study's results."""

from pathlib import Path

from arpo_replica.evaluation.published import PaperFiles
from arpo_replica.report.make_target import TargetFiles, make_target
from arpo_replica.workflow.job import given, job

with job(snakemake) as config:
    files = given(TargetFiles, snakemake, paper=given(PaperFiles, snakemake))
    make_target(config, snakemake.wildcards.target, files, Path(snakemake.output[0]).parent)
