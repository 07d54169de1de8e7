"""Figures of the targets as SVG and PNG, with the size mark in the picture itself.

A picture is copied without its caption: the mark must be where the numbers are.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from arpo_replica.base.files import write_atomically
from arpo_replica.evaluation.records import TargetDocument
from arpo_replica.evaluation.targets import OFFLINE
from arpo_replica.report.figures import arm_colour
from arpo_replica.report.svg import PALETTE

STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "target", "text.parse_math": False, "font.size": 10.0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": PALETTE["grid"], "legend.frameon": False,
}  # fmt: skip


def draw(document: TargetDocument, svg: Path, png: Path) -> None:
    """Write the figure in both forms; the same document gives the same bytes."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        _panels(document)(document, figure)
        heading = f"{document.title} (this study's own {document.target}, not the paper's)"
        invented = "SYNTHETIC: invented, not measured. " if document.synthetic else ""
        mark = textwrap.fill(f"{invented}[{document.mark}]", 110)
        figure.suptitle(f"{heading}\n{mark}", fontsize=9)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Title": document.mark})
        write_atomically(svg, out.getvalue())
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=150, metadata={"Software": None, "Description": document.mark})
        write_atomically(png, out.getvalue())


def _panels(document: TargetDocument) -> Callable[[TargetDocument, Figure], None]:
    if not document.rows:
        return _empty
    if "success_low" in document.columns:
        return _rates
    return _throughput if "hours_per_epoch" in document.columns else _curves


def _colour(arm: str) -> str:
    """The page's colour of an arm; no target has more arms than figure 6."""
    return PALETTE[arm_colour(arm, OFFLINE)]


def _empty(document: TargetDocument, figure: Figure) -> None:
    axes = figure.subplots()
    axes.text(0.5, 0.5, "not run", ha="center", va="center", fontsize=16)
    axes.set_axis_off()


def _rates(document: TargetDocument, figure: Figure) -> None:
    """A panel per protocol and part: rates with 95 % intervals, counts beside them."""
    keys = list(dict.fromkeys((row["protocol"], row["part"]) for row in document.rows))
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for axes, (protocol, part) in zip(panels, keys, strict=True):
        rows = [row for row in document.rows if (row["protocol"], row["part"]) == (protocol, part)]
        for place, row in enumerate(rows):
            _rate(axes, place, row)
        axes.set_xticks(range(len(rows)), [f"{row['arm']}\nn = {row['valid']}" for row in rows], fontsize=8)
        axes.set_xlim(-0.6, len(rows) - 0.4)
        axes.set_ylim(0, 104)
        axes.grid(axis="x", visible=False)
        axes.set_title(f"{part.replace('_', ' ')}: {rows[0]['split']}\n{protocol} protocol", fontsize=9)
    panels[0].set_ylabel("success, % of valid episodes\n(95 % interval for new tasks)")


def _rate(axes: Axes, place: int, row: dict[str, Any]) -> None:
    colour = _colour(row["arm"])
    if row["success"] is None:
        axes.text(place, 3, "not run", ha="center", rotation=90)
        return
    value, low, high = (100 * row[key] for key in ("success", "success_low", "success_high"))
    axes.plot([place, place], [low, high], color=colour, linewidth=2)
    axes.plot([place], [value], "o", color=colour, markersize=7)
    axes.annotate(
        f"{value:.1f}", (place, value), textcoords="offset points", xytext=(7, 0), fontsize=8, va="center"
    )


def _curves(document: TargetDocument, figure: Figure) -> None:
    """Reward per update; with parts (figure 5) the spread within groups in a second panel."""
    two = any(row["part"] for row in document.rows)
    panels = figure.subplots(1, 2 if two else 1, squeeze=False)[0]
    quantities = ["reward_before", "group_score_std"] if two else ["reward_before"]
    keys = list(dict.fromkeys((row["part"], row["arm"], row["seed"]) for row in document.rows))
    for axes, quantity in zip(panels, quantities, strict=True):
        for place, key in enumerate(keys):
            rows = [row for row in document.rows if (row["part"], row["arm"], row["seed"]) == key]
            part, arm, seed = key
            label = f"{part.replace('_', ' ') or arm}, seed {seed}"
            # Stages follow each other: updates are counted through.
            values = [row[quantity] for row in rows]
            axes.plot(
                range(1, len(values) + 1), [float("nan") if v is None else v for v in values],
                color=_colour(arm), linestyle="-" if place % 2 == 0 else "--", marker=".",
                label=label,
            )  # fmt: skip
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("update (stages one after the other)" if not two else "update")
        axes.set_ylabel(
            "mean reward, before replay"
            if quantity == "reward_before"
            else "standard deviation of scores in a group"
        )
    panels[0].legend(fontsize=8)


def _throughput(document: TargetDocument, figure: Figure) -> None:
    left, right = figure.subplots(1, 2)
    counts = [row["desktops"] for row in document.rows]
    for axes, key, label in (
        (left, "minutes_per_batch", "minutes per batch (one trajectory per desktop)"),
        (right, "hours_per_epoch", "hours per 1,024 trajectories, projected"),
    ):
        axes.plot(counts, [row[key] for row in document.rows], "o-", color=PALETTE["grpo"])
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("desktops at once")
        axes.set_ylabel(label)
