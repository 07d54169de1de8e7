"""Every table of a study as CSV and JSON (``tables/`` of the results), and ``docs/results.md`` about them.

Columns are taken from the models of ``summary.json`` and ``claims.json``: their names are stable, and the
page and the JSON schemas are generated from the same models, so that neither can drift from the files. An
interval becomes five columns: the value under the field's own name, then ``_low``, ``_high``, ``_method``
and ``_about``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import BaseModel

from arpo_replica.base.environments import ROOT
from arpo_replica.base.files import write_atomically
from arpo_replica.base.tables import table_of
from arpo_replica.config.docs import render_text
from arpo_replica.evaluation import records as r
from arpo_replica.evaluation.published import EFFORT, load_claims
from arpo_replica.evaluation.targets import TARGETS

if TYPE_CHECKING:
    import pandas as pd

MARK = ("study", "size", "desktop", "synthetic")
"""The first columns of every table: no number leaves its study without them."""
SCHEMAS: dict[str, type[BaseModel]] = {"summary": r.Summary, "claims": r.Claims, "target": r.TargetDocument}
TEXTS = table_of(__file__)
COMMON = TEXTS["common"]
PAGE = Path(__file__).with_name("results_page.md.j2")


@dataclass(frozen=True)
class Column:
    name: str
    kind: str = "text"
    meaning: str = ""


@dataclass(frozen=True)
class Table:
    """A table: its name is its file's."""

    name: str
    about: str
    own: tuple[Column, ...]
    """Its columns after those of ``MARK``."""

    @property
    def names(self) -> list[str]:
        """All columns in order, the mark's first."""
        return [*MARK, *(column.name for column in self.own)]


def columns_of(model: type[BaseModel], prefix: str = "") -> dict[str, Column]:
    """Name -> column of all that a record of this model has, whatever its values."""
    found = []
    for field_name, field in model.model_fields.items():
        name, meaning = f"{prefix}{field_name}", " ".join((field.description or "").split())
        kinds = (field.annotation, *get_args(field.annotation))
        if r.Interval in kinds:
            found += [
                Column(name, "number", meaning or "The value."),
                Column(f"{name}_low", "number", f"Lower end of the 95 % interval of {name}."),
                Column(f"{name}_high", "number", "Upper end."),
                Column(f"{name}_method", "text", "How the interval was made."),
                Column(f"{name}_about", "text", "What would be drawn anew."),
            ]
        elif r.Reach in kinds:
            found += columns_of(r.Reach, f"{name}_").values()
        else:
            found.append(Column(name, _kind(field.annotation), meaning or COMMON.get(name, "")))
    return {column.name: column for column in found}


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "text"
    text = str(annotation)
    for word, kind in (("list", "list"), ("dict", "mapping"), ("bool", "true or false"), ("float", "number")):
        if word in text:
            return kind
    return "whole number" if "int" in text else "text"


def _of(model: type[BaseModel], *without: str) -> tuple[Column, ...]:
    return tuple(c for name, c in columns_of(model).items() if name not in (*MARK, *without))


def _table(name: str, about: str = "", **columns: Any) -> Table:
    """A table of ``tables.yaml``."""
    own: list[Column] = []
    for column, said in columns.items():
        if column[0].isupper():
            model = getattr(r, column)
            about = about or " ".join(model.__doc__.split())
            own += _of(model, *said)
        else:
            kind, meaning = said if isinstance(said, list) else ("text", said or COMMON.get(column, ""))
            own.append(Column(column, kind, meaning))
    return Table(name, about, tuple(own))


TABLES = [_table(name, **entry) for name, entry in TEXTS["tables"].items()]
TABLES.append(
    Table(
        "episodes",
        "One episode.",
        tuple(
            Column(name, TEXTS["kinds"][r.EPISODE_COLUMNS[name]], COMMON.get(name, ""))
            for name in TEXTS["episode"]
        ),
    )
)


def table_files(folder: str | Path) -> list[str]:
    """All files of ``write_tables``."""
    return [f"{folder}/{table.name}.{suffix}" for table in TABLES for suffix in ("csv", "json")]


