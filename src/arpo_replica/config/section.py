"""What all parts of the config model share."""

import re
from pathlib import Path
from typing import Annotated, Any, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer

from arpo_replica.base.environments import as_written, find


class Section(BaseModel):
    """A mapping whose keys are closed."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]
"""A score must exceed it, and none exceeds 1."""
PATH_NAME = r"[a-z0-9_]+"
"""What appears in paths and as a wildcard of the workflow (``rules/common.smk``)."""
Positive = Annotated[int, Field(ge=1)]
COMMIT = r"^[0-9a-f]{40}$"
"""A commit in full."""
ReadPath = Annotated[
    Path, AfterValidator(find), PlainSerializer(lambda path: str(as_written(path)), str, when_used="json")
]
"""A file or folder that is read: in the working folder, or the workflow's own of that name."""


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, or a list of."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def variable_name(name: str) -> str:
    """The name of an environment variable. The message does not repeat it: it may be a pasted secret."""
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name):
        raise ValueError("give the name of an environment variable (A-Z, 0-9, _), never the secret itself")
    return name


def plain_url(url: str) -> str:
    """An http(s) URL without user, password, query or fragment: it is written to results."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise ValueError("the port of a URL is a number from 1 to 65535") from None
    if port == 0 or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("give a URL that begins with http:// or https:// and names a host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "a URL in a config holds no user, password, query or fragment; keys come from the environment"
        )
    return url


VariableName = Annotated[str, AfterValidator(variable_name)]
Url = Annotated[str, AfterValidator(plain_url)]
