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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from arpo_replica.base.files import file_sha256, write_document
from arpo_replica.base.tables import load_yaml
from arpo_replica.config.models import RELEASED_STAGE, StudyConfig
from arpo_replica.evaluation import comparison as c
from arpo_replica.evaluation import published as p
from arpo_replica.evaluation import records as r
from arpo_replica.evaluation import statistics as st
from arpo_replica.evaluation.power import ClaimPlan, reach
from arpo_replica.training.parity import Hyperparameters, actual

QUESTIONS = ("same", "opposite", "outside", "equal")
NO_NOISE = "no noise was seen, which is not the same as no noise."
SPAN = 2.0
"""From the lowest reward of a trajectory (no success, unparsable, full format weight) to the highest."""
Family = tuple[str, str, str]
"""Target, kind of measure, model: the claims whose p-values are adjusted together."""
Row = TypeVar("Row", r.RateRow, r.DifferenceRow)


def compare_claims(
    config: StudyConfig, summary: Path, paper: p.PaperFiles, out_json: Path, throughput: Path | None = None
) -> r.Claims:
    """Write ``claims.json``: every claim of the paper with its verdict.

    ``throughput`` is what ``measure_throughput`` wrote, if it did. Raises ``UserError`` for a file that is
    not in order, e.g. a claim that names an unknown number.
    """
    result = compare(config, r.Summary.model_validate_json(summary.read_bytes()), paper, throughput)
    files = (summary, paper.claims, paper.published, paper.contradictions, paper.hyperparameters, throughput)
    result.inputs = [r.input_file(path) for path in files if path is not None]
    write_document(result, out_json)
    return result


def compare(
    config: StudyConfig, summary: r.Summary, paper: p.PaperFiles, throughput: Path | None = None
) -> r.Claims:
    """The same from a summary, without writing."""
    claims, published = p.load_claims(paper.claims, paper.published)
    contradictions = p.load_contradictions(paper.contradictions, published) if paper.contradictions else []
    resolved = config.model_dump(mode="json")
    for entry in contradictions:
        entry.value = None if entry.key is None else lookup(resolved, entry.key)
    facts = None
    if paper.hyperparameters is not None:
        facts = Hyperparameters.model_validate(load_yaml(paper.hyperparameters.read_text("utf-8")))
    numbers = {claim.id: [published[name] for name in claim.published] for claim in claims}
    findings = {}
    for claim in claims:
        if claim.measure is None:
            words = claim.unmeasured or "This pipeline does not measure it yet."
            findings[claim.id] = ClaimFinding(words, "not run")
            continue
        parts = {
            name: config.in_part(getattr(claim.measure, name) or "") or None for name in ("arm", "reference")
        }
        claim.measure = claim.measure.model_copy(update=parts)
        asked = Question(
            config, summary, claim, claim.measure, numbers[claim.id], paper.lists, facts, throughput
        )
        findings[claim.id] = asked.find()
    adjusted = _adjusted(claims, findings)
    families = Counter(family_of(claim) for claim in claims if claim.measure)
    results = []
    for claim in claims:
        result = _result(claim, numbers[claim.id], findings[claim.id], adjusted[claim.id])
        result.contradictions = [
            entry.id
            for entry in contradictions
            if any(name in side.results for side in entry.sides for name in claim.published)
        ]
        result.reach = _reach(config, summary, claim, numbers[claim.id], families[family_of(claim)])
        results.append(result)
    return r.Claims(
        study=config.name,
        size=config.size,
        claims=results,
        inputs=[],
        mark=mark_of(config, summary),
        contradictions=contradictions,
        counts=dict(sorted(Counter(result.verdict for result in results).items())),
    )


def family_of(claim: p.Claim) -> Family:
    """Claims about one table or figure, of one kind and one model, are one family of tests."""
    kind = claim.measure.kind if claim.measure else ""
    return str(claim.target), kind, str(claim.needs.model)


def mark_of(config: StudyConfig, summary: r.Summary) -> str:
    """Size, model, desktops in words: what every number of this study carries."""
    desktops = ", ".join(summary.desktops) or config.desktop.kind
    model = "" if config.policy.model == "nano" else f" ({Path(config.policy.model).name})"
    invented = "synthetic: invented, not measured; " if summary.synthetic else ""
    return f"{invented}{config.size}{model}, {desktops} desktops, at most {config.policy.max_steps} steps"


