"""What all parts of the config model share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A mapping whose keys are closed."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


Fraction = Annotated[float, Field(ge=0, le=1)]
PATH_NAME = r"[a-z0-9_]+"
"""What appears in paths and as a wildcard of the workflow (``rules/common.smk``)."""
Positive = Annotated[int, Field(ge=1)]
