"""The paper's claims against the study: ``claims.json``.

A claim is compared only with results of the size, desktops, model, tasks, recipe, training and step limit
that it is about (``findings.obstacles``). Everything else is "not run", with the first difference: a nano
study or a container's result never stands beside a number of the paper, nor does a training that did
something else. What such a study measured is listed apart (``own_measurements``), with its mark. Invented
results are judged, so that the page can be looked at, and carry their mark everywhere.

The training is the unit: an arm that is trained is judged by its trainings, five or more; with fewer there
is a number and no verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from arpo_replica.config.load import load_yaml
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.comparison import (
    MANY,
    WIDEST,
    Estimate,
    Tests,
    answer,
    prediction,
    published_noise,
    tests,
)
from arpo_replica.evaluation.curve_claims import find_curve, find_throughput
from arpo_replica.evaluation.findings import (
    NO_NOISE,
    Finding,
    arms_of,
    is_released,
    lookup,
    not_run,
    obstacles,
    too_few,
)
from arpo_replica.evaluation.power import Plan, reach
from arpo_replica.evaluation.published import Claim, Measure, Published, load_claims, load_contradictions
from arpo_replica.evaluation.records import (
    ClaimResult,
    Claims,
    DifferenceRow,
    Interval,
    OwnMeasurement,
    RateRow,
    Reach,
    Summary,
    input_file,
    write_document,
)
from arpo_replica.evaluation.replay_effect import no_test
from arpo_replica.evaluation.statistics import FEWEST_TRAININGS, holm
from arpo_replica.tasks.left_out import split_size
from arpo_replica.training.parity import Facts

QUESTIONS = ("same", "opposite", "outside", "equal")
Family = tuple[str, str, str]
"""Target, kind of measure, model: the claims whose p-values are adjusted together."""


def compare_claims(
    config: StudyConfig, summary: Path, claims_yaml: Path, out_json: Path, throughput: Path | None = None
) -> Claims:
    """Write ``claims.json``: every claim of ``claims_yaml`` with its verdict.

    ``results.yaml``, ``contradictions.yaml`` and ``hyperparameters.yaml`` are read beside it (the latter two
    may be missing); ``throughput`` is what ``measure_throughput`` wrote, if it did. Raises ``UserError`` for
    a file that is not in order, e.g. a claim that names an unknown number.
    """
    beside = [claims_yaml.with_name(name) for name in ("contradictions.yaml", "hyperparameters.yaml")]
    files = [summary, claims_yaml, claims_yaml.with_name("results.yaml"), *(p for p in beside if p.is_file())]
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
        entry.value = None if entry.key is None else lookup(resolved, entry.key)
    recipes = claims_yaml.with_name("hyperparameters.yaml")
    facts = Facts.model_validate(load_yaml(recipes.read_text("utf-8"))) if recipes.is_file() else None
    numbers = {claim.id: [published[name] for name in claim.published] for claim in claims}
    lists = claims_yaml.parents[1] / "splits"
    findings = {
        claim.id: find(
            config, summary, claim, numbers[claim.id], throughput=throughput, lists=lists, facts=facts
        )
        for claim in claims
    }
    adjusted = _adjusted(claims, findings)
    families = Counter(family_of(claim) for claim in claims if claim.measure)
    results = [
        _result(claim, numbers[claim.id], findings[claim.id], adjusted.get(claim.id)).model_copy(
            update={
                "contradictions": [
                    entry.id
                    for entry in contradictions
                    if any(name in side.results for side in entry.sides for name in claim.published)
                ],
                "reach": _reach(config, summary, claim, numbers[claim.id], families[family_of(claim)]),
            }
        )
        for claim in claims
    ]
    return Claims(
        study=config.name,
        size=config.size,
        synthetic=summary.synthetic,
        claims=results,
        inputs=[],
        mark=mark_of(config, summary),
        contradictions=contradictions,
        own_measurements=_own(config, summary, [found.row for found in findings.values() if found.row]),
        counts=dict(sorted(Counter(result.verdict for result in results).items())),
    )


def family_of(claim: Claim) -> Family:
    """Claims about one table or figure, of one kind and one model, are one family of tests."""
    kind = claim.measure.kind if claim.measure else ""
    return str(claim.target), kind, str(claim.needs.model)


def mark_of(config: StudyConfig, summary: Summary) -> str:
    """Size, model, desktops in words: what every number of this study carries."""
    desktops = ", ".join(summary.desktops) or config.desktop.kind
    model = "" if config.policy.model == "nano" else f" ({Path(config.policy.model).name})"
    invented = "synthetic: invented, not measured; " if summary.synthetic else ""
    return f"{invented}{config.size}{model}, {desktops} desktops, at most {config.policy.max_steps} steps"


def _adjusted(claims: Sequence[Claim], findings: dict[str, Finding]) -> dict[str, Tests]:
    """Claim -> p-values, each question adjusted by Holm over the judged claims of the family."""
    members: dict[Family, dict[str, Tests]] = {}
    for claim in claims:
        found = findings[claim.id]
        if found.estimate is not None:
            margin = claim.margin / (100 if found.noise is not None else 1)
            raw = tests(found.estimate, found.published, found.noise, margin)
            members.setdefault(family_of(claim), {})[claim.id] = raw
    adjusted: dict[str, Tests] = {}
    for family in members.values():
        questions = (holm([float(getattr(raw, name)) for raw in family.values()]) for name in QUESTIONS)
        adjusted |= {
            name: Tests(*row) for name, row in zip(family, zip(*questions, strict=True), strict=True)
        }
    return adjusted


def _result(claim: Claim, numbers: list[Published], found: Finding, tested: Tests | None) -> ClaimResult:
    result = ClaimResult(
        id=claim.id,
        statement=claim.statement,
        published=[number.model_dump(mode="json") for number in numbers],
        margin=claim.margin,
        needs=claim.needs.words(claim.measure) if claim.measure else "",
        measured=found.measured,
        verdict=found.verdict or "inconclusive",
        reason=found.reason,
        target=claim.target,
        how=claim.measure.words() if claim.measure else claim.unmeasured or "Not measured by this pipeline.",
        trainings=found.trainings,
        mean_score=found.mean_score,
        sources=found.sources,
    )
    if found.estimate is None or tested is None:
        return result
    scale = 100 if found.noise is not None else 1
    value, low, high = (
        scale * end for end in prediction(found.estimate, found.published, found.noise or 0.0)
    )
    words, digits = ("points", 1) if scale == 100 else ("", 3)
    informative = found.noise is not None and (high - low) / 2 <= WIDEST * claim.margin
    result.verdict = answer(tested, len(numbers) == 2, informative)
    result.gap = Interval(
        value, low, high, f"{found.estimate.method}; bound of the paper's noise", "both studies"
    )
    result.fit = None if found.noise is None else "within" if low <= 0 <= high else "outside"
    result.p_values = {name: float(getattr(tested, name)) for name in QUESTIONS}
    if len(numbers) == 1:
        del result.p_values["same"], result.p_values["opposite"]
    kind = "prediction interval" if found.noise is not None else "95 % interval"
    interval = f"{kind} {low:+.{digits}f} to {high:+.{digits}f} {words}".strip()
    result.reason = (
        f"Ours minus published {value:+.{digits}f}, {interval}, margin ±{claim.margin:g}. {found.reason}"
    )
    return result


def _reach(
    config: StudyConfig, summary: Summary, claim: Claim, numbers: list[Published], family: int
) -> Reach | None:
    n, measure = numbers[0].n, claim.measure
    if n is None or measure is None or measure.kind not in ("rate", "difference"):
        return None
    plan = Plan(
        rates=tuple(number.value / 100 for number in numbers),
        trained=tuple(arm != "base" for arm in [measure.arm, measure.reference][: len(numbers)]),
        tasks=n,
        margin=claim.margin / 100,
        family=family,
        left_out=sum(entry.split == claim.needs.split for entry in summary.left_out) / n,
    )
    return reach(plan, config.evaluation.trials, len(config.seeds))


def find(
    config: StudyConfig,
    summary: Summary,
    claim: Claim,
    published: list[Published],
    *,
    throughput: Path | None,
    lists: Path,
    facts: Facts | None,
) -> Finding:
    """What this study found on a claim."""
    measure = claim.measure
    if measure is None:
        return not_run(claim.unmeasured or "This pipeline does not measure it yet.")
    obstacle = next(obstacles(config, summary, claim, measure, lists=lists, facts=facts), "")
    if obstacle:
        return not_run(" ".join(filter(None, (obstacle, claim.note))))
    if measure.kind == "throughput":
        return find_throughput(measure, published, throughput)
    if measure.kind == "curve":
        found = find_curve(config, summary, measure, published)
    elif measure.kind == "rate":
        found = _find_rate(summary, claim, measure, published[0])
    else:
        found = _find_difference(summary, claim, measure, published)
    known = (found.reason, _untrained(config, summary, measure), claim.note or "")
    return replace(found, reason=" ".join(filter(None, known)))


def _untrained(config: StudyConfig, summary: Summary, measure: Measure) -> str:
    """Which tasks training did without, in words: no bound is known for what they would have taught."""
    counts = Counter(
        (row.split, row.tasks) for row in summary.left_out if row.split in config.training_splits
    )
    if not counts or arms_of(config, measure) == {"base"}:
        return ""
    parts = [f"{count} of the {tasks} tasks of {split}" for (split, tasks), count in counts.items()]
    return f"Training left out {' and '.join(parts)} (tasks.leave_out)."


def _find_rate(summary: Summary, claim: Claim, measure: Measure, published: Published) -> Finding:
    row = _row(summary, summary.rates, claim, measure)
    if not isinstance(row, RateRow) or row.of_valid is None or published.n is None:
        return not_run(f"There is no result of the arm {measure.arm} on {claim.needs.split}.")
    trained = measure.arm != "base" and not is_released(summary, str(measure.arm))
    shown = row.over_trainings or row.conditional or row.of_valid
    score = None if row.mean_score is None else row.mean_score.value
    common: dict[str, Any] = {"sources": row.sources, "row": row, "mean_score": score}
    stop = _no_estimate(row, shown, trained, common)
    if stop is not None:
        return stop
    unscored = row.expected - row.valid
    words = ""
    if unscored:
        # Episodes without a score could turn out either way: only what holds for both counts.
        words = f"{unscored} of {row.expected} episodes {'has' if unscored == 1 else 'have'} no score"
        if row.left_out:
            words += f", {row.left_out} of them because their tasks are left out (tasks.leave_out)"
        words += (
            f": of all, ours is {100 * row.of_all_low:.1f} to {100 * row.of_all_high:.1f} %; both ends count."
        )
    noise = published_noise([published.value / 100], published.n)
    estimate = _rate_estimate(row, trained)
    ends = (row.of_all_low, row.of_all_high) if unscored else None
    return Finding(
        words, None, shown, replace(estimate, ends=ends), published.value / 100, noise,
        trainings=row.trainings if trained else 0, **common,
    )  # fmt: skip


def _no_estimate(
    row: RateRow | DifferenceRow, shown: Interval, trained: bool, common: dict[str, Any]
) -> Finding | None:
    """A finding without a test: too few trainings, or trainings that do not differ at all."""
    if not trained or row.training_error is not None:
        return None
    if row.trainings < FEWEST_TRAININGS:
        return too_few(shown, row.trainings, **common)
    words = f"All {row.trainings} trainings gave the same: {NO_NOISE}"
    return Finding(words, "inconclusive", shown, trainings=row.trainings, **common)


def _rate_estimate(row: RateRow, trained: bool) -> Estimate:
    """Over trainings; else run-to-run noise where there are repeats (the tasks are the paper's own); else the
    bound for independent tasks, as for the paper."""
    assert row.of_valid is not None
    if trained:
        assert row.over_trainings is not None
        assert row.training_error is not None
        assert row.training_degrees is not None
        method = row.over_trainings.method
        return Estimate(row.over_trainings.value, row.training_error, row.training_degrees, method)
    tasks = row.tasks_valid or row.tasks
    if row.conditional_se and row.valid > tasks:
        return Estimate(row.of_valid.value, row.conditional_se, row.valid - tasks, "run-to-run noise")
    value = row.of_valid.value
    return Estimate(value, published_noise([value], tasks), MANY, "noise of independent tasks")


def _find_difference(summary: Summary, claim: Claim, measure: Measure, published: list[Published]) -> Finding:
    row = _row(summary, summary.differences, claim, measure)
    n = published[0].n
    if not isinstance(row, DifferenceRow) or n is None:
        pair = f"{measure.arm} and {measure.reference}"
        return not_run(f"There is no result of both {pair} on {claim.needs.split}.")
    arms = [arm for arm in (str(measure.arm), str(measure.reference)) if arm != "base"]
    trained = not all(is_released(summary, arm) for arm in arms)
    shown = row.over_trainings or row.difference
    common: dict[str, Any] = {"sources": row.sources, "row": row}
    stop = _no_estimate(row, shown, trained, common)
    if stop is not None:
        return stop
    if row.dropped:
        count = len(row.dropped)
        words = f"{count} {'task has' if count == 1 else 'tasks have'} no valid episode on one side."
        return Finding(words, "inconclusive", shown, trainings=row.trainings, **common)
    if trained:
        assert row.training_error is not None
        assert row.training_degrees is not None
        error, degrees, method = row.training_error, row.training_degrees, f"paired, {shown.method}"
    else:
        error = row.conditional_se or row.standard_error or 0.0
        if not error:
            return Finding(NO_NOISE, "inconclusive", shown, **common)
        degrees = 2.0 * row.tasks if row.conditional_se else row.tasks - 1.0
        method = "paired by task"
    out = sum(entry.split == row.split for entry in summary.left_out)
    share = row.tasks / (row.tasks + out)
    ends, words = None, "The paper's two rates count as unpaired: it gives no per-task results."
    if out:
        # Each of these tasks could have been lost or gained.
        ends = (shown.value * share - (1 - share), shown.value * share + (1 - share))
        words = (
            f"{out} of {row.tasks + out} tasks {'is' if out == 1 else 'are'} left out (tasks.leave_out): "
            f"of all, ours is {100 * ends[0]:+.1f} to {100 * ends[1]:+.1f} points; both ends count. {words}"
        )
    rates = [number.value / 100 for number in published]
    return Finding(
        words, None, shown, Estimate(shown.value, error, degrees, method, ends),
        rates[0] - rates[1], published_noise(rates, n), trainings=row.trainings if trained else 0, **common,
    )  # fmt: skip


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


def _own(config: StudyConfig, summary: Summary, used: list[Any]) -> list[OwnMeasurement]:
    """What was measured and answers no claim."""
    mark = mark_of(config, summary)
    taken = {id(row) for row in used}
    notes = {(effect.arm, effect.reference): no_test(effect) for effect in summary.replay_effects}
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
                note=notes.get((row.arm, reference or ""), ""),
                sources=row.sources,
            )
        )
    stage = config.training.stages[-1]
    for effect in summary.replay_effects:
        if effect.area is not None:
            found.append(
                OwnMeasurement(
                    mark=f"{mark}, rollouts of the trainings",
                    what=f"area under the training curve, {effect.arm} minus {effect.reference}",
                    arm=effect.arm,
                    reference=effect.reference,
                    stage=stage.name,
                    seed=None,
                    split=stage.split,
                    protocol="hard",
                    tasks=split_size(config, stage.split),
                    measured=effect.area,
                    note=no_test(effect),
                    sources=sorted(
                        c.source for c in summary.curves if c.arm in (effect.arm, effect.reference)
                    ),
                )
            )
    return found
