"""The page's figures, as SVG with the palette's classes. No figure for no data: None.

The page's Content-Security-Policy allows no style attributes, several figures share one document, and colours
follow the reader's light or dark mode. So matplotlib's SVG loses its prologue and style element, declarations
become attributes, ids get a prefix, and palette colours become classes (``embed``).
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl

mpl.use("svg")

import numpy as np
from matplotlib.figure import Figure

from arpo_replica.base.tables import filled, table_of
from arpo_replica.evaluation.records import Curve, DomainRow, OfflineTraining

SVG = "http://www.w3.org/2000/svg"
XLINK = "{http://www.w3.org/1999/xlink}href"
DROPPED = {"font", "font-family", "font-style", "font-variant", "font-stretch"}
REFERENCE = re.compile(r"url\(#([^)]+)\)")

_TABLES = table_of(__file__)
PALETTE: dict[str, str] = _TABLES["palette"]
NAMES = {colour: name for name, colour in PALETTE.items()}
STYLE: Any = filled(_TABLES["style"], **PALETTE)
TARGET_STYLE: Any = filled(_TABLES["targets"], **PALETTE)
MARKERS = {"base": "o", "grpo": "s", "arpo": "D"}
VISITS = 5
"""Groups per task, over all trainings of a stage, from which on its mean says something about the task."""
SMOOTH_FROM = 16
"""Updates from which on a single seed's curve gets a running mean."""
MOST_BARS = 30
"""More updates than this share bars."""
WINDOW = 7
"""Updates of the running mean."""
UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
TOTALS = {"step", "total"}
"""Phases that are the sum of the others."""


def arm_colour(arm: str, arms: Sequence[str]) -> str:
    """The palette's name of an arm's colour, the same in every figure and table."""
    if arm in MARKERS:
        return arm
    others = [name for name in arms if name not in MARKERS]
    return f"other{others.index(arm) % 3 + 1}" if arm in others else "muted"


@contextmanager
def styled(salt: str) -> Iterator[None]:
    """The page's style; ``salt`` makes the ids of the SVG the same each time."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": salt}):
        yield


def embedded(figure: Figure, prefix: str, title: str, description: str) -> str:
    """The figure as SVG for the page, with a text alternative."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return embed(out.getvalue(), prefix, title, description)


def embed(svg: str, prefix: str, title: str, description: str) -> str:
    """The figure as an element for the page; ``title`` and ``description`` are its text alternative."""
    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own matplotlib wrote it
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}style", f"{{{SVG}}}metadata"):
                parent.remove(child)
    for element in root.iter():
        _declarations_to_attributes(element)
        _prefix_ids(element, prefix)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("class", "figure-svg")
    root.set("role", "img")
    root.set("aria-labelledby", f"{prefix}-title {prefix}-desc")
    for index, (tag, text) in enumerate((("title", title), ("desc", description))):
        label = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{prefix}-{tag}"})
        label.text = text
        root.insert(index, label)
    return ElementTree.tostring(root, encoding="unicode")


def _declarations_to_attributes(element: ElementTree.Element) -> None:
    classes = []
    for declaration in element.attrib.pop("style", "").split(";"):
        name, _, value = declaration.partition(":")
        name, value = name.strip(), value.strip()
        if name and name not in DROPPED:
            element.set(name, value)
    for name, letter in (("fill", "f"), ("stroke", "s")):
        colour = NAMES.get(element.get(name, "").lower())
        if colour:
            classes.append(f"{letter}-{colour}")
    if classes:
        element.set("class", " ".join(classes))


def _prefix_ids(element: ElementTree.Element, prefix: str) -> None:
    if "id" in element.attrib:
        element.set("id", f"{prefix}-{element.attrib['id']}")
    target = element.attrib.pop(XLINK, None)
    if target is not None:
        element.set("href", f"#{prefix}-{target.removeprefix('#')}")
    for name, value in element.attrib.items():
        if "url(#" in value:
            element.set(name, REFERENCE.sub(rf"url(#{prefix}-\1)", value))


