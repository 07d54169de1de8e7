"""The paper's claims against the study: ``claims.json``.

A claim is compared only with results of the size, desktops, model, tasks, recipe, training and step limit
that it is about (``obstacles``). Everything else is "not run", with the first difference: a nano study or a
container's result never stands beside a number of the paper, nor does a training that did something else.
Invented results are judged, so that the page can be looked at, and carry their mark everywhere.

The training is the unit: an arm that is trained is judged by its trainings, five or more; with fewer there
is a number and no verdict. The paper shows one learning curve each, read off a plot, so its noise can be
neither known nor bounded: a curve counts as contradicted only where ours is shown to differ by more than the
margin.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from arpo_replica.base.errors import UserError
from arpo_replica.base.files import file_sha256
from arpo_replica.config.load import load_yaml
from arpo_replica.config.models import RELEASED_STAGE, StudyConfig
from arpo_replica.evaluation import records as r
from arpo_replica.evaluation import statistics as st
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
from arpo_replica.evaluation.power import ClaimPlan, reach
from arpo_replica.evaluation.published import (
    Claim,
    CurveRole,
    Measure,
    PaperFiles,
    Published,
    load_claims,
    load_contradictions,
)
from arpo_replica.training.parity import Hyperparameters, actual

SIDES = ("arm", "reference")
QUESTIONS = ("same", "opposite", "outside", "equal")
Family = tuple[str, str, str]
"""Target, kind of measure, model: the claims whose p-values are adjusted together."""


def compare_claims(
    config: StudyConfig, summary: Path, paper: PaperFiles, out_json: Path, throughput: Path | None = None
) -> r.Claims:
    """Write ``claims.json``: every claim of the paper with its verdict.

    ``throughput`` is what ``measure_throughput`` wrote, if it did. Raises ``UserError`` for a file that is
    not in order, e.g. a claim that names an unknown number.
    """
    result = compare(config, r.Summary.model_validate_json(summary.read_bytes()), paper, throughput)
    files = (summary, paper.claims, paper.published, paper.contradictions, paper.hyperparameters, throughput)
    result.inputs = [r.input_file(path) for path in files if path is not None]
    r.write_document(result, out_json)
    return result


def compare(
    config: StudyConfig, summary: r.Summary, paper: PaperFiles, throughput: Path | None = None
) -> r.Claims:
    """The same from a summary, without writing."""
    claims, published = load_claims(paper.claims, paper.published)
    for claim in claims:
        if claim.measure is not None:
            parts = {name: config.in_part(getattr(claim.measure, name) or "") or None for name in SIDES}
            claim.measure = claim.measure.model_copy(update=parts)
    contradictions = load_contradictions(paper.contradictions, published) if paper.contradictions else []
    resolved = config.model_dump(mode="json")
    for entry in contradictions:
        entry.value = None if entry.key is None else lookup(resolved, entry.key)
    facts = None
    if paper.hyperparameters is not None:
        facts = Hyperparameters.model_validate(load_yaml(paper.hyperparameters.read_text("utf-8")))
    numbers = {claim.id: [published[name] for name in claim.published] for claim in claims}
    findings = {
        claim.id: find(
            config, summary, claim, numbers[claim.id], throughput=throughput, lists=paper.lists, facts=facts
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
    return r.Claims(
        study=config.name,
        size=config.size,
        claims=results,
        inputs=[],
        mark=mark_of(config, summary),
        contradictions=contradictions,
        counts=dict(sorted(Counter(result.verdict for result in results).items())),
    )


def family_of(claim: Claim) -> Family:
    """Claims about one table or figure, of one kind and one model, are one family of tests."""
    kind = claim.measure.kind if claim.measure else ""
    return str(claim.target), kind, str(claim.needs.model)


def mark_of(config: StudyConfig, summary: r.Summary) -> str:
    """Size, model, desktops in words: what every number of this study carries."""
    desktops = ", ".join(summary.desktops) or config.desktop.kind
    model = "" if config.policy.model == "nano" else f" ({Path(config.policy.model).name})"
    invented = "synthetic: invented, not measured; " if summary.synthetic else ""
    return f"{invented}{config.size}{model}, {desktops} desktops, at most {config.policy.max_steps} steps"


def _adjusted(claims: Sequence[Claim], findings: dict[str, ClaimFinding]) -> dict[str, Tests]:
    """Claim -> p-values, each question adjusted by Holm over the family.

    The family is fixed beforehand: a claim that this study did not test counts with p = 1, so that no verdict
    depends on which others were left out.
    """
    members: dict[Family, dict[str, Tests]] = {}
    for claim in claims:
        found = findings[claim.id]
        raw = Tests(1.0, 1.0, 1.0, 1.0)
        if found.estimate is not None:
            margin = claim.margin / (100 if found.noise is not None else 1)
            raw = tests(found.estimate, found.published, found.noise, margin)
        members.setdefault(family_of(claim), {})[claim.id] = raw
    adjusted: dict[str, Tests] = {}
    for family in members.values():
        questions = (st.holm([float(getattr(raw, name)) for raw in family.values()]) for name in QUESTIONS)
        adjusted |= {
            name: Tests(*row) for name, row in zip(family, zip(*questions, strict=True), strict=True)
        }
    return adjusted


def _result(
    claim: Claim, numbers: list[Published], found: ClaimFinding, tested: Tests | None
) -> r.ClaimResult:
    result = r.ClaimResult(
        id=claim.id,
        statement=claim.statement,
        published=[number.model_dump(mode="json") for number in numbers],
        margin=claim.margin,
        needs=claim.needs.words(claim.measure) if claim.measure else "",
        measured=found.measured,
        verdict=found.verdict or "inconclusive",
        reason=found.reason,
        target=claim.target,
        effort=claim.effort(),
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
    result.gap = r.Interval(
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
    config: StudyConfig, summary: r.Summary, claim: Claim, numbers: list[Published], family: int
) -> r.Reach | None:
    n, measure = numbers[0].n, claim.measure
    if n is None or measure is None or measure.kind not in ("rate", "difference"):
        return None
    plan = ClaimPlan(
        rates=tuple(number.value / 100 for number in numbers),
        trained=tuple(
            arm not in config.given_arms for arm in [measure.arm, measure.reference][: len(numbers)]
        ),
        tasks=n,
        margin=claim.margin / 100,
        family=family,
        left_out=sum(entry.split == claim.needs.split for entry in summary.left_out) / n,
    )
    return reach(plan, config.evaluation.trials, len(config.seeds))


# --- which studies may speak about a claim ----------------------------------------------------------------

NO_NOISE = "no noise was seen, which is not the same as no noise."


@dataclass(frozen=True)
class ClaimFinding:
    """A result on a claim. Without ``estimate`` the verdict is already known, else it is made of it."""

    reason: str
    verdict: r.Verdict | None = None
    measured: r.Interval | None = None
    estimate: Estimate | None = None
    published: float = 0.0
    """The printed value, or first minus second, in the estimate's unit."""
    noise: float | None = None
    """Bound of its noise; None: unknown."""
    trainings: int = 0
    mean_score: float | None = None
    sources: list[str] = field(default_factory=list)


