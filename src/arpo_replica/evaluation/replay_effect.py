"""What replay adds, with the training as the unit: pairs of trainings of one seed that differ in it alone.

``training_outcomes`` and ``replay_effects`` are part of every summary. ``analyse`` is the registered analysis
of docs/replay_study.md, to its letter: outcomes, validity gate, numbers of pairs, Holm's family, words.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import special, stats

from arpo_replica.base.errors import UserError
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation import records as r
from arpo_replica.evaluation import statistics as st
from arpo_replica.evaluation.comparison import ALPHA

LAST = 16
"""Updates at the end in which one success says that a training has not collapsed."""
CHANGED_LEAST = 0.08
"""Share of groups that replay must change, averaged over the seeds, for a test of replay."""
EXACT = "Clopper-Pearson over trainings"


def training_outcomes(config: StudyConfig, curves: Sequence[r.Curve]) -> Iterator[r.TrainingOutcome]:
    """What each planned training did, in the config's order; one that was not begun has 0 updates."""
    stages = config.training.stages
    for arm in config.online_arms:
        for seed in config.seeds:
            found = {curve.stage: curve.points for curve in curves if (curve.arm, curve.seed) == (arm, seed)}
            each = [found.get(stage.name, []) for stage in stages]
            steps = [point for part in each for point in part]
            ended = all(len(part) >= stage.steps for part, stage in zip(each, stages, strict=True))
            last = [point.success for point in each[-1][-LAST:] if point.success is not None]
            groups, swapped = (_total(steps, name) for name in ("groups", "swapped_groups"))
            yield r.TrainingOutcome(
                arm=arm,
                seed=seed,
                updates=len(steps),
                planned=sum(stage.steps for stage in stages),
                area=_area(steps) if ended else None,
                collapsed=not any(last) if ended and len(last) == LAST else None,
                changed=swapped / groups if groups and swapped is not None else None,
            )


def _area(steps: Sequence[r.CurvePoint]) -> float | None:
    """Mean success of all rollouts as they came, each with the same weight."""
    known = [(p.success, p.other.get("rollouts", 1.0)) for p in steps if p.success is not None]
    weight = sum(rollouts for _, rollouts in known)
    return sum(success * rollouts for success, rollouts in known) / weight if weight else None


def _total(steps: Sequence[r.CurvePoint], name: str) -> float | None:
    """Sum over all updates; None if one of them does not say it."""
    values = [point.other.get(name, getattr(point, name, None)) for point in steps]
    known = [float(value) for value in values if value is not None]
    return sum(known) if len(known) == len(steps) else None


def replay_effects(config: StudyConfig, outcomes: Sequence[r.TrainingOutcome]) -> Iterator[r.ReplayEffect]:
    """Each arm with replay against each that differs in nothing else; pairs of one seed."""
    by_arm: dict[str, dict[int, r.TrainingOutcome]] = {}
    for outcome in outcomes:
        by_arm.setdefault(outcome.arm, {})[outcome.seed] = outcome
    for arm in config.online_arms:
        recipe = config.recipe(arm)
        for reference in config.online_arms:
            theirs = config.recipe(reference)
            same = theirs.model_copy(update={"replay": recipe.replay}) == recipe
            if recipe.replay.enabled and not theirs.replay.enabled and same:
                yield replay_effect(arm, reference, by_arm[arm], by_arm[reference])


