"""What ``claims.json`` holds."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from arpo_replica.evaluation.document import Document, InputFile, IntervalRecord, TargetName, Verdict
from arpo_replica.evaluation.power import Power
from arpo_replica.evaluation.rows import OwnMeasurement


class ClaimResult(Document):
    """One claim of the paper and what became of it here."""

    id: str
    statement: str
    published: list[dict[str, Any]]
    """Number(s) as published: value, unit, place, grade, condition."""
    margin: float
    """Fixed beforehand, in the published unit."""
    needs: str
    """What a comparison would take, in words; empty for what this pipeline does not measure."""
    measured: IntervalRecord | None
    """Rates and differences as fractions; rewards and hours in their own unit."""
    verdict: Verdict
    reason: str
    target: TargetName | None = None
    """Table or figure of the paper."""
    how: str = ""
    """How it is measured, in words; why not, for what this pipeline does not measure."""
    gap: IntervalRecord | None = None
    """Ours minus published, in the published unit, with both sides' noise."""
    equivalence_p: float | None = None
    """Two one-sided tests against the margin; below 0.05: consistent."""
    contradictions: list[str] = Field(default_factory=list)
    """Ids of the published contradictions that its numbers are part of."""
    power: Power | None = None
    """What would settle it; None for numbers without a number of tasks."""
    sources: list[str] = Field(default_factory=list)
    """Files behind our number."""


class ContradictionSide(Document):
    """One of the things that are said."""

    says: str
    place: str
    results: list[str] = Field(default_factory=list)
    """Ids of the published numbers that say it."""


class Contradiction(Document):
    """Two places of the published material that cannot both be right."""

    id: str
    number: int = Field(ge=1)
    subject: str
    sides: list[ContradictionSide] = Field(min_length=2)
    reading: str
    """What may explain it, and whose reading that is."""
    here: str
    """What this project does about it."""
    key: str | None = None
    """Config key that decides it here."""
    value: Any = None
    """That key's value in this study; filled in when claims are compared."""


class Claims(Document):
    """``claims.json``."""

    schema_version: Literal[1] = 1
    study: str
    size: str
    synthetic: bool = False
    """True if any episode was invented: then no claim has a verdict."""
    claims: list[ClaimResult]
    inputs: list[InputFile]
    mark: str = ""
    """Size, desktops and model of this study, in words."""
    contradictions: list[Contradiction] = Field(default_factory=list)
    own_measurements: list[OwnMeasurement] = Field(default_factory=list)
    """Everything measured here that answers no claim, with its mark; never beside a published number."""
    counts: dict[str, int] = Field(default_factory=dict)
    """Verdict -> claims."""