def write_tables(summary: Path, claims: Path, scores: Path, folder: Path) -> list[Path]:
    """Write every table as CSV and JSON into ``folder``; the same inputs give the same bytes."""
    from arpo_replica.evaluation.scores import read_scores

    numbers = r.Summary.model_validate_json(summary.read_bytes())
    judged = r.Claims.model_validate_json(claims.read_bytes())
    rows = table_rows(numbers, judged, read_scores(scores))
    mark = {name: getattr(numbers, name) for name in MARK}
    for table in TABLES:
        flat = [{name: (row | mark).get(name) for name in table.names} for row in rows[table.name]]
        write_atomically(folder / f"{table.name}.csv", as_csv(table.names, flat))
        lines = ",\n".join(json.dumps(row, ensure_ascii=False, default=str) for row in flat)
        document = f'{{"table": "{table.name}", "rows": [\n{lines}\n]}}\n'
        write_atomically(folder / f"{table.name}.json", document.encode())
    return [Path(path) for path in table_files(folder)]


def table_rows(summary: r.Summary, claims: r.Claims, scores: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Table -> rows, which may hold more than the table's columns."""
    lists = {table.name: getattr(summary, table.name, None) for table in TABLES}
    own = {name: [flatten(row) for row in rows] for name, rows in lists.items() if isinstance(rows, list)}
    updates = [(flatten(curve), point) for curve in summary.curves for point in curve.points]
    return own | {
        "flip_tasks": [
            {**flatten(row), "task": task, "change": change}
            for row in summary.flips
            for change in ("gained", "lost", "mixed", "not_comparable")
            for task in getattr(row, change)
        ],
        "claims": [flatten(claim) for claim in claims.claims],
        "published": [
            {**number, "number": number["id"], "claim": claim.id}
            for claim in claims.claims
            for number in claim.published
        ],
        "contradictions": [
            {**flatten(entry), **flatten(side), "contradiction": entry.id}
            for entry in claims.contradictions
            for side in entry.sides
        ],
        "learning_curves": [training | flatten(point) for training, point in updates],
        "offline_curves": [
            flatten(training) | flatten(point) for training in summary.offline for point in training.points
        ],
        "gates": [
            flatten(report) | flatten(gate) | {"gate": gate.name}
            for report in summary.gates
            for gate in report.gates
        ],
        "replay_events": [
            {**training, "step": point.step, **flatten(swap)}
            for training, point in updates
            for swap in point.swaps
        ],
        "splits": [{**flatten(facts), "split": name} for name, facts in summary.splits.items()],
        "sources": [flatten(file) for file in summary.files],
        "episodes": [
            {str(name): value for name, value in row.items()}
            for row in scores.astype(object).where(scores.notna(), None).to_dict("records")
        ],
    }


def flatten(row: BaseModel) -> dict[str, Any]:
    """A record as columns."""
    flat: dict[str, Any] = {}
    for name in type(row).model_fields:
        value = getattr(row, name)
        if isinstance(value, r.Interval):
            flat |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
            flat |= {f"{name}_method": value.method, f"{name}_about": value.about}
        elif isinstance(value, r.Reach):
            flat |= {f"{name}_{key}": part for key, part in value.model_dump().items()}
        else:
            flat[name] = value
    return flat


def as_csv(names: list[str] | None, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """RFC 4180 with ``\\n``; lists are joined by ``; ``, mappings are JSON, nothing is an empty cell.

    ``names``: the columns; None: those of the rows, as they come.
    """
    import pandas as pd

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


# --- docs/results.md and the JSON schemas ----------------------------------------------------------------


def render_results() -> str:
    """The page ``docs/results.md``."""
    claims, _ = load_claims(ROOT / "data/paper/claims.yaml", ROOT / "data/paper/results.yaml")
    return render_text(PAGE, efforts=EFFORT, claims=claims, targets=TARGETS.values(), tables=TABLES)


def render_schema(name: str) -> str:
    """One of ``SCHEMAS`` as JSON Schema."""
    schema = SCHEMAS[name].model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def write_results_docs(folder: Path) -> None:
    """Write the page and the schemas below ``folder`` (``docs``)."""
    (folder / "schemas").mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(render_results(), encoding="utf-8")
    for name in SCHEMAS:
        (folder / "schemas" / f"{name}.schema.json").write_text(render_schema(name), encoding="utf-8")