def replay_effect(
    arm: str, reference: str, ours: Mapping[int, r.TrainingOutcome], theirs: Mapping[int, r.TrainingOutcome]
) -> r.ReplayEffect:
    """One pair of arms, from seed -> outcome of each."""
    lost = {
        seed: [
            f"{side.arm} has {side.updates} of {side.planned} updates"
            for side in (ours[seed], theirs[seed])
            if side.updates < side.planned
        ]
        for seed in sorted(ours.keys() & theirs.keys())
    }
    seeds = [seed for seed, why in lost.items() if not why]
    changed = [share for seed in seeds if (share := ours[seed].changed) is not None]
    share = statistics.fmean(changed) if changed and len(changed) == len(seeds) else None
    areas = {
        seed: mine - other
        for seed in seeds
        if (mine := ours[seed].area) is not None and (other := theirs[seed].area) is not None
    }
    dead = [
        (mine, other)
        for seed in seeds
        if (mine := ours[seed].collapsed) is not None and (other := theirs[seed].collapsed) is not None
    ]
    only = [sum(mine and not other for mine, other in dead), sum(other and not mine for mine, other in dead)]
    paired = over_pairs(list(areas.values()))
    return r.ReplayEffect(
        arm=arm,
        reference=reference,
        seeds=seeds,
        left_out=[f"seed {seed}: {' and '.join(why)}" for seed, why in lost.items() if why],
        changed=share,
        is_test=None if share is None else share >= CHANGED_LEAST,
        area_by_seed=areas,
        area=None if paired is None else paired.interval,
        area_p=None if paired is None else paired.p_value,
        collapsed=exact_share([mine for mine, _ in dead]),
        reference_collapsed=exact_share([other for _, other in dead]),
        only_arm_collapsed=only[0],
        only_reference_collapsed=only[1],
        collapse_p=sign_test(*only) if len(dead) >= st.FEWEST_TRAININGS else None,
    )


def no_test(effect: r.ReplayEffect) -> str:
    """The validity gate in words; empty where it is passed, or nothing is known."""
    if effect.changed is None or effect.is_test:
        return ""
    share = f"replay changed {100 * effect.changed:.1f} % of the groups of {effect.arm}"
    return f"no test of replay: {share}, less than {100 * CHANGED_LEAST:g} %"


@dataclass(frozen=True, slots=True)
class Paired:
    """A paired t test over seeds; fractions."""

    interval: r.Interval
    """95 %."""
    within: tuple[float, float]
    """90 %: two one-sided tests at 5 %."""
    p_value: float


def over_pairs(differences: Sequence[float]) -> Paired | None:
    """None for fewer pairs than a test takes (``statistics.FEWEST_TRAININGS``), and without any spread."""
    found = st.over_trainings(differences)
    if found is None:
        return None
    centre = found.interval.value
    half = float(special.stdtrit(found.degrees, 0.95)) * found.error
    p_value = 2 * float(special.stdtr(found.degrees, -abs(centre) / found.error))
    return Paired(found.interval, (centre - half, centre + half), p_value)


def exact_share(collapsed: Sequence[bool]) -> r.Interval | None:
    """Share of trainings with Clopper and Pearson's exact interval; None without any."""
    if not collapsed:
        return None
    count = sum(collapsed)
    low, high = stats.binomtest(count, len(collapsed)).proportion_ci(st.CONFIDENCE, method="exact")
    return r.Interval(count / len(collapsed), float(low), float(high), EXACT, "training seeds")


def sign_test(ones: int, others: int) -> float:
    """Exact two-sided p-value: discordant pairs go either way with chance 1/2. 1 without any."""
    return float(stats.binomtest(ones, ones + others, 0.5).pvalue) if ones + others else 1.0


# --- the registered analysis of docs/replay_study.md -----------------------------------------------------

ARM, REFERENCE = "arpo", "grpo"
SEEDS, MORE_SEEDS = range(2, 14), range(14, 26)
"""Regime A: the pairs, and those that are added if the first ones differ by more than ``SPREAD_MOST``."""
COLLAPSE_SEEDS = range(2, 10)
"""Regime B."""
SPREAD_MOST = 0.055
SMALLEST = 0.05
"""Smallest effect of interest."""


@dataclass(frozen=True, slots=True)
class Regime:
    """What a study's summary says about the registered pairs."""

    effect: r.ReplayEffect
    gains: dict[str, dict[int, float]]
    """Split -> seed -> success after the last update, arpo minus grpo; the training tasks first."""
    unfinished: list[str]
    """What is still to be run."""
    given_up: list[int]
    alive: list[int]
    """Pairs of which neither training collapsed."""
    about: dict[str, Any]
    """Which study it is, and whether it was measured at all."""

    @property
    def primary(self) -> dict[int, float]:
        """Regime A's outcome."""
        return next(iter(self.gains.values()))

    @property
    def tested(self) -> bool:
        """Whether it may be judged: run, and replay had something to do."""
        return not self.unfinished and self.effect.is_test is True


