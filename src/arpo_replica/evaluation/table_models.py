"""Rows of tables that are no rows of ``summary.json`` or ``claims.json``."""

from __future__ import annotations

from typing import Any, Literal

from arpo_replica.evaluation.document import Document, Protocol
from arpo_replica.evaluation.rows import Change
from arpo_replica.evaluation.schema import CurvePoint, SplitFacts


class FlipTask(Document):
    """A task whose result differs between two arms, or cannot be compared."""

    arm: str
    reference: str
    stage: str
    reference_stage: str
    split: str
    protocol: Protocol
    task: str
    """``domain/task``."""
    change: Change | str
    """``gained``, ``lost``, ``mixed`` or ``not_comparable``; see the table flips."""


class OfflineUpdate(Document):
    """One update of one offline arm."""

    arm: str
    seed: int
    stage: str
    method: str
    step: int
    loss: float | None
    """Of the arm's own method; losses of different methods do not compare."""
    other: dict[str, float]
    """Every further number that TRL wrote."""


class ReplayEvent(Document):
    """One replayed trajectory."""

    arm: str
    seed: int
    stage: str
    step: int
    """Update at which it took a failure's place."""
    task: str
    age: int
    """Updates since it was made."""
    name: str
    """Name of the stored trajectory."""
    rollout: int | None
    """Rollout of the group that gave way, from 0."""


class CurveTask(CurvePoint):
    """One update of one training."""

    arm: str = ""
    seed: int = 0
    stage: str = ""


class GateRow(Document):
    """One gate of one finished stage of training (`training.gates`)."""

    arm: str
    seed: int
    stage: str
    gate: str
    key: str
    """Key of the config that sets it."""
    state: Literal["passed", "failed", "off"]
    """``off``: not asked for, or it does not apply."""
    says: str
    """What was found."""


class SplitTable(SplitFacts):
    """A list of tasks."""

    split: str


class PublishedNumber(Document):
    """A published number and the claim that it stands in."""

    claim: str
    number: str
    """Id in data/paper/results.yaml."""
    value: float
    unit: str
    n: int | None
    """Tasks behind it."""
    model: str
    arm: str | None
    protocol: str
    place: str
    grade: str
    """P: printed in the paper; P-plot: read off a plot; R: the README."""


class ContradictionRow(Document):
    """One side of a contradiction in the published material."""

    contradiction: str
    number: int
    subject: str
    says: str
    place: str
    reading: str
    here: str
    key: str | None
    value: Any
    """What this study sets."""


class EpisodeRow(Document):
    """One episode."""

    arm: str
    stage: str
    seed: int
    split: str
    trial: int
    domain: str
    task_id: str
    infeasible: bool
    outcome: str
    """success, failure, truncated or env_error (no score, never 0)."""
    hard_score: float | None
    standard_score: float | None
    success_hard: bool | None
    success_standard: bool | None
    n_steps: int
    format_errors: int
    attempts: int
    duration_s: float
    model_s: float | None
    env_s: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    checkpoint_sha256: str
    index: str
    """File that lists the episode."""
    index_sha256: str
    directory: str
    """Folder of the episode, below the study's folder of episodes."""


class Mark(Document):
    """The first columns of every table."""

    study: str
    size: str
    """Size mark."""
    desktop: str
    """Kind of desktops."""
    synthetic: bool
    """True: invented, not measured."""
