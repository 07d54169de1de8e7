"""Make one of the paper's tables or figures from this study's results."""

from pathlib import Path

from arpo_replica.evaluation.published import PaperFiles
from arpo_replica.report.make_target import TargetFiles, make_target
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    files = TargetFiles(
        paper=PaperFiles.of(snakemake.input),
        indexes=[Path(path) for path in snakemake.input.get("indexes", [])],
        metrics=[Path(path) for path in snakemake.input.get("metrics", [])],
        reports=[Path(path) for path in snakemake.input.get("reports", [])],
        throughput=next(map(Path, snakemake.input.get("throughput", [])), None),
    )
    make_target(config, snakemake.wildcards.target, files, Path(snakemake.output[0]).parent)