def analyse(
    steady: Path,
    collapse: Path | None = None,
    *,
    without: Sequence[int] = (),
    without_collapse: Sequence[int] = (),
) -> dict[str, Any]:
    """The registered analysis from the ``summary.json`` of regime A and, if it was run, of regime B.

    ``without``: seeds of pairs that could not be ended; they are left out and named. While any other pair is
    unfinished there is no answer, and before A's first pairs are finished no mean: nobody may stop, or go on,
    because of it. From then on the number of pairs is settled and ``so_far`` describes those there are. A
    regime without an answer counts in Holm's family of two with p = 1. Differences are fractions. Raises
    ``UserError`` for a file that is no summary of such a study.
    """
    # The first twelve alone decide whether there are more, by how much they differ.
    summary = read_summary(steady)
    first = regime_of(summary, SEEDS, without)
    values = list(first.primary.values())
    spread = statistics.stdev(values) if len(values) > 1 and not first.unfinished else None
    more = spread is not None and spread > SPREAD_MOST
    planned = [*SEEDS, *MORE_SEEDS] if more else list(SEEDS)
    a = regime_of(summary, planned, without)
    b = None if collapse is None else regime_of(read_summary(collapse), COLLAPSE_SEEDS, without_collapse)
    paired = over_pairs(list(a.primary.values()))
    raw = [
        paired.p_value if paired and a.tested else 1.0,
        b.effect.collapse_p if b and b.tested and b.effect.collapse_p is not None else 1.0,
    ]
    adjusted = st.holm(raw)
    found_a = _facts(a, len(planned)) | {"sd_of_first_pairs": spread, "twelve_more_pairs": more}
    splits = {f"success on {split}": _numbers(gains) for split, gains in a.gains.items()}
    (name, primary), *others = splits.items()
    if not a.unfinished:
        found_a["primary"] = {name: primary | {"p_holm": adjusted[0]}}
        found_a["secondary"] = {"area": _numbers(a.effect.area_by_seed), **dict(others)}
    elif not first.unfinished:  # how many pairs there will be is settled: a look changes nothing any more
        found_a["so_far"] = {name: primary, "area": _numbers(a.effect.area_by_seed), **dict(others)}
    found_a["answer"] = _no_answer(a) or steady_answer(paired, adjusted[0])
    if b is None:
        return {"A": found_a, "B": {"answer": ["not run"]}}
    found_b = _facts(b, len(COLLAPSE_SEEDS))
    if not b.unfinished:
        names = {"collapsed", "reference_collapsed", "only_arm_collapsed", "only_reference_collapsed"}
        counts = b.effect.model_dump(include={*names, "collapse_p"})
        alive = {seed: gain for seed, gain in b.primary.items() if seed in b.alive}
        described = {"pairs": len(alive), "by_seed": alive}
        described["mean"] = statistics.fmean(alive.values()) if alive else None
        found_b |= {"primary": counts | {"p_holm": adjusted[1]}, "success_where_neither_collapsed": described}
        found_b["secondary"] = {"area": _numbers(b.effect.area_by_seed)}
    found_b["answer"] = _no_answer(b) or collapse_answer(b.effect, adjusted[1])
    return {"A": found_a, "B": found_b}


def read_summary(path: Path) -> r.Summary:
    """A ``summary.json``. Raises ``UserError`` if the study has not both arms or its training tasks."""
    try:
        summary = r.Summary.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is no summary of this version; make it again (summarise_study).") from error
    if training_split(summary) is None or not {ARM, REFERENCE} <= {row.arm for row in summary.trainings}:
        raise UserError(
            f"{path} lacks trainings of {ARM} and {REFERENCE}, or success on their training tasks; give the "
            "summary.json of configs/replay.yaml."
        )
    return summary


