"""Tables as files inside the page: those of the results as they stand on disk, and the page's own."""

from __future__ import annotations

import base64
import gzip
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arpo_replica.evaluation.tables import TABLES, as_csv, write_tables
from arpo_replica.report.sources import Sources

GZIP_ABOVE = 60_000
"""Bytes above which a file is gzipped before it stands in the page."""


@dataclass(frozen=True, slots=True)
class Download:
    """A file inside the page."""

    name: str
    kind: str
    """CSV or JSON."""
    bytes: int
    """Of the file itself."""
    uri: str


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
    for name, title, rows in _own(views, sources):
        if rows:
            as_json = (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode()
            files = {f"{name}.csv": as_csv(None, rows), f"{name}.json": as_json}
            found[name] = _twin(name, title, len(rows), files)
    return found


def _read(folder: Path) -> dict[str, Twin]:
    found = {}
    for name in (table.name for table in TABLES):
        paths = [folder / f"{name}.csv", folder / f"{name}.json"]
        if not all(path.is_file() for path in paths):
            continue
        rows = len(json.loads(paths[1].read_bytes())["rows"])
        if rows:
            files = {path.name: path.read_bytes() for path in paths}
            found[name] = _twin(name, name.replace("_", " ").capitalize(), rows, files)
    return found


def _twin(name: str, title: str, rows: int, files: Mapping[str, bytes]) -> Twin:
    kinds = {".csv": ("CSV", "text/csv"), ".json": ("JSON", "application/json")}
    found = [download(file, data, *kinds[Path(file).suffix]) for file, data in files.items()]
    return Twin(name, title, rows, found)


def download(name: str, data: bytes, kind: str, mime: str) -> Download:
    """A file as a data URI."""
    size = len(data)
    if size > GZIP_ABOVE:
        name, mime, data = f"{name}.gz", "application/gzip", gzip.compress(data, compresslevel=9, mtime=0)
    return Download(name, kind, size, f"data:{mime};base64,{base64.b64encode(data).decode()}")


def _own(views: Mapping[str, Any], sources: Sources) -> Sequence[tuple[str, str, list[dict[str, Any]]]]:
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
        ("training_stages", "Training by stage", stages),
        ("jobs", "Jobs of the workflow", list(views["jobs"])),
        ("deviations", "Deviations from the paper", list(views["deviations"])),
        ("parity", "Parity, setting by setting", list(views["parity"])),
        ("inputs", "Files behind the page", files),
    )
