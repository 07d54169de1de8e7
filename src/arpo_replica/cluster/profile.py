"""What ``slurm/profile.yaml`` asks for: ``slurm/site.yaml``, the names and limits of one cluster, joined with
what Slurm says.

Snakemake reads the profile (a YTE template) before the Snakefile, in the same process; so ``active`` tells
the rules' functions which limits hold. In jobs nothing is active: their resources are decided already.
"""

import getpass
import hashlib
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator

from arpo_replica.base import slurm
from arpo_replica.base.environments import find
from arpo_replica.base.errors import UserError, refuse
from arpo_replica.base.files import write_atomically
from arpo_replica.base.tables import table_of
from arpo_replica.config.load import describe, read_yaml
from arpo_replica.config.section import Positive, Section
from arpo_replica.training.process.attempt import GRACE

NODE_FOLDER = Path(".snakemake")
PARTITION_FILE = NODE_FOLDER / "arpo_partitions.yaml"
"""For the executor: which partition takes GPU jobs. Made anew at every start."""
CACHES: dict[str, str] = table_of(__file__)
"""Variable -> folder below ``CACHE_FOLDER``."""
CACHE_FOLDER = Path("results/_cache")
MODULES = '{ command -v module >/dev/null || . "${MODULESHOME:-/usr/share/modules}/init/sh"; }'
"""A job's shell is ``sh``: where that is dash, it does not inherit the function of the login shell."""


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
    check_seconds: Positive = 40
    """Seconds from one look at the states of all jobs to the next; small on small clusters only."""
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


@dataclass(frozen=True)
class Profile:
    """A cluster, ready for Snakemake."""

    site: Site
    cpu: slurm.Partition
    gpu: slurm.Partition | None
    status_command: str

    @property
    def default_resources(self) -> dict[str, str | int]:
        """What every job asks for."""
        named = {"slurm_account": self.site.account, "qos": self.site.qos}
        # One string in Snakemake's expression language: quoted twice.
        resources = {key: repr(value) for key, value in named.items() if value is not None}
        if self.warn_seconds:
            resources["slurm_extra"] = repr(f"--signal=URG@{self.warn_seconds}")  # see training.notice
        return {"mem_mb": 2000, "runtime": min(60, self.minutes(gpus=False) or 60), **resources}

    @property
    def warn_seconds(self) -> int:
        """When a job is warned: the site's, but not before three quarters of the shortest limit are over."""
        limits = [limit for limit in (self.minutes(gpus=False), self.minutes(gpus=True)) if limit is not None]
        return min([self.site.warn_seconds, *(15 * limit for limit in limits)])

    @property
    def node_lines(self) -> str:
        """What runs on the compute node first. Caches go below ``results``, sockets to the scratch folder."""
        lines = [f'export {name}="${{{name}:-$PWD/{CACHE_FOLDER}/{at}}}"' for name, at in CACHES.items()]
        if self.site.scratch is not None:
            lines.append(f'export ARPO_TMP="{self.site.scratch}"')
        if self.warn_seconds:
            lines.append(f"export {GRACE}={self.warn_seconds}")
        if any(line.split()[0] in {"module", "ml"} for line in self.site.setup):
            lines.append(MODULES)
        # Each line in a group of its own: a comment at its end hides nothing of what follows.
        return "".join(f"{{ :; {line}\n}} || return\n" for line in [*lines, *self.site.setup])

    def precommand(self) -> str:
        """Write those lines to a file and return the command that reads it.

        The executor hands a job's command through one shell on the login node, and those of an array's
        further tasks through none: only without ``$``, quotes and backslashes do both leave it as it is.
        The file is named by its content, so that waiting jobs keep theirs when the site file changes.
        """
        content = self.node_lines.encode()
        path = NODE_FOLDER / f"arpo_node_{hashlib.sha256(content).hexdigest()[:12]}.sh"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, content)
        return f". {shlex.quote(str(path.absolute()))}"

    def partition(self, gpus: bool) -> slurm.Partition:
        return self.gpu if gpus and self.gpu is not None else self.cpu

    @property
    def most_gpus(self) -> int:
        """GPUs, of the site's model if it names one, on the node that has the most."""
        kinds = {} if self.gpu is None else self.gpu.gpus
        model = self.site.gpu_model
        return max(kinds.values(), default=0) if model is None else kinds.get(model, 0)

    def minutes(self, gpus: bool) -> int | None:
        """Longest run time that a job may ask for."""
        own = self.site.max_minutes.gpu if gpus else self.site.max_minutes.cpu
        limits = [limit for limit in (own, self.partition(gpus).minutes) if limit is not None]
        return min(limits, default=None)

    def partition_file(self) -> Path:
        """Write the executor's file of partitions and return its path."""
        listed: dict[str, Any] = {self.cpu.name: {"max_gpu": 0}}
        if self.gpu is not None:
            listed[self.gpu.name] = {"max_gpu": self.most_gpus}
        PARTITION_FILE.parent.mkdir(exist_ok=True)
        write_atomically(PARTITION_FILE, yaml.safe_dump({"partitions": listed}).encode())
        return PARTITION_FILE