def training_split(summary: r.Summary) -> str | None:
    """The first split that arms were trained on."""
    return next((name for name, facts in summary.splits.items() if facts.trained_on), None)


def regime_of(summary: r.Summary, seeds: Iterable[int], without: Sequence[int]) -> Regime:
    """The pairs of these seeds in what ``read_summary`` gave."""
    split = training_split(summary)
    assert split is not None
    wanted = [seed for seed in seeds if seed not in without]
    sides: list[dict[int, r.TrainingOutcome]] = [
        {row.seed: row for row in summary.trainings if row.arm == arm and row.seed in wanted}
        for arm in (ARM, REFERENCE)
    ]
    effect = replay_effect(ARM, REFERENCE, *sides)
    both = sides[0].keys() & sides[1].keys()
    unfinished = [f"seed {seed}: not a seed of this study" for seed in wanted if seed not in both]
    unfinished += effect.left_out
    unfinished += [
        f"seed {row.seed}: {row.missing} of {row.expected} episodes of {row.arm} on {split}"
        for row in summary.rates
        if (row.split, row.protocol) == (split, "hard") and row.arm in (ARM, REFERENCE)
        if row.seed in effect.seeds and row.missing
    ]
    gains: dict[str, dict[int, float]] = {
        name: {} for name in sorted(summary.splits, key=lambda name: name != split)
    }
    for row in summary.differences:
        if (row.arm, row.reference, row.protocol) == (ARM, REFERENCE, "hard") and row.seed in effect.seeds:
            gains[row.split][row.seed] = row.difference.value
    alive = [seed for seed in effect.seeds if not any(side[seed].collapsed for side in sides)]
    about = summary.model_dump(include={"study", "size", "desktops", "synthetic", "commit"})
    return Regime(effect, gains, unfinished, sorted(without), alive, about)


def steady_answer(paired: Paired | None, p_holm: float) -> list[str]:
    """Every end of regime A that holds, in the registered words."""
    if paired is None:
        return ["inconclusive"]
    low, high = paired.interval.low, paired.interval.high
    ends = {
        "replay helps here": low > 0 and p_holm < ALPHA,
        "replay harms here": high < 0 and p_holm < ALPHA,
        "no effect here": paired.within[0] >= -SMALLEST and paired.within[1] <= SMALLEST,
    }
    return [words for words, holds in ends.items() if holds] or ["inconclusive"]


def collapse_answer(effect: r.ReplayEffect, p_holm: float) -> list[str]:
    """Regime B: which arm collapses more often, if that is shown."""
    if p_holm >= ALPHA:
        return ["no difference in collapse is shown"]
    fewer = effect.only_arm_collapsed < effect.only_reference_collapsed
    return [f"trainings with replay collapse {'less' if fewer else 'more'} often here"]


def _no_answer(regime: Regime) -> list[str]:
    if regime.unfinished:
        return ["not finished"]
    return [] if regime.effect.is_test else ["no test of replay"]


def _facts(regime: Regime, planned: int) -> dict[str, Any]:
    effect = regime.effect
    facts = {"pairs_planned": planned, "pairs": effect.seeds, "given_up": regime.given_up}
    facts |= {"unfinished": regime.unfinished, "changed": effect.changed, "is_test": effect.is_test}
    return regime.about | facts


def _numbers(values: Mapping[int, float]) -> dict[str, Any]:
    """Mean, spread, 95 and 90 % interval and p-value of a paired difference."""
    found: dict[str, Any] = {"by_seed": dict(values)}
    found["mean"] = statistics.fmean(values.values()) if values else None
    found["sd"] = statistics.stdev(values.values()) if len(values) > 1 else None
    paired = over_pairs(list(values.values()))
    if paired is not None:
        found |= {"interval_95": [paired.interval.low, paired.interval.high]}
        found |= {"interval_90": list(paired.within), "p_value": paired.p_value}
    return found
