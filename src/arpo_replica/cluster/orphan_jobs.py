"""Jobs that an earlier Snakemake left behind: it was killed, they wait or run on."""

import contextlib
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from pathlib import Path

from arpo_replica.base.errors import UserError
from arpo_replica.base.files import read_json
from arpo_replica.base.slurm import Ask, ask, read_jobs
from arpo_replica.cluster import profile

MARKERS = Path(".snakemake/incomplete")
"""Snakemake's: a file for each output that is being made, named by it, with its job until that begins."""


def about_outputs(folder: Path) -> Iterator[tuple[Path, str]]:
    """Snakemake's files about outputs (``.snakemake/incomplete``, ``metadata``), each with that output."""
    for path in filter(Path.is_file, folder.rglob("*")):
        name = "".join(part.removeprefix("@") for part in path.relative_to(folder).parts)
        with contextlib.suppress(ValueError):  # a file of another kind
            yield path, urlsafe_b64decode(name).decode()


def submitted(results: Path, markers: Path = MARKERS) -> set[str]:
    """Numbers of all jobs of a study that Snakemake does not know to have ended, and of many that have.

    ``results``: folder of the study, as its outputs begin.
    """
    found = {str(job["job"]) for job in read_jobs(results)}
    for path, output in about_outputs(markers):
        number = None
        with contextlib.suppress(ValueError):  # it is being written
            number = read_json(path).get("external_jobid")
        if number is not None and output.startswith(f"{results}/"):
            found.add(str(number))
    return {number.split("_")[0] for number in found}


def check_left(results: Path, asking: Ask = ask) -> None:
    """Refuse to submit what a job in Slurm's queue already makes. Raises ``UserError``."""
    if profile.active is None:
        return
    mine = submitted(results)
    lines = asking("squeue", "--me", "--noheader", "--format", "%F %T").splitlines() if mine else []
    alive = sorted({line.split()[0] for line in lines if "COMPLETING" not in line} & mine, key=int)
    if alive:
        raise UserError(
            f"Slurm still has jobs of an earlier run of {results}: {', '.join(alive)}; wait for them or, if "
            f"no other Snakemake waits for them, end them with 'scancel {' '.join(alive)}'."
        )
