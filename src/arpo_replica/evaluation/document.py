"""What all result files share: closed objects, intervals, files with their hashes.

Rates and differences are fractions, never percent.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from arpo_replica.environments import ROOT
from arpo_replica.evaluation.interval import About, Interval
from arpo_replica.rollout.records import write_atomically

Protocol = Literal["hard", "standard"]
PROTOCOLS: tuple[Protocol, Protocol] = ("hard", "standard")
TargetName = Literal["table1", "readme128", "fig1b", "fig3", "fig4", "fig5", "fig6", "fig7"]
Verdict = Literal["consistent", "lower", "higher", "inconclusive", "not run"]
Rate = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Document(BaseModel):
    """A closed JSON object."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class InputFile(Document):
    """A file that numbers were computed from."""

    path: str
    """Relative to the repository, or to the folder of results."""
    sha256: Sha256
    bytes: int


class IntervalRecord(Document):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float
    method: str
    about: About = "new tasks"
    """What would be drawn anew: tasks, runs of this very task set, training seeds, or both studies."""

    @classmethod
    def of(cls, interval: Interval) -> IntervalRecord:
        """The same as JSON."""
        return cls(
            value=interval.value,
            low=interval.low,
            high=interval.high,
            method=interval.method,
            about=interval.about,
        )

    @classmethod
    def maybe(cls, interval: Interval | None) -> IntervalRecord | None:
        """The same where there may be none."""
        return None if interval is None else cls.of(interval)


def input_file(path: Path) -> InputFile:
    """Name, hash and size of a file that a result rests on."""
    data = path.read_bytes()
    return InputFile(path=shown_path(path), sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def shown_path(path: Path) -> str:
    """The path as a reader elsewhere can use it: below the working directory or the workflow, or from
    ``results`` on."""
    full = path.resolve()
    for place in (Path.cwd(), ROOT):
        if full.is_relative_to(place):
            return full.relative_to(place).as_posix()
    parts = full.parts
    if "results" in parts:
        return Path(*parts[parts.index("results") :]).as_posix()
    return full.name


def write_document(document: BaseModel, out: Path) -> None:
    """Write JSON that is the same for the same content."""
    write_atomically(out, (document.model_dump_json(indent=1) + "\n").encode())
