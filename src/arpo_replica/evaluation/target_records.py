"""What ``targets/{name}/{name}.json`` holds. Rates are fractions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from arpo_replica.evaluation.claim_records import ClaimResult, TargetName
from arpo_replica.evaluation.document import Document, InputFile


class TargetDocument(Document):
    """One table or figure of the paper, as this study has it."""

    schema_version: Literal[1] = 1
    target: TargetName
    title: str
    place: str
    """Where it stands in the paper."""
    study: str
    mark: str
    """Size, desktops, step limit and task sets: never to be left out beside a number."""
    synthetic: bool
    splits: dict[str, str]
    """Part in the paper's table or figure -> this study's split (or training)."""
    columns: list[str]
    rows: list[dict[str, Any]]
    comparison: list[ClaimResult] = Field(default_factory=list)
    """Claims of the paper that this study may be compared with; empty for any other size or desktop."""
    not_compared: dict[str, int] = Field(default_factory=dict)
    """Why the paper's other claims on it are not: reason -> claims."""
    notes: list[str] = Field(default_factory=list)
    """What is missing or must be known."""
    inputs: list[InputFile] = Field(default_factory=list)
    commit: str | None = None
    """Commit of the checkout that made this file."""
    dirty: bool | None = None
