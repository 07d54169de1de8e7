"""A task: OSWorld's task JSON, unchanged (github.com/xlang-ai/OSWorld, evaluation_examples)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arpo_replica.base.errors import UserError

TYPES: dict[str, tuple[type, str]] = {
    "id": (str, "a text"),
    "instruction": (str, "a text"),
    "config": (list, "a list of steps"),
    "evaluator": (dict, "a mapping"),
}
"""Key -> its type and the word for it."""


@dataclass(frozen=True)
class Task:
    """One task file. ``domain`` is the folder it lies in (``chrome``, ``miniwob`` ...)."""

    id: str
    domain: str
    instruction: str
    config: list[dict[str, Any]]
    evaluator: dict[str, Any]
    raw: dict[str, Any]
    sha256: str

    @classmethod
    def of(cls, raw: dict[str, Any], domain: str, data: bytes) -> Task:
        """The task of a file of the bytes ``data``, which ``raw`` was read from."""
        return cls(
            id=raw["id"],
            domain=domain,
            instruction=raw["instruction"],
            config=raw.get("config", []),
            evaluator=raw["evaluator"],
            raw=raw,
            sha256=hashlib.sha256(data).hexdigest(),
        )

    @property
    def name(self) -> str:
        """``domain/id``: what names it among all tasks."""
        return f"{self.domain}/{self.id}"

    @property
    def infeasible(self) -> bool:
        """True if only a final FAIL solves it: OSWorld marks this by the evaluator, not by a list."""
        return self.evaluator.get("func") == "infeasible"

    @property
    def needs_network(self) -> bool:
        """True if the task file declares that its desktop needs the outside network.

        OSWorld's key ``proxy`` marks the tasks that visit live sites.
        """
        return bool(self.raw.get("arpo_network") or self.raw.get("proxy"))


def load_task(path: Path) -> Task:
    """Read one task file. Raises ``UserError`` that names the file and what is wrong with it."""
    try:
        data = path.read_bytes()
        raw = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"Task file {path} cannot be read ({error}); restore it or drop its id.") from error
    missing = [key for key in TYPES if not isinstance(raw, dict) or key not in raw]
    if missing and missing != ["config"]:
        raise UserError(f"Task file {path} lacks the key '{missing[0]}'; every OSWorld task file has it.")
    for key, (kind, word) in TYPES.items():
        if not isinstance(raw.get(key, kind()), kind):
            raise UserError(f"Task file {path}: '{key}' must be {word}; restore the file or drop its id.")
    for key, steps in (("config", raw.get("config", [])), ("postconfig", raw["evaluator"].get("postconfig"))):
        if not _are_steps(steps or []):
            raise UserError(
                f"Task file {path}: '{key}' must be a list of steps {{type, parameters}}; restore the file "
                "or drop its id."
            )
    if raw["id"] != path.stem:
        raise UserError(f"Task file {path} has the id '{raw['id']}'; file name and id must be equal.")
    return Task.of(raw, path.parent.name, data)


def _are_steps(steps: Any) -> bool:
    return isinstance(steps, list) and all(
        isinstance(step, dict) and isinstance(step.get("parameters", {}), dict) for step in steps
    )
