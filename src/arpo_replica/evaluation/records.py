"""Every record of a study's results, once: what ``summary.json``, ``claims.json`` and the targets hold.

All are closed objects. Rates and differences are fractions, never percent. ``docs/schemas`` and the columns
of ``tables/`` are made from these models, so their docstrings are what a reader of the files finds.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass

from arpo_replica.base.environments import ROOT
from arpo_replica.base.tables import table_of
from arpo_replica.config.models import GIVEN_STAGES
from arpo_replica.training.gates import StageReport

About = Literal["new tasks", "this task set", "training seeds", "both studies"]
"""What an interval expects to be drawn anew."""


Protocol = Literal["hard", "standard"]
PROTOCOLS: tuple[Protocol, Protocol] = ("hard", "standard")
TargetName = Literal["table1", "readme128", "fig1b", "fig3", "fig4", "fig5", "fig6", "fig7"]
Effort = Literal["base", "released", "trained", "desktops", "unmeasured"]
"""The least that the check of a claim takes: the untrained policy, the authors' own weights, trainings here,
desktops alone; or this pipeline has no measure for it."""
Verdict = Literal[
    "equivalent",
    "same direction",
    "within prediction interval",
    "contradicted",
    "inconclusive",
    "too few trainings",
    "not run",
]
"""What a study says about a claim; ``comparison`` says when, strongest first."""
Rate = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


CLOSED = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Document(BaseModel):
    """A closed JSON object."""

    model_config = CLOSED


@dataclass(frozen=True, config=CLOSED)
class Interval:
    """A value with its 95 % interval and how the interval was made: fractions, or the published unit."""

    value: float
    low: float
    high: float
    method: str
    about: About = "new tasks"
    """What would be drawn anew: tasks, runs of this very task set, training seeds, or both studies."""


class InputFile(Document):
    """A file that numbers were computed from."""

    path: str
    """Relative to the repository, or to the folder of results."""
    sha256: Sha256
    bytes: int


# --- summary.json: how results break down ----------------------------------------------------------------


Subset = Literal["feasible", "infeasible", "trained_on", "not_trained_on"]


class SourceFile(Document):
    """A file behind a number."""

    path: str
    sha256: Sha256
    bytes: int | None
    """None where only the hash was handed on."""
    rule: str
    """Rule of the workflow that writes it."""


class Place(Document):
    """Where a row of results belongs."""

    arm: str
    stage: str
    split: str
    protocol: Protocol


class PairPlace(Document):
    """Where a row belongs that compares two arms on the same tasks."""

    arm: str
    reference: str
    stage: str
    reference_stage: str
    split: str
    protocol: Protocol


class TrainingRow(Document):
    """One training: an arm and a seed through a stage."""

    arm: str
    seed: int
    stage: str

    @property
    def place(self) -> dict[str, Any]:
        """These three alone."""
        return {"arm": self.arm, "seed": self.seed, "stage": self.stage}


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


class DomainRow(Place):
    """Success of one arm on the tasks of one domain, all seeds together."""

    domain: str
    tasks: int
    """Tasks of the domain in the split that the study runs."""
    valid: int
    successes: int
    rate: Interval | None
    """None without a valid episode."""


class DomainDifferenceRow(PairPlace):
    """Paired difference of two arms on one domain; the tests of a split are one family."""

    domain: str
    tasks: int
    difference: Interval
    p_value: float
    """Sign-flip permutation test, two-sided."""
    p_holm: float
    """The same, adjusted by Holm over the domains of this split, pair of arms and protocol."""


class SubsetRow(Place):
    """Success of one arm on a part of a split, all seeds together."""

    subset: Subset
    """``infeasible``: only a final FAIL wins. ``trained_on``: a stage of training has this very task."""
    tasks: int
    valid: int
    successes: int
    rate: Interval | None


class PassRow(Place):
    """Chance that at least one of k runs of one training solves a task (unbiased estimate)."""

    seed: int
    """Runs of several trainings are never mixed: they differ more than tries of one policy."""
    k: int
    tasks: int
    """Tasks with at least k valid runs."""
    left_out: int
    """Tasks with fewer: they take no part."""
    rate: Interval


class FlipRow(PairPlace):
    """Tasks whose result differs between two arms, by the majority of their valid runs.

    ``solved``: more than half of the runs succeed; ``failed``: fewer than half; exactly half on either side
    is ``mixed``.
    """

    gained: list[str]
    """Failed by the reference, solved by the arm: ``domain/task``."""
    lost: list[str]
    """Solved by the reference, failed by the arm."""
    mixed: list[str]
    kept_solved: int
    kept_failed: int
    not_comparable: list[str]
    """Tasks that one side has no valid run of."""


class ReplayRow(TrainingRow):
    """When replay fired in one training, and with how old trajectories."""

    steps: int
    """Updates."""
    groups: int | None
    """Groups of rollouts; None in metrics that do not say it."""
    all_fail_groups: int | None
    fired: int
    """Groups that got a replayed success."""
    first_step: int | None
    """Update at which replay fired first; None: never."""
    age_mean: float | None
    """Updates between making and replaying, mean over all swaps."""
    age_median: float | None
    age_max: int | None
    buffer_size: int | None
    """Stored successes after the last update."""
    source: str
    """The metrics that this rests on."""


class TrainingOutcome(Document):
    """What one training did over all its stages."""

    arm: str
    seed: int
    updates: int
    planned: int
    """Updates that the config asks for; with fewer it has not ended."""
    area: float | None
    """Area under the training curve: mean success of all rollouts as they came; None: not ended."""
    collapsed: bool | None
    """Whether no rollout of the last 16 updates succeeded; None: not ended, or fewer updates."""
    changed: float | None
    """Share of its groups that replay changed; None: not recorded."""


class ReplayEffect(Document):
    """What replay adds to a training: pairs of one seed that differ in nothing else, arm minus reference."""

    arm: str
    """With replay."""
    reference: str
    """Without."""
    seeds: list[int]
    """Pairs of which both trainings ended."""
    left_out: list[str]
    """The other ones, and what they lack."""
    changed: float | None
    """Share of the arm's groups that replay changed, mean over these seeds."""
    is_test: bool | None
    """False: fewer than 8 %, so this is no test of replay, whatever the difference is."""
    area_by_seed: dict[int, float]
    """Seed -> difference of the areas under the training curves."""
    area: Interval | None
    """Their mean: paired t over seeds, from five on."""
    area_p: float | None
    collapsed: Interval | None
    """Share of the arm's trainings that collapsed, exact interval."""
    reference_collapsed: Interval | None
    only_arm_collapsed: int
    """Pairs of which the arm's training collapsed and the other one did not."""
    only_reference_collapsed: int
    collapse_p: float | None
    """Exact two-sided sign test over these two counts; None with fewer than five pairs."""


