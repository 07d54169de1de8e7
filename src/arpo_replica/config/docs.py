"""``arpo explain`` and ``docs/what_reruns.md``: what a key means, what it decides, what runs again."""

import difflib

from pydantic import BaseModel

from arpo_replica.base.errors import UserError
from arpo_replica.config.decides import Class, Row, rules, table
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.section import nested_model

RERUNS = """# What runs again when a key changes

You want to change a key and keep what is finished. Type `arpo explain KEY`, then `snakemake --dry-run`.
Expect only what the key decides to run again.

Generated from the table in `src/arpo_replica/config/decides.py` by `arpo docs`. Snakemake, the
identity of unfinished work and `arpo explain KEY` use the same table.

Each key of the config is in one class, that of the earliest result it decides. **Runs again** names the rules
whose result depends on the key itself; whatever is made from these follows. *(files)* stands after rules that
see a key through their files alone: another list is another input, more seeds are more jobs. A key of an arm
(`arms.arpo.learning_rate`) is the key of `training` of the same name, for that arm alone.

| class | finished work | unfinished work (a killed training, some of the episodes) |
| --- | --- | --- |
| decides training | is made again, with all that follows | begins anew; the old folder is kept (`*.before`) |
| decides episodes | the same, from the episodes on | the same for episodes; trainings go on |
| decides scores, decides the page | seconds of work | goes on |
| only where and how fast, only where it runs | stays | goes on |

Any change also writes the config, the provenance and the page anew, in seconds. Of several folders `*.before`
the newest is kept; delete it when you do not miss it. Keys of a provider of desktops that is not chosen
decide nothing. Another `study` or `variant` is another folder of results, where everything runs; the old one
stays. A change of the code alone runs nothing again, except for the page's templates: the provenance names
the commit.

To go on with a study elsewhere, `arpo copy --config configs/X.yaml --to FOLDER` copies it into a checkout of
the same commit: nothing is planned there. `results/` and `reports/` alone are not enough: what a result was
made from (values, sha256 of its inputs) Snakemake keeps in `.snakemake/metadata`. Without that, times alone
count, and all files of a new checkout are newer than the results. By hand:
`cp -a results reports .snakemake FOLDER`. Files that a study found in a workflow elsewhere (not in its
working folder) are remembered by their full path, which must be the same there.
"""


def render_reruns() -> str:
    """``docs/what_reruns.md``: the table by class, then the keys of each rule."""
    parts, rows = [RERUNS], table()
    for kind in Class:
        parts.append(f"\n## {kind.value.capitalize()}\n\n| keys | why | runs again |\n| --- | --- | --- |\n")
        for row in dict.fromkeys(row for row in rows.values() if row.kind is kind):
            keys = ", ".join(f"`{key}`" for key, found in rows.items() if found is row)
            parts.append(f"| {keys} | {row.why} | {_reruns(row)} |\n")
    parts.append("\n## By rule\n\n| rule | keys that decide its result |\n| --- | --- |\n")
    for rule in rules():
        sections: dict[str, list[str]] = {}
        for section, _, name in (key.rpartition(".") for key, row in rows.items() if row.decides(rule)):
            sections.setdefault(section, []).append(name)
        keys = "; ".join(
            f"{f'**{section}**: ' if section else ''}{', '.join(names)}"
            for section, names in sections.items()
        )
        parts.append(f"| `{rule}` | {keys or 'none by itself: its files do'} |\n")
    return "".join(parts)


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
