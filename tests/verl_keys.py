"""What verl is told of a study, for tests with and without verl."""

from __future__ import annotations

from pathlib import Path

from arpo_replica.config.models import StudyConfig
from arpo_replica.training.job import outline
from arpo_replica.training.recipe import verl_overrides


def verl_values(config: StudyConfig) -> dict[str, object]:
    """verl's keys of the config's last stage, without Hydra's plus."""
    job, nowhere = outline(config, config.online_arms[-1], config.training.stages[-1].name), Path("/nowhere")
    found = verl_overrides(job, tasks=10**6, data=nowhere, agents=nowhere)
    return {key.lstrip("+"): value for key, value in found.items()}
