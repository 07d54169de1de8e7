"""Read a study's YAML into a ``StudyConfig``; every mistake becomes one sentence."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from arpo_replica.base.environments import find
from arpo_replica.base.errors import UserError
from arpo_replica.base.tables import load_yaml
from arpo_replica.config.models import StudyConfig, merge
from arpo_replica.config.section import nested_model

Checked = TypeVar("Checked")
UNSHOWN = {"endpoint", "pools", "api_key_variable", "token_variable"}
"""Keys whose values no message repeats: somebody may have pasted a secret there."""


FORMS = {
    r"^[a-z0-9_]+$": "use lower-case letters, digits and '_'",
    r"^[0-9a-f]{40}$": "give a commit's 40 hexadecimal digits",
    r"^[0-9a-f]{64}$": "give 64 hexadecimal digits",
    r"^sha256:[0-9a-f]{64}$": "give 'sha256:' and 64 hexadecimal digits",
    r"^[A-Za-z0-9_.\-]+$": "give its name alone, of letters, digits, '_', '.' and '-'",
    r"^[/$][A-Za-z0-9_./${}\-]*$": "give a path from '/' or '$' on, of letters, digits, '_', '.' and '-'",
}
"""Pattern of a key -> what to write, for people."""


def load_config(*paths: Path) -> StudyConfig:
    """Read and check a study's files, later ones over earlier ones, as Snakemake does with ``--configfile``.

    Raises ``UserError`` with the file or the key at fault.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        require_file(path)
        merged = merge(merged, checked_mapping(read_yaml(path, f"Config {path}"), str(path)))
    merged = {**merged, **joined_variant(merged, paths)}
    return parse_config(merged, ", ".join(map(str, paths)))


def require_file(path: Path) -> None:
    """Raises ``UserError`` for a config that is not there, with the nearest one, there or of the workflow."""
    if path.exists():
        return
    beside = path.parent.glob("*.yaml")
    known = {other.name: other for other in [*find("configs").rglob("*.yaml"), *beside]}
    close = difflib.get_close_matches(path.name, known, n=1)
    hint = f"did you mean '{known[close[0]]}'?" if close else "give an existing file."
    raise UserError(f"There is no config {path}; {hint}")


def joined_variant(merged: dict[str, Any], paths: Sequence[Path | str]) -> dict[str, str]:
    """``{"variant": name}`` of several overlays together, ``{}`` if nothing names a variant.

    Merging leaves the last one's name alone, and two combinations that end alike would share a folder. So the
    names are joined in the order of the files. ``merged`` may have one that no file has (``--config``): it
    comes last.
    """
    read = (read_yaml(Path(path), f"Config {path}") for path in paths)
    named = [content.get("variant") for content in read if isinstance(content, dict)]
    names = dict.fromkeys(name for name in (*named, merged.get("variant")) if isinstance(name, str))
    return {"variant": "_".join(names)} if names else {}


def read_yaml(path: Path, what: str) -> Any:
    """The content of a YAML file that a user may have written. Raises ``UserError``, which begins with
    ``what``."""
    try:
        return load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror}; give an existing file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{what} is no text in UTF-8 (byte {error.start}); save it as UTF-8.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{what} is no valid YAML: {' '.join(str(error).split())}.") from error


def read_checked(path: Path, what: str, kind: type[Checked]) -> Checked:
    """The same, checked as ``kind``."""
    try:
        return TypeAdapter(kind).validate_python(read_yaml(path, what))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{what} has a fault at '{where}': {first['msg']}.") from error


def parse_config(raw: Any, source: str) -> StudyConfig:
    """Check a mapping as Snakemake hands it over. ``source`` names it in messages."""
    try:
        return StudyConfig.model_validate(checked_mapping(raw, source))
    except ValidationError as error:
        raise UserError(f"Config {source}: {describe(error)}") from error


def checked_mapping(raw: Any, source: str) -> dict[str, Any]:
    """``raw`` itself. Raises ``UserError`` if it is no mapping."""
    if not isinstance(raw, dict):
        raise UserError(f"Config {source} must be a mapping of keys, see configs/README.md.")
    return raw


def describe(
    error: ValidationError, model: type[BaseModel] | None = None, page: str = "'arpo explain'"
) -> str:
    """The first fault of a validation error in one sentence with the key and a fix.

    ``model``: what was validated, a study's config if None; ``page`` documents its keys.
    """
    model = model or StudyConfig
    first = error.errors(include_url=False)[0]
    # Without the kinds that a value may be of, as "list[str]": they are no keys.
    location = [part for part in first["loc"] if isinstance(part, str | int) and "[" not in str(part)]
    key = ".".join(str(part) for part in location)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(location[-1]), known_keys(location[:-1], model), n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"{page} lists the known keys."
        return f"unknown key '{key}'; {hint}{more}"
    if first["type"] == "missing":
        return f"the key '{key}' is missing; {page} says what it means.{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "string_pattern_mismatch":
        message = FORMS.get(str(first["ctx"]["pattern"]), message)
    if first["type"] in ("model_type", "model_attributes_type", "dict_type") and (
        keys := known_keys(location, model)
    ):
        message = f"it has keys of its own, write them below it: {', '.join(keys[:4])}"
    # Of a whole section the message names the key already.
    section = first["type"] == "value_error" and isinstance(first["input"], dict | BaseModel)
    if not key or location[-1] in UNSHOWN or section:
        where = f"'{key}': " if key else ""
        return f"{where}{message}.{more}"
    return f"'{key}' is {first['input']!r}: {message[0].lower()}{message[1:]}.{more}"


def known_keys(location: list[str | int], model: Any = StudyConfig) -> list[str]:
    """The keys allowed at a place of the config."""
    for part in location:
        if isinstance(part, int):
            continue
        model = nested_model(model.model_fields[part].annotation) if part in model.model_fields else None
        if model is None:
            return []
    return list(model.model_fields)