class OfflinePoint(Document):
    """One update of an offline arm, as TRL logged it."""

    step: int
    loss: float | None
    """Of the arm's own method; None where it is no number. Losses of different methods do not compare."""
    other: dict[str, float] = Field(default_factory=dict)
    """Every further number that TRL wrote."""


class OfflineTraining(TrainingRow):
    """The one training of an offline arm and seed: it learns from records, so there is no reward."""

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
    trajectories_per_hour: float | None = None
    """By the clock: of the total time, updates included."""
    per_desktop_hour: float | None = None
    desktop_hours: float | None = None
    """Desktops x total hours: what a bill would count."""
    desktop_busy: float | None = None
    """Share of the desktop hours in which an episode ran; None for training."""
    steps: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    minutes_per_trajectory: float | None = None
    """Mean duration of an episode with all its attempts; None for training."""


Failure = Literal[
    "desktop",
    "context full",
    "unparsable",
    "missed FAIL",
    "repeated action",
    "never finished",
    "wrong target",
]
"""Why an episode was not solved; ``scores`` says when, in this order."""


class FailureRow(Document):
    """Episodes of one arm, stage and list of tasks that were not solved, of one class (hard protocol)."""

    arm: str
    stage: str
    split: str
    failure: Failure
    episodes: int
    of: int
    """All episodes of the arm, stage and list."""
    tasks: int
    """Different tasks among them."""
    examples: list[str]
    """Folders of some of these episodes."""


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


