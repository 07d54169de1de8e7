"""One training of an offline arm, as its two processes see it: ``job.json``. All paths are absolute."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from arpo_replica.config.models import StudyConfig
from arpo_replica.config.training import OfflineConfig
from arpo_replica.training.checkpoints import PREFIX_TRL


class OfflineJob(BaseModel):
    """What decides it, and where it is kept."""

    model_config = ConfigDict(extra="forbid")

    config: StudyConfig
    arm: str
    seed: int
    parent_model: Path
    """Model folder that it starts from, Hugging Face format."""
    parent_sha256: str
    """Identity of those weights."""
    indexes: list[Path]
    """Indexes of the episodes."""
    work: Path
    """Resumable state, unknown to Snakemake."""

    @property
    def method(self) -> OfflineConfig:
        """How the arm learns."""
        found = self.config.recipe(self.arm).offline
        assert found is not None
        return found

    @property
    def weights(self) -> Path:
        """Where the trained weights are written."""
        return self.work / "weights"

    @property
    def facts_file(self) -> Path:
        """What was learnt from, in numbers; packages."""
        return self.work / "facts.json"

    @property
    def history_file(self) -> Path:
        """One object per update."""
        return self.work / "history.jsonl"

    def checkpoint(self, step: int) -> Path:
        """TRL's checkpoint of a step."""
        return self.work / f"{PREFIX_TRL}{step}"
