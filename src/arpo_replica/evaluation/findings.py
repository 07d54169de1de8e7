"""What a study found on a claim before it is judged, and which studies may speak about it at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arpo_replica.base.files import file_sha256
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.comparison import Estimate
from arpo_replica.evaluation.published import Claim, Measure
from arpo_replica.evaluation.records import Interval, Summary, Verdict
from arpo_replica.evaluation.statistics import FEWEST_TRAININGS
from arpo_replica.training.parity import Facts, actual

NO_NOISE = "no noise was seen, which is not the same as no noise."


@dataclass(frozen=True)
class Finding:
    """A result on a claim. Without ``estimate`` the verdict is already known, else it is made of it."""

    reason: str
    verdict: Verdict | None = None
    measured: Interval | None = None
    estimate: Estimate | None = None
    published: float = 0.0
    """The printed value, or first minus second, in the estimate's unit."""
    noise: float | None = None
    """Bound of its noise; None: unknown."""
    trainings: int = 0
    mean_score: float | None = None
    sources: list[str] = field(default_factory=list)
    row: Any = None
    """The row of the summary that it rests on."""


def not_run(reason: str) -> Finding:
    """No result at all, and why."""
    return Finding(reason, "not run")


def too_few(measured: Interval, trainings: int, sources: list[str], more: str = "", **other: Any) -> Finding:
    """A number without a verdict: how much trainings differ cannot be seen."""
    words = (
        f"{trainings_words(trainings)}: it takes {FEWEST_TRAININGS} to see how much trainings differ. {more}"
    )
    return Finding(
        words.strip(), "too few trainings", measured, trainings=trainings, sources=sources, **other
    )


def trainings_words(count: int) -> str:
    """``One training (n = 1)``, ``3 trainings (n = 3)``."""
    return f"{'One training' if count == 1 else f'{count} trainings'} (n = {count})"


def obstacles(
    config: StudyConfig, summary: Summary, claim: Claim, measure: Measure, *, lists: Path, facts: Facts | None
) -> Iterator[str]:
    """Why this study cannot speak about the claim, the size mark first; nothing if it can.

    ``lists``: folder of the committed lists of tasks; ``facts``: the recipes' values.
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
    config: StudyConfig, summary: Summary, claim: Claim, measure: Measure, facts: Facts | None
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
    released = {arm for arm in arms if arm != "base" and is_released(summary, arm)}
    for arm in released:
        if "released" not in needs.weights:
            yield f"The weights of {arm} were not trained here; the claim is about a training."
    trained = [arm for arm in arms if arm in config.online_arms and arm not in released]
    split = config.training.stages[-1].split
    if trained and needs.trained_on and split != needs.trained_on:
        yield f"This study's training ends on {split}; the claim is about training on {needs.trained_on}."
    if facts is not None and needs.recipe:
        for arm in dict.fromkeys([*trained, "base"]):
            yield from _recipe_obstacles(config, claim, arm, facts)
    for arm in trained:
        yield from _training_obstacles(config, summary, arm)


def _split_obstacles(config: StudyConfig, summary: Summary, claim: Claim, lists: Path) -> Iterator[str]:
    needs, committed = claim.needs, lists / f"{claim.needs.split}.json"
    facts = summary.splits.get(needs.split)
    if needs.split not in config.evaluation.splits or facts is None:
        yield f"The split {needs.split} is not evaluated in this study."
    elif needs.tasks is not None and facts.tasks != needs.tasks:
        yield f"The split {needs.split} has {facts.tasks} tasks here; the claim is about {needs.tasks}."
    elif committed.is_file() and file_sha256(committed) != facts.list_sha256:
        yield f"This study's list of {needs.split} is not the committed {committed.name}."


def _recipe_obstacles(config: StudyConfig, claim: Claim, arm: str, facts: Facts) -> Iterator[str]:
    """The first value by which an arm is no arm of the nearest recipe that the claim allows."""
    found = [
        list(_differences(config, claim.needs.differs, arm, recipe, facts)) for recipe in claim.needs.recipe
    ]
    nearest = min(found, key=len)
    if nearest:
        yield nearest[0]


def _differences(
    config: StudyConfig, differs: Mapping[str, Any], arm: str, recipe: str, facts: Facts
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


def _training_obstacles(config: StudyConfig, summary: Summary, arm: str) -> Iterator[str]:
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


def is_released(summary: Summary, arm: str) -> bool:
    """Whether the arm's weights were registered, not trained here: their manifests name no parent."""
    models = [model for model in summary.models if model.arm == arm]
    return bool(models) and all(model.parent is None for model in models)


def lookup(config: Any, dotted: str) -> Any:
    """The value of a key like ``evaluation.temperature``, of a model or of its dump."""
    for part in dotted.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


def _shown(value: Any) -> str:
    return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)
