"""``docs/results.md`` and the JSON schemas, generated from the models so that they cannot drift from them."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from arpo_replica.evaluation.records import Claims, Summary, TargetDocument
from arpo_replica.evaluation.tables import TABLES, Table
from arpo_replica.evaluation.targets import TARGETS

SCHEMAS: dict[str, type[BaseModel]] = {"summary": Summary, "claims": Claims, "target": TargetDocument}
COMMON = {
    "arm": "Arm of the study (`arms` of the config).",
    "reference": "Arm that it is compared with, on the same tasks.",
    "stage": "Stage of training; `base`: untrained.",
    "reference_stage": "Stage of the reference.",
    "split": "List of tasks.",
    "domain": "Application or folder of the task.",
    "protocol": "hard: the state as it was left; standard: an episode cut at the step limit counts as FAIL.",
    "tasks": "Number of tasks.",
    "valid": "Runs with a score.",
    "successes": "Runs with success.",
    "seed": "Training seed.",
    "trial": "Repeat of the task, from 0.",
    "step": "Update.",
    "steps": "Steps of episodes.",
    "path": "Relative to the repository.",
}
"""Meanings of columns that many tables share and whose models say nothing of their own."""
PAGE = Path(__file__).with_name("results_page.md")
"""The page's text; what follows from the models is put in its two places."""


def render_results() -> str:
    """The page ``docs/results.md``."""
    rows = []
    for target in TARGETS.values():
        roles = [*target.roles, *target.curves, *(["environments"] if target.throughput else [])]
        rows.append(f"| `{target.name}` | {target.place} | {', '.join(target.arms)} | {', '.join(roles)} |\n")
    text = PAGE.read_text(encoding="utf-8").replace("<!-- targets -->\n", "".join(rows))
    return text.replace("<!-- tables -->\n", "".join(map(_table, TABLES)))


def _table(table: Table) -> str:
    about = " ".join((table.row.__doc__ or "").split())
    lines = [f"\n### {table.name}\n\n{about}\n\n| column | type | meaning |\n| --- | --- | --- |\n"]
    for column in table.columns()[4:]:
        meaning = (column.meaning or COMMON.get(column.name, "")).replace("|", "\\|")
        lines.append(f"| `{column.name}` | {column.kind} | {meaning} |\n")
    return "".join(lines)


def render_schema(name: str) -> str:
    """One of ``SCHEMAS`` as JSON Schema."""
    schema = SCHEMAS[name].model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def write_results_docs(folder: Path) -> None:
    """Write the page and the schemas below ``folder`` (``docs``)."""
    (folder / "schemas").mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(render_results(), encoding="utf-8")
    for name in SCHEMAS:
        (folder / "schemas" / f"{name}.schema.json").write_text(render_schema(name), encoding="utf-8")
