"""Reading what running jobs write, without waiting for them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def latest(paths: Iterable[Path]) -> float:
    """Unix time of the newest of these files that exist; 0 if none does."""
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none if it is not there. A line that is being written is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if it is not there."""
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}
