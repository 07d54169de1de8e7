"""Train the nano policy on the demonstrations (in the environment that has torch)."""

from pathlib import Path

from arpo_replica.base.environments import heavy_environment, run_module
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    run_module(
        heavy_environment(config.accelerator),
        "arpo_replica.models.nano.build",
        config.of_arm(snakemake.wildcards.of.removeprefix("_")).model_dump_json(),
        Path(snakemake.input.demonstrations).parent,
        Path(snakemake.output[0]).parent,
        threads=snakemake.threads,
    )
