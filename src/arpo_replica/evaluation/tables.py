"""Every table of a study as CSV and JSON, for readers who want the numbers (``tables/`` of the results).

Columns are taken from the models of ``summary.json`` and ``claims.json``: their names are stable, their
meanings stand in docs/results.md, which is generated from here. An interval becomes five columns: the value
under the field's own name, then ``_low``, ``_high``, ``_method`` and ``_about``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from pydantic import BaseModel

from arpo_replica.base.files import write_atomically
from arpo_replica.evaluation.records import (
    ClaimResult,
    Claims,
    ContradictionRow,
    CurveTask,
    DifferenceRow,
    Document,
    DomainDifferenceRow,
    DomainRow,
    EffortRow,
    EnvErrorRow,
    EpisodeRow,
    FlipRow,
    FlipTask,
    GateRow,
    Interval,
    LeftOutRow,
    Mark,
    ModelFacts,
    OfflineUpdate,
    OwnMeasurement,
    PassRow,
    PublishedNumber,
    RateRow,
    Reach,
    ReplayEffect,
    ReplayEvent,
    ReplayRow,
    SourceFile,
    SplitTable,
    SubsetRow,
    Summary,
    ThroughputRow,
    TrainingOutcome,
)
from arpo_replica.evaluation.scores import read_scores


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    kind: str
    meaning: str


@dataclass(frozen=True)
class Table:
    """A table: its name is its file's, its row is a model."""

    name: str
    row: type[Document]
    without: frozenset[str] = frozenset()

    def columns(self) -> list[Column]:
        """Its columns in order, the mark's first."""
        found = [column for column in columns_of(self.row) if column.name not in self.without]
        return [*columns_of(Mark), *(column for column in found if column.name not in Mark.model_fields)]


TABLES = (
    Table("rates", RateRow),
    Table("differences", DifferenceRow),
    Table("domains", DomainRow),
    Table("domain_differences", DomainDifferenceRow),
    Table("subsets", SubsetRow),
    Table("pass_at_k", PassRow),
    Table("flips", FlipRow),
    Table("flip_tasks", FlipTask),
    Table("claims", ClaimResult, frozenset({"published"})),
    Table("published", PublishedNumber),
    Table("contradictions", ContradictionRow),
    Table("own_measurements", OwnMeasurement),
    Table("learning_curves", CurveTask, frozenset({"swaps"})),
    Table("offline_curves", OfflineUpdate),
    Table("gates", GateRow),
    Table("replay", ReplayRow),
    Table("replay_events", ReplayEvent),
    Table("trainings", TrainingOutcome),
    Table("replay_effects", ReplayEffect),
    Table("throughput", ThroughputRow),
    Table("effort", EffortRow),
    Table("env_errors", EnvErrorRow),
    Table("models", ModelFacts),
    Table("splits", SplitTable),
    Table("left_out", LeftOutRow),
    Table("sources", SourceFile),
    Table("episodes", EpisodeRow),
)


def write_tables(summary: Path, claims: Path, scores: Path, folder: Path) -> list[Path]:
    """Write every table as CSV and JSON into ``folder``; the same inputs give the same bytes."""
    numbers = Summary.model_validate_json(summary.read_bytes())
    judged = Claims.model_validate_json(claims.read_bytes())
    rows = table_rows(numbers, judged, read_scores(scores))
    mark = Mark(
        study=numbers.study, size=numbers.size, desktop=numbers.desktop, synthetic=numbers.synthetic
    ).model_dump()
    written = []
    for table in TABLES:
        names = [column.name for column in table.columns()]
        flat = [{name: {**mark, **row}.get(name) for name in names} for row in map(flatten, rows[table.name])]
        for suffix, data in (("csv", as_csv(names, flat)), ("json", as_json(table, flat))):
            path = folder / f"{table.name}.{suffix}"
            write_atomically(path, data)
            written.append(path)
    return written


def table_rows(summary: Summary, claims: Claims, scores: pd.DataFrame) -> dict[str, Sequence[BaseModel]]:
    """Table -> rows."""
    rows: dict[str, Sequence[BaseModel]] = {
        "rates": summary.rates,
        "differences": summary.differences,
        "domains": summary.domains,
        "domain_differences": summary.domain_differences,
        "subsets": summary.subsets,
        "pass_at_k": summary.pass_at_k,
        "flips": summary.flips,
        "flip_tasks": list(_flip_tasks(summary.flips)),
        "claims": claims.claims,
        "published": list(_published(claims.claims)),
        "contradictions": list(_contradictions(claims)),
        "own_measurements": claims.own_measurements,
        "learning_curves": [
            CurveTask(arm=curve.arm, seed=curve.seed, stage=curve.stage, **point.model_dump())
            for curve in summary.curves
            for point in curve.points
        ],
        "offline_curves": [
            OfflineUpdate(
                **training.model_dump(include={"arm", "seed", "stage", "method"}), **point.model_dump()
            )
            for training in summary.offline
            for point in training.points
        ],
        "gates": list(gate_rows(summary)),
        "replay": summary.replay,
        "replay_events": list(_replay_events(summary)),
        "trainings": summary.trainings,
        "replay_effects": summary.replay_effects,
        "throughput": summary.throughput,
        "effort": summary.effort,
        "env_errors": summary.env_errors,
        "models": summary.models,
        "splits": [SplitTable(split=name, **facts.model_dump()) for name, facts in summary.splits.items()],
        "left_out": summary.left_out,
        "sources": summary.files,
    }
    known = scores.astype(object).where(scores.notna(), None)
    fields = set(EpisodeRow.model_fields)
    rows["episodes"] = [
        EpisodeRow(**{str(name): value for name, value in row.items() if name in fields})
        for row in known.to_dict("records")
    ]
    return rows


