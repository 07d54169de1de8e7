"""Figures of the replay (when it fired, how old the success was), of offline arms, of success by domain."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from arpo_replica.evaluation.rows import DomainRow, OfflineTraining
from arpo_replica.evaluation.schema import Curve
from arpo_replica.report.figures import MARKERS, arm_colour, embedded, styled
from arpo_replica.report.svg import PALETTE


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
    lengths = [max(curve.points[-1].step for curve in used if curve.stage == stage) for stage in stages]
    with styled("replay"):
        figure = Figure(figsize=(8.2, 4.6), layout="constrained")
        grid = figure.subplots(
            2, len(stages), sharex="col", sharey="row", squeeze=False,
            gridspec_kw={"width_ratios": [max(n, max(lengths) / 3) for n in lengths]},
        )  # fmt: skip
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
            grid[0][column].set_title(f"stage {stage}", loc="left", fontsize=10, fontweight="bold")
            grid[1][column].set_xlabel(f"update   [{size}]")
            grid[1][column].xaxis.get_major_locator().set_params(integer=True)
        grid[0][0].set_ylabel("age of the success,\nupdates")
        grid[1][0].set_ylabel("successes in store")
        for line in grid:
            # After the last stage is drawn: a limit ends the scaling of all panels that share the axis.
            line[0].set_ylim(bottom=0)
            line[0].yaxis.get_major_locator().set_params(integer=True)
        spoken = "; ".join(
            f"{c.arm}, {c.stage}, seed {c.seed}: fired {sum(len(p.swaps) for p in c.points)} times"
            for c in used
        )
        return embedded(figure, "replay", "When replay fired and how old the success was", spoken)


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
