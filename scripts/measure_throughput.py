"""Measure how long rollouts take with each number of desktops."""

from pathlib import Path

from arpo_replica.rollout.throughput import measure_throughput
from arpo_replica.tasks.splits import read_resolved
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    measure_throughput(
        config,
        manifest=Path(snakemake.input.manifest),
        split=read_resolved(Path(snakemake.input.split)),
        out=Path(snakemake.output[0]),
    )