# --- summary.json: the results ---------------------------------------------------------------------------


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
    """Episodes cut at the step limit or by the server."""
    cut_by_context: int = 0
    """Of these, the ones that the server cut: it refused the conversation as too long."""
    successes: int
    of_valid: Interval | None
    """Rate over valid episodes, each task with the same weight; None without a valid episode."""
    of_all_low: Rate
    """Successes / expected: every episode without a score taken as a failure."""
    of_all_high: Rate
    """(Successes + episodes without a score) / expected: all of them taken as successes."""
    conditional_se: float | None
    """Standard error for new runs of this very task set; None with one run per task."""
    infeasible_valid: int
    infeasible_successes: int
    mean_score: Interval | None = None
    """Mean of the fractional scores, each task with the same weight, as OSWorld's runner averages them."""
    trainings: int = 0
    """Trainings behind the row; 0: the policy was not trained here."""
    over_trainings: Interval | None = None
    """The same rate for new trainings on these tasks: Student's t, from five trainings on."""
    training_error: float | None = None
    """Its standard error."""
    training_degrees: float | None = None
    """Its degrees of freedom."""
    effective_runs: float | None = None
    """Independent runs that would have this interval; None without a valid episode."""
    conditional: Interval | None = None
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
    difference: Interval
    bootstrap: Interval | None
    """BCa bootstrap of whole tasks, for comparison."""
    p_value: float
    """Sign-flip permutation test, two-sided."""
    standard_error: float | None = None
    """For new tasks; None where the differences do not vary."""
    conditional_se: float | None = None
    """For new runs of these very tasks; None with one run per task."""
    trainings: int = 0
    """Pairs of trainings behind the row (trainings, against the untrained policy)."""
    over_trainings: Interval | None = None
    """The same for new trainings on these tasks: paired t over seeds, from five on; the noise of an untrained
    reference, which all trainings share, included."""
    training_error: float | None = None
    """Its standard error."""
    training_degrees: float | None = None
    """Its degrees of freedom."""
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
    """Waiting for the policy's replies."""
    env_seconds: float
    """Actions and the screenshots after them."""
    completion_tokens: int
    reset_seconds: float = 0.0
    """Until the desktop showed the task."""
    evaluate_seconds: float = 0.0
    """Of the evaluator."""

    @property
    def waiting_seconds(self) -> float:
        """What of the episodes' time is none of these: before the first step, for a desktop and the policy's
        server to start; and attempts that failed."""
        known = self.model_seconds + self.env_seconds + self.reset_seconds + self.evaluate_seconds
        return max(0.0, self.episode_seconds - known)


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
    tasks: dict[str, float] = Field(default_factory=dict)
    """Task -> mean score of its rollouts as they came."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Phase -> seconds."""
    other: dict[str, float] = Field(default_factory=dict)
    """Every further number the trainer wrote."""


class Curve(TrainingRow):
    """Training of one arm and seed through one stage."""

    source: str
    points: list[CurvePoint]


class ModelFacts(TrainingRow):
    """What the manifest of a finished stage says."""

    step: int
    """Updates of this stage; 0 for the untrained policy."""
    manifest: str
    manifest_sha256: Sha256
    identity: Sha256
    """Of all weights together: the ``checkpoint_sha256`` of the episodes."""
    parent: str | None
    """Identity of the model that training began from."""
    origin: str = ""
    """Where weights that are given come from, and how far that can be trusted."""
    weights: dict[str, str]
    """Weight file -> sha256."""


class RanOn(Document):
    """Where desktops of episodes came from. A field is empty where the records do not say it."""

    pool: str = ""
    """Address of the pool that lent them; empty: the job's own machine."""
    engine: str = ""
    root: str = ""
    """How the image's files got there."""
    sudo: str = ""
    image: str = ""
    """sha256 of the desktop's image or virtual machine."""
    episodes: int


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
    """True if any episode's own record says that a generator invented it: such a study is never published."""
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
    ran_on: list[RanOn] = Field(default_factory=list)
    """Where the episodes' desktops came from; a lost episode has none."""
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
    trainings: list[TrainingOutcome] = Field(default_factory=list)
    replay_effects: list[ReplayEffect] = Field(default_factory=list)
    throughput: list[ThroughputRow] = Field(default_factory=list)
    failures: list[FailureRow] = Field(default_factory=list)
    env_errors: list[EnvErrorRow] = Field(default_factory=list)
    commit: str | None = None
    """Commit of the checkout that computed this file; None outside git."""
    dirty: bool | None = None
    """True if files of the checkout differed from that commit."""
    files: list[SourceFile] = Field(default_factory=list)
    """Every file that a number rests on, with the rule that makes it."""

    def all_seeds(self, row: RateRow | DifferenceRow) -> bool:
        """Whether a row is about all training seeds together: there is one, or the weights have none."""
        return row.seed is None or row.stage in GIVEN_STAGES or len(self.seeds) == 1


