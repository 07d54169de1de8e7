"""Every hyper-parameter beside the paper and the released code, with this study's own value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arpo_replica.config.load import load_yaml
from arpo_replica.config.models import StudyConfig
from arpo_replica.training.parity import Fact, Facts, actual

NOT_STATED = "not stated"


def parity_rows(config: StudyConfig, facts: Path) -> list[dict[str, Any]]:
    """Rows of plain text; empty without the file of facts or without a trained arm.

    ``same_as``: what this study agrees with: paper, code, both, neither, or nothing stated.
    """
    if not facts.is_file() or not config.online_arms:
        return []
    rows = []
    for row in Facts.model_validate(load_yaml(facts.read_text(encoding="utf-8"))).rows:
        value = actual(row, config)
        rows.append(
            {
                "hyper_parameter": row.name,
                "paper": _stated(row.paper),
                "released_code": _stated(row.code),
                "this_study": _words(value),
                "key": row.key or "fixed in the code",
                "same_as": _agrees(value, row.paper, row.code),
            }
        )
    return rows


def _agrees(value: Any, paper: Fact | None, code: Fact | None) -> str:
    same = {name for name, fact in (("paper", paper), ("code", code)) if fact and fact.value == value}
    if paper is None and code is None:
        return "nothing stated"
    return {0: "neither", 1: next(iter(same), ""), 2: "both"}[len(same)]


def _stated(fact: Fact | None) -> str:
    return NOT_STATED if fact is None else f"{_words(fact.value)} ({fact.place})"


def _words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
