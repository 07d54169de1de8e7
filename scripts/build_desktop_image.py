"""Build the desktop image and write what it is."""

from pathlib import Path

from arpo_replica.providers.desktop_image import build_desktop_image
from arpo_replica.workflow.job import job, logger

with job(snakemake) as config:
    record = Path(snakemake.output[0])
    log = Path(snakemake.log[0]).with_suffix(".build.log")
    facts = build_desktop_image(record, config.desktop.container, log)
    size, seconds = facts["size_bytes"] / 1e9, facts["build_s"]
    logger.info(f"{facts['tag']}: {size:.2f} GB, built in {seconds} s, the build's output in {log}")
