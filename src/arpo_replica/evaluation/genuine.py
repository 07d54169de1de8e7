"""Invented data is never published: the one check that everything which publishes calls first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from arpo_replica.base.errors import UserError


def refuse_synthetic(results: Path) -> None:
    """Raise ``UserError`` if anything in a study's folder says that it was invented.

    Looks at the summary and the claims, at every index of episodes, at every episode's own record and at the
    models' manifests, so that removing the mark in one place hides nothing. A broken file hides nothing
    either: what cannot be read is refused as well.
    """
    for path, mark in _marks(results):
        if mark:
            raise UserError(
                f"{path} says that its data is synthetic; invented data are never published: publish a "
                "measured study."
            )


def _marks(results: Path) -> Iterator[tuple[Path, bool]]:
    for name in ("summary.json", "claims.json"):
        path = results / name
        if path.is_file():
            yield path, bool(_object(path, path.read_bytes()).get("synthetic"))
    for path in sorted(results.rglob("episodes.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            if line:
                yield path, bool(_object(path, line).get("synthetic"))
    for path in sorted(results.rglob("episode.json")):
        yield path, bool(_object(path, path.read_bytes()).get("synthetic"))
    for path in sorted(results.rglob("manifest.json")):
        recipe = _object(path, path.read_bytes()).get("recipe")
        yield path, isinstance(recipe, dict) and bool(recipe.get("synthetic"))


def _object(path: Path, data: bytes) -> dict[str, object]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise UserError(f"{path} is no JSON, so nothing says that it was measured; make it again.") from error
    return found if isinstance(found, dict) else {}