def _flip_tasks(flips: Iterable[FlipRow]) -> Iterator[FlipTask]:
    for row in flips:
        place = row.model_dump(include={"arm", "reference", "stage", "reference_stage", "split", "protocol"})
        for change in ("gained", "lost", "mixed", "not_comparable"):
            for task in getattr(row, change):
                yield FlipTask(**place, task=task, change=change)


def _published(claims: Iterable[ClaimResult]) -> Iterator[PublishedNumber]:
    names = set(PublishedNumber.model_fields)
    for claim in claims:
        for number in claim.published:
            values = {key: value for key, value in number.items() if key in names}
            yield PublishedNumber(claim=claim.id, number=str(number["id"]), **values)


def _contradictions(claims: Claims) -> Iterator[ContradictionRow]:
    for entry in claims.contradictions:
        for side in entry.sides:
            yield ContradictionRow(
                contradiction=entry.id,
                says=side.says,
                place=side.place,
                **entry.model_dump(include={"number", "subject", "reading", "here", "key", "value"}),
            )


def gate_rows(summary: Summary) -> Iterator[GateRow]:
    """Gate by gate what each finished stage was judged by, in the summary's order."""
    for report in summary.gates:
        for gate in report.gates:
            yield GateRow(
                arm=report.arm,
                seed=report.seed,
                stage=report.stage,
                gate=gate.name,
                **gate.model_dump(exclude={"name"}),
            )


def _replay_events(summary: Summary) -> Iterator[ReplayEvent]:
    for curve in summary.curves:
        for point in curve.points:
            for swap in point.swaps:
                yield ReplayEvent(
                    arm=curve.arm, seed=curve.seed, stage=curve.stage, step=point.step, **swap.model_dump()
                )


# --- rows to columns -----------------------------------------------------------------------------------


def columns_of(model: type[BaseModel], prefix: str = "") -> list[Column]:
    """The columns that a row of this model has, whatever its values."""
    found = []
    for name, field in model.model_fields.items():
        full = f"{prefix}{name}"
        meaning = " ".join((field.description or "").split())
        nested = _nested(field.annotation)
        if nested is Interval:
            found.append(Column(full, "number", meaning or "The value."))
            found.append(Column(f"{full}_low", "number", f"Lower end of the 95 % interval of {full}."))
            found.append(Column(f"{full}_high", "number", "Upper end."))
            found.append(Column(f"{full}_method", "text", "How the interval was made."))
            found.append(Column(f"{full}_about", "text", "What would be drawn anew."))
        elif nested is Reach:
            found += columns_of(Reach, f"{full}_")
        else:
            found.append(Column(full, _kind(field.annotation), meaning))
    return found


def _nested(annotation: Any) -> type[Interval] | type[Reach] | None:
    for candidate in (annotation, *get_args(annotation)):
        if candidate in (Interval, Reach):
            found: type[Interval] | type[Reach] = candidate
            return found
    return None


def _kind(annotation: Any) -> str:
    text = str(annotation)
    for word, kind in (("list", "list"), ("dict", "mapping"), ("bool", "true or false"), ("float", "number")):
        if word in text:
            return kind
    return "whole number" if "int" in text else "text"


def flatten(row: BaseModel) -> dict[str, Any]:
    """A row as columns."""
    flat: dict[str, Any] = {}
    for name in type(row).model_fields:
        value = getattr(row, name)
        if isinstance(value, Interval):
            flat |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
            flat |= {f"{name}_method": value.method, f"{name}_about": value.about}
        elif isinstance(value, Reach):
            flat |= {f"{name}_{key}": part for key, part in value.model_dump().items()}
        else:
            flat[name] = value
    return flat


def as_json(table: Table, rows: list[dict[str, Any]]) -> bytes:
    """``{table, rows}`` with one row per line."""
    lines = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
    body = ",\n".join(lines)
    return f'{{"table": "{table.name}", "rows": [\n{body}\n]}}\n'.encode()


def as_csv(names: list[str] | None, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """RFC 4180 with ``\\n``; lists are joined by ``; ``, mappings are JSON, nothing is an empty cell.

    ``names``: the columns; None: those of the rows, as they come.
    """
    # dtype object: a column of whole numbers with a gap would become one of decimals.
    frame = pd.DataFrame(rows, columns=names, dtype=object)
    return frame.map(_cell).to_csv(index=False, lineterminator="\n").encode()


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        value = "; ".join(map(str, value))
    elif isinstance(value, dict):
        value = json.dumps(value, ensure_ascii=False, sort_keys=True)
    elif isinstance(value, bool):
        value = "true" if value else "false"
    # A spreadsheet would run text of a policy or a task file that begins like a formula.
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value
