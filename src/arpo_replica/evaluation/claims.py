"""The paper's claims against the study: ``claims.json``.

A claim is compared only with results of the size, desktop, tasks and step limit that it is about.
Everything else is "not run", with the reason: a nano study never stands beside a number of the paper.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError

from arpo_replica.config.load import describe
from arpo_replica.config.models import StudyConfig
from arpo_replica.errors import UserError
from arpo_replica.evaluation import statistics as st
from arpo_replica.evaluation.schema import (
    ClaimResult,
    Claims,
    Document,
    IntervalRecord,
    Protocol,
    Summary,
    Verdict,
    input_file,
    write_document,
)


class Published(Document):
    """A number of the paper or its README."""

    id: str
    value: float
    unit: Literal["percent", "mean reward", "hours per epoch"]
    n: int | None
    """Number of tasks; None if the number is no rate over tasks."""
    tasks: str
    protocol: str
    model: str
    arm: str | None
    source: str
    place: str
    grade: Literal["P", "P-plot", "R"]


class Source(Document):
    """Where published numbers stand."""

    title: str
    url: str


class PublishedFile(Document):
    """``data/paper/results.yaml``."""

    sources: dict[str, Source]
    results: list[Published] = Field(min_length=1)


class Measure(Document):
    """How a claim is measured."""

    kind: Literal["rate", "difference"]
    arm: str
    reference: str | None = None
    protocol: Protocol


class Needs(Document):
    """The only study that a claim may be compared with."""

    size: str
    desktop: str
    split: str
    max_steps: int

    def words(self) -> str:
        """For the page."""
        return f"{self.size}, {self.desktop}, {self.split}, {self.max_steps} steps"


class Claim(Document):
    """One entry of ``claims.yaml``."""

    id: str
    statement: str
    published: list[str] = Field(min_length=1, max_length=2)
    measure: Measure | None
    needs: Needs
    margin: float = Field(gt=0)


class ClaimsFile(Document):
    """``data/paper/claims.yaml``."""

    claims: list[Claim] = Field(min_length=1)


Loaded = TypeVar("Loaded", bound=Document)


def judge_claims(config: StudyConfig, summary: Path, claims_yaml: Path, out_json: Path) -> Claims:
    """Write ``claims.json``: every claim of ``claims_yaml`` with its verdict.

    The published numbers are read from ``results.yaml`` beside it. Raises ``UserError`` for a file that
    is not in order, e.g. a claim that names an unknown number.
    """
    claims, published = load_claims(claims_yaml)
    numbers = Summary.model_validate_json(summary.read_bytes())
    result = Claims(
        study=config.study,
        size=config.size,
        claims=[_judge(config, numbers, claim, [published[i] for i in claim.published]) for claim in claims],
        inputs=[input_file(path) for path in (summary, claims_yaml, claims_yaml.with_name("results.yaml"))],
    )
    write_document(result, out_json)
    return result


def load_claims(claims_yaml: Path) -> tuple[list[Claim], dict[str, Published]]:
    """The claims, and id -> published number."""
    results_yaml = claims_yaml.with_name("results.yaml")
    numbers = _load(results_yaml, PublishedFile)
    claims = _load(claims_yaml, ClaimsFile).claims
    published = {number.id: number for number in numbers.results}
    if len(published) < len(numbers.results):
        raise UserError(f"{results_yaml} has an id twice; give each number its own.")
    if len({claim.id for claim in claims}) < len(claims):
        raise UserError(f"{claims_yaml} has an id twice; give each claim its own.")
    for number in numbers.results:
        if number.source not in numbers.sources:
            raise UserError(f"{results_yaml}: '{number.id}' names the unknown source '{number.source}'.")
    for claim in claims:
        for name in claim.published:
            if name not in published:
                raise UserError(f"{claims_yaml}: '{claim.id}' names '{name}', which {results_yaml} lacks.")
    return claims, published


def _load(path: Path, model: type[Loaded]) -> Loaded:
    try:
        return model.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; restore it.") from error
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error)}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}.") from error


def _judge(config: StudyConfig, summary: Summary, claim: Claim, published: list[Published]) -> ClaimResult:
    def result(verdict: Verdict, reason: str, measured: IntervalRecord | None = None) -> ClaimResult:
        shown: list[dict[str, Any]] = [number.model_dump() for number in published]
        return ClaimResult(
            id=claim.id,
            statement=claim.statement,
            published=shown,
            margin=claim.margin,
            needs=claim.needs.words(),
            measured=measured,
            verdict=verdict,
            reason=reason,
        )

    obstacle = _why_not(config, claim)
    if obstacle or claim.measure is None:
        return result("not run", obstacle or "This pipeline does not measure it yet.")
    if claim.measure.kind == "rate":
        return _judge_rate(summary, claim, claim.measure, published[0], result)
    return _judge_difference(summary, claim, claim.measure, published, result)


def _why_not(config: StudyConfig, claim: Claim) -> str:
    """Why this study cannot speak about the claim; empty if it can. The size mark comes first."""
    needs = claim.needs
    if config.size != needs.size:
        return f"This study has the size mark “{config.size}”; the claim is about {needs.size}."
    if config.desktop.provider != needs.desktop:
        return f"This study's desktops are “{config.desktop.provider}”; the claim is about {needs.desktop}."
    if needs.split not in config.evaluation.splits:
        return f"The split {needs.split} is not evaluated in this study."
    if config.policy.max_steps != needs.max_steps:
        return f"This study allows {config.policy.max_steps} steps; the claim is about {needs.max_steps}."
    return ""


def _judge_rate(
    summary: Summary, claim: Claim, measure: Measure, published: Published, result: Any
) -> ClaimResult:
    rows = [
        row
        for row in summary.rates
        if (row.arm, row.split, row.protocol) == (measure.arm, claim.needs.split, measure.protocol)
        and (row.seed is None or len(summary.seeds) == 1)
    ]
    row = rows[-1] if rows else None
    if row is None or row.of_valid is None or published.n is None:
        return result("not run", f"There is no result of the arm {measure.arm} on {claim.needs.split}.")
    # The paper gives no per-task data: its successes are rebuilt from the rate, and both sides count
    # as independent, which is conservative. Ours counts each task once, whatever the number of trials.
    theirs = round(published.value / 100 * published.n)
    ours = round(row.of_valid.value * row.tasks)
    gap = st.newcombe(ours, row.tasks, theirs, published.n)
    verdict = judge(gap.low * 100, gap.high * 100, claim.margin)
    return result(verdict, _explain(gap.low * 100, gap.high * 100, claim.margin, "Newcombe"), row.of_valid)


def _judge_difference(
    summary: Summary, claim: Claim, measure: Measure, published: list[Published], result: Any
) -> ClaimResult:
    rows = [
        row
        for row in summary.differences
        if (row.arm, row.reference, row.split, row.protocol)
        == (measure.arm, measure.reference, claim.needs.split, measure.protocol)
        and (row.seed is None or len(summary.seeds) == 1)
    ]
    if not rows or len(published) != 2:
        pair = f"{measure.arm} and {measure.reference}"
        return result("not run", f"There is no result of both {pair} on {claim.needs.split}.")
    found = rows[-1].difference
    gain = published[0].value - published[1].value
    low, high = found.low * 100 - gain, found.high * 100 - gain
    reason = _explain(low, high, claim.margin, "paired") + " The paper's own noise is unknown."
    return result(judge(low, high, claim.margin), reason, found)


def judge(low: float, high: float, margin: float) -> Verdict:
    """Verdict from the interval of (ours - published): "consistent" needs all of it inside the margin."""
    if -margin <= low and high <= margin:
        return "consistent"
    if low > 0:
        return "higher"
    if high < 0:
        return "lower"
    return "inconclusive"


def _explain(low: float, high: float, margin: float, method: str) -> str:
    return (
        f"Ours minus published: 95 % interval {low:+.1f} to {high:+.1f} points ({method}), "
        f"margin ±{margin:g}."
    )
