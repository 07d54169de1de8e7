"""The paper's claims against the study: ``claims.json``.

A claim is compared only with results of the size, desktops, model, tasks, training and step limit that it is
about, and never with invented ones. Everything else is "not run", with the reason: a nano study or a
container's result never stands beside a number of the paper. What such a study measured is listed apart
(``own_measurements``), with its mark.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from arpo_replica.base.files import file_sha256
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.comparison import (
    Side,
    error_side,
    interval,
    judge,
    mover,
    published_side,
    rate_side,
)
from arpo_replica.evaluation.curve_claims import Finding, compare_curve, compare_throughput
from arpo_replica.evaluation.power import power_of
from arpo_replica.evaluation.published import Claim, Measure, Published, load_claims, load_contradictions
from arpo_replica.evaluation.records import (
    ClaimResult,
    Claims,
    Contradiction,
    DifferenceRow,
    Interval,
    OwnMeasurement,
    Power,
    RateRow,
    Summary,
    input_file,
    write_document,
)

__all__ = ["compare", "compare_claims", "load_claims", "mark_of"]


def compare_claims(
    config: StudyConfig, summary: Path, claims_yaml: Path, out_json: Path, throughput: Path | None = None
) -> Claims:
    """Write ``claims.json``: every claim of ``claims_yaml`` with its verdict.

    Published numbers and contradictions are read from ``results.yaml`` and ``contradictions.yaml`` beside it
    (the latter may be missing); ``throughput`` is what ``measure_throughput`` wrote, if it did. Raises
    ``UserError`` for a file that is not in order, e.g. a claim that names an unknown number.
    """
    files = [summary, claims_yaml, claims_yaml.with_name("results.yaml")]
    contradictions = claims_yaml.with_name("contradictions.yaml")
    files += [contradictions] if contradictions.is_file() else []
    files += [throughput] if throughput else []
    numbers = Summary.model_validate_json(summary.read_bytes())
    result = compare(config, numbers, claims_yaml, throughput)
    result.inputs = [input_file(path) for path in files]
    write_document(result, out_json)
    return result


def compare(
    config: StudyConfig, summary: Summary, claims_yaml: Path, throughput: Path | None = None
) -> Claims:
    """The same from a summary, without writing."""
    claims, published = load_claims(claims_yaml)
    file = claims_yaml.with_name("contradictions.yaml")
    contradictions = load_contradictions(file, published) if file.is_file() else []
    resolved = config.model_dump(mode="json")
    for entry in contradictions:
        entry.value = None if entry.key is None else _lookup(resolved, entry.key)
    results, used = [], []
    for claim in claims:
        numbers = [published[name] for name in claim.published]
        finding = find(
            config, summary, claim, numbers, throughput=throughput, lists=claims_yaml.parents[1] / "splits"
        )
        used += [finding.row] if finding.row is not None else []
        results.append(_result(claim, numbers, finding, contradictions))
    return Claims(
        study=config.name,
        size=config.size,
        synthetic=summary.synthetic,
        claims=results,
        inputs=[],
        mark=mark_of(config, summary),
        contradictions=contradictions,
        own_measurements=_own(config, summary, used),
        counts=dict(sorted(Counter(result.verdict for result in results).items())),
    )


def mark_of(config: StudyConfig, summary: Summary) -> str:
    """Size, model, desktops in words: what every number of this study carries."""
    desktops = ", ".join(summary.desktops) or config.desktop.kind
    model = "" if config.policy.model == "nano" else f" ({Path(config.policy.model).name})"
    invented = "synthetic: invented, not measured; " if summary.synthetic else ""
    return f"{invented}{config.size}{model}, {desktops} desktops, at most {config.policy.max_steps} steps"


def _result(
    claim: Claim, numbers: list[Published], finding: Finding, contradictions: list[Contradiction]
) -> ClaimResult:
    shown: list[dict[str, Any]] = [number.model_dump(mode="json") for number in numbers]
    return ClaimResult(
        id=claim.id,
        statement=claim.statement,
        published=shown,
        margin=claim.margin,
        needs=claim.needs.words(claim.measure) if claim.measure else "",
        measured=finding.measured,
        verdict=finding.verdict,
        reason=finding.reason,
        target=claim.target,
        how=claim.measure.words() if claim.measure else claim.unmeasured or "Not measured by this pipeline.",
        gap=finding.gap,
        equivalence_p=finding.equivalence_p,
        contradictions=[
            entry.id
            for entry in contradictions
            if any(name in side.results for side in entry.sides for name in claim.published)
        ],
        power=_power(claim, numbers),
        sources=finding.sources,
    )


def _power(claim: Claim, numbers: list[Published]) -> Power | None:
    n = numbers[0].n
    if n is None or claim.measure is None:
        return None
    return power_of([number.value for number in numbers], n, claim.margin)


def find(
    config: StudyConfig,
    summary: Summary,
    claim: Claim,
    published: list[Published],
    *,
    throughput: Path | None,
    lists: Path,
) -> Finding:
    """What this study says about a claim."""
    if claim.measure is None:
        return Finding("not run", claim.unmeasured or "This pipeline does not measure it yet.")
    obstacle = why_not(config, summary, claim, claim.measure, lists)
    if obstacle:
        return Finding("not run", obstacle)
    if claim.measure.kind == "throughput":
        return compare_throughput(claim, claim.measure, published, throughput)
    if claim.measure.kind == "rate":
        found = _compare_rate(summary, claim, claim.measure, published[0])
    elif claim.measure.kind == "difference":
        found = _compare_difference(summary, claim, claim.measure, published)
    else:
        found = compare_curve(config, summary, claim, claim.measure, published)
    known = (found.reason, _untrained(config, summary, claim.measure), claim.note or "")
    return replace(found, reason=" ".join(filter(None, known)))


def _untrained(config: StudyConfig, summary: Summary, measure: Measure) -> str:
    """Which tasks training did without, in words: no bound is known for what they would have taught."""
    counts = Counter(
        (row.split, row.tasks) for row in summary.left_out if row.split in config.training_splits
    )
    if not counts or measure.arms() == {"base"}:
        return ""
    parts = [f"{count} of the {tasks} tasks of {split}" for (split, tasks), count in counts.items()]
    return f"Training left out {' and '.join(parts)} (tasks.leave_out)."


def why_not(config: StudyConfig, summary: Summary, claim: Claim, measure: Measure, lists: Path) -> str:
    """Why this study cannot speak about the claim; empty if it can. The size mark comes first.

    ``lists``: folder of the committed lists of tasks.
    """
    obstacles = _obstacles(config, summary, claim, measure, lists)
    return " ".join(filter(None, (obstacle, claim.note))) if (obstacle := next(obstacles, "")) else ""


def _obstacles(
    config: StudyConfig, summary: Summary, claim: Claim, measure: Measure, lists: Path
) -> Iterator[str]:
    needs = claim.needs
    if summary.synthetic:
        yield "This study is invented (synthetic): nothing in it was measured."
    if config.size != needs.size:
        yield f"This study has the size mark “{config.size}”; the claim is about {needs.size}."
    desktops = [config.desktop.kind, *summary.desktops]
    for name in desktops:
        if name != needs.desktop:
            yield f"This study's desktops are “{name}”; the claim is about {needs.desktop}."
    folder = Path(config.policy.model)
    if needs.model and not any(part.endswith(needs.model) for part in folder.parts):
        yield f"This study's policy.model is “{folder.name}”; the claim is about {needs.model}."
    trained = config.training.stages[-1].split
    if needs.trained_on and trained != needs.trained_on and measure.arms() != {"base"}:
        yield f"This study's training ends on {trained}; the claim is about training on {needs.trained_on}."
    if config.policy.max_steps != needs.max_steps:
        yield f"This study allows {config.policy.max_steps} steps; the claim is about {needs.max_steps}."
    if measure.kind in ("rate", "difference"):
        yield from _split_obstacles(config, summary, claim, lists)


def _split_obstacles(config: StudyConfig, summary: Summary, claim: Claim, lists: Path) -> Iterator[str]:
    needs, committed = claim.needs, lists / f"{claim.needs.split}.json"
    facts = summary.splits.get(needs.split)
    if needs.split not in config.evaluation.splits or facts is None:
        yield f"The split {needs.split} is not evaluated in this study."
    elif needs.tasks is not None and facts.tasks != needs.tasks:
        yield f"The split {needs.split} has {facts.tasks} tasks here; the claim is about {needs.tasks}."
    elif committed.is_file() and file_sha256(committed) != facts.list_sha256:
        yield f"This study's list of {needs.split} is not the committed {committed.name}."


def _compare_rate(summary: Summary, claim: Claim, measure: Measure, published: Published) -> Finding:
    row = _row(summary, summary.rates, claim, measure)
    if not isinstance(row, RateRow) or row.of_valid is None or published.n is None:
        return Finding("not run", f"There is no result of the arm {measure.arm} on {claim.needs.split}.")
    theirs = published_side(published.value, published.n)
    gap = mover(_our_rate(row, row.of_valid.value, row.tasks_valid or row.tasks), theirs)
    verdict, p_value = judge(gap, claim.margin / 100)
    shown = row.conditional or row.of_valid
    finding = _finding(
        gap, claim, shown, row, "The paper's run-to-run noise is unknown; it is bounded by its tasks."
    )
    unscored = row.expected - row.valid
    if unscored:
        # Episodes without a score could turn out either way: only a verdict that holds for both stands.
        bounds = {
            judge(mover(_our_rate(row, value, row.tasks), theirs), claim.margin / 100)[0]
            for value in (row.of_all_low, row.of_all_high)
        }
        words = f"{unscored} of {row.expected} episodes {'has' if unscored == 1 else 'have'} no score"
        if row.left_out:
            words += f", {row.left_out} of them because their tasks are left out (tasks.leave_out)"
        words += f": of all, ours is {100 * row.of_all_low:.1f} to {100 * row.of_all_high:.1f} %"
        if bounds != {verdict}:
            return finding.given("inconclusive", f"{words}, and the verdict depends on them.", p_value)
        return finding.given(verdict, f"{words}, and the verdict is the same at both ends.", p_value)
    return finding.given(verdict, "", p_value)


def _our_rate(row: RateRow, value: float, tasks: int) -> Side:
    """Our rate with run-to-run noise where there are repeats (the tasks are the paper's own), else Wilson."""
    degrees = row.valid - (row.tasks_valid or row.tasks)
    if row.conditional is not None and row.conditional_se and degrees > 0:
        return error_side(value, row.conditional_se, degrees, "run-to-run noise")
    return rate_side(value, float(tasks))


def _compare_difference(
    summary: Summary, claim: Claim, measure: Measure, published: list[Published]
) -> Finding:
    row = _row(summary, summary.differences, claim, measure)
    if not isinstance(row, DifferenceRow) or published[0].n is None or published[1].n is None:
        pair = f"{measure.arm} and {measure.reference}"
        return Finding("not run", f"There is no result of both {pair} on {claim.needs.split}.")
    paired = mover(*(published_side(number.value, number.n or 1) for number in published))
    theirs = Side(paired.value, paired.at, "Newcombe, unpaired")
    gap = mover(_our_difference(row), theirs)
    verdict, p_value = judge(gap, claim.margin / 100)
    known = "The paper's own noise is unknown: no per-task results, so its two rates count as unpaired."
    finding = _finding(gap, claim, row.difference, row, known)
    if row.dropped:
        count = len(row.dropped)
        words = f"{count} {'task has' if count == 1 else 'tasks have'} no valid episode on one side."
        return finding.given("inconclusive", words, p_value)
    out = sum(entry.split == row.split for entry in summary.left_out)
    if out:
        # Each of these tasks could have been lost or gained.
        ends = [_our_difference(row, out, change) for change in (-1, 1)]
        bounds = {judge(mover(end, theirs), claim.margin / 100)[0] for end in ends}
        words = (
            f"{out} of {row.tasks + out} tasks {'is' if out == 1 else 'are'} left out (tasks.leave_out): "
            f"of all, ours is {100 * ends[0].value:+.1f} to {100 * ends[1].value:+.1f} points"
        )
        if bounds != {verdict}:
            return finding.given("inconclusive", f"{words}, and the verdict depends on them.", p_value)
        return finding.given(verdict, f"{words}, and the verdict is the same at both ends.", p_value)
    return finding.given(verdict, "", p_value)


def _our_difference(row: DifferenceRow, out: int = 0, change: int = 0) -> Side:
    """Our difference, paired by task; of all tasks if ``out`` more ones had each changed by ``change``."""
    share = row.tasks / (row.tasks + out)
    added = change * (1 - share)
    value = row.difference.value * share + added
    if row.conditional_se:
        return error_side(value, row.conditional_se * share, 2 * row.tasks, "paired, run-to-run noise")
    if row.standard_error:
        return error_side(value, row.standard_error * share, row.tasks - 1, "paired by task")
    low, high = (end * share + added for end in (row.difference.low, row.difference.high))
    return Side(value, lambda _: (low, high), "Newcombe over tasks")


def _row(
    summary: Summary, rows: Sequence[RateRow] | Sequence[DifferenceRow], claim: Claim, measure: Measure
) -> RateRow | DifferenceRow | None:
    """The row of a claim: all seeds together, the last stage."""
    found = [
        row
        for row in rows
        if (row.arm, row.split, row.protocol) == (measure.arm, claim.needs.split, measure.protocol)
        and (isinstance(row, RateRow) or row.reference == measure.reference)
    ]
    pooled = [row for row in found if row.seed is None] or found
    return pooled[-1] if pooled else None


def _finding(
    gap: Side, claim: Claim, measured: Interval, row: RateRow | DifferenceRow, known: str
) -> Finding:
    points = interval(gap)
    record = Interval(
        value=100 * points.value,
        low=100 * points.low,
        high=100 * points.high,
        method=points.method,
        about=points.about,
    )
    words = (
        f"Ours minus published: 95 % interval {record.low:+.1f} to {record.high:+.1f} points "
        f"({record.method}), margin ±{claim.margin:g}. {known}"
    )
    return Finding("inconclusive", words, measured, record, None, row.sources, row)


def _own(config: StudyConfig, summary: Summary, used: list[Any]) -> list[OwnMeasurement]:
    """What was measured and answers no claim."""
    mark = mark_of(config, summary)
    taken = {id(row) for row in used}
    found = []
    rows: list[RateRow | DifferenceRow] = [*summary.rates, *summary.differences]
    for row in rows:
        measured = row.of_valid if isinstance(row, RateRow) else row.difference
        if id(row) in taken or measured is None:
            continue
        reference = row.reference if isinstance(row, DifferenceRow) else None
        found.append(
            OwnMeasurement(
                mark=f"{mark}, {row.split} ({summary.splits[row.split].size})",
                what="success rate" if reference is None else f"{row.arm} minus {reference}",
                arm=row.arm,
                reference=reference,
                stage=row.stage,
                seed=row.seed,
                split=row.split,
                protocol=row.protocol,
                tasks=row.tasks,
                measured=measured,
                sources=row.sources,
            )
        )
    return found


def _lookup(config: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        config = config[part]
    return config
