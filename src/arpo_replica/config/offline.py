"""Offline arms (paper, figure 6): the sections `offline` and `training.offline` of a study's config."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from arpo_replica.config.section import Positive, Section


class OfflineEpisodesConfig(Section):
    """Episodes of the base policy that all offline arms learn from; collected if there is such an arm."""

    split: str | None = None
    """Split whose tasks the base policy tries; none: the split of the last stage."""
    rollouts_per_task: Positive = 8
    """Episodes per task, at `training.temperature`. For a fair comparison (paper §4.6) give offline arms as
    many rollouts as the online ones make: steps of all stages x `tasks_per_step` x `rollouts_per_task`."""


class OfflineConfig(Section):
    """An arm that learns from recorded episodes through TRL. Set it in an arm, not in `training` itself.

    Learning rate, warm-up, weight decay, gradient clipping and how often checkpoints are saved are those of
    `training`, which the arm may override beside this section.
    """

    method: Literal["rejection", "dpo", "kto"]
    """`rejection`: supervised learning of the successes. `dpo`: pairs of a success and a failure of one task.
    `kto`: every reply, desirable if its episode was a success."""
    epochs: Positive = 1
    """Passes over the samples."""
    batch_size: Positive = 16
    """Samples (for `dpo`: pairs) per update."""
    micro_batch: Positive = 4
    """Samples per forward pass; divides `batch_size`. `kto` needs at least 2: it estimates its KL term from
    the replies of a micro batch, each under another one's prompt."""
    beta: float = Field(default=0.1, gt=0)
    """`dpo` and `kto`: how strongly the policy is kept at the base policy."""
    pairs_per_task: Positive = 1
    """`dpo`: most pairs of one task (paper §4.6: one positive and one negative)."""

    @model_validator(mode="after")
    def _batches_fit(self) -> OfflineConfig:
        if self.batch_size % self.micro_batch:
            raise ValueError(
                f"batch_size ({self.batch_size}) is no multiple of micro_batch ({self.micro_batch})"
            )
        if self.method == "kto" and self.micro_batch < 2:
            raise ValueError("micro_batch must be at least 2 for the method 'kto'")
        return self
