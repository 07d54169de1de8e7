"""Make one target: its rows from the study's files, the claims that may be compared, the figure."""

import io
import json
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from arpo_replica.base.checkout import git_state
from arpo_replica.base.environments import ROOT
from arpo_replica.base.files import write_atomically, write_document
from arpo_replica.base.tables import grouped
from arpo_replica.config.models import GIVEN_STAGES, StudyConfig
from arpo_replica.evaluation.claims import compare, mark_of
from arpo_replica.evaluation.published import PaperFiles
from arpo_replica.evaluation.records import (
    PROTOCOLS,
    Curve,
    InputFile,
    Interval,
    Summary,
    TargetDocument,
    input_file,
)
from arpo_replica.evaluation.scores import read_episodes
from arpo_replica.evaluation.summary import summarise
from arpo_replica.evaluation.tables import as_csv
from arpo_replica.evaluation.targets import TARGETS, Target, splits_of, target_of
from arpo_replica.report.figures import PALETTE, TARGET_STYLE, arm_colour
from arpo_replica.training.gates import StageReport


@dataclass(frozen=True)
class TargetFiles:
    """What a target is made from."""

    paper: PaperFiles
    indexes: Sequence[Path] = ()
    metrics: Sequence[Path] = ()
    reports: Sequence[Path] = ()
    """What the stages of these trainings had to show."""
    throughput: Sequence[Path] = ()
    """What ``measure_throughput`` wrote, if the target needs it."""

    def all(self) -> list[Path]:
        """Every file, the paper's included."""
        measured = [*self.indexes, *self.metrics, *self.reports, *self.throughput]
        return [*measured, self.paper.claims, self.paper.published]


def make_target(config: StudyConfig, name: str, files: TargetFiles, folder: Path) -> TargetDocument:
    """Write ``{name}.csv``, ``.json``, ``.svg`` and ``.png`` into ``folder``.

    Raises ``UserError`` naming the config keys that the study lacks.
    """
    target = target_of(config, name)
    narrowed = config.model_copy(
        update={
            "evaluation": config.evaluation.model_copy(update={"splits": splits_of(config, target)}),
            "arms": {
                arm: overrides
                for arm, overrides in config.arms.items()
                if not target.roles or arm in map(config.in_part, target.arms)
            },
        }
    )
    table = read_episodes(config, files.indexes)
    inputs = [input_file(path) for path in files.all()]
    summary = summarise(narrowed, table, files.metrics, [], inputs)
    summary.gates = [StageReport.model_validate_json(path.read_bytes()) for path in files.reports]
    document = _document(narrowed, target, summary, files, inputs)
    folder.mkdir(parents=True, exist_ok=True)
    write_document(document, folder / f"{name}.json")
    write_atomically(folder / f"{name}.csv", as_csv(document.columns, document.rows))
    draw(document, folder / f"{name}.svg", folder / f"{name}.png")
    return document


def _document(
    config: StudyConfig, target: Target, summary: Summary, files: TargetFiles, inputs: list[InputFile]
) -> TargetDocument:
    if target.roles:
        rows = list(_rate_rows(config, target, summary))
        parts = {role: str(getattr(config.targets, role)) for role in target.roles}
    elif target.throughput:
        rows = [dict(point) for path in files.throughput for point in json.loads(path.read_bytes())["points"]]
        parts = {"environments": ", ".join(map(str, config.targets.environments))}
    else:
        rows = list(_curve_rows(config, target, summary.curves))
        named = {role: getattr(config.targets, role) for role in target.curves}
        parts = {role: f"{curve.arm}, stage {curve.stage}" for role, curve in named.items()}
    claims = compare(config, summary, files.paper, next(iter(files.throughput), None))
    mine = [claim for claim in claims.claims if claim.target == target.name]
    compared = [claim for claim in mine if claim.verdict != "not run"]
    reasons = Counter(claim.reason for claim in mine if claim.verdict == "not run")
    sets = "; ".join(f"{name}: {facts.size}" for name, facts in summary.splits.items() if target.roles)
    mark = mark_of(config, summary)
    code = git_state(ROOT)
    columns = list(rows[0]) if rows else []
    return TargetDocument(
        target=target.name,
        title=target.title,
        place=target.place,
        study=config.name,
        mark=f"{mark}; {sets}" if sets else mark,
        splits=parts,
        columns=["size", "desktop", "synthetic", *columns],
        rows=[
            {"size": config.size, "desktop": config.desktop.kind, "synthetic": summary.synthetic, **row}
            for row in rows
        ],
        comparison=compared,
        not_compared=dict(sorted(reasons.items())),
        notes=_notes(target, summary),
        inputs=inputs,
        commit=code["commit"],
        dirty=code["dirty"],
    )


def _notes(target: Target, summary: Summary) -> list[str]:
    notes = list(summary.not_run) if target.roles else []
    counts = Counter((row.split, row.because) for row in summary.left_out)
    notes += [
        f"{split} without {count} of its tasks: {because}." for (split, because), count in counts.items()
    ]
    if target.name == "table1":
        notes.append(
            "The paper's table has two models and four others that plan with GPT-4o; a study has one "
            "(policy.model), so the rest of the table is the matter of other studies."
        )
    return notes


def _interval(name: str, record: Interval | None) -> dict[str, Any]:
    """Its columns; empty cells without one."""
    columns = {name: "value", f"{name}_low": "low", f"{name}_high": "high", f"{name}_method": "method"}
    return {column: getattr(record, part, None) for column, part in columns.items()}


def _of(row: object, *names: str) -> dict[str, Any]:
    """Some of its fields."""
    return {name: getattr(row, name) for name in names}


