"""Make one target: its rows from the study's files, the claims that may be compared, the figure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arpo_replica.base.checkout import git_state
from arpo_replica.base.environments import ROOT
from arpo_replica.base.files import write_atomically
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.claims import compare, mark_of
from arpo_replica.evaluation.curves import read_curve
from arpo_replica.evaluation.published import PaperFiles
from arpo_replica.evaluation.records import (
    Curve,
    InputFile,
    Interval,
    Summary,
    TargetDocument,
    input_file,
    write_document,
)
from arpo_replica.evaluation.scores import read_episodes
from arpo_replica.evaluation.summary import summarise
from arpo_replica.evaluation.tables import as_csv
from arpo_replica.evaluation.targets import Target, splits_of, target_of
from arpo_replica.report.target_figures import draw
from arpo_replica.training.gates import StageReport

PROTOCOL_ORDER = ("hard", "standard")


@dataclass(frozen=True)
class TargetFiles:
    """What a target is made from."""

    paper: PaperFiles
    indexes: Sequence[Path] = ()
    metrics: Sequence[Path] = ()
    reports: Sequence[Path] = ()
    """What the stages of these trainings had to show."""
    throughput: Path | None = None

    def all(self) -> list[Path]:
        """Every file, the paper's included."""
        measured = [*self.indexes, *self.metrics, *self.reports, *filter(None, [self.throughput])]
        return [*measured, self.paper.claims, self.paper.published]


def make_target(config: StudyConfig, name: str, files: TargetFiles, folder: Path) -> TargetDocument:
    """Write ``{name}.csv``, ``.json``, ``.svg`` and ``.png`` into ``folder``.

    Raises ``UserError`` naming the config keys that the study lacks.
    """
    target = target_of(config, name)
    narrowed = config.model_copy(
        update={
            "evaluation": config.evaluation.model_copy(update={"splits": splits_of(config, target)}),
            "arms": {arm: config.arms[arm] for arm in config.arms if not target.roles or arm in target.arms},
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
        assert files.throughput is not None
        rows = list(_throughput_rows(files.throughput))
        parts = {"environments": ", ".join(map(str, config.targets.environments))}
    else:
        rows = list(_curve_rows(config, target, files.metrics))
        named = {role: getattr(config.targets, role) for role in target.curves}
        parts = {role: f"{curve.arm}, stage {curve.stage}" for role, curve in named.items()}
    claims = compare(config, summary, files.paper, files.throughput)
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
        synthetic=summary.synthetic,
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
    if record is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None, f"{name}_method": None}
    return {
        name: record.value,
        f"{name}_low": record.low,
        f"{name}_high": record.high,
        f"{name}_method": record.method,
    }


def _rate_rows(config: StudyConfig, target: Target, summary: Summary) -> Iterator[dict[str, Any]]:
    """Arm x split x protocol, all seeds together, with the paired difference to base."""
    parts = {getattr(config.targets, role): role for role in target.roles}
    pooled = len(summary.seeds) > 1
    for row in sorted(
        summary.rates, key=lambda r: (PROTOCOL_ORDER.index(r.protocol), list(parts).index(r.split))
    ):
        if pooled and row.arm != "base" and row.seed is not None:
            continue
        differences = [
            d for d in summary.differences
            if (d.arm, d.split, d.protocol, d.seed, d.reference)
            == (row.arm, row.split, row.protocol, row.seed, "base")
        ]  # fmt: skip
        gain = differences[0] if differences else None
        yield {
            "part": parts[row.split],
            "split": row.split,
            "protocol": row.protocol,
            "arm": row.arm,
            "stage": row.stage,
            "seeds": len(summary.seeds) if row.arm != "base" else 1,
            "tasks": row.tasks,
            "trials": summary.trials,
            "valid": row.valid,
            "expected": row.expected,
            "env_errors": row.env_errors,
            **_interval("success", row.of_valid),
            "success_of_all_low": row.of_all_low,
            "success_of_all_high": row.of_all_high,
            "infeasible_valid": row.infeasible_valid,
            "infeasible_successes": row.infeasible_successes,
            **_interval("gain_over_base", gain.difference if gain else None),
        }


def _curve_rows(config: StudyConfig, target: Target, metrics: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """One row per update: its reward before and after replay, and the spread within groups."""
    parts = {}
    for role in target.curves:
        curve = getattr(config.targets, role)
        parts[curve.arm, curve.stage] = role
    order = list(config.arms)
    curves = sorted((read_curve(path) for path in metrics), key=lambda c: (order.index(c.arm), c.seed))
    stages = [stage.name for stage in config.training.stages]
    for curve in sorted(curves, key=lambda c: (order.index(c.arm), c.seed, stages.index(c.stage))):
        yield from _points(curve, parts.get((curve.arm, curve.stage), ""))


def _points(curve: Curve, part: str) -> Iterator[dict[str, Any]]:
    for point in curve.points:
        yield {
            "part": part,
            "arm": curve.arm,
            "seed": curve.seed,
            "stage": curve.stage,
            "step": point.step,
            "reward_before": point.reward_before,
            "reward_after": point.reward_after,
            "success": point.success,
            "group_score_std": point.other.get("group_score_std"),
            "swapped_groups": point.swapped_groups,
            "source": curve.source,
        }


def _throughput_rows(throughput: Path) -> Iterator[dict[str, Any]]:
    for point in json.loads(throughput.read_bytes())["points"]:
        yield dict(point)
