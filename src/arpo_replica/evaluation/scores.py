"""What a study left on disk: episodes as one table (``scores.parquet`` and the same as CSV), why each was not
solved, and trainings as learning curves and facts about models.

results/{study}/models/{arm}/seed_{seed}/stage_{stage}/metrics.jsonl   one object per step
results/{study}/models/{arm}/seed_{seed}/stage_{stage}/manifest.json   what the stage made
"""

import hashlib
import json
import math
import re
import statistics
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import ValidationError

from arpo_replica.actions.types import from_json, same_action
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import file_sha256
from arpo_replica.base.tables import table_of
from arpo_replica.config.desktop import desktop_mark
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation import records as r
from arpo_replica.evaluation.records import EPISODE_COLUMNS as COLUMNS
from arpo_replica.evaluation.records import shown_path
from arpo_replica.policy.manifest import Manifest, read_manifest
from arpo_replica.rollout.records import EpisodeRecord, StepRecord
from arpo_replica.tasks.splits import read_left_out

KEY = ["arm", "stage", "seed", "split", "trial", "domain", "task_id"]
"""What names an episode."""
SUMS = ("model_s", "env_s", "prompt_tokens", "completion_tokens")
"""Columns that are the sum over an episode's steps."""


def score_episodes(config: StudyConfig, roots: Sequence[Path], out_parquet: Path) -> pd.DataFrame:
    """Read the indexes under ``roots``, write ``out_parquet`` and its CSV twin, return the table.

    A root is an ``episodes.jsonl`` or a folder that holds some at any depth. An ``env_error`` has no
    success at all (null), never a failure. Raises ``UserError`` for an index that cannot be read, an
    episode twice, and an episode of another size, of an arm or split the config does not know, or of a
    task that is left out.
    """
    table = read_episodes(config, roots)
    out_parquet.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(out_parquet, index=False)
    table.to_csv(out_parquet.with_suffix(".csv"), index=False)
    return table


def read_episodes(config: StudyConfig, roots: Sequence[Path]) -> pd.DataFrame:
    """The same table without writing it."""
    out = read_left_out(config)
    rows = [row for index in find_indexes(roots) for row in _read_index(config, index, out)]
    table = as_table(rows)
    twice = table[table.duplicated(KEY, keep=False)]
    if len(twice):
        first = "/".join(str(twice.iloc[0][key]) for key in KEY)
        raise UserError(f"The episode {first} is in two indexes; name each folder of episodes once.")
    return table


def as_table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Rows in the order of ``KEY``, with the types of ``COLUMNS`` even if there is no row."""
    table = pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(COLUMNS)
    return table.sort_values(KEY, kind="stable", ignore_index=True)


def read_scores(path: Path) -> pd.DataFrame:
    """The table as written by ``score_episodes``. Raises ``UserError`` for another version's."""
    table = pd.read_parquet(path)
    if missing := COLUMNS.keys() - table.columns:
        raise UserError(f"{path} has no column '{min(missing)}'; make it again (score_episodes).")
    return table.astype(COLUMNS)


def find_indexes(roots: Sequence[Path]) -> list[Path]:
    """Every ``episodes.jsonl`` that the roots name or hold, sorted, each once."""
    found: set[Path] = set()
    for root in roots:
        if root.is_file():
            found.add(root)
        elif root.is_dir():
            found.update(root.rglob("episodes.jsonl"))
        else:
            raise UserError(f"{root} does not exist; it should hold the episodes to score.")
    return sorted(found)


def _read_index(config: StudyConfig, index: Path, out: Container[str]) -> Iterable[dict[str, Any]]:
    data = index.read_bytes()
    origin = {"index": shown_path(index), "index_sha256": hashlib.sha256(data).hexdigest()}
    for number, line in enumerate(data.decode("utf-8").split("\n"), start=1):
        if not line:
            continue
        try:
            raw = json.loads(line)
            name = str(raw.pop("directory", f"{raw['domain']}.{raw['task_id']}"))
            directory = index.parent / Path(name).name
            record = EpisodeRecord.model_validate(raw)
        except (ValueError, KeyError, AttributeError, ValidationError) as error:
            raise UserError(
                f"{index}, line {number}, is no episode record; run the rollouts of this folder again."
            ) from error
        _check_belongs(config, record, f"{index}, line {number}")
        if f"{record.domain}/{record.task_id}" in out:
            raise UserError(
                f"{index}, line {number}: an episode of the task {record.task_id}, which tasks.leave_out "
                "leaves out; run the rollouts of this folder again, or take the task off its list."
            )
        yield {**_row(config, record, directory), **origin}