def learning_curves(
    curves: Sequence[Curve], arms: Sequence[str], stages: Sequence[str], size: str
) -> str | None:
    """Task-adjusted success and groups, over the stages of training; the page's script draws every metric."""
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    names = [name for name in stages if any(curve.stage == name for curve in curves)]
    names += sorted({curve.stage for curve in curves} - set(names))
    trained = list(dict.fromkeys(curve.arm for curve in curves))
    adjusted = adjusted_success(curves)
    with styled("curves"):
        figure = Figure(figsize=(8.2, 5.2), layout="constrained")
        labels = ("success of rollouts, %,\ntask-adjusted", "all-failed groups")
        grid = _stage_panels(figure, labels, names, curves, size)
        for column, name in enumerate(names):
            for index, arm in enumerate(trained):
                group = [curve for curve in curves if curve.arm == arm and curve.stage == name]
                colour = PALETTE[arm_colour(arm, arms)]
                pen = _Pen(arm, colour)
                pen.curves(grid[0][column], [adjusted[curve.arm, curve.seed, curve.stage] for curve in group])
                _groups(grid[1][column], group, colour, index, len(trained))
        grid[0][0].set_ylim(0, 100)
        grid[1][0].yaxis.get_major_locator().set_params(integer=True)
        for arm in trained:
            _Pen(arm, PALETTE[arm_colour(arm, arms)]).line(grid[0][0], [], [], label=arm)
        figure.legend(loc="outside upper left", ncols=len(trained), fontsize=11)
        return embedded(
            figure, "curves", "Training of each arm over its stages", "; ".join(map(_curve_spoken, curves))
        )


Points = list[tuple[int, float, float | None]]
"""(update, value in %, its standard error)."""


def adjusted_success(curves: Sequence[Curve]) -> dict[tuple[str, int, str], Points]:
    """(arm, seed, stage) -> success of each update as if all updates had drawn the same tasks.

    An update draws a few of a stage's tasks, so its plain success says as much about them as about the
    policy. From the score of each group its task's own mean, over all trainings of the stage, is taken off,
    and the mean over tasks put back. A mean of few groups would take the policy off as well: below ``VISITS``
    groups a task, nothing is taken off. The error is over the update's groups; None for a single one.
    """
    found: dict[tuple[str, int, str], Points] = {}
    for stage in dict.fromkeys(curve.stage for curve in curves):
        here = [curve for curve in curves if curve.stage == stage]
        scores: dict[str, list[float]] = {}
        for task, score in (pair for curve in here for point in curve.points for pair in point.tasks.items()):
            scores.setdefault(task, []).append(score)
        enough = scores and sum(map(len, scores.values())) >= VISITS * len(scores)
        centre = float(np.mean([np.mean(values) for values in scores.values()])) if enough else 0.0
        own = {task: float(np.mean(values)) if enough else 0.0 for task, values in scores.items()}
        for curve in here:
            points: Points = []
            for point in curve.points:
                moved = [100 * (score - own[task] + centre) for task, score in point.tasks.items()]
                if len(moved) > 1:
                    error = float(np.std(moved, ddof=1)) / len(moved) ** 0.5
                    points.append((point.step, float(np.mean(moved)), error))
                elif moved or point.success is not None:
                    points.append((point.step, moved[0] if moved else 100 * (point.success or 0.0), None))
            found[curve.arm, curve.seed, stage] = points
    return found


def _stage_panels(
    figure: Figure, labels: Sequence[str], stages: Sequence[str], curves: Sequence[Curve], size: str
) -> Any:
    """Panels, a line for each label and a column for each stage, as wide as it has updates."""
    lengths = [max(curve.points[-1].step for curve in curves if curve.stage == stage) for stage in stages]
    widths = [max(length, max(lengths) / 3) for length in lengths]
    grid = figure.subplots(
        len(labels), len(stages), sharex="col", sharey="row", squeeze=False,
        gridspec_kw={"width_ratios": widths},
    )  # fmt: skip
    for column, stage in enumerate(stages):
        grid[0][column].set_title(f"stage {stage}", loc="left", fontsize=10, fontweight="bold")
        grid[-1][column].set_xlabel(f"update   [{size}]")
        grid[-1][column].xaxis.get_major_locator().set_params(integer=True)
    for line, label in zip(grid, labels, strict=True):
        line[0].set_ylabel(label)
    return grid


