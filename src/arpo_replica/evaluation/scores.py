"""From episode indexes to one table: a row per episode (``scores.parquet`` and the same as CSV)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from arpo_replica.base.errors import UserError
from arpo_replica.config.desktop import desktop_mark
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.failures import failure_of
from arpo_replica.evaluation.records import EPISODE_COLUMNS as COLUMNS
from arpo_replica.evaluation.records import shown_path
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
