"""Rows of ``summary.json`` that break the results down. Rates and differences are fractions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from arpo_replica.evaluation.document import Document, IntervalRecord, Protocol, Sha256

Subset = Literal["feasible", "infeasible", "trained_on", "not_trained_on"]
Change = Literal["gained", "lost", "kept_solved", "kept_failed", "mixed"]


class SourceFile(Document):
    """A file behind a number."""

    path: str
    sha256: Sha256
    bytes: int | None
    """None where only the hash was handed on."""
    rule: str
    """Rule of the workflow that writes it."""


class LeftOutRow(Document):
    """A task that a split names and the study does not run (`tasks.leave_out`)."""

    split: str
    tasks: int
    """Tasks of the split, those that are left out included."""
    task: str
    because: str
    """Why, the same for all tasks of a list."""
    detail: str
    """What exactly, for this task."""
    path: str
    """The list that says so."""


class DomainRow(Document):
    """Success of one arm on the tasks of one domain, all seeds together."""

    arm: str
    stage: str
    split: str
    protocol: Protocol
    domain: str
    tasks: int
    """Tasks of the domain in the split that the study runs."""
    valid: int
    successes: int
    rate: IntervalRecord | None
    """None without a valid episode."""


class DomainDifferenceRow(Document):
    """Paired difference of two arms on one domain; the tests of a split are one family."""

    arm: str
    reference: str
    stage: str
    reference_stage: str
    split: str
    protocol: Protocol
    domain: str
    tasks: int
    difference: IntervalRecord
    p_value: float
    """Sign-flip permutation test, two-sided."""
    p_holm: float
    """The same, adjusted by Holm over the domains of this split, pair of arms and protocol."""


class SubsetRow(Document):
    """Success of one arm on a part of a split, all seeds together."""

    arm: str
    stage: str
    split: str
    protocol: Protocol
    subset: Subset
    """``infeasible``: only a final FAIL wins. ``trained_on``: a stage of training has this very task."""
    tasks: int
    valid: int
    successes: int
    rate: IntervalRecord | None


class PassRow(Document):
    """Chance that at least one of k runs solves a task (unbiased estimate), all seeds together."""

    arm: str
    stage: str
    split: str
    protocol: Protocol
    k: int
    tasks: int
    """Tasks with at least k valid runs."""
    left_out: int
    """Tasks with fewer: they take no part."""
    rate: IntervalRecord


class FlipRow(Document):
    """Tasks whose result differs between two arms, by the majority of their valid runs.

    ``solved``: more than half of the runs succeed; ``failed``: fewer than half; exactly half on either side
    is ``mixed``.
    """

    arm: str
    reference: str
    stage: str
    reference_stage: str
    split: str
    protocol: Protocol
    gained: list[str]
    """Failed by the reference, solved by the arm: ``domain/task``."""
    lost: list[str]
    """Solved by the reference, failed by the arm."""
    mixed: list[str]
    kept_solved: int
    kept_failed: int
    not_comparable: list[str]
    """Tasks that one side has no valid run of."""


class ReplayRow(Document):
    """When replay fired in one training, and with how old trajectories."""

    arm: str
    seed: int
    stage: str
    steps: int
    """Updates."""
    groups: int | None
    """Groups of rollouts; None in metrics that do not say it."""
    all_fail_groups: int | None
    fired: int
    """Groups that got a replayed success."""
    first_step: int | None
    """Update at which replay fired first; None: never."""
    tasks: dict[str, int]
    """Task -> times that it got a replayed success."""
    age_mean: float | None
    """Updates between making and replaying, mean over all swaps."""
    age_median: float | None
    age_max: int | None
    buffer_size: int | None
    """Stored successes after the last update."""
    source: str
    """The metrics that this rests on."""


class OfflinePoint(Document):
    """One update of an offline arm, as TRL logged it."""

    step: int
    loss: float | None
    """Of the arm's own method; None where it is no number. Losses of different methods do not compare."""
    other: dict[str, float] = Field(default_factory=dict)
    """Every further number that TRL wrote."""


class OfflineTraining(Document):
    """The one training of an offline arm and seed: it learns from records, so there is no reward."""

    arm: str
    seed: int
    stage: str
    method: str
    source: str
    learnt_from: dict[str, Any] = Field(default_factory=dict)
    """What it learnt from in numbers: samples, replies; from the manifest (``recipe.data``)."""
    points: list[OfflinePoint]


class ThroughputRow(Document):
    """What trajectories took, in time of machines; no prices, because they differ by machine and year."""

    phase: Literal["training", "evaluation"]
    arm: str
    seed: int | None
    stage: str
    split: str | None
    """None for training."""
    desktops: int
    """Desktops at once, as the config says it now."""
    trajectories: int
    rollout_hours: float | None
    """Training: seconds of rollouts. Evaluation: first start to last end of each trial and seed, time of
    several at once counted once."""
    total_hours: float | None
    """Training: with the updates. Evaluation: the same as ``rollout_hours``."""
    trajectories_per_hour: float | None
    """Of rollout time."""
    per_desktop_hour: float | None
    desktop_hours: float | None
    """Desktops x rollout hours: what a bill would count."""
    desktop_busy: float | None
    """Share of the desktop hours in which an episode ran; None for training."""
    steps: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    minutes_per_trajectory: float | None
    """Mean duration of an episode with all its attempts; None for training."""


class EnvErrorRow(Document):
    """Environment failures of one kind."""

    phase: Literal["training", "evaluation"]
    arm: str
    stage: str
    split: str | None
    kind: str
    """The message up to its first colon or number."""
    attempts: int
    """Attempts that ended so; the episode may have succeeded later."""
    lost: int
    """Episodes that were given up, the last error being of this kind."""
    tasks: int
    """Tasks that met it."""
    example: str


class OwnMeasurement(Document):
    """A number of this study that is no answer to any claim of the paper."""

    mark: str
    """Size, desktops and task set, in words."""
    what: str
    arm: str
    reference: str | None
    stage: str
    seed: int | None
    split: str
    protocol: Protocol
    tasks: int
    measured: IntervalRecord
    sources: list[str] = Field(default_factory=list)