def _rate_rows(config: StudyConfig, target: Target, summary: Summary) -> Iterator[dict[str, Any]]:
    """Arm x split x protocol, all seeds together, with the paired difference to base."""
    parts = {getattr(config.targets, role): role for role in target.roles}
    gains = {
        (row.arm, row.split, row.protocol, row.seed): row.difference
        for row in reversed(summary.differences)  # of several stages the first one counts
        if row.reference == "base"
    }
    order = [(protocol, split) for protocol in PROTOCOLS for split in parts]
    for row in sorted(summary.rates, key=lambda r: order.index((r.protocol, r.split))):
        if not summary.all_seeds(row):
            continue
        yield {
            "part": parts[row.split],
            **_of(row, "split", "protocol", "arm", "stage"),
            "seeds": 1 if row.stage in GIVEN_STAGES else len(summary.seeds),
            "tasks": row.tasks,
            "trials": summary.trials,
            **_of(row, "valid", "expected", "env_errors"),
            **_interval("success", row.of_valid),
            "success_of_all_low": row.of_all_low,
            "success_of_all_high": row.of_all_high,
            **_of(row, "infeasible_valid", "infeasible_successes"),
            **_interval("gain_over_base", gains.get((row.arm, row.split, row.protocol, row.seed))),
        }


def _curve_rows(config: StudyConfig, target: Target, curves: Sequence[Curve]) -> Iterator[dict[str, Any]]:
    """One row per update: its reward before and after replay, and the spread within groups."""
    roles = {role: getattr(config.targets, role) for role in target.curves}
    parts = {(named.arm, named.stage): role for role, named in roles.items()}
    for curve in curves:
        for point in curve.points:
            yield {
                "part": parts.get((curve.arm, curve.stage), ""),
                **curve.place,
                **_of(point, "step", "reward_before", "reward_after", "success"),
                "group_score_std": point.other.get("group_score_std"),
                "swapped_groups": point.swapped_groups,
                "source": curve.source,
            }


# --- the figure ---
#
# A picture is copied without its caption: the mark must be where the numbers are.


def draw(document: TargetDocument, svg: Path, png: Path) -> None:
    """Write the figure in both forms; the same document gives the same bytes."""
    with mpl.rc_context(TARGET_STYLE):
        figure = Figure(figsize=(8.0, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        _panels(document)(document, figure)
        heading = f"{document.title} (this study's own {document.target}, not the paper's)"
        mark = textwrap.fill(f"[{document.mark}]", 110)
        figure.suptitle(f"{heading}\n{mark}", fontsize=9)
        no_time: Any = {"Date": None, "Creator": None, "Title": document.mark}
        for path, metadata in ((svg, no_time), (png, {"Software": None, "Description": document.mark})):
            out = io.BytesIO()
            figure.savefig(out, format=path.suffix[1:], dpi=150, metadata=metadata)
            write_atomically(path, out.getvalue())


def _panels(document: TargetDocument) -> Callable[[TargetDocument, Figure], None]:
    if not document.rows:
        return _empty
    if "success_low" in document.columns:
        return _rates
    return _throughput if "hours_per_epoch" in document.columns else _curves


def _colour(arm: str) -> str:
    """The page's colour of an arm; no target has more arms than figure 6."""
    return PALETTE[arm_colour(arm, TARGETS["fig6"].arms)]


def _empty(document: TargetDocument, figure: Figure) -> None:
    axes = figure.subplots()
    axes.text(0.5, 0.5, "not run", ha="center", va="center", fontsize=16)
    axes.set_axis_off()


def rate_panels(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(protocol, its rows) for each part of a target; where the protocols agree, one panel for both."""
    panels: list[tuple[str, list[dict[str, Any]]]] = []
    for part in grouped(rows, lambda row: row["part"]).values():
        here = {name: [row for row in part if row["protocol"] == name] for name in map(str, PROTOCOLS)}
        hard, standard = ([{**row, "protocol": ""} for row in own] for own in here.values())
        if hard == standard:
            here = {" and ".join(PROTOCOLS): here[PROTOCOLS[0]]}
        panels += [(protocol, own) for protocol, own in here.items() if own]
    return panels


def _rates(document: TargetDocument, figure: Figure) -> None:
    """Panels of rates with 95 % intervals and counts."""
    found = rate_panels(document.rows)
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, (protocol, rows) in zip(panels, found, strict=True):
        for place, row in enumerate(rows):
            _rate(axes, place, row)
        axes.set_xticks(range(len(rows)), [f"{row['arm']}\nn = {row['valid']}" for row in rows], fontsize=8)
        axes.set_xlim(-0.6, len(rows) - 0.4)
        axes.set_ylim(0, 104)
        axes.grid(axis="x", visible=False)
        axes.set_title(
            f"{rows[0]['part'].replace('_', ' ')}: {rows[0]['split']}\n{protocol} protocol", fontsize=9
        )
    panels[0].set_ylabel("success, % of scored episodes\n(95 % interval for new tasks)")


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
    trainings = grouped(document.rows, lambda row: (row["part"], row["arm"], row["seed"]))
    for axes, quantity in zip(panels, quantities, strict=True):
        for place, ((part, arm, seed), rows) in enumerate(trainings.items()):
            label = f"{part.replace('_', ' ') or arm}, seed {seed}"
            # Stages follow each other: updates are counted through.
            values = [row[quantity] for row in rows]
            axes.plot(
                range(1, len(values) + 1), [float("nan") if v is None else v for v in values],
                color=_colour(arm), linestyle="-" if place % 2 == 0 else "--", marker=".", label=label,
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
