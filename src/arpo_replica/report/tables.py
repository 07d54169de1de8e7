"""The data behind each table: CSV and JSON that a reader can save from the page, without a network."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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
class Table:
    """Rows of plain values under the names of their columns."""

    name: str
    title: str
    rows: list[dict[str, Any]]

    def csv(self) -> bytes:
        """Nested values become ``a.b``; lists become JSON. What may pass for a formula gets a '."""
        flat = [dict(_flatten(row)) for row in self.rows]
        columns = list(dict.fromkeys(name for row in flat for name in row))
        out = io.StringIO()
        writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _harmless(value) for name, value in row.items()} for row in flat)
        return out.getvalue().encode()

    def json(self) -> bytes:
        """A list of objects."""
        return (json.dumps(self.rows, indent=1, ensure_ascii=False) + "\n").encode()

    def files(self) -> dict[str, bytes]:
        """File name -> bytes."""
        return {f"{self.name}.csv": self.csv(), f"{self.name}.json": self.json()}

    def downloads(self) -> list[Download]:
        """Both files, small ones as they are and large ones gzipped."""
        kinds = {"csv": ("CSV", "text/csv"), "json": ("JSON", "application/json")}
        return [download(name, data, *kinds[name.rpartition(".")[2]]) for name, data in self.files().items()]


def download(name: str, data: bytes, kind: str, mime: str) -> Download:
    """A file as a data URI."""
    size = len(data)
    if size > GZIP_ABOVE:
        name, mime, data = f"{name}.gz", "application/gzip", gzip.compress(data, compresslevel=9, mtime=0)
    return Download(name, kind, size, f"data:{mime};base64,{base64.b64encode(data).decode()}")


def _flatten(row: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield (
                f"{prefix}{name}",
                json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value,
            )


def _harmless(value: Any) -> Any:
    """A policy's text may begin like a formula; a spreadsheet would run it."""
    if value is None:
        return ""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value
