"""Which files the tables of a study are: for the rules, which must not wait for pandas to say so."""

from __future__ import annotations

NAMES = (
    "rates",
    "differences",
    "domains",
    "domain_differences",
    "subsets",
    "pass_at_k",
    "flips",
    "flip_tasks",
    "claims",
    "published",
    "contradictions",
    "own_measurements",
    "learning_curves",
    "offline_curves",
    "gates",
    "replay",
    "replay_events",
    "trainings",
    "replay_effects",
    "throughput",
    "effort",
    "env_errors",
    "models",
    "splits",
    "left_out",
    "sources",
    "episodes",
)
"""Of `tables.TABLES`, in its order; a test compares them."""


def table_files(folder: str) -> list[str]:
    """All files of ``write_tables``."""
    return [f"{folder}/{name}.{suffix}" for name in NAMES for suffix in ("csv", "json")]
