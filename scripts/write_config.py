"""Write the config with every default filled in."""

from pathlib import Path

import yaml

from arpo_replica.base.files import write_atomically
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_atomically(Path(snakemake.output[0]), text.encode())
