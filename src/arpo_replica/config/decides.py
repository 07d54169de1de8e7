"""What each key of the config decides: the one table behind everything that must know it.

From it are made Snakemake's ``params`` (a rule runs again when one of its keys changes), the identity of
unfinished work (a training or a set of episodes goes on only if every key that decides it is the same), the
page ``docs/what_reruns.md`` and the command ``explain``. A test flips every key of the schema.

A key is in one class, that of the earliest result it decides: whatever decides a training also decides all
that follows from it, through the files in between.
"""

from collections.abc import Callable, Iterator
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, NamedTuple, get_origin

from pydantic import BaseModel

from arpo_replica.base.tables import table_of
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.section import nested_model


class Class(StrEnum):
    """What a key decides. The order is that of the pipeline."""

    TRAINING = "decides training"
    EPISODES = "decides episodes"
    SCORES = "decides scores"
    PAGE = "decides the page"
    SPEED = "only where and how fast"
    PLACE = "only where it runs"


KEPT = (Class.SPEED, Class.PLACE)
"""No work, finished or not, is done again because of a key of these classes."""


class Row(NamedTuple):
    """Some keys of one section and what they decide: a line of ``decides.yaml``, which explains its parts."""

    section: str
    """Empty for keys of no section."""
    keys: str
    kind: Class
    rules: str
    why: str

    def decides(self, rule: str) -> bool:
        """True if the value of the key is part of what a job of the rule is."""
        return rule in self.rules.split()


def _read_rows() -> Iterator[Row]:
    written = table_of(__file__)
    for name, rules in written.pop("sets").items():
        SETS[name] = rules.format(**SETS)
    for section, rows in written.items():
        for keys, (kind, rules, why) in rows.items():
            section_name = "" if section == "study" else section
            yield Row(section_name, keys, Class[kind.upper()], rules.format(**SETS), why)


SETS: dict[str, str] = {}
"""Name -> rules that belong together."""
DECIDES = tuple(_read_rows())
ACTING = SETS["acting"]
"""Rules that use desktops."""


def leaves(model: type[BaseModel] = StudyConfig, prefix: str = "") -> Iterator[str]:
    """Every key of the schema that holds a value, dotted; ``stages[].name`` for keys of a list's entries."""
    for name, field in model.model_fields.items():
        nested = nested_model(field.annotation)
        many = "[]." if get_origin(field.annotation) is list else "."
        yield from [prefix + name] if nested is None else leaves(nested, f"{prefix}{name}{many}")


def row_of(key: str) -> Row | None:
    """The row of the table that a key belongs to."""
    section, _, name = key.rpartition(".") if key.count(".") == 0 else key.partition(".")
    found = [
        (len(pattern.replace("*", "")), row)
        for row in DECIDES
        if row.section == section
        for pattern in row.keys.split()
        if fnmatchcase(name, pattern.replace("[]", "[[]]"))
    ]
    return max(found, key=lambda entry: entry[0])[1] if found else None


@lru_cache(maxsize=1)
def table() -> dict[str, Row]:
    """Key -> its row. Raises KeyError for a key of the schema without one."""
    found = {key: row_of(key) for key in leaves()}
    if missing := [key for key, row in found.items() if row is None]:
        raise KeyError(f"config/decides.yaml has no row for {', '.join(missing)}")
    return {key: row for key, row in found.items() if row is not None}


def rules() -> list[str]:
    """Every rule that some key decides, in the order of the table."""
    named = (rule.removeprefix("+") for row in DECIDES for rule in row.rules.split())
    return list(dict.fromkeys(named))


def decided(
    config: StudyConfig, rule: str, *, arm: str = "", stage: str = "", split: str = ""
) -> dict[str, Any]:
    """Key -> value of all that decides the result of one job of a rule, as plain JSON.

    With ``arm`` the keys of ``training``, or the policy's weights, are those of the arm, with ``stage`` those
    of one stage; ``split`` is a noisy or selected one.
    """
    config = config.of_arm(arm)
    whole = config.model_dump(mode="json")
    whole["arms"] = list(config.arms)  # what they override are keys of training
    if arm in config.trained_arms:
        whole["training"] = config.recipe(arm).model_dump(mode="json")
    if stage:
        of_stage = {entry["name"]: entry for entry in whole["training"]["stages"]}
        whole["training"]["stages"] = [of_stage[stage]] if stage in of_stage else []
    for kind in ("noisy", "selected"):
        if split in whole["tasks"][kind]:
            whole["tasks"][kind] = whole["tasks"][kind][split]
    return {
        key: _value(whole, key.split("."))
        for key, row in table().items()
        if row.decides(rule) and _counts(config, key)
    }


def decides(config: StudyConfig, rule: str) -> Callable[[Any], dict[str, Any]]:
    """For a rule's params: wildcards -> the keys that decide the job's result, with their values."""

    def of_job(wildcards: Any) -> dict[str, Any]:
        return decided(
            config,
            rule,
            arm=wildcards.get("arm", wildcards.get("of", "").removeprefix("_")),
            stage=wildcards.get("stage", ""),
            split=wildcards.get("split", "") if rule in ("make_noisy_tasks", "select_tasks") else "",
        )

    return of_job


def _counts(config: StudyConfig, key: str) -> bool:
    """False for a key about desktops of another provider than the chosen one."""
    section, *rest = key.split(".")
    return section != "desktop" or len(rest) == 1 or rest[0] == config.desktop.provider


def _value(part: Any, path: list[str]) -> Any:
    for index, name in enumerate(path):
        if part is None:
            return None
        if name.endswith("[]"):
            return [_value(entry, path[index + 1 :]) for entry in part[name[:-2]]]
        part = part[name]
    return part