def _adjusted(claims: Sequence[p.Claim], findings: dict[str, ClaimFinding]) -> dict[str, c.Tests]:
    """Claim -> p-values, each question adjusted by Holm over the family.

    The family is fixed beforehand: a claim that this study did not test counts with p = 1, so that no verdict
    depends on which others were left out.
    """
    members: dict[Family, dict[str, c.Tests]] = {}
    for claim in claims:
        found = findings[claim.id]
        raw = c.Tests(1.0, 1.0, 1.0, 1.0)
        if found.estimate is not None:
            raw = c.tests(found.estimate, found.published, found.noise, claim.margin / found.scale)
        members.setdefault(family_of(claim), {})[claim.id] = raw
    adjusted: dict[str, c.Tests] = {}
    for family in members.values():
        questions = (st.holm([float(getattr(raw, name)) for raw in family.values()]) for name in QUESTIONS)
        rows = zip(*questions, strict=True)
        adjusted |= {name: c.Tests(*row) for name, row in zip(family, rows, strict=True)}
    return adjusted


def _result(
    claim: p.Claim, numbers: list[p.Published], found: ClaimFinding, tested: c.Tests
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
    if found.estimate is None:
        return result
    scale, known = found.scale, found.noise is not None
    ends = c.prediction(found.estimate, found.published, found.noise or 0.0)
    value, low, high = (scale * end for end in ends)
    words, digits = ("points", 1) if known else ("", 3)
    result.verdict = c.answer(
        tested, len(numbers) == 2, known and (high - low) / 2 <= c.WIDEST * claim.margin
    )
    method = f"{found.estimate.method}; bound of the paper's noise"
    result.gap = r.Interval(value, low, high, method, "both studies")
    result.fit = ("within" if low <= 0 <= high else "outside") if known else None
    asked = QUESTIONS if len(numbers) == 2 else QUESTIONS[2:]
    result.p_values = {name: float(getattr(tested, name)) for name in asked}
    kind = "prediction interval" if known else "95 % interval"
    interval = f"{kind} {low:+.{digits}f} to {high:+.{digits}f} {words}".strip()
    result.reason = (
        f"Ours minus published {value:+.{digits}f}, {interval}, margin ±{claim.margin:g}. {found.reason}"
    )
    return result


def _reach(
    config: StudyConfig, summary: r.Summary, claim: p.Claim, numbers: list[p.Published], family: int
) -> r.Reach | None:
    n, measure = numbers[0].n, claim.measure
    if n is None or measure is None or measure.kind not in ("rate", "difference"):
        return None
    arms = [measure.arm, measure.reference][: len(numbers)]
    plan = ClaimPlan(
        rates=tuple(number.value / 100 for number in numbers),
        trained=tuple(arm not in config.given_arms for arm in arms),
        tasks=n,
        margin=claim.margin / 100,
        family=family,
        left_out=sum(entry.split == claim.needs.split for entry in summary.left_out) / n,
    )
    return reach(plan, config.evaluation.trials, len(config.seeds))


@dataclass(frozen=True)
class ClaimFinding:
    """A result on a claim. Without ``estimate`` the verdict is already known, else it is made of it."""

    reason: str
    verdict: r.Verdict | None = None
    measured: r.Interval | None = None
    estimate: c.Estimate | None = None
    published: float = 0.0
    """The printed value, or first minus second, in the estimate's unit."""
    noise: float | None = None
    """Bound of its noise; None: unknown."""
    trainings: int = 0
    mean_score: float | None = None
    sources: list[str] = field(default_factory=list)

    @property
    def scale(self) -> int:
        """From the estimate's unit to the published one: rates are printed in percent."""
        return 100 if self.noise is not None else 1


def trainings_words(count: int) -> str:
    """``One training (n = 1)``, ``3 trainings (n = 3)``."""
    return f"{'One training' if count == 1 else f'{count} trainings'} (n = {count})"


def lookup(config: Any, dotted: str) -> Any:
    """The value of a key like ``evaluation.temperature``, of a model or of its dump."""
    for part in dotted.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


def _without_noise(
    shown: r.Interval, trainings: int, value: str, more: str = "", **other: Any
) -> ClaimFinding:
    """A number without a test: too few trainings to see how much they differ, or none that differs.

    ``value``: what all of them gave, in words.
    """
    if trainings < st.FEWEST_TRAININGS:
        count = trainings_words(trainings)
        words = f"{count}: it takes {st.FEWEST_TRAININGS} to see how much trainings differ. {more}".strip()
        return ClaimFinding(words, "too few trainings", shown, trainings=trainings, **other)
    return ClaimFinding(f"{value}: {NO_NOISE}", "inconclusive", shown, trainings=trainings, **other)


def _over_trainings(row: r.RateRow | r.DifferenceRow, kind: str = "") -> c.Estimate:
    assert row.over_trainings is not None
    assert row.training_error is not None
    assert row.training_degrees is not None
    method = kind + row.over_trainings.method
    return c.Estimate(row.over_trainings.value, row.training_error, row.training_degrees, method)


def _pooled(rows: Iterable[Row]) -> Row | None:
    """All seeds together, the last stage."""
    found = list(rows)
    pooled = [row for row in found if row.seed is None] or found
    return pooled[-1] if pooled else None


def _minus(values: Sequence[float]) -> float:
    """The only one, or first minus second."""
    return values[0] - sum(values[1:])


def _shown(value: Any) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Question:
    """A claim before the study that shall speak about it."""

    config: StudyConfig
    summary: r.Summary
    claim: p.Claim
    measure: p.Measure
    published: list[p.Published]
    lists: Sequence[Path]
    """The committed lists of tasks."""
    facts: Hyperparameters | None
    """The recipes' values."""
    throughput: Path | None

    def find(self) -> ClaimFinding:
        """What this study found."""
        note = self.claim.note or ""
        if obstacle := next(self.obstacles(), ""):
            return ClaimFinding(f"{obstacle} {note}".strip(), "not run")
        if self.measure.kind == "throughput":
            return self._throughput()
        ask = {"curve": self._curve, "rate": self._rate, "difference": self._difference}[self.measure.kind]
        found = ask()
        return replace(found, reason=" ".join(filter(None, (found.reason, self._untrained(), note))))

    # --- which studies may speak about a claim -----------------------------------------------------------

    def obstacles(self) -> Iterator[str]:
        """Why this study cannot speak about the claim, the size mark first; nothing if it can."""
        config, needs = self.config, self.claim.needs
        if config.size != needs.size:
            yield f"This study has the size mark “{config.size}”; the claim is about {needs.size}."
        for name in [config.desktop.kind, *self.summary.desktops]:
            if name != needs.desktop:
                yield f"This study's desktops are “{name}”; the claim is about {needs.desktop}."
        folder = Path(config.policy.model)
        if needs.model and not any(part.endswith(needs.model) for part in folder.parts):
            yield f"This study's policy.model is “{folder.name}”; the claim is about {needs.model}."
        if config.policy.max_steps != needs.max_steps:
            yield f"This study allows {config.policy.max_steps} steps; the claim is about {needs.max_steps}."
        if self.measure.kind in ("rate", "difference"):
            yield from self._split_obstacles()
        if self.measure.kind != "throughput":
            yield from self._arm_obstacles()

    def _split_obstacles(self) -> Iterator[str]:
        needs = self.claim.needs
        committed = next((path for path in self.lists if path.stem == needs.split), None)
        facts = self.summary.splits.get(needs.split)
        if needs.split not in self.config.evaluation.splits or facts is None:
            yield f"The split {needs.split} is not evaluated in this study."
        elif needs.tasks is not None and facts.tasks != needs.tasks:
            yield f"The split {needs.split} has {facts.tasks} tasks here; the claim is about {needs.tasks}."
        elif committed is not None and file_sha256(committed) != facts.list_sha256:
            yield f"This study's list of {needs.split} is not the committed {committed.name}."

    def _arm_obstacles(self) -> Iterator[str]:
        """What the claim's arms are and did."""
        config, needs = self.config, self.claim.needs
        for key, allowed in needs.settings.items():
            if (value := lookup(config, key)) not in allowed:
                yield f"This study has {key} = {value}; the claim is about {' or '.join(map(str, allowed))}."
        arms = sorted(self._arms())
        for arm in arms:
            if arm not in config.arms:
                yield f"This study has no arm {arm}."
                return
        released = {arm for arm in arms if arm != "base" and self._is_released(arm)}
        for arm in sorted(released):
            if "released" not in needs.weights or self.measure.kind == "curve":
                yield f"The weights of {arm} were not trained here; the claim is about a training."
            folder = Path(config.of_arm(arm).policy.model)
            theirs = needs.released.get(arm.removesuffix(f"_{RELEASED_STAGE}"))
            named = theirs is None or any(part.endswith(theirs) for part in folder.parts)
            if arm in config.released_arms and not named:
                yield f"The weights of {arm} are “{folder.name}”; the claim is about {theirs}."
        trained = [arm for arm in arms if arm in config.online_arms and arm not in released]
        if trained and needs.trained_on and config.last_split != needs.trained_on:
            yield (
                f"This study's training ends on {config.last_split}; the claim is about training on "
                f"{needs.trained_on}."
            )
        if self.facts is not None and needs.recipe:
            for arm in dict.fromkeys([*trained, "base"]):
                # The first value by which the arm is none of the nearest recipe that the claim allows.
                each = [list(self._differences(arm, recipe, self.facts)) for recipe in needs.recipe]
                yield from min(each, key=len)[:1]
        for arm in trained:
            yield from self._training_obstacles(arm)

    def _differences(self, arm: str, recipe: str, facts: Hyperparameters) -> Iterator[str]:
        differs = self.claim.needs.differs
        for row in facts.rows:
            if row.key is None or not row.claims:
                continue
            replay = row.key.startswith("training.replay.")
            # An arm without training has only what it sees and says; one without replay no settings of it.
            if (arm == "base" and row.key.startswith("training.")) or (
                replay and arm != "arpo" and row.key != "training.replay.enabled"
            ):
                continue
            expected = arm == "arpo" if row.key == "training.replay.enabled" else row.expected(recipe)
            expected = differs.get(row.key, expected)
            if row.key in differs and expected is None:
                continue
            value = actual(row, self.config, arm)
            if value != expected:
                whose = "This study" if arm == "base" else f"The arm {arm}"
                theirs = f"the recipe {recipe} has {_shown(expected)}"
                yield f"{whose} has {row.key} = {_shown(value)}; {theirs} ({row.name})."

    def _training_obstacles(self, arm: str) -> Iterator[str]:
        """Every training of the arm must have ended, passed its gates and, for replay, rescued something."""
        summary, stage = self.summary, self.config.training.stages[-1]
        for seed in self.config.seeds:
            place = {"arm": arm, "seed": seed, "stage": stage.name}
            name = f"The training of {arm}, seed {seed}, stage {stage.name},"
            steps = next((len(curve.points) for curve in summary.curves if curve.place == place), 0)
            if steps < stage.steps:
                yield f"{name} has {steps} of {stage.steps} updates on record."
            gates = [g for g in summary.gates if (g.arm, g.seed, g.stage) == (arm, seed, stage.name)]
            if not gates or not gates[0].passed:
                yield f"{name} {'did not pass its gates' if gates else 'has no report of its gates'}."
            fired = next((row.fired for row in summary.replay if row.place == place), 0)
            if self.config.recipe(arm).replay.enabled and not fired:
                yield f"{name} never used replay: no group was rescued, so it is a training without."

    def _arms(self) -> set[str]:
        """The arms that the measure names, those of `targets` included."""
        roles = filter(None, (self.measure.role, self.measure.reference_role))
        named = [getattr(self.config.targets, role) for role in roles]
        return self.measure.arms() | {curve.arm for curve in named if curve is not None}

    def _is_released(self, arm: str) -> bool:
        """Whether the arm's weights were given, not trained here: by the config, or their manifests name no
        parent."""
        if arm in self.config.released_arms:
            return True
        parents = [model.parent for model in self.summary.models if model.arm == arm]
        return bool(parents) and set(parents) == {None}

    # --- what the study found ----------------------------------------------------------------------------

    def _untrained(self) -> str:
        """Which tasks training did without, in words: no bound is known for what they would have taught."""
        splits = self.config.training_splits
        counts = Counter((row.split, row.tasks) for row in self.summary.left_out if row.split in splits)
        if not counts or self._arms() == {"base"}:
            return ""
        parts = [f"{count} of the {tasks} tasks of {split}" for (split, tasks), count in counts.items()]
        return f"Training left out {' and '.join(parts)} (tasks.leave_out)."

    def _here(self, row: r.RateRow | r.DifferenceRow) -> bool:
        measure = self.measure
        return (row.arm, row.split, row.protocol) == (measure.arm, self.claim.needs.split, measure.protocol)

    def _rate(self) -> ClaimFinding:
        arm, published = str(self.measure.arm), self.published[0]
        row = _pooled(filter(self._here, self.summary.rates))
        if row is None or row.of_valid is None or published.n is None:
            return ClaimFinding(
                f"There is no result of the arm {arm} on {self.claim.needs.split}.", "not run"
            )
        trained = arm != "base" and not self._is_released(arm)
        shown = row.over_trainings or row.conditional or row.of_valid
        score = None if row.mean_score is None else row.mean_score.value
        common: dict[str, Any] = {"sources": row.sources, "mean_score": score}
        if trained and row.training_error is None:
            return _without_noise(
                shown, row.trainings, f"All {row.trainings} trainings gave the same", **common
            )
        unscored = row.expected - row.valid
        words, ends = "", None
        if unscored:
            # Episodes without a score could turn out either way: only what holds for both counts.
            ends = (row.of_all_low, row.of_all_high)
            words = f"{unscored} of {row.expected} episodes {'has' if unscored == 1 else 'have'} no score"
            if row.left_out:
                words += f", {row.left_out} of them because their tasks are left out (tasks.leave_out)"
            words += f": of all, ours is {100 * ends[0]:.1f} to {100 * ends[1]:.1f} %; both ends count."
        value, tasks = row.of_valid.value, row.tasks_valid or row.tasks
        if trained:
            estimate = _over_trainings(row)
        elif row.conditional_se and row.valid > tasks:
            # Run-to-run noise where there are repeats: the tasks are the paper's own.
            estimate = c.Estimate(value, row.conditional_se, row.valid - tasks, "run-to-run noise")
        else:
            bound = c.published_noise([value], tasks)  # as for the paper
            estimate = c.Estimate(value, bound, c.MANY, "noise of independent tasks")
        printed = published.value / 100
        noise = c.published_noise([printed], published.n)
        return ClaimFinding(
            words, None, shown, replace(estimate, ends=ends), printed, noise,
            trainings=row.trainings if trained else 0, **common,
        )  # fmt: skip

    def _difference(self) -> ClaimFinding:
        reference, n = str(self.measure.reference), self.published[0].n
        rows = (row for row in self.summary.differences if row.reference == self.measure.reference)
        row = _pooled(filter(self._here, rows))
        if row is None or n is None:
            pair = f"{self.measure.arm} and {reference}"
            return ClaimFinding(f"There is no result of both {pair} on {self.claim.needs.split}.", "not run")
        arms = [arm for arm in (str(self.measure.arm), reference) if arm != "base"]
        trained = not all(map(self._is_released, arms))
        shown = row.over_trainings or row.difference
        common: dict[str, Any] = {"sources": row.sources}
        if trained and row.training_error is None:
            return _without_noise(
                shown, row.trainings, f"All {row.trainings} trainings gave the same", **common
            )
        if count := len(row.dropped):
            words = f"{count} {'task has' if count == 1 else 'tasks have'} no valid episode on one side."
            return ClaimFinding(words, "inconclusive", shown, trainings=row.trainings, **common)
        error = row.conditional_se or row.standard_error
        if trained:
            estimate = _over_trainings(row, "paired, ")
        elif error:
            degrees = 2.0 * row.tasks if row.conditional_se else row.tasks - 1.0
            estimate = c.Estimate(shown.value, error, degrees, "paired by task")
        else:
            return ClaimFinding(NO_NOISE, "inconclusive", shown, **common)
        out = sum(entry.split == row.split for entry in self.summary.left_out)
        words = "The paper's two rates count as unpaired: it gives no per-task results."
        if out:
            # Each of these tasks could have been lost or gained.
            share = row.tasks / (row.tasks + out)
            ends = (shown.value * share - (1 - share), shown.value * share + (1 - share))
            estimate = replace(estimate, ends=ends)
            was = f"{out} of {row.tasks + out} tasks {'is' if out == 1 else 'are'} left out (tasks.leave_out)"
            of_all = f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f} points"
            words = f"{was}: of all, ours is {of_all}; both ends count. {words}"
        rates = [number.value / 100 for number in self.published]
        return ClaimFinding(
            words, None, shown, estimate, _minus(rates), c.published_noise(rates, n),
            trainings=row.trainings if trained else 0, **common,
        )  # fmt: skip

    def _curve(self) -> ClaimFinding:
        """The mean of a metric over the first or last updates, one value per training."""
        measure = self.measure
        sides: list[tuple[str | None, p.CurveRole | None]] = [(measure.arm, measure.role)]
        if measure.reference is not None or measure.reference_role is not None:
            sides.append((str(measure.reference), measure.reference_role))
        for _, role in sides:
            if role is not None and getattr(self.config.targets, role) is None:
                return ClaimFinding(f"The config has no targets.{role}.", "not run")
        each = [self._per_seed(*side) for side in sides]
        seeds = sorted(set.intersection(*map(set, each)))
        values = [_minus([side[seed][0] for side in each]) for seed in seeds]
        if not values:
            return ClaimFinding("There is no training curve of what the claim is about.", "not run")
        sources = sorted({side[seed][1] for side in each for seed in seeds})
        mean, known = statistics.fmean(values), "The paper shows one curve; its noise is unknown."
        found = st.over_trainings(values)
        if found is None:
            shown = r.Interval(mean, mean, mean, "no interval", "training seeds")
            same = f"Each of {len(values)} trainings gave {mean:.3f}"
            return _without_noise(shown, len(values), same, known, sources=sources)
        estimate = c.Estimate(mean, found.error, found.degrees, found.interval.method)
        shift = SPAN * sum(self._left_out(role) for _, role in sides)
        if shift:
            known += f" Tasks that are left out could move it by {shift:.3f}; the verdict counts that."
            estimate = replace(estimate, ends=(mean - shift, mean + shift))
        target = _minus([number.value for number in self.published])
        return ClaimFinding(
            known, None, found.interval, estimate, target, trainings=len(values), sources=sources
        )

    def _left_out(self, role: p.CurveRole | None) -> float:
        """Share of the tasks of a curve's stage that its training did without."""
        named = None if role is None else getattr(self.config.targets, role)
        stage = self.config.training.stages[-1] if named is None else self.config.stage(named.stage)
        rows = [row for row in self.summary.left_out if row.split == stage.split]
        return len(rows) / rows[0].tasks if rows else 0.0

    def _per_seed(self, arm: str | None, role: p.CurveRole | None) -> dict[int, tuple[float, str]]:
        """Seed -> (mean of the metric, metrics file)."""
        measure, stage = self.measure, self.config.training.stages[-1].name
        if role is not None:
            named = getattr(self.config.targets, role)
            arm, stage = named.arm, named.stage
        found = {}
        for curve in self.summary.curves:
            if (curve.arm, curve.stage) == (arm, stage):
                points = (point.other | dict(point) for point in curve.points)
                values = [float(v) for point in points if (v := point.get(str(measure.metric))) is not None]
                part = values[: measure.last] if measure.place == "start" else values[-measure.last :]
                if part:
                    found[curve.seed] = (statistics.fmean(part), curve.source)
        return found

    def _throughput(self) -> ClaimFinding:
        """Hours of rollouts per 1,024 trajectories with so many desktops; other hardware, so never judged."""
        if self.throughput is None or not self.throughput.is_file():
            return ClaimFinding(
                "The throughput was not measured in this study (`snakemake fig7`).", "not run"
            )
        points = {row["desktops"]: row for row in json.loads(self.throughput.read_bytes())["points"]}
        counts = [count for count in (self.measure.environments, self.measure.reference) if count]
        if missing := [str(count) for count in counts if count not in points]:
            words = f"targets.environments of this study lacks {' and '.join(missing)}."
            return ClaimFinding(words, "not run")
        value = _minus([float(points[count]["hours_per_epoch"]) for count in counts])
        target = _minus([number.value for number in self.published])
        measured = r.Interval(value, value, value, "one measurement, no interval")
        both = f"Ours is {value:.2f} h, published {target:.2f} h"
        words = f"{both}, on other hardware and from one measurement each."
        return ClaimFinding(words, "inconclusive", measured, sources=[self.throughput.as_posix()])
