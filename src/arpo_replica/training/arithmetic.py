"""What of GRPO's arithmetic is ours: advantages and KL term by episode, a loss without a pass for old
probabilities.

verl imports this module where it builds the model (``actor_rollout_ref.model.external_lib``): on the driver,
which computes advantages, and in every trainer process, which computes the loss. They enter verl 0.9.1 by its
registries, ``register_adv_est`` and ``register_policy_loss``; for the KL term it has none (``install_kl``).
"""

import copy
import importlib
import os
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from verl.trainer.ppo.core_algos import (
    agg_loss,
    compute_grpo_outcome_advantage,
    compute_policy_loss_vanilla,
    kl_penalty,
    register_adv_est,
    register_policy_loss,
)
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.utils.metric import Metric
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

from arpo_replica.base.upstream_guards import require_function, require_verl
from arpo_replica.training.job import VARIABLE, current_job
from arpo_replica.training.recipe import ADVANTAGES, CURRENT_POLICY, PACKAGE, Speed

# --- advantages, on the driver ----------------------------------------


@register_adv_est(ADVANTAGES)  # type: ignore[untyped-decorator]
def episode_advantages(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Any = None,
    **unused: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """GRPO's advantage of each episode, spread over its rows by their shares of its sampled tokens.

    ``token_level_rewards``, ``response_mask``: (rows, tokens). ``index``: (rows,), ``{group}_{session}`` of
    the episode that a row belongs to; rows of an episode lie in order, and its reward is the last one's.
    Returns (advantages, shares), both (rows, tokens); verl takes the latter for returns, which only a critic
    would read, and ``loss_with_kl`` finds them there.

    verl's loss is the mean over all rows of the mean over a row's sampled tokens. An episode whose history
    forgets screenshots has several rows, each of which would count like an episode. With the factor
    ``tokens of the row / tokens of the episode x rows / episodes`` the loss is the mean over episodes of the
    mean over an episode's tokens instead, as if each were one row, and rows without any token (lost rollouts,
    filling) are no part of the mean. Advantages of a group then add up to 0, too. Where each episode is one
    row and none is empty, all factors are exactly 1.
    """
    last = {name: row for row, name in enumerate(index)}
    rewards = token_level_rewards.sum(-1, keepdim=True)
    groups = np.array([name.rsplit("_", 1)[0] for name in last], dtype=object)
    final = rewards[list(last.values())]
    scores, _ = compute_grpo_outcome_advantage(
        final,
        torch.ones_like(final),
        groups,
        norm_adv_by_std_in_grpo=True if config is None else config.get("norm_adv_by_std_in_grpo", True),
    )
    place = {name: position for position, name in enumerate(last)}
    rows = torch.tensor([place[name] for name in index])
    sampled = response_mask.sum(-1, dtype=torch.float64)
    total = torch.zeros(len(last), dtype=torch.float64).index_add_(0, rows, sampled)
    counted = int((total > 0).sum())
    share = sampled / total[rows].clamp_min(1.0) * (len(index) / max(counted, 1))
    shares = share.unsqueeze(-1).to(scores.dtype) * response_mask
    return scores[rows] * shares, shares


# --- the loss, in the trainer ----------------------------------------


class Differences:
    """How vLLM's and the trainer's probabilities differ over an update, one micro batch after another.

    verl 0.9.1 takes the mean over micro batches, and over GPUs, of whatever a loss reports. So sums are
    reported, and ``metrics.probability_figures`` divides them by one another. The largest value is
    reported as what it grew by in each micro batch, beside a 1 in the first one.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.largest = {"difference": 0.0, "weight": 0.0}

    def report(
        self,
        ours: torch.Tensor,
        theirs: torch.Tensor,
        mask: torch.Tensor,
        weights: torch.Tensor | None,
        rows: int,
    ) -> dict[str, float]:
        """Figures of a micro batch. ``ours``, ``theirs``: log-probabilities; ``rows``: of all its update."""
        if self.rows == 0:
            self.largest = dict.fromkeys(self.largest, 0.0)
        first = self.rows == 0
        self.rows += len(mask)
        if self.rows >= rows:
            self.rows = 0
        x, y = (values[mask].double().exp() for values in (ours, theirs))
        apart = (x - y).abs()
        kept = torch.zeros_like(x) if weights is None else weights[mask].double()
        sums = {
            **{"tokens": len(x), "first": float(first)},
            **{"apart": apart.sum(), "x": x.sum(), "y": y.sum()},
            **{"xx": (x * x).sum(), "yy": (y * y).sum(), "xy": (x * y).sum(), "weight": kept.sum()},
        }
        found = {f"actor/probs_{name}": float(value) for name, value in sums.items()}
        for name, values in (("difference", apart), ("weight", kept)):
            top = values.max() if len(values) else values.new_zeros(())
            if dist.is_initialized() and dist.get_world_size() > 1:
                dist.all_reduce(top, op=dist.ReduceOp.MAX)
            higher = max(self.largest[name], float(top))
            found[f"actor/probs_{name}_grew"] = higher - self.largest[name]
            self.largest[name] = higher
        return found


DIFFERENCES = Differences()


@register_policy_loss(CURRENT_POLICY)  # type: ignore[untyped-decorator]
def current_policy_loss(  # noqa: PLR0917 - verl's signature
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str,
    config: Any,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """verl's clipped loss, where the policy that is updated is the old policy: all tensors (rows, tokens).

    With one update a step the probabilities that a separate pass would compute are those of this very
    forward pass, so ``log_prob`` is the old one as well: the ratio is 1, its gradient is kept. In verl's
    bypass mode ``old_log_prob`` is what vLLM reported when it sampled, for replayed trajectories what it
    reported then; it serves the importance weights and the comparison alone.
    """
    current, recipe = log_prob.detach(), current_job().recipe
    weights = None
    if recipe.importance_correction == "truncated":
        weights, _ = compute_rollout_correction_weights(
            current - old_log_prob,
            response_mask,
            rollout_is="token",
            rollout_is_threshold=recipe.importance_max,
        )
    loss, found = compute_policy_loss_vanilla(
        old_log_prob=current,
        log_prob=log_prob,
        advantages=advantages,
        response_mask=response_mask,
        loss_agg_mode=loss_agg_mode,
        config=config,
        rollout_is_weights=weights,
    )
    batch = config.global_batch_info
    rows = batch["global_batch_size"] // batch["dp_size"]
    return loss, found | DIFFERENCES.report(current, old_log_prob, response_mask.bool(), weights, rows)


def loss_with_kl(
    config: Any, model_output: Any, data: Any, dp_group: Any = None
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Stands for verl's ``ppo_loss``: its KL term, each row by the share that its policy term has already.

    verl takes the mean over rows, and an episode whose history was cut has several; see
    ``episode_advantages``. Where all shares are 1 the sum is verl's own, to the bit.
    """
    without_kl = copy.copy(config)
    object.__setattr__(without_kl, "use_kl_loss", False)  # verl's configs are frozen
    loss, metrics = ppo_loss(without_kl, model_output, data, dp_group)
    log_prob = no_padding_2_padding(model_output["log_probs"], data)
    found = data.select("response_mask", "returns", "ref_log_prob").to_padded_tensor()
    apart = kl_penalty(log_prob, found["ref_log_prob"], config.kl_loss_type) * found["returns"]
    mask = found["response_mask"].to(bool)
    kl = agg_loss(apart, mask, config.loss_agg_mode, **config.global_batch_info)
    metrics["kl_loss"] = Metric(metrics["actor/pg_loss"].aggregation, kl)
    metrics["kl_coef"] = config.kl_loss_coef
    return loss + kl * config.kl_loss_coef, metrics


def install_kl() -> None:
    """Let verl's trainers take ``loss_with_kl``. Raises ``UpstreamChanged`` on any other verl."""
    from verl.workers import engine_workers

    require_verl(__name__)
    require_function(engine_workers, "ppo_loss", ("config", "model_output", "data", "dp_group"), __name__)
    engine_workers.ppo_loss = loss_with_kl


if os.environ.get(VARIABLE) and current_job().recipe.kl_weight:
    install_kl()
if os.environ.get(VARIABLE) and Speed.of(current_job()).changes_model:
    importlib.import_module(f"{PACKAGE}.qwen_vl")
if os.environ.get(VARIABLE) and current_job().recipe.lora:
    importlib.import_module(f"{PACKAGE}.lora")