def not_run(reason: str) -> ClaimFinding:
    """No result at all, and why."""
    return ClaimFinding(reason, "not run")


def too_few(
    measured: r.Interval, trainings: int, sources: list[str], more: str = "", **other: Any
) -> ClaimFinding:
    """A number without a verdict: how much trainings differ cannot be seen."""
    count = trainings_words(trainings)
    words = f"{count}: it takes {st.FEWEST_TRAININGS} to see how much trainings differ. {more}"
    return ClaimFinding(
        words.strip(), "too few trainings", measured, trainings=trainings, sources=sources, **other
    )


def trainings_words(count: int) -> str:
    """``One training (n = 1)``, ``3 trainings (n = 3)``."""
    return f"{'One training' if count == 1 else f'{count} trainings'} (n = {count})"


def obstacles(
    config: StudyConfig,
    summary: r.Summary,
    claim: Claim,
    measure: Measure,
    *,
    lists: Sequence[Path],
    facts: Hyperparameters | None,
) -> Iterator[str]:
    """Why this study cannot speak about the claim, the size mark first; nothing if it can.

    ``lists``: the committed lists of tasks; ``facts``: the recipes' values.
    """
    needs = claim.needs
    if config.size != needs.size:
        yield f"This study has the size mark “{config.size}”; the claim is about {needs.size}."
    for name in [config.desktop.kind, *summary.desktops]:
        if name != needs.desktop:
            yield f"This study's desktops are “{name}”; the claim is about {needs.desktop}."
    folder = Path(config.policy.model)
    if needs.model and not any(part.endswith(needs.model) for part in folder.parts):
        yield f"This study's policy.model is “{folder.name}”; the claim is about {needs.model}."
    if config.policy.max_steps != needs.max_steps:
        yield f"This study allows {config.policy.max_steps} steps; the claim is about {needs.max_steps}."
    if measure.kind in ("rate", "difference"):
        yield from _split_obstacles(config, summary, claim, lists)
    if measure.kind != "throughput":
        yield from _arm_obstacles(config, summary, claim, measure, facts)


