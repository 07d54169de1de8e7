"""The paper as data: its numbers, its claims, and where it contradicts itself (``data/paper/*.yaml``).

Loading checks the files against these models; a mistake becomes one sentence that names file and id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from arpo_replica.base.errors import UserError
from arpo_replica.base.tables import load_yaml, table_of
from arpo_replica.config.load import describe
from arpo_replica.evaluation.records import Contradiction, Document, Effort, Protocol, TargetName

CurveRole = Literal["selected_curve", "full_curve"]
EFFORT: dict[Effort, tuple[str, str]] = table_of(__file__, "words.yaml")["efforts"]
"""The least that the check of a claim takes -> its words, and the command."""


@dataclass(frozen=True)
class PaperFiles:
    """The files that say what was published, and what a claim asks of a study."""

    claims: Path
    published: Path
    """``results.yaml``: the printed numbers."""
    contradictions: Path | None = None
    hyperparameters: Path | None = None
    lists: Sequence[Path] = ()
    """The committed lists of tasks that claims are about."""


class Published(Document):
    """A number of the paper or its README."""

    id: str = Field(pattern=r"^[a-z0-9_]+$")
    value: float
    range: tuple[float, float] | None = None
    """What a plot shows where no single value can be read."""
    unit: Literal[
        "percent", "mean reward", "standard deviation of reward", "hours per epoch", "minutes per batch"
    ]
    n: int | None = Field(ge=1)
    """Number of tasks; None if the number is no rate over tasks."""
    tasks: str
    split: str | None = None
    """This project's name of the task set."""
    protocol: str
    model: str
    arm: str | None
    source: str
    place: str
    grade: Literal["P", "P-plot", "R"]

    @model_validator(mode="after")
    def _possible(self) -> Published:
        if self.unit == "percent" and not 0 <= self.value <= 100:
            raise ValueError(f"'{self.id}' has the value {self.value} percent, which is no percentage")
        if self.range and not self.range[0] <= self.value <= self.range[1]:
            raise ValueError(f"'{self.id}' has the value {self.value} outside its range")
        return self


class PublishedSource(Document):
    title: str
    url: str


class PublishedFile(Document):
    """``data/paper/results.yaml``."""

    sources: dict[str, PublishedSource]
    results: list[Published] = Field(min_length=1)


class Measure(Document):
    kind: Literal["rate", "difference", "curve", "throughput"]
    arm: str | None = None
    """Rate, difference and curve: the arm."""
    reference: str | int | None = None
    """Difference and curve: the other arm; throughput: the other number of environments."""
    protocol: Protocol | None = None
    role: CurveRole | None = None
    """Curve: instead of the arm, a key of `targets` in the config that names arm and stage."""
    reference_role: CurveRole | None = None
    metric: Literal["reward_before", "reward_after", "success", "group_score_std"] | None = None
    last: int = Field(default=10, ge=1)
    """Curve: updates that the mean is over."""
    place: Literal["start", "end"] = "end"
    """Curve: whether those are the first or the last."""
    environments: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _whole(self) -> Measure:
        needed: dict[str, tuple[str, ...]] = {
            "rate": ("arm", "protocol"),
            "difference": ("arm", "reference", "protocol"),
            "curve": ("metric",),
            "throughput": ("environments",),
        }
        for name in needed[self.kind]:
            if getattr(self, name) is None:
                raise ValueError(f"a measure of the kind '{self.kind}' needs '{name}'")
        if self.kind == "curve" and (self.arm is None) == (self.role is None):
            raise ValueError("a measure of the kind 'curve' needs either 'arm' or 'role'")
        return self

    def arms(self) -> set[str]:
        return {name for name in (self.arm, self.reference) if isinstance(name, str)}

    def words(self) -> str:
        """For the page."""
        if self.kind == "rate":
            return f"Success of {self.arm}, {self.protocol} protocol, each task with the same weight."
        if self.kind == "difference":
            return f"{self.arm} minus {self.reference} on the same tasks, {self.protocol} protocol, paired."
        if self.kind == "curve":
            who = self.arm or f"targets.{self.role}"
            other = self.reference or (f"targets.{self.reference_role}" if self.reference_role else "")
            minus = f" minus {other}" if other else ""
            return f"Mean of {self.metric} over the {self.place}'s {self.last} updates, {who}{minus}."
        minus = f" minus {self.reference}" if self.reference else ""
        return f"Hours of rollouts for 1,024 trajectories with {self.environments}{minus} desktops at once."


class Needs(Document):
    """The only study that a claim may be compared with."""

    size: str
    desktop: str
    split: str
    max_steps: int
    model: str | None = None
    """Name of the model's folder; None: any."""
    tasks: int | None = None
    """Tasks in the split; None: any number."""
    trained_on: str | None = None
    """Split of the last stage of training, for claims about trained arms; None: any."""
    recipe: list[str] = Field(default_factory=list)
    """Recipes of ``hyperparameters.yaml``, of which the arms must have run one, value by value."""
    differs: dict[str, Any] = Field(default_factory=dict)
    """Config key -> value, where the claim's own study differs from its recipe on purpose; null: any value,
    because none is published."""
    settings: dict[str, list[Any]] = Field(default_factory=dict)
    """Further config keys -> the values that count, e.g. of the evaluation."""
    weights: list[Literal["trained_here", "released"]] = Field(default=["trained_here"])
    """Whose weights of a trained arm count: of a training of this study, or the authors' own."""
    released: dict[str, str] = Field(default_factory=dict)
    """Arm of the paper -> name of the authors' own model."""

    def words(self, measure: Measure) -> str:
        """For the page. The untrained policy needs no training."""
        parts = [
            f"model {self.model or self.size}",
            f"desktops {self.desktop}",
            f"tasks {self.split}",
            f"at most {self.max_steps} steps",
        ]
        if measure.arms() != {"base"}:
            parts += [f"trained on {self.trained_on}"] if self.trained_on else []
            parts += [f"the recipe {' or '.join(self.recipe)}"] if self.recipe else []
        return ", ".join(parts)


