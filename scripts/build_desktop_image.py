"""Build the desktop image and write what it is."""

from pathlib import Path

from arpo_replica.base.environments import find
from arpo_replica.providers.docker_image import FOLDER, build_desktop_image
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    record = Path(snakemake.output[0])
    log = Path(snakemake.log[0]).with_suffix(".docker.log")
    facts = build_desktop_image(record, find(FOLDER), config.desktop.container.apps, log)
    size, seconds = facts["size_bytes"] / 1e9, facts["build_s"]
    print(f"{facts['tag']}: {size:.2f} GB, built in {seconds} s, Docker's output in {log}")