def _arm_obstacles(
    config: StudyConfig, summary: r.Summary, claim: Claim, measure: Measure, facts: Hyperparameters | None
) -> Iterator[str]:
    """What the claim's arms are and did."""
    needs = claim.needs
    for key, allowed in needs.settings.items():
        if (value := lookup(config, key)) not in allowed:
            yield f"This study has {key} = {value}; the claim is about {' or '.join(map(str, allowed))}."
    arms = sorted(arms_of(config, measure))
    for arm in arms:
        if arm not in config.arms:
            yield f"This study has no arm {arm}."
            return
    released = {arm for arm in arms if arm != "base" and is_released(config, summary, arm)}
    for arm in sorted(released):
        if "released" not in needs.weights or measure.kind == "curve":
            yield f"The weights of {arm} were not trained here; the claim is about a training."
        folder = Path(config.of_arm(arm).policy.model)
        theirs = needs.released.get(arm.removesuffix(f"_{RELEASED_STAGE}"))
        if arm in config.released_arms and theirs and not any(part.endswith(theirs) for part in folder.parts):
            yield f"The weights of {arm} are “{folder.name}”; the claim is about {theirs}."
    trained = [arm for arm in arms if arm in config.online_arms and arm not in released]
    if trained and needs.trained_on and config.last_split != needs.trained_on:
        yield (
            f"This study's training ends on {config.last_split}; the claim is about training on "
            f"{needs.trained_on}."
        )
    if facts is not None and needs.recipe:
        for arm in dict.fromkeys([*trained, "base"]):
            yield from _recipe_obstacles(config, claim, arm, facts)
    for arm in trained:
        yield from _training_obstacles(config, summary, arm)


def _split_obstacles(
    config: StudyConfig, summary: r.Summary, claim: Claim, lists: Sequence[Path]
) -> Iterator[str]:
    needs = claim.needs
    committed = next((path for path in lists if path.stem == needs.split), None)
    facts = summary.splits.get(needs.split)
    if needs.split not in config.evaluation.splits or facts is None:
        yield f"The split {needs.split} is not evaluated in this study."
    elif needs.tasks is not None and facts.tasks != needs.tasks:
        yield f"The split {needs.split} has {facts.tasks} tasks here; the claim is about {needs.tasks}."
    elif committed is not None and file_sha256(committed) != facts.list_sha256:
        yield f"This study's list of {needs.split} is not the committed {committed.name}."


def _recipe_obstacles(config: StudyConfig, claim: Claim, arm: str, facts: Hyperparameters) -> Iterator[str]:
    """The first value by which an arm is no arm of the nearest recipe that the claim allows."""
    found = [
        list(_differences(config, claim.needs.differs, arm, recipe, facts)) for recipe in claim.needs.recipe
    ]
    nearest = min(found, key=len)
    if nearest:
        yield nearest[0]