def _groups(axes: Any, curves: Sequence[Curve], colour: str, index: int, count: int) -> None:
    """Groups that failed altogether, as outlined bars; the part that replay swapped, filled. Where there are
    many updates a bar is the mean of several."""
    last = max((point.step for curve in curves for point in curve.points), default=1)
    binned = -(-last // MOST_BARS)
    width = 0.8 * binned / count
    for field, solid in (("all_fail_groups", False), ("swapped_groups", True)):
        per_bin: dict[int, list[float]] = {}
        for curve in curves:
            for point in curve.points:
                value = getattr(point, field)
                if value is not None:
                    per_bin.setdefault((point.step - 1) // binned, []).append(value)
        bins = sorted(per_bin)
        axes.bar(
            [0.5 + binned * (at + 0.1) + width * (index + 0.5) for at in bins],
            [float(np.mean(per_bin[at])) for at in bins],
            width * 0.86, facecolor=colour if solid else "none", edgecolor=colour, linewidth=1,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Pen:
    """How an arm's series is drawn."""

    arm: str
    colour: str

    def line(
        self, axes: Any, x: Sequence[int], y: Sequence[float], *, thin: bool = False, label: str | None = None
    ) -> None:
        axes.plot(
            x,
            y,
            color=self.colour,
            linewidth=0.8 if thin else 2.0,
            marker=None if thin else MARKERS.get(self.arm, "^"),
            markersize=3.6,
            markevery=max(1, len(x) // 12),
            alpha=0.6 if thin else 1,
            label=label,
        )

    def curves(self, axes: Any, trainings: Sequence[Points]) -> None:
        """Several seeds: each thin, their mean thick, their range as a band. One seed with enough updates:
        the updates thin, their running mean thick, its 95 % interval over groups as a band."""
        per_step: dict[int, list[float]] = {}
        for points in trainings:
            for step, value, _ in points:
                per_step.setdefault(step, []).append(value)
        smooth = len(trainings) == 1 and len(trainings[0]) >= SMOOTH_FROM
        for points in trainings:
            self.line(axes, [p[0] for p in points], [p[1] for p in points], thin=len(trainings) > 1 or smooth)
        steps = sorted(per_step)
        if smooth:
            near = [trainings[0][max(0, i - WINDOW // 2) : i + WINDOW // 2 + 1] for i in range(len(steps))]
            means = [float(np.mean([value for _, value, _ in part])) for part in near]
            half = [1.96 * float(np.sqrt(sum((e or 0.0) ** 2 for _, _, e in p))) / len(p) for p in near]
            low, high = np.subtract(means, half), np.add(means, half)
        elif len(trainings) > 1 and steps:
            means = [float(np.mean(per_step[step])) for step in steps]
            low, high = (np.array([end(per_step[step]) for step in steps]) for end in (min, max))
        else:
            return
        axes.fill_between(steps, low, high, color=self.colour, alpha=0.16, linewidth=0)
        self.line(axes, steps, means)


def _curve_spoken(curve: Curve) -> str:
    first, last = curve.points[0], curve.points[-1]
    text = f"{curve.arm}, {curve.stage}, seed {curve.seed}: {len(curve.points)} steps"
    if first.success is not None and last.success is not None:
        text += f", success {100 * first.success:.0f} % to {100 * last.success:.0f} %"
    return text


def phase_seconds(curves: Sequence[Curve], size: str) -> str | None:
    """Training time by phase, one bar for each arm, stage and seed."""
    totals = [(curve, phases) for curve in curves if (phases := phase_totals(curve))]
    if not totals:
        return None
    weight = phases_by_weight(phases for _, phases in totals)
    ordered = list(weight)
    named, rest = ordered[:5], ordered[5:]
    unit, size_of = time_unit(max(sum(phases.values()) for _, phases in totals))
    with styled("phases"):
        figure = Figure(figsize=(8.2, 0.42 * len(totals) + 1.5), layout="constrained")
        axes = figure.subplots()
        for y, (_, phases) in enumerate(totals):
            left = 0.0
            parts = [(phase, phases.get(phase, 0.0)) for phase in named]
            parts.append(("other", sum(phases.get(phase, 0.0) for phase in rest)))
            for index, (_, seconds) in enumerate(parts):
                axes.barh(y, seconds / size_of, left=left, height=0.6, color=PALETTE[f"shade{index + 1}"])
                left += seconds / size_of
        labels = [*named, "other"] if rest else named
        for index, phase in enumerate(labels):
            axes.barh(-5, 0, color=PALETTE[f"shade{index + 1}"], label=phase)
        axes.set_yticks(range(len(totals)), [f"{c.arm}, {c.stage}, seed {c.seed}" for c, _ in totals])
        axes.set_ylim(len(totals) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"{unit}   [{size}]")
        figure.legend(
            loc="outside upper left", ncols=len(labels), fontsize=9, handlelength=1, columnspacing=1.4
        )
        spoken = "; ".join(f"{phase}: {weight[phase]:.0f} s" for phase in ordered)
        return embedded(figure, "phases", "Training time by phase", spoken)


def time_unit(longest: float) -> tuple[str, float]:
    """(name, seconds) of the unit in which the longest of some times, in seconds, reads well."""
    return next(unit for unit in UNITS if longest >= 2 * unit[1] or unit[1] == 1.0)


def phases_by_weight(totals: Iterable[dict[str, float]]) -> dict[str, float]:
    """Phase -> seconds over all trainings, the longest first."""
    weight: Counter[str] = Counter()
    for phases in totals:
        weight.update(phases)
    return dict(sorted(weight.items(), key=lambda item: (-item[1], item[0])))


def phase_totals(curve: Curve) -> dict[str, float]:
    """Phase -> seconds over the whole stage; what a step's total leaves unnamed is the phase "rest"."""
    totals: dict[str, float] = {}
    rest = 0.0
    for point in curve.points:
        named = {phase: seconds for phase, seconds in point.seconds.items() if phase not in TOTALS}
        for phase, seconds in named.items():
            totals[phase] = totals.get(phase, 0.0) + seconds
        whole = [point.seconds[phase] for phase in TOTALS if phase in point.seconds]
        if whole:
            rest += max(0.0, whole[0] - sum(named.values()))
    return {**totals, "rest": rest} if rest > 0.01 * sum(totals.values()) else totals


def replay_figure(curves: Sequence[Curve], arms: Sequence[str], size: str) -> str | None:
    """Two lines of panels, a column per stage; None if replay never fired and nothing was stored."""
    used = [
        curve
        for curve in curves
        if any(point.swaps or (point.buffer_size or 0) > 0 for point in curve.points)
    ]
    if not used:
        return None
    stages = list(dict.fromkeys(curve.stage for curve in used))
    with styled("replay"):
        figure = Figure(figsize=(8.2, 4.6), layout="constrained")
        labels = ("steps since\nstored", "successes in store")
        grid = _stage_panels(figure, labels, stages, used, size)
        for column, stage in enumerate(stages):
            for curve in (curve for curve in used if curve.stage == stage):
                colour = PALETTE[arm_colour(curve.arm, arms)]
                fired = [(point.step, swap.age) for point in curve.points for swap in point.swaps]
                grid[0][column].plot(
                    [step for step, _ in fired], [age for _, age in fired], MARKERS.get(curve.arm, "^"),
                    color=colour, markersize=4.5, markerfacecolor="none", markeredgewidth=1.1,
                )  # fmt: skip
                stored = [(p.step, p.buffer_size) for p in curve.points if p.buffer_size is not None]
                grid[1][column].plot(
                    [step for step, _ in stored], [count for _, count in stored], color=colour, linewidth=1.8
                )
        for line in grid:
            # After the last stage is drawn: a limit ends the scaling of all panels that share the axis.
            line[0].set_ylim(bottom=0)
            line[0].yaxis.get_major_locator().set_params(integer=True)
        spoken = "; ".join(
            f"{c.arm}, {c.stage}, seed {c.seed}: fired {sum(len(p.swaps) for p in c.points)} times"
            for c in used
        )
        return embedded(figure, "replay", "When replay fired, and steps since the success was stored", spoken)


def offline_figure(trainings: Sequence[OfflineTraining], arms: Sequence[str], size: str) -> str | None:
    """Loss of the offline arms, a panel each, as their losses do not compare; None without any."""
    used = [training for training in trainings if any(point.loss is not None for point in training.points)]
    names = list(dict.fromkeys(training.arm for training in used))
    if not names:
        return None
    with styled("offline"):
        figure = Figure(figsize=(8.2, 2.5), layout="constrained")
        (grid,) = figure.subplots(1, len(names), squeeze=False)
        for axes, name in zip(grid, names, strict=True):
            for training in (training for training in used if training.arm == name):
                known = [(point.step, point.loss) for point in training.points if point.loss is not None]
                axes.plot(
                    [step for step, _ in known], [loss for _, loss in known], f"{MARKERS.get(name, '^')}-",
                    color=PALETTE[arm_colour(name, arms)], markersize=3.5, linewidth=1.4,
                )  # fmt: skip
            axes.set_title(name, loc="left", fontsize=10, fontweight="bold")
            axes.set_xlabel(f"update   [{size}]")
            axes.xaxis.get_major_locator().set_params(integer=True)
        grid[0].set_ylabel("loss")
        spoken = "; ".join(
            f"{t.arm}, seed {t.seed}: {t.points[0].loss} to {t.points[-1].loss} in {len(t.points)} updates"
            for t in used
        )
        return embedded(figure, "offline", "Loss of the offline arms", spoken)


def domain_forest(rows: Sequence[DomainRow], arms: Sequence[str], size: str) -> str | None:
    """Each arm in each domain (hard protocol), a panel per split; None for fewer than two domains."""
    shown = [row for row in rows if row.protocol == "hard" and row.rate is not None]
    domains = list(dict.fromkeys(row.domain for row in shown))
    if len(domains) < 2:
        return None
    splits = list(dict.fromkeys(row.split for row in shown))
    names = list(dict.fromkeys(row.arm for row in shown))
    with styled("domains"):
        height = (0.16 * len(names) + 0.24) * len(domains) + 1.2
        figure = Figure(figsize=(8.2, height), layout="constrained")
        panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
        for axes, split in zip(panels, splits, strict=True):
            for row in (row for row in shown if row.split == split):
                assert row.rate is not None
                offset = (names.index(row.arm) - (len(names) - 1) / 2) * 0.72 / len(names)
                at = domains.index(row.domain) + offset
                colour = PALETTE[arm_colour(row.arm, arms)]
                axes.plot([100 * row.rate.low, 100 * row.rate.high], [at, at], color=colour, linewidth=1.3)
                axes.plot([100 * row.rate.value], [at], MARKERS.get(row.arm, "^"), color=colour, markersize=4)
            axes.set_title(split, loc="left", fontsize=10, fontweight="bold")
            axes.set_xlim(-2, 102)
            axes.grid(axis="y", visible=False)
            axes.set_xlabel(f"success, %   [{size}]")
        panels[0].set_yticks(range(len(domains)), domains)
        panels[0].set_ylim(len(domains) - 0.5, -0.5)
        for name in names:
            panels[0].plot([], [], MARKERS.get(name, "^"), color=PALETTE[arm_colour(name, arms)], label=name)
        figure.legend(loc="outside upper left", ncols=len(names), fontsize=10)
        spoken = "; ".join(
            f"{r.split}, {r.domain}, {r.arm}: {100 * r.rate.value:.0f} %" for r in shown if r.rate
        )
        return embedded(figure, "domains", "Success by domain with 95 % intervals", spoken)