# --- claims.json and the targets -------------------------------------------------------------------------


class Reach(Document):
    """What the planned study can show about a claim, computed before any run."""

    question: str
    """The claim's own question, in words."""
    tasks: int
    """Tasks in each arm."""
    trials: int
    """Runs per task, as planned."""
    trainings: int
    """Trainings of each arm, as planned; 0 where no arm of the claim is trained."""
    answers: list[Verdict]
    """What it can say at all; empty with too few trainings."""
    power: dict[str, float]
    """Standard deviation between trainings in points -> power to answer the question if the paper is
    right."""
    needed: dict[str, int | None]
    """The same -> trainings (trials, where no arm is trained) for 80 % power; None: no number up to 100."""
    smallest_margin: float
    """Margin in points within which agreement could be shown with 80 % power and without noise of ours."""
    assumption: str


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
    measured: Interval | None
    """Rates and differences as fractions; rewards and hours in their own unit."""
    verdict: Verdict
    reason: str
    target: TargetName | None = None
    """Table or figure of the paper."""
    effort: Effort = "unmeasured"
    """The least that its check takes: base (the untrained policy's weights), released (the authors'), trained
    (trainings here), desktops (alone)."""
    how: str = ""
    """How it is measured, in words; why not, for what this pipeline does not measure."""
    gap: Interval | None = None
    """Ours minus published in the published unit; interval: the prediction interval, both sides' noise."""
    fit: Literal["within", "outside"] | None = None
    """Whether the published value lies in the prediction interval: 0 within the interval of ``gap``."""
    p_values: dict[str, float] = Field(default_factory=dict)
    """Question (same, opposite, outside, equal) -> p-value, adjusted by Holm over the family."""
    trainings: int = 0
    """Trainings of each arm behind our number; 0: no arm of the claim is trained."""
    mean_score: float | None = None
    """The same with fractional scores in place of successes, as OSWorld's own runner averages them."""
    contradictions: list[str] = Field(default_factory=list)
    """Ids of the published contradictions that its numbers are part of."""
    reach: Reach | None = None
    """What the planned study can show; None for numbers without a number of tasks."""
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
    claims: list[ClaimResult]
    inputs: list[InputFile]
    mark: str = ""
    """Size, desktops and model of this study, in words."""
    contradictions: list[Contradiction] = Field(default_factory=list)
    counts: dict[str, int] = Field(default_factory=dict)
    """Verdict -> claims."""


class TargetDocument(Document):
    """One table or figure of the paper, as this study has it."""

    schema_version: Literal[1] = 1
    target: TargetName
    title: str
    place: str
    """Where it stands in the paper."""
    study: str
    mark: str
    """Size, desktops, step limit and task sets: never to be left out beside a number."""
    splits: dict[str, str]
    """Part in the paper's table or figure -> this study's split (or training)."""
    columns: list[str]
    rows: list[dict[str, Any]]
    comparison: list[ClaimResult] = Field(default_factory=list)
    """Claims of the paper that this study may be compared with; empty for any other size or desktop."""
    not_compared: dict[str, int] = Field(default_factory=dict)
    """Why the paper's other claims on it are not: reason -> claims."""
    notes: list[str] = Field(default_factory=list)
    """What is missing or must be known."""
    inputs: list[InputFile] = Field(default_factory=list)
    commit: str | None = None
    """Commit of the checkout that made this file."""
    dirty: bool | None = None


# --- scores.parquet ---------------------------------------------------------------------------------------


EPISODE_COLUMNS: dict[str, str] = table_of(__file__, "tables.yaml")["columns"]
"""Columns of the table of episodes, in order, with pandas' types. ``directory`` is relative to the study's
folder of episodes; ``errors`` is a JSON list, one message for each attempt that failed; ``ran_on`` is the
record's, as JSON; ``index`` is the file that the row was read from."""


# --- files -----------------------------------------------------------------------------------------------


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