def _differences(
    config: StudyConfig, differs: Mapping[str, Any], arm: str, recipe: str, facts: Hyperparameters
) -> Iterator[str]:
    for row in facts.rows:
        if row.key is None or not row.claims:
            continue
        replay = row.key.startswith("training.replay.")
        # An arm without training has what it sees and says alone; one without replay has no settings of it.
        if (arm == "base" and row.key.startswith("training.")) or (
            replay and arm != "arpo" and row.key != "training.replay.enabled"
        ):
            continue
        expected = row.expected(recipe)
        if row.key == "training.replay.enabled":
            expected = arm == "arpo"
        if row.key in differs:
            if differs[row.key] is None:
                continue
            expected = differs[row.key]
        value = actual(row, config, arm)
        if value != expected:
            whose = "This study" if arm == "base" else f"The arm {arm}"
            theirs = f"the recipe {recipe} has {_shown(expected)}"
            yield f"{whose} has {row.key} = {_shown(value)}; {theirs} ({row.name})."


def _training_obstacles(config: StudyConfig, summary: r.Summary, arm: str) -> Iterator[str]:
    """Every training of the arm must have ended, passed its gates and, for replay, rescued something."""
    stage = config.training.stages[-1]
    for seed in config.seeds:
        place = (arm, seed, stage.name)
        name = f"The training of {arm}, seed {seed}, stage {stage.name},"
        steps = [len(c.points) for c in summary.curves if (c.arm, c.seed, c.stage) == place]
        if not steps or steps[0] < stage.steps:
            yield f"{name} has {steps[0] if steps else 0} of {stage.steps} updates on record."
        reports = [r for r in summary.gates if (r.arm, r.seed, r.stage) == place]
        if not reports or not reports[0].passed:
            yield f"{name} {'did not pass its gates' if reports else 'has no report of its gates'}."
        if config.recipe(arm).replay.enabled:
            fired = [r.fired for r in summary.replay if (r.arm, r.seed, r.stage) == place]
            if not fired or not fired[0]:
                yield f"{name} never used replay: no group was rescued, so it is a training without."


def arms_of(config: StudyConfig, measure: Measure) -> set[str]:
    """The arms that a measure names, those of `targets` included."""
    named = [getattr(config.targets, role) for role in (measure.role, measure.reference_role) if role]
    return measure.arms() | {curve.arm for curve in named if curve is not None}


def is_released(config: StudyConfig, summary: r.Summary, arm: str) -> bool:
    """Whether the arm's weights were given, not trained here: by the config, or their manifests name no
    parent."""
    if arm in config.released_arms:
        return True
    models = [model for model in summary.models if model.arm == arm]
    return bool(models) and all(model.parent is None for model in models)


def lookup(config: Any, dotted: str) -> Any:
    """The value of a key like ``evaluation.temperature``, of a model or of its dump."""
    for part in dotted.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


def _shown(value: Any) -> str:
    return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)


# --- what the study found ---------------------------------------------------------------------------------


def find(
    config: StudyConfig,
    summary: r.Summary,
    claim: Claim,
    published: list[Published],
    *,
    throughput: Path | None,
    lists: Sequence[Path],
    facts: Hyperparameters | None,
) -> ClaimFinding:
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
        found = _find_rate(config, summary, claim, measure, published[0])
    else:
        found = _find_difference(config, summary, claim, measure, published)
    known = (found.reason, _untrained(config, summary, measure), claim.note or "")
    return replace(found, reason=" ".join(filter(None, known)))


def _untrained(config: StudyConfig, summary: r.Summary, measure: Measure) -> str:
    """Which tasks training did without, in words: no bound is known for what they would have taught."""
    counts = Counter(
        (row.split, row.tasks) for row in summary.left_out if row.split in config.training_splits
    )
    if not counts or arms_of(config, measure) == {"base"}:
        return ""
    parts = [f"{count} of the {tasks} tasks of {split}" for (split, tasks), count in counts.items()]
    return f"Training left out {' and '.join(parts)} (tasks.leave_out)."


