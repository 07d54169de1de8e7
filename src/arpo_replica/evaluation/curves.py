"""Training metrics and manifests on disk -> learning curves and model facts.

results/{study}/models/{arm}/seed_{seed}/stage_{stage}/metrics.jsonl   one object per step
results/{study}/models/{arm}/seed_{seed}/stage_{stage}/manifest.json   what the stage made
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from arpo_replica.base.errors import UserError
from arpo_replica.base.files import file_sha256
from arpo_replica.evaluation import records as r
from arpo_replica.policy.manifest import Manifest, read_manifest

Parsed = TypeVar("Parsed")
SAID = {"step", "loss"}
NAMED = set(r.CurvePoint.model_fields) - {"step", "seconds", "other", "swaps", "tasks"}
PLACE = re.compile(r"(?P<arm>[^/]+)/seed_(?P<seed>\d+)/stage_(?P<stage>[^/]+)$")


def read_curve(path: Path) -> r.Curve:
    """One stage's metrics. A step written twice (a resumed run repeats some) counts as last written.

    Raises ``UserError`` that names file and line if it is no metrics file.
    """
    arm, seed, stage = place_of(path)
    points = {point.step: point for point in _read(path, _point, "training step; train this stage again")}
    ordered = [points[step] for step in sorted(points)]
    return r.Curve(arm=arm, seed=seed, stage=stage, source=r.shown_path(path), points=ordered)


def read_offline(path: Path, method: str, manifest: Path | None = None) -> r.OfflineTraining:
    """One offline arm's ``learning.jsonl``, with what its manifest says about its data.

    Raises ``UserError`` that names file and line if it is no such file.
    """
    arm, seed, stage = place_of(path)
    return r.OfflineTraining(
        arm=arm,
        seed=seed,
        stage=stage,
        method=method,
        source=r.shown_path(path),
        learnt_from={} if manifest is None else read_manifest(manifest).recipe.get("data", {}),
        points=list(_read(path, _offline_point, "update; train this arm again")),
    )


def _read(path: Path, parse: Callable[[dict[str, Any]], Parsed], otherwise: str) -> Iterator[Parsed]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield parse(json.loads(line))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, line {number}, is no {otherwise}.") from error


def _offline_point(raw: dict[str, Any]) -> r.OfflinePoint:
    loss = raw["loss"] if _is_number(raw["loss"]) else None
    known = {name: value for name, value in sorted(raw.items()) if name not in SAID and _is_number(value)}
    return r.OfflinePoint(step=int(raw["step"]), loss=loss, other=known)


def _point(raw: dict[str, Any]) -> r.CurvePoint:
    numbers = {name: value for name, value in sorted(raw.items()) if name != "step" and _is_number(value)}
    named: dict[str, Any] = {name: numbers.pop(name) for name in NAMED & numbers.keys()}
    seconds = {phase: value for phase, value in raw.get("seconds", {}).items() if _is_number(value)}
    groups: dict[str, list[float]] = {}
    spreads = []
    for group in raw.get("tasks") or []:
        if group.get("scores"):
            groups.setdefault(str(group["task"]), []).extend(group["scores"])
            spreads.append(statistics.pstdev(group["scores"]))
    if spreads:
        numbers["group_score_std"] = statistics.fmean(spreads)
    tasks = {task: statistics.fmean(scores) for task, scores in groups.items()}
    return r.CurvePoint(
        step=int(raw["step"]), **named, seconds=seconds, other=numbers, swaps=_swaps(raw), tasks=tasks
    )


def _swaps(raw: dict[str, Any]) -> list[r.SwapFact]:
    """Which tasks got a replayed trajectory, from ``tasks`` (the groups) and ``swaps`` of a row."""
    groups = raw.get("tasks") or []
    return [
        r.SwapFact(
            task=str(groups[swap["group"]]["task"]),
            age=int(raw["step"]) - int(swap["step"]),
            name=str(swap.get("name", "")),
            rollout=swap.get("rollout"),
        )
        for swap in raw.get("swaps") or []
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def place_of(path: Path) -> tuple[str, int, str]:
    """(arm, seed, stage) of a file in ``{arm}/seed_{seed}/stage_{stage}/``."""
    found = PLACE.search(path.resolve().parent.as_posix())
    if not found:
        raise UserError(f"{path} is not in <arm>/seed_<seed>/stage_<stage>/; give the file there.")
    return found["arm"], int(found["seed"]), found["stage"]


def read_model(path: Path) -> r.ModelFacts:
    """The facts of a manifest that the report shows. Raises ``UserError`` if it is no manifest."""
    manifest = read_manifest(path)
    return r.ModelFacts(
        **manifest.model_dump(include={"arm", "seed", "stage", "step", "parent", "weights"}),
        manifest=r.shown_path(path),
        manifest_sha256=file_sha256(path),
        identity=manifest.sha256,
        origin=_origin(manifest),
    )


def _origin(manifest: Manifest) -> str:
    """Of weights that no stage made: their source in words."""
    recipe = manifest.recipe
    if manifest.parent is not None:
        return ""
    if recipe.get("source") == "hub":
        return f"{recipe['hub']} at {recipe['revision'][:12]}: {recipe.get('grade', 'pinned')}"
    return str(recipe.get("source") or "demonstrations")