active: Profile | None = None


def read_profile(path: Path | None = None) -> Profile:
    """The profile, for the template. A ``UserError`` ends Snakemake with its sentence and status 2."""
    global active  # noqa: PLW0603  # the one way from the template to the rules
    try:
        active = make_profile(load_site(path or SITE_FILE))
    except UserError as error:
        refuse(error)
    from arpo_replica.cluster.executor import teach_executor  # imports it, which nothing else needs

    teach_executor()
    for name, at in CACHES.items():  # of the rules that run here, downloads among them
        os.environ.setdefault(name, str(CACHE_FOLDER.absolute() / at))
    return active


def make_profile(site: Site, ask: slurm.Ask = slurm.ask) -> Profile:
    """Join the site file with what Slurm says. Raises ``UserError``."""
    if shlex.quote(sys.executable) != sys.executable:
        # Snakemake writes it into the command of every job as it is.
        raise UserError(
            f"The path {sys.executable!r} holds a space or another character of the shell, and no job would "
            "find it; move the checkout to a path of letters, digits, '.', '_' and '-' and prepare it there."
        )
    known = {partition.name: partition for partition in slurm.partitions(ask)}
    if not known:
        raise UserError(
            "Slurm has no partition that you may use (sinfo lists none); ask the cluster's staff."
        )
    for key, name in (("cpu", site.partitions.cpu), ("gpu", site.partitions.gpu)):
        if name is not None and name not in known:
            raise UserError(
                f"{SITE_FILE}: partitions.{key} is '{name}', which this cluster does not have; "
                f"it has {', '.join(known)}."
            )
    # Stable: of equals the one that Slurm names first.
    default = min(known.values(), key=lambda p: (not p.default, not p.up, bool(p.gpus)))
    cpu = known[site.partitions.cpu] if site.partitions.cpu else default
    having = [p for p in known.values() if p.gpus and fits(p, site.gpu_model)]
    gpu = min(having, key=lambda p: (not p.up, not p.default), default=None)
    if site.partitions.gpu is not None:
        gpu = known[site.partitions.gpu]
        if not gpu.gpus:
            raise UserError(
                f"{SITE_FILE}: partitions.gpu is '{gpu.name}', whose nodes have no GPUs (sinfo -o '%P %G')."
            )
    if site.gpu_model is not None and (gpu is None or not fits(gpu, site.gpu_model)):
        models = sorted({kind for p in known.values() for kind in p.gpus if kind}) or ["no typed GPUs"]
        raise UserError(
            f"{SITE_FILE}: gpu_model is '{site.gpu_model}', which "
            f"{'no partition' if gpu is None else f'partition {gpu.name}'} has; the cluster has "
            f"{', '.join(models)}."
        )
    made = Profile(site, cpu, gpu, choose_status_command(site, ask))
    if site.account is not None and made.status_command == "sacct":
        check_account(site.account, ask)
    return made


def fits(partition: slurm.Partition, model: str | None) -> bool:
    """True if the partition has GPUs of that model."""
    return model is None or model in partition.gpus


def check_account(account: str, ask: slurm.Ask) -> None:
    """Refuse an account that is not the user's: every submission would fail. Raises ``UserError``."""
    try:
        listed = ask("sacctmgr", "-nP", "list", "assoc", f"user={getpass.getuser()}", "format=account")
    except UserError:
        return  # not every site lets its users ask
    own = sorted(set(listed.split()))
    if own and account.lower() not in (name.lower() for name in own):
        raise UserError(f"{SITE_FILE}: account is '{account}', which is none of yours: {', '.join(own)}.")


def choose_status_command(site: Site, ask: slurm.Ask) -> str:
    """``sacct`` or ``squeue``; refuses what would wait for ever. Raises ``UserError``."""
    settings = slurm.settings(ask)
    accounting = slurm.has_accounting(settings)
    if site.status_command == "sacct" and not accounting:
        raise UserError(
            f"{SITE_FILE}: status_command is 'sacct', but this cluster keeps no accounts, so no job would "
            "ever be seen to end; set 'auto' or 'squeue'."
        )
    chosen = site.status_command
    if chosen == "auto":
        chosen = "sacct" if accounting else "squeue"
    kept = re.match(r"\d+", settings.get("MinJobAge", ""))
    if chosen == "squeue" and not accounting and kept and int(kept[0]) < 3 * site.check_seconds:
        # The executor would then ask sacct, without a word, and never see a job end.
        raise UserError(
            f"{SITE_FILE}: check_seconds is {site.check_seconds}, but this cluster forgets jobs "
            f"{kept[0]} s after their end (MinJobAge); set it to {max(1, int(kept[0]) // 3)}."
        )
    return chosen
