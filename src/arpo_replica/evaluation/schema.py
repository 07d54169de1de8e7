"""What ``summary.json`` and ``claims.json`` hold. Rates and differences are fractions, never percent."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from arpo_replica.evaluation.statistics import Interval
from arpo_replica.rollout.records import write_atomically

Protocol = Literal["hard", "standard"]
PROTOCOLS: tuple[Protocol, Protocol] = ("hard", "standard")
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

    @classmethod
    def of(cls, interval: Interval) -> IntervalRecord:
        """The same as JSON."""
        return cls(value=interval.value, low=interval.low, high=interval.high, method=interval.method)


class RateRow(Document):
    """Success of one arm at one stage on one split under one protocol."""

    arm: str
    stage: str
    seed: int | None
    """Training seed; None: all seeds together, conditional on these seeds."""
    split: str
    protocol: Protocol
    tasks: int
    """Size of the split."""
    expected: int
    """Episodes that "of all" counts: size of the split x trials (x seeds)."""
    valid: int
    """Episodes with a score."""
    env_errors: int
    """Episodes that ended in an environment failure: no score, never 0."""
    missing: int
    """Episodes that do not exist: expected - valid - env_errors."""
    truncated: int
    """Episodes cut at the step limit."""
    successes: int
    of_valid: IntervalRecord | None
    """Rate over valid episodes, each task with the same weight; None without a valid episode."""
    of_all_low: Rate
    """Successes / expected: every episode without a score taken as a failure."""
    of_all_high: Rate
    """(Successes + episodes without a score) / expected: all of them taken as successes."""
    conditional_se: float | None
    """Standard error for new runs of this very task set; None with one run per task."""
    infeasible_valid: int
    infeasible_successes: int


class DifferenceRow(Document):
    """Paired difference of two arms on the same tasks."""

    arm: str
    reference: str
    stage: str
    reference_stage: str
    seed: int | None
    split: str
    protocol: Protocol
    tasks: int
    dropped: list[str]
    """Tasks that only one side has a valid episode of."""
    difference: IntervalRecord
    bootstrap: IntervalRecord | None
    """BCa bootstrap of whole tasks, for comparison."""
    p_value: float
    """Sign-flip permutation test, two-sided."""


class EffortRow(Document):
    """What the episodes of one arm, stage and split took."""

    arm: str
    stage: str
    split: str
    episodes: int
    steps: int
    format_errors: int
    retried: int
    """Episodes that needed more than one attempt."""
    failed_attempts: int
    """Attempts that ended in an environment failure."""
    episode_seconds: float
    """Sum over episodes; desktops run side by side, so this is more than wall-clock time."""
    model_seconds: float
    env_seconds: float
    completion_tokens: int


class SwapFact(Document):
    """A replayed success that took the place of a failure."""

    task: str
    age: int
    """Updates since the replayed trajectory was made."""


class CurvePoint(Document):
    """One training step. A value that the trainer did not write is None."""

    step: int
    reward_before: float | None = None
    """Mean reward of the rollouts as they came."""
    reward_after: float | None = None
    """Mean reward after replayed successes took the place of failures."""
    success: float | None = None
    swapped_groups: float | None = None
    all_fail_groups: float | None = None
    buffer_size: float | None = None
    entropy: float | None = None
    clip_fraction: float | None = None
    unparsable: float | None = None
    """Share of rollouts with a reply that was no valid action."""
    env_errors: float | None = None
    """Attempts at a rollout that ended in an environment failure."""
    lost_rollouts: float | None = None
    """Rollouts that were given up after all retries; never trained on."""
    probability_difference_mean: float | None = None
    """Mean of |probability by vLLM - probability by the trainer| over tokens."""
    swaps: list[SwapFact] = Field(default_factory=list)
    seconds: dict[str, float] = Field(default_factory=dict)
    """Phase -> seconds."""
    other: dict[str, float] = Field(default_factory=dict)
    """Every further number the trainer wrote."""


class Curve(Document):
    """Training of one arm and seed through one stage."""

    arm: str
    seed: int
    stage: str
    source: str
    points: list[CurvePoint]


class ModelFacts(Document):
    """What the manifest of a finished stage says."""

    arm: str
    seed: int
    stage: str
    step: int
    """Updates of this stage; 0 for the untrained policy."""
    manifest: str
    manifest_sha256: Sha256
    identity: Sha256
    """Of all weights together: the ``checkpoint_sha256`` of the episodes."""
    parent: str | None
    """Identity of the model that training began from."""
    weights: dict[str, str]
    """Weight file -> sha256."""


class SplitFacts(Document):
    """A list of tasks."""

    tasks: int
    infeasible: int
    list_sha256: Sha256
    tasks_sha256: Sha256
    """Of the task files' own sha256, in the order of the list."""
    trained_on: bool
    """True if a stage of training uses this split."""


class StatisticsFacts(Document):
    """How intervals were made."""

    confidence: float
    resamples: int
    seed: int
    scipy: str
    statsmodels: str


class Summary(Document):
    """``summary.json``."""

    schema_version: Literal[1] = 1
    study: str
    size: str
    desktop: str
    seeds: list[int]
    trials: int
    splits: dict[str, SplitFacts]
    rates: list[RateRow]
    differences: list[DifferenceRow]
    effort: list[EffortRow]
    curves: list[Curve]
    models: list[ModelFacts]
    not_run: list[str]
    """What the config asks for and no file shows, one sentence each."""
    statistics: StatisticsFacts
    inputs: list[InputFile]


class ClaimResult(Document):
    """One claim of the paper and what became of it here."""

    id: str
    statement: str
    published: list[dict[str, Any]]
    """Number(s) as published: value, unit, place, grade, condition."""
    margin: float
    """Fixed beforehand, in the published unit."""
    needs: str
    """What a comparison would take, in words."""
    measured: IntervalRecord | None
    verdict: Verdict
    reason: str


class Claims(Document):
    """``claims.json``."""

    schema_version: Literal[1] = 1
    study: str
    size: str
    claims: list[ClaimResult]
    inputs: list[InputFile]


def input_file(path: Path) -> InputFile:
    """Name, hash and size of a file that a result rests on."""
    data = path.read_bytes()
    return InputFile(path=shown_path(path), sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def shown_path(path: Path) -> str:
    """The path as a reader elsewhere can use it: below the working directory, or from ``results`` on."""
    full = path.resolve()
    if full.is_relative_to(Path.cwd()):
        return full.relative_to(Path.cwd()).as_posix()
    parts = full.parts
    if "results" in parts:
        return Path(*parts[parts.index("results") :]).as_posix()
    return full.name


def write_document(document: BaseModel, out: Path) -> None:
    """Write JSON that is the same for the same content."""
    write_atomically(out, (document.model_dump_json(indent=1) + "\n").encode())