class Claim(Document):
    """One entry of ``claims.yaml``."""

    id: str = Field(pattern=r"^[a-z0-9_]+$")
    target: TargetName | None = None
    statement: str
    published: list[str] = Field(min_length=1, max_length=2)
    measure: Measure | None
    unmeasured: str | None = None
    note: str | None = None
    """What else a reader of the verdict must know."""
    needs: Needs
    margin: float = Field(gt=0)

    def effort(self) -> Effort:
        """The least that its check takes."""
        if self.measure is None:
            return "unmeasured"
        if self.measure.kind == "throughput":
            return "desktops"
        trained = self.measure.arms() - {"base"}
        if self.measure.kind == "curve" or not trained <= self.needs.released.keys():
            return "trained"
        return "released" if trained else "base"


class ClaimsFile(Document):
    """``data/paper/claims.yaml``."""

    claims: list[Claim] = Field(min_length=1)


class ContradictionsFile(Document):
    """``data/paper/contradictions.yaml``."""

    contradictions: list[Contradiction] = Field(min_length=1)


Loaded = TypeVar("Loaded", bound=Document)


def load_claims(claims_yaml: Path, results_yaml: Path) -> tuple[list[Claim], dict[str, Published]]:
    """The claims, and id -> published number. Raises ``UserError``."""
    numbers = _load(results_yaml, PublishedFile, "results")
    claims = _load(claims_yaml, ClaimsFile, "claims").claims
    published = {number.id: number for number in numbers.results}
    _refuse_twice(results_yaml, [number.id for number in numbers.results])
    _refuse_twice(claims_yaml, [claim.id for claim in claims])
    for number in numbers.results:
        if number.source not in numbers.sources:
            raise UserError(
                f"{results_yaml}: '{number.id}' names the unknown source '{number.source}'; add it there."
            )
    for claim in claims:
        _check_claim(claim, published, claims_yaml, results_yaml)
    return claims, published


def _check_claim(claim: Claim, published: Mapping[str, Published], file: Path, results: Path) -> None:
    for name in claim.published:
        if name not in published:
            raise UserError(f"{file}: '{claim.id}' names '{name}', which {results} lacks; correct the id.")
    units = {published[name].unit for name in claim.published}
    if len(units) > 1:
        raise UserError(
            f"{file}: '{claim.id}' compares {' with '.join(sorted(units))}; give numbers of one unit."
        )
    if claim.measure is None:
        return
    pair = claim.measure.reference is not None or claim.measure.reference_role is not None
    if pair != (len(claim.published) == 2):
        raise UserError(
            f"{file}: '{claim.id}' names {len(claim.published)} published number(s) for a measure of "
            f"{'two sides' if pair else 'one side'}; give one number for each side."
        )
    rates = claim.measure.kind in ("rate", "difference")
    if rates != (units == {"percent"}):
        raise UserError(
            f"{file}: '{claim.id}' measures a {claim.measure.kind}, its numbers are in {units.pop()}; "
            "correct the measure or the ids."
        )


def load_contradictions(path: Path, published: Mapping[str, Published]) -> list[Contradiction]:
    """Where the material contradicts itself, in the order of their numbers. Raises ``UserError``."""
    found = _load(path, ContradictionsFile, "contradictions").contradictions
    _refuse_twice(path, [entry.id for entry in found])
    _refuse_twice(path, [str(entry.number) for entry in found])
    for entry in found:
        for name in (name for side in entry.sides for name in side.results):
            if name not in published:
                raise UserError(
                    f"{path}: '{entry.id}' names '{name}', which results.yaml lacks; correct the id."
                )
    return sorted(found, key=lambda entry: entry.number)


def _refuse_twice(path: Path, ids: list[str]) -> None:
    twice = next((name for name in ids if ids.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path} has the id '{twice}' twice; give each entry its own.")


def _load(path: Path, model: type[Loaded], section: str) -> Loaded:
    try:
        raw = load_yaml(path.read_text(encoding="utf-8"))
        return model.model_validate(raw)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; restore it.") from error
    except ValidationError as error:
        raise UserError(f"{path}{_entry(raw, section, error)}: {describe(error)}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}.") from error


def _entry(raw: Any, section: str, error: ValidationError) -> str:
    """``, 'the_id'`` of the entry at fault, if it can be found."""
    location = error.errors(include_url=False)[0]["loc"]
    try:
        name = raw[section][location[1]]["id"] if location[0] == section else None
    except (LookupError, TypeError):
        name = None
    return f", '{name}'" if name else ""