def _find_rate(
    config: StudyConfig, summary: r.Summary, claim: Claim, measure: Measure, published: Published
) -> ClaimFinding:
    row = _row(summary, summary.rates, claim, measure)
    if not isinstance(row, r.RateRow) or row.of_valid is None or published.n is None:
        return not_run(f"There is no result of the arm {measure.arm} on {claim.needs.split}.")
    trained = measure.arm != "base" and not is_released(config, summary, str(measure.arm))
    shown = row.over_trainings or row.conditional or row.of_valid
    score = None if row.mean_score is None else row.mean_score.value
    common: dict[str, Any] = {"sources": row.sources, "mean_score": score}
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
    return ClaimFinding(
        words, None, shown, replace(estimate, ends=ends), published.value / 100, noise,
        trainings=row.trainings if trained else 0, **common,
    )  # fmt: skip


def _no_estimate(
    row: r.RateRow | r.DifferenceRow, shown: r.Interval, trained: bool, common: dict[str, Any]
) -> ClaimFinding | None:
    """A finding without a test: too few trainings, or trainings that do not differ at all."""
    if not trained or row.training_error is not None:
        return None
    if row.trainings < st.FEWEST_TRAININGS:
        return too_few(shown, row.trainings, **common)
    words = f"All {row.trainings} trainings gave the same: {NO_NOISE}"
    return ClaimFinding(words, "inconclusive", shown, trainings=row.trainings, **common)


def _rate_estimate(row: r.RateRow, trained: bool) -> Estimate:
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


def _find_difference(
    config: StudyConfig, summary: r.Summary, claim: Claim, measure: Measure, published: list[Published]
) -> ClaimFinding:
    row = _row(summary, summary.differences, claim, measure)
    n = published[0].n
    if not isinstance(row, r.DifferenceRow) or n is None:
        pair = f"{measure.arm} and {measure.reference}"
        return not_run(f"There is no result of both {pair} on {claim.needs.split}.")
    arms = [arm for arm in (str(measure.arm), str(measure.reference)) if arm != "base"]
    trained = not all(is_released(config, summary, arm) for arm in arms)
    shown = row.over_trainings or row.difference
    common: dict[str, Any] = {"sources": row.sources}
    stop = _no_estimate(row, shown, trained, common)
    if stop is not None:
        return stop
    if row.dropped:
        count = len(row.dropped)
        words = f"{count} {'task has' if count == 1 else 'tasks have'} no valid episode on one side."
        return ClaimFinding(words, "inconclusive", shown, trainings=row.trainings, **common)
    if trained:
        assert row.training_error is not None
        assert row.training_degrees is not None
        error, degrees, method = row.training_error, row.training_degrees, f"paired, {shown.method}"
    else:
        error = row.conditional_se or row.standard_error or 0.0
        if not error:
            return ClaimFinding(NO_NOISE, "inconclusive", shown, **common)
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
    return ClaimFinding(
        words, None, shown, Estimate(shown.value, error, degrees, method, ends),
        rates[0] - rates[1], published_noise(rates, n), trainings=row.trainings if trained else 0, **common,
    )  # fmt: skip


def _row(
    summary: r.Summary, rows: Sequence[r.RateRow] | Sequence[r.DifferenceRow], claim: Claim, measure: Measure
) -> r.RateRow | r.DifferenceRow | None:
    """The row of a claim: all seeds together, the last stage."""
    found = [
        row
        for row in rows
        if (row.arm, row.split, row.protocol) == (measure.arm, claim.needs.split, measure.protocol)
        and (isinstance(row, r.RateRow) or row.reference == measure.reference)
    ]
    pooled = [row for row in found if row.seed is None] or found
    return pooled[-1] if pooled else None


# --- curves and throughput --------------------------------------------------------------------------------

SPAN = 2.0
"""From the lowest reward of a trajectory (no success, unparsable, full format weight) to the highest."""


