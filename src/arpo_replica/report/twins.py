"""Tables as files inside the page: those of the results as they stand on disk, and the page's own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arpo_replica.evaluation.tables import TABLES, write_tables
from arpo_replica.report.sources import Sources
from arpo_replica.report.tables import Download, Table, download


@dataclass(frozen=True, slots=True)
class Twin:
    """A table with its two files."""

    name: str
    title: str
    rows: int
    files: list[Download]


def build_twins(results: Path, views: Mapping[str, Any], sources: Sources) -> dict[str, Twin]:
    """Name -> twin; a table without a row is left out.

    The tables of ``write_tables`` are read from ``results``/tables and made here only if that folder is not
    there; ``views`` holds the rows of the page's own tables.
    """
    folder = results / "tables"
    if folder.is_dir():
        found = _read(folder)
    else:
        with tempfile.TemporaryDirectory() as made:
            write_tables(
                results / "summary.json", results / "claims.json", results / "scores.parquet", Path(made)
            )
            found = _read(Path(made))
    for table in _own(views, sources):
        if table.rows:
            found[table.name] = Twin(table.name, table.title, len(table.rows), table.downloads())
    return found


def _read(folder: Path) -> dict[str, Twin]:
    found = {}
    for name in (table.name for table in TABLES):
        paths = [folder / f"{name}.csv", folder / f"{name}.json"]
        if not all(path.is_file() for path in paths):
            continue
        rows = len(json.loads(paths[1].read_bytes())["rows"])
        if rows:
            kinds = (("CSV", "text/csv"), ("JSON", "application/json"))
            files = [
                download(path.name, path.read_bytes(), *kind) for path, kind in zip(paths, kinds, strict=True)
            ]
            found[name] = Twin(name, name.replace("_", " ").capitalize(), rows, files)
    return found


def _own(views: Mapping[str, Any], sources: Sources) -> Sequence[Table]:
    """What only the page has: rows that come from other files than summary, claims and scores."""
    stages = [
        {"arm": row["curve"].arm, "stage": row["curve"].stage, "seed": row["curve"].seed}
        | {name: value for name, value in row.items() if name != "curve"}
        for row in views["stages"]
    ]
    files = [
        {"path": s.path, "sha256": s.sha256, "bytes": s.bytes, "made_by": s.made_by} for s in sources.files
    ]
    return (
        Table("training_stages", "Training by stage", stages),
        Table("jobs", "Jobs of the workflow", list(views["jobs"])),
        Table("deviations", "Deviations from the paper", list(views["deviations"])),
        Table("parity", "Parity, setting by setting", list(views["parity"])),
        Table("inputs", "Files behind the page", files),
    )
