"""Put the study in numbers, with intervals."""

from pathlib import Path

from arpo_replica.evaluation.summary import summarise_study
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    summarise_study(
        config,
        Path(snakemake.input.scores),
        [Path(path) for path in snakemake.input.get("metrics", [])],
        [Path(path) for path in snakemake.input.manifests],
        Path(snakemake.output[0]),
        learning=[Path(path) for path in snakemake.input.get("learning", [])],
        reports=[Path(path) for path in snakemake.input.get("reports", [])],
    )