def find_curve(
    config: StudyConfig, summary: r.Summary, measure: Measure, published: list[Published]
) -> ClaimFinding:
    """The mean of a metric over the first or last updates, one value per training."""
    pair = measure.reference is not None or measure.reference_role is not None
    try:
        ours = _per_seed(config, summary, measure, measure.arm, measure.role)
        reference = str(measure.reference) if pair else None
        other = _per_seed(config, summary, measure, reference, measure.reference_role) if pair else {}
    except UserError as missing:
        return not_run(str(missing))
    seeds = sorted(set(ours) & set(other)) if pair else sorted(ours)
    values = [ours[seed][0] - (other[seed][0] if pair else 0.0) for seed in seeds]
    if not values:
        return not_run("There is no training curve of what the claim is about.")
    sources = sorted({path for side in (ours, other) for seed, (_, path) in side.items() if seed in seeds})
    mean, known = statistics.fmean(values), "The paper shows one curve; its noise is unknown."
    found = st.over_trainings(values)
    if found is None:
        shown = r.Interval(mean, mean, mean, "no interval", "training seeds")
        if len(values) < st.FEWEST_TRAININGS:
            return too_few(shown, len(values), sources, known)
        words = f"Each of {len(values)} trainings gave {mean:.3f}: {NO_NOISE}"
        return ClaimFinding(words, "inconclusive", shown, trainings=len(values), sources=sources)
    target = published[0].value - (published[1].value if pair else 0.0)
    roles = [measure.role, *([measure.reference_role] if pair else [])]
    shift = SPAN * sum(_left_out(config, summary, role) for role in roles)
    left = f" Tasks that are left out could move it by {shift:.3f}; the verdict counts that." if shift else ""
    estimate = Estimate(
        mean,
        found.error,
        found.degrees,
        found.interval.method,
        (mean - shift, mean + shift) if shift else None,
    )
    return ClaimFinding(
        known + left, None, found.interval, estimate, target, trainings=len(values), sources=sources
    )  # fmt: skip


def _left_out(config: StudyConfig, summary: r.Summary, role: CurveRole | None) -> float:
    """Share of the tasks of a curve's stage that its training did without."""
    named = None if role is None else getattr(config.targets, role)
    split = (config.training.stages[-1] if named is None else config.stage(named.stage)).split
    rows = [row for row in summary.left_out if row.split == split]
    return len(rows) / rows[0].tasks if rows else 0.0


def _per_seed(
    config: StudyConfig, summary: r.Summary, measure: Measure, arm: str | None, role: CurveRole | None
) -> dict[int, tuple[float, str]]:
    """Seed -> (mean of the metric, metrics file). Raises ``UserError`` if the config names no such curve."""
    stage = config.training.stages[-1].name
    if role is not None:
        named = getattr(config.targets, role)
        if named is None:
            raise UserError(f"The config has no targets.{role}.")
        arm, stage = named.arm, named.stage
    found = {}
    for curve in summary.curves:
        if (curve.arm, curve.stage) == (arm, stage):
            values = _values(curve, str(measure.metric))
            part = values[: measure.last] if measure.place == "start" else values[-measure.last :]
            if part:
                found[curve.seed] = (statistics.fmean(part), curve.source)
    return found


def _values(curve: r.Curve, metric: str) -> list[float]:
    known = [getattr(point, metric, None) if metric in type(point).model_fields else point.other.get(metric)
             for point in curve.points]  # fmt: skip
    return [float(value) for value in known if value is not None]


def find_throughput(measure: Measure, published: list[Published], throughput: Path | None) -> ClaimFinding:
    """Hours of rollouts per 1,024 trajectories with so many desktops; other hardware, so never judged."""
    if throughput is None or not throughput.is_file():
        return not_run("The throughput was not measured in this study (`snakemake fig7`).")
    points = {row["desktops"]: row for row in json.loads(throughput.read_bytes())["points"]}
    counts = [measure.environments, measure.reference] if measure.reference else [measure.environments]
    missing = [str(count) for count in counts if count not in points]
    if missing:
        return not_run(f"targets.environments of this study lacks {' and '.join(missing)}.")
    values = [float(points[count]["hours_per_epoch"]) for count in counts]
    value = values[0] - (values[1] if len(values) > 1 else 0.0)
    target = published[0].value - (published[1].value if len(published) > 1 else 0.0)
    measured = r.Interval(value, value, value, "one measurement, no interval")
    words = (
        f"Ours is {value:.2f} h, published {target:.2f} h, on other hardware and from one measurement each."
    )
    return ClaimFinding(words, "inconclusive", measured, sources=[throughput.as_posix()])
