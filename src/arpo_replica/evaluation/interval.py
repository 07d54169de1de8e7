"""A value with its interval, apart from the statistics that make it, whose libraries are slow to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

About = Literal["new tasks", "this task set", "training seeds", "both studies"]
"""What an interval is about: what it expects to be drawn anew."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval, as a fraction, and how the interval was made."""

    value: float
    low: float
    high: float
    method: str
    about: About = "new tasks"
