"""Write where every number comes from."""

from pathlib import Path

from arpo_replica.evaluation.provenance import write_provenance
from arpo_replica.tasks.splits import read_resolved
from arpo_replica.workflow.job import job

with job(snakemake) as config:
    write_provenance(
        config,
        Path(snakemake.output[0]),
        manifests=[Path(path) for path in snakemake.input.manifests],
        splits=[read_resolved(Path(path)) for path in snakemake.input.splits],
        image=next(map(Path, snakemake.input.image), None),
    )
