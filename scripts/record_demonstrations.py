"""Let the scripted expert solve tasks in real desktops and keep what it did."""

import asyncio
from pathlib import Path

from arpo_replica.models.nano.demonstrations import record_demonstrations
from arpo_replica.providers.pool import make_provider
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    asyncio.run(
        record_demonstrations(config, Path(snakemake.output[0]).parent, make_provider(config.desktop))
    )
