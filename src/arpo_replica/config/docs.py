"""``configs/README.md``, generated from the config models so that it cannot drift from them."""

from __future__ import annotations

import difflib
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from arpo_replica.base.errors import UserError
from arpo_replica.config.decides import Class, Row, rules, table
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.section import nested_model

HEADER = """# Configs

One YAML file is one study. Every key, its type, its default and its meaning; the file is generated from
`src/arpo_replica/config/models.py` by `arpo docs`, and a test fails when it drifts.

| study | what it is for |
| --- | --- |
| [demo.yaml](demo.yaml) | the default: the whole pipeline in minutes on two cores |
| [nano.yaml](nano.yaml) | the same parts for about an hour: does replay make the nano policy learn? |
| [ci.yaml](ci.yaml) | the smallest study, for continuous integration |
| [smoke.yaml](smoke.yaml) | OSWorld's own tasks on container desktops with the nano policy |
| [seed_2b.yaml](seed_2b.yaml) | UI-TARS-2B-SFT on one GPU, 4 -> 32 -> 128 tasks of OSWorld |
| [subset32.yaml](subset32.yaml) | UI-TARS-1.5-7B on 32 tasks, tested on the other 96 (paper, section 4.3) |
| [paper.yaml](paper.yaml) | UI-TARS-1.5-7B on 128 tasks, measured on all 369 |

Run another study with `snakemake --configfile configs/nano.yaml`. An arm is a set of overrides of
`training`, for example `arpo: {replay: {enabled: true}}`: arms are compared within one study.

**Overlays** are files of a few lines, laid over a study in the order given; later ones win, for example
`--configfile configs/demo.yaml configs/recipes/released_code.yaml configs/ablations/random_slot.yaml`.
[recipes](recipes) say how to learn (paper, released code, GRPO alone, the 2B plan) and fit a study of any
size; [shapes](shapes) change the batch of one study; each of [ablations](ablations) changes one key;
[desktops](desktops) put any study on other desktops; [arms](arms) add arms to any study. An overlay's
`variant` keeps its results in a folder of its own, several overlays in one that has all their names. Which
value comes from where: [parity](../docs/parity.md). What runs again when a key changes:
[docs/what_reruns.md](../docs/what_reruns.md).
"""


def render_docs() -> str:
    """The whole page as Markdown."""
    sections = [HEADER]
    queue: list[tuple[str, type[BaseModel]]] = [("", StudyConfig)]
    while queue:
        prefix, model = queue.pop(0)
        title = f"`{prefix.rstrip('.')}`" if prefix else "Top level"
        summary = (model.__doc__ or "").strip().splitlines()[0]
        rows = [f"\n## {title}\n\n{summary}\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |"]
        for name, field in model.model_fields.items():
            nested = nested_model(field.annotation)
            if nested is not None:
                many = "[]." if get_origin(field.annotation) is list else "."
                queue.append((f"{prefix}{name}{many}", nested))
            default = field.default
            if field.is_required():
                shown = "required"
            elif nested is not None or default is PydanticUndefined:
                shown = "see below" if nested else "empty"
            else:
                shown = f"`{default}`"
            meaning = " ".join((field.description or "").split()).replace("|", "\\|")
            rows.append(f"| `{prefix}{name}` | {type_name(field.annotation)} | {shown} | {meaning} |")
        sections.append("\n".join(rows) + "\n")
    return "".join(sections)


RERUNS = """# What runs again when a key changes

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
    """The rows of a key, or of all keys of a section. Raises ``UserError`` that names the nearest key."""
    rows = table()
    parts = key.split(".")
    asked = ".".join(["training", *parts[2:]]) if parts[0] == "arms" and len(parts) > 2 else key
    plain = {name.replace("[]", ""): name for name in rows}
    found = [plain[name] for name in plain if name == asked or name.startswith(f"{asked}.")]
    if not found:
        close = difflib.get_close_matches(asked, [*plain, *{name.partition(".")[0] for name in plain}], n=1)
        hint = f"did you mean '{close[0]}'?" if close else "configs/README.md lists the keys."
        raise UserError(f"There is no key '{key}'; {hint}")
    return "\n".join(
        f"{name}: {rows[name].kind.value} ({rows[name].why}). Runs again: {_reruns(rows[name])}. "
        f"Unfinished work: {_unfinished(rows[name])}."
        for name in found
    )


def _unfinished(row: Row) -> str:
    """What becomes of it, in words."""
    if row.kind not in (Class.TRAINING, Class.EPISODES) or row.why == "which":
        return "goes on"
    return "what rests on this begins anew, and the old folder is kept"


def type_name(annotation: Any) -> str:
    """A type as a user would say it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    names = {"NoneType": "none", "int": "integer", "float": "number", "str": "text", "bool": "true or false"}
    if origin is Annotated:
        name = type_name(arguments[0])
    elif origin is Literal:
        name = " or ".join(f"`{value}`" for value in arguments)
    elif origin in (Union, types.UnionType):
        name = " or ".join(type_name(argument) for argument in arguments)
    elif origin is list:
        name = f"list of {type_name(arguments[0])}"
    elif origin is tuple:
        name = "[" + ", ".join(type_name(argument) for argument in arguments) + "]"
    elif origin is dict:
        name = "mapping"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        name = "section"
    else:
        raw = getattr(annotation, "__name__", str(annotation))
        name = names.get(raw, raw.lower())
    return name
