"""What ``summary.json`` holds. Rates and differences are fractions, never percent."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from arpo_replica.evaluation.claim_records import ClaimResult, Claims
from arpo_replica.evaluation.document import (
    PROTOCOLS,
    Document,
    InputFile,
    IntervalRecord,
    Protocol,
    Rate,
    Sha256,
    Verdict,
    input_file,
    shown_path,
    write_document,
)
from arpo_replica.evaluation.rows import (
    DomainDifferenceRow,
    DomainRow,
    EnvErrorRow,
    FlipRow,
    LeftOutRow,
    OfflineTraining,
    PassRow,
    ReplayRow,
    SourceFile,
    SubsetRow,
    ThroughputRow,
)
from arpo_replica.training.gates import StageReport

__all__ = [
    "PROTOCOLS",
    "ClaimResult",
    "Claims",
    "Curve",
    "CurvePoint",
    "DifferenceRow",
    "Document",
    "EffortRow",
    "InputFile",
    "IntervalRecord",
    "ModelFacts",
    "Protocol",
    "Rate",
    "RateRow",
    "Sha256",
    "SplitFacts",
    "StatisticsFacts",
    "Summary",
    "SwapFact",
    "Verdict",
    "input_file",
    "shown_path",
    "write_document",
]


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
    """Episodes that do not exist and should: expected - valid - env_errors - left_out."""
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
    effective_runs: float | None = None
    """Independent runs that would have this interval; None without a valid episode."""
    conditional: IntervalRecord | None = None
    """The same rate with the interval for new runs of this very task set; None with one run per task."""
    left_out: int = 0
    """Episodes of tasks that the study leaves out (`tasks.leave_out`): "of all" counts them, none was run."""
    tasks_valid: int | None = None
    """Tasks with a valid episode: those that of_valid is about."""
    sources: list[str] = Field(default_factory=list)
    """Paths of the indexes of episodes behind the number; ``Summary.files`` has their hashes."""


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
    standard_error: float | None = None
    """For new tasks; None where the differences do not vary."""
    conditional_se: float | None = None
    """For new runs of these very tasks; None with one run per task."""
    sources: list[str] = Field(default_factory=list)
    """Paths of the indexes behind the number."""


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
    name: str = ""
    """Name of the stored trajectory; empty in metrics that do not say it."""
    rollout: int | None = None
    """Which rollout of the group gave way, counted from 0."""


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
    """As the list has them, those that the study leaves out included."""
    infeasible: int
    """Of those that are run."""
    list_sha256: Sha256
    tasks_sha256: Sha256
    """Of the own sha256 of the task files that are run, in the order of the list."""
    trained_on: bool
    """True if a stage of training uses this split."""
    tasks_trained_on: int = 0
    """Tasks of this split that some stage trains on, whatever its name."""
    roles: list[str] = Field(default_factory=list)
    """Parts that it plays in `targets` of the config, e.g. in_domain."""
    left_out: int = 0
    """Tasks that the study leaves out (`tasks.leave_out`)."""

    @property
    def size(self) -> str:
        """``128 tasks``, or ``127 of 128 tasks`` where some are left out."""
        return (
            f"{self.tasks - self.left_out} of {self.tasks} tasks" if self.left_out else f"{self.tasks} tasks"
        )


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
    synthetic: bool = False
    """True if any episode was invented by a generator: such a study is never published."""
    seeds: list[int]
    trials: int
    splits: dict[str, SplitFacts]
    distinct_tasks: int | None = None
    """Different tasks that are run, over all splits: lists may share some. None: not counted."""
    rates: list[RateRow]
    differences: list[DifferenceRow]
    effort: list[EffortRow]
    curves: list[Curve]
    offline: list[OfflineTraining] = Field(default_factory=list)
    """Trainings of offline arms, which have no curve of rewards."""
    models: list[ModelFacts]
    gates: list[StageReport] = Field(default_factory=list)
    """What each finished stage had to show before the next one could start."""
    not_run: list[str]
    """What the config asks for and no file shows, one sentence each."""
    left_out: list[LeftOutRow] = Field(default_factory=list)
    """What the splits of training and evaluation name and the study does not run."""
    statistics: StatisticsFacts
    inputs: list[InputFile]
    desktops: dict[str, int] = Field(default_factory=dict)
    """Desktop as the episodes' own records name it -> episodes."""
    desktop_marks: dict[str, str] = Field(default_factory=dict)
    """The same names -> the words that stand beside every number (``desktop.fidelity``)."""
    domains: list[DomainRow] = Field(default_factory=list)
    domain_differences: list[DomainDifferenceRow] = Field(default_factory=list)
    subsets: list[SubsetRow] = Field(default_factory=list)
    """Feasible and infeasible tasks apart; tasks trained on and not apart."""
    pass_at_k: list[PassRow] = Field(default_factory=list)
    flips: list[FlipRow] = Field(default_factory=list)
    replay: list[ReplayRow] = Field(default_factory=list)
    throughput: list[ThroughputRow] = Field(default_factory=list)
    env_errors: list[EnvErrorRow] = Field(default_factory=list)
    commit: str | None = None
    """Commit of the checkout that computed this file; None outside git."""
    dirty: bool | None = None
    """True if files of the checkout differed from that commit."""
    files: list[SourceFile] = Field(default_factory=list)
    """Every file that a number rests on, with the rule that makes it."""