def _check_belongs(config: StudyConfig, record: EpisodeRecord, where: str) -> None:
    if record.size != config.size:
        raise UserError(
            f"{where}: the episode has the size mark '{record.size}', the study is '{config.size}'; "
            "results of two sizes never go into one study."
        )
    if record.arm not in config.arms:
        raise UserError(f"{where}: the arm '{record.arm}' is not in arms; add it or leave the folder out.")
    if record.split not in config.tasks.splits:
        raise UserError(
            f"{where}: the split '{record.split}' is not in tasks.splits; add it or leave the folder out."
        )


def _row(config: StudyConfig, record: EpisodeRecord, directory: Path) -> dict[str, Any]:
    above = config.evaluation.success_above
    valid = record.outcome != "env_error" and record.hard_score is not None
    hard, standard = record.hard_score, record.standard_score
    steps = read_steps(directory)
    solved = hard > above if valid and hard is not None else None
    return {
        **record.model_dump(include=set(COLUMNS)),
        "study": config.name,
        "desktop_mark": desktop_mark(record.desktop),
        "sampling": json.dumps(record.sampling, sort_keys=True),
        "valid": valid,
        "success_hard": solved,
        "success_standard": standard > above if valid and standard is not None else None,
        "failed_attempts": len(record.errors),
        "errors": json.dumps(record.errors, ensure_ascii=False),
        "ran_on": json.dumps(record.ran_on, sort_keys=True),
        **{name: sum(getattr(step, name) for step in steps) if steps else None for name in SUMS},
        "failure": failure_of(record, steps, solved) or "",
        "directory": _relative_to_episodes(directory),
    }


def read_steps(directory: Path) -> list[StepRecord]:
    """The steps of an episode; none if the file is missing or broken (the summary still counts)."""
    try:
        text = (directory / "steps.jsonl").read_text(encoding="utf-8")
        # Not splitlines(): model text may hold U+2028 and the like, which are no ends of JSON lines.
        return [StepRecord.model_validate_json(line) for line in text.split("\n") if line]
    except (OSError, ValueError):
        return []


def _relative_to_episodes(directory: Path) -> str:
    """``{arm}/seed_{seed}/stage_{stage}/{split}/trial_{trial}/{episode}``: the contract's last six parts."""
    if len(directory.parts) < 6:
        return shown_path(directory)
    return Path(*directory.parts[-6:]).as_posix()


# --- why an episode was not solved ----------------------------------------------------------------------

# The classes say what the episode did, never what the policy meant.

REPEATS = 3
"""So many equal actions at the end are a repetition."""
SAME_PLACE = 0.05
"""Points closer than this part of the screen's longer side are one place."""
EXAMPLES = 3
"""Episodes named for each class, arm and list of tasks."""
FAILURES: dict[r.Failure, str] = table_of(__file__, "words.yaml")["failures"]
"""Class of failure -> when an episode belongs to it; it belongs to the first that fits."""


def failure_of(record: EpisodeRecord, steps: Sequence[StepRecord], solved: bool | None) -> r.Failure | None:
    """The class of an episode; None if it was solved. ``solved``: None for an environment failure."""
    fits: dict[r.Failure, bool] = {
        "desktop": solved is None,
        "context full": bool(record.refusal),
        "unparsable": bool(steps) and 2 * sum(step.action is None for step in steps) >= len(steps),
        "missed FAIL": record.infeasible,
        "repeated action": _repeated(record, steps),
        "never finished": record.outcome == "truncated",
        "wrong target": True,
    }
    return None if solved else next(kind for kind, here in fits.items() if here)


def _repeated(record: EpisodeRecord, steps: Sequence[StepRecord]) -> bool:
    screen: Any = record.sampling.get("screen") or (0, 0)
    reach = SAME_PLACE * max(screen)
    last = [_actions(step) for step in steps[-REPEATS:]]
    return len(last) == REPEATS and all(
        len(one) == len(other) > 0 and all(same_action(a, b, reach) for a, b in zip(one, other, strict=True))
        for one, other in pairwise(last)
    )


def _actions(step: StepRecord) -> list[Any]:
    try:
        return [from_json(raw) for raw in (step.action, *step.further) if raw is not None]
    except (ValueError, TypeError):
        return []


def failure_rows(table: pd.DataFrame) -> Iterator[r.FailureRow]:
    """Failed episodes by arm, stage, list of tasks and class; classes without one are left out."""
    for (arm, stage, split), episodes in table.groupby(["arm", "stage", "split"], sort=False):
        for kind in FAILURES:
            found = episodes[episodes["failure"] == kind]
            if len(found):
                yield r.FailureRow(
                    arm=str(arm),
                    stage=str(stage),
                    split=str(split),
                    failure=kind,
                    episodes=len(found),
                    of=len(episodes),
                    tasks=int(found[["domain", "task_id"]].drop_duplicates().shape[0]),
                    examples=[str(name) for name in found["directory"].iloc[:EXAMPLES]],
                )


# --- trainings ------------------------------------------------------------------------------------------

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
