"""``slurm/site.yaml``: the names and limits of one cluster. Everything has a sensible default."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from arpo_replica.base import slurm
from arpo_replica.base.environments import find
from arpo_replica.base.errors import UserError
from arpo_replica.config.load import describe, read_yaml
from arpo_replica.config.section import Positive, Section

SITE_FILE = Path("slurm/site.yaml")


def _as_text(value: Any) -> Any:
    """A name of digits alone, which YAML takes for a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _minutes(value: Any) -> Any:
    """Minutes of a time in one of Slurm's forms."""
    return slurm.read_minutes(value) if isinstance(value, str) else value


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]+$"), BeforeValidator(_as_text)]
Minutes = Annotated[Positive | None, BeforeValidator(_minutes)]


class Partitions(Section):
    """Partitions of the cluster."""

    cpu: Name | None = None
    """For jobs without GPUs; none: the cluster's default partition."""
    gpu: Name | None = None
    """For jobs with GPUs; none: the first partition that has any."""


class TimeLimits(Section):
    """Longest run times that may be asked for: minutes, or a time as Slurm takes it (``2-00:00:00``)."""

    cpu: Minutes = None
    """For jobs without GPUs; none: the partition's own limit."""
    gpu: Minutes = None
    """For jobs with GPUs; none: the partition's own limit."""


class Site(Section):
    """The site file."""

    partitions: Partitions = Partitions()
    """Where jobs go."""
    account: Name | None = None
    """Account that pays; none: the user's default."""
    qos: Name | None = None
    """Quality of service; none: the default."""
    gpu_model: str | None = None
    """Type of GPU as Slurm calls it (``sinfo -o %G``), e.g. ``h200``; none: any."""
    scratch: str | None = Field(default=None, pattern=r"^[/$][A-Za-z0-9_./${}\-]*$")
    """Folder on the compute node for sockets and temporary files, at most 40 characters long when expanded;
    may name a variable, e.g. ``$SLURM_TMPDIR``; none: ``/tmp``."""
    setup: list[str] = Field(default_factory=list)
    """Shell lines that run on the compute node before each job, e.g. ``module load cuda/12``."""
    max_minutes: TimeLimits = TimeLimits()
    """Caps of run times; a job that needs longer goes on where it was, ``retries`` times."""
    jobs: Positive = 20
    """Jobs in the queue at once."""
    retries: Annotated[int, Field(ge=0)] = 4
    """Times that a job is submitted again after a time limit, a pre-emption or a failure."""
    warn_seconds: Annotated[int, Field(ge=0)] = 300
    """Seconds before the time limit at which Slurm warns a job; a training then saves and ends. 0: never."""
    first_check_seconds: Positive = 40
    """Seconds from a submission to the first look at its state; small on small clusters only."""
    status_command: Literal["auto", "squeue", "sacct"] = "auto"
    """How states are asked for; ``auto``: ``sacct`` where the cluster has accounting, else ``squeue``."""
    arrays: list[Literal["collect_rollouts"]] = Field(default_factory=list)
    """Rules whose jobs go as one job array; an array waits until all its jobs can start."""

    @field_validator("gpu_model")
    @classmethod
    def _askable(cls, model: str | None) -> str | None:
        if model is not None and re.fullmatch(r"[A-Za-z0-9_.\-]+", model) is None:
            raise ValueError("give the type alone, without 'gpu:' and a number (sinfo -o %G), e.g. h100")
        if model is not None and "-" in model:
            raise ValueError(
                "the executor can ask for no type with a hyphen; leave it empty and name a partition that "
                "has only such GPUs"
            )
        return model

    @field_validator("setup")
    @classmethod
    def _one_line_each(cls, lines: list[str]) -> list[str]:
        for line in lines:
            if "\n" in line or not line.strip():
                raise ValueError("each entry must be one line of shell")
        return lines


def load_site(path: Path = SITE_FILE) -> Site:
    """Read and check the site file; without one, the defaults. Raises ``UserError`` naming the key."""
    path = find(path)
    if not path.exists():
        return Site()
    raw = read_yaml(path, str(path))
    if raw is not None and not isinstance(raw, dict):
        raise UserError(f"{path} must be a mapping of keys; docs/cluster.md lists them.")
    try:
        return Site.model_validate(raw or {})
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error, Site, 'docs/cluster.md')}") from error
