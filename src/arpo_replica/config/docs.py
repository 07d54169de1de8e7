"""``arpo explain`` and ``docs/what_reruns.md``: what a key means, what it decides, what runs again."""

import difflib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel

from arpo_replica.base.errors import UserError
from arpo_replica.config.decides import Class, Row, rules, table
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.section import nested_model


def render_text(template: Path, **facts: Any) -> str:
    """Markdown or plain text from its template, a ``.md.j2`` or ``.txt.j2`` file."""
    environment = Environment(  # noqa: S701 - no HTML
        loader=FileSystemLoader(template.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(**facts)


def render_reruns() -> str:
    """``docs/what_reruns.md``: the table by class, then the keys of each rule."""
    rows = table()
    classes = []
    for kind in Class:
        found = dict.fromkeys(row for row in rows.values() if row.kind is kind)
        keys = {row: ", ".join(f"`{key}`" for key in rows if rows[key] is row) for row in found}
        classes.append((kind.value.capitalize(), [(keys[row], row.why, _reruns(row)) for row in found]))
    by_rule = []
    for rule in rules():
        sections: dict[str, list[str]] = {}
        for section, _, name in (key.rpartition(".") for key, row in rows.items() if row.decides(rule)):
            sections.setdefault(section, []).append(name)
        by_rule.append((rule, sections))
    template = Path(__file__).with_name("what_reruns.md.j2")
    return render_text(template, classes=classes, by_rule=by_rule)


def _reruns(row: Row) -> str:
    """The rules of a row in words."""
    named = row.rules.split()
    by_files = [rule.removeprefix("+") for rule in named if rule.startswith("+")]
    parts = [", ".join(rule for rule in named if not rule.startswith("+"))]
    parts.append(", ".join(by_files) + " (files)" if by_files else "")
    return "; ".join(filter(None, parts)) or "nothing"


def explain(key: str) -> str:
    """The rows of a key, of a section's keys or, for none, of all. Raises ``UserError`` for a typo."""
    rows = table()
    parts = key.split(".")
    asked = ".".join(["training", *parts[2:]]) if parts[0] == "arms" and len(parts) > 2 else key
    plain = {name.replace("[]", ""): name for name in rows}
    found = [plain[name] for name in plain if not key or name == asked or name.startswith(f"{asked}.")]
    if not found:
        close = difflib.get_close_matches(asked, [*plain, *{name.partition(".")[0] for name in plain}], n=1)
        hint = f"did you mean '{close[0]}'?" if close else "'arpo explain' lists the keys."
        raise UserError(f"There is no key '{key}'; {hint}")
    return "\n".join(
        f"{name}: {rows[name].kind.value} ({rows[name].why}). Runs again: {_reruns(rows[name])}. "
        f"Unfinished work: {_unfinished(rows[name])}.\n  {_meaning(name)}"
        for name in found
    )


def _meaning(key: str) -> str:
    """The docstring of a key, and its default."""
    model: type[BaseModel] = StudyConfig
    for name in key.replace("[]", "").split("."):
        field = model.model_fields[name]
        model = nested_model(field.annotation) or model
    default = "required" if field.is_required() else field.get_default(call_default_factory=True)
    return f"{' '.join((field.description or '').split())} ({default})"


def _unfinished(row: Row) -> str:
    """What becomes of it, in words."""
    if row.kind not in (Class.TRAINING, Class.EPISODES) or row.why == "which":
        return "goes on"
    return "what rests on this begins anew, and the old folder is kept"
