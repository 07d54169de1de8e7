"""``configs/README.md``, generated from the config models so that it cannot drift from them."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from arpo_replica.config.models import StudyConfig

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
`variant` keeps its results in a folder of its own. Which value comes from where: [parity](../docs/parity.md).
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


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, or a list of."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


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
