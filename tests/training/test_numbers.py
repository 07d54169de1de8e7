"""Hand-worked numbers through verl's own functions, with the settings that our recipes hand to verl."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.cpu_env
pytest.importorskip("verl")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from verl import DataProto  # noqa: E402
from verl.trainer.ppo.core_algos import (  # noqa: E402
    agg_loss,
    compute_grpo_outcome_advantage,
    compute_policy_loss_vanilla,
    kl_penalty,
)
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_add_to_batch  # noqa: E402
from verl.workers.config import FSDPActorConfig  # noqa: E402

from arpo_replica.base.environments import ROOT  # noqa: E402
from arpo_replica.config import load_config  # noqa: E402
from arpo_replica.training.agent_loop import Attempts, make_outputs  # noqa: E402
from arpo_replica.training.conversation import TokenSequence  # noqa: E402
from arpo_replica.training.metrics import SequenceFacts  # noqa: E402
from arpo_replica.training.parity import compose  # noqa: E402
from verl_keys import verl_values  # noqa: E402

ACTOR = "actor_rollout_ref.actor"
PAPER = verl_values(compose(["configs/paper.yaml", "configs/recipes/paper.yaml"], ROOT))


def advantages(rewards: list[float], uids: list[str]) -> list[float]:
    """verl's GRPO over single tokens."""
    values, _ = compute_grpo_outcome_advantage(
        torch.tensor(rewards).unsqueeze(1), torch.ones(len(rewards), 1), np.array(uids, dtype=object)
    )
    return values[:, 0].tolist()


def test_advantages_of_one_replayed_success_among_eight() -> None:
    """Mean 1/8, unbiased std sqrt(8 * (1/8) * (7/8) / 7) = 0.353553, + 1e-6."""
    std = math.sqrt((49 / 64 + 7 / 64) / 7) + 1e-6
    expected = [0.875 / std] + [-0.125 / std] * 7
    assert expected[0] == pytest.approx(2.475, abs=1e-3)
    assert expected[1] == pytest.approx(-0.354, abs=1e-3)
    assert advantages([1.0] + [0.0] * 7, ["g"] * 8) == pytest.approx(expected, abs=1e-5)


def test_advantages_with_a_format_penalty() -> None:
    """Rewards 1, 0, 0, -1: mean 0, unbiased std sqrt(2/3). The population's would be sqrt(1/2)."""
    std = math.sqrt(2 / 3) + 1e-6
    assert advantages([1.0, 0.0, 0.0, -1.0], ["g"] * 4) == pytest.approx(
        [1 / std, 0.0, 0.0, -1 / std], abs=1e-5
    )


def test_groups_are_apart_and_equal_rewards_give_nothing() -> None:
    found = advantages([1.0, 0.0, 0.5, 0.5], ["a", "a", "b", "b"])
    assert found == pytest.approx([0.70710, -0.70710, 0.0, 0.0], abs=1e-4)


def policy_loss(
    ratios: list[float], advantage: float, weights: list[float] | None = None
) -> tuple[float, Any]:
    """verl's loss of one token per sequence under the paper's clip range."""
    config = FSDPActorConfig(
        strategy="fsdp2",
        rollout_n=8,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=PAPER[f"{ACTOR}.clip_ratio_low"],
        clip_ratio_high=PAPER[f"{ACTOR}.clip_ratio_high"],
        clip_ratio_c=PAPER[f"{ACTOR}.clip_ratio_c"],
    )
    config.global_batch_info.clear()
    new = torch.tensor(ratios).log().unsqueeze(1)
    mask = torch.ones_like(new)
    loss, metrics = compute_policy_loss_vanilla(
        torch.zeros_like(new),
        new,
        torch.full_like(new, advantage),
        mask,
        PAPER[f"{ACTOR}.loss_agg_mode"],
        config,
        None if weights is None else torch.tensor(weights).unsqueeze(1),
    )
    return float(loss), metrics


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.0, 2.0, -2.0),
        (1.25, 2.0, -2.5),  # inside the upper range of 0.3; a range of 0.2 would cut it at 1.2
        (1.5, 2.0, -2.6),  # clipped at 1.3
        (0.5, 2.0, -1.0),  # a good token grown rare is never clipped
        (0.9, -2.0, 1.8),
        (0.5, -2.0, 1.6),  # clipped at 0.8
        (2.0, -2.0, 4.0),  # a bad token grown likely is not clipped ...
        (9.0, -2.0, 6.0),  # ... up to the dual clip at 3
    ],
)
def test_asymmetric_and_dual_clip(ratio: float, advantage: float, loss: float) -> None:
    assert policy_loss([ratio], advantage)[0] == pytest.approx(loss, abs=1e-5)


def test_importance_weights_scale_the_loss_of_each_token() -> None:
    assert policy_loss([1.0, 1.0], 1.0, [2.0, 0.5])[0] == pytest.approx(-(2.0 + 0.5) / 2, abs=1e-6)


def test_tokens_are_averaged_within_a_trajectory_then_over_trajectories() -> None:
    """Losses 1, 1, 1, 5 | 3 with masks 1 1 0 1 | 1: (7/3 + 3) / 2. A token mean would be 10/4."""
    losses = torch.tensor([[1.0, 1.0, 9.0, 5.0], [3.0, 9.0, 9.0, 9.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    found = agg_loss(losses, mask, PAPER[f"{ACTOR}.loss_agg_mode"])
    assert float(found) == pytest.approx((7 / 3 + 3) / 2, abs=1e-5)


def test_a_filling_row_has_no_part_in_the_loss() -> None:
    """Divided by the minibatch's size as verl does it, a masked row adds nothing."""
    losses = torch.tensor([[1.0, 1.0], [7.0, 7.0]])
    mask = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    found = agg_loss(losses, mask, PAPER[f"{ACTOR}.loss_agg_mode"], global_batch_size=2)
    assert float(found) == pytest.approx(0.5, abs=1e-6)


def test_truncated_importance_weights_by_hand() -> None:
    """exp(log p_now - log p_then), at most 2; masked tokens do not count."""
    now = torch.tensor([[0.5, 0.9, 0.1]]).log()
    then = torch.tensor([[0.4, 0.1, 0.2]]).log()
    batch = DataProto.from_dict(
        tensors={
            "old_log_probs": now,
            "rollout_log_probs": then,
            "response_mask": torch.tensor([[1.0, 1.0, 0.0]]),
        }
    )
    found, metrics = compute_rollout_correction_and_add_to_batch(
        batch, {"rollout_is": "token", "rollout_is_threshold": 2.0}
    )
    assert found.batch["rollout_is_weights"][0, :2].tolist() == pytest.approx([1.25, 2.0], abs=1e-5)
    assert float(found.batch["rollout_is_weights"][0, 2]) == 0.0
    assert metrics["rollout_corr/rollout_is_mean"] == pytest.approx((1.25 + 2.0) / 2, abs=1e-5)


def test_without_a_correction_there_are_no_weights() -> None:
    ones = torch.ones(1, 2)
    batch = DataProto.from_dict(
        tensors={"old_log_probs": -ones, "rollout_log_probs": -2 * ones, "response_mask": ones}
    )
    found, _ = compute_rollout_correction_and_add_to_batch(
        batch, {"rollout_is": PAPER["algorithm.rollout_correction.rollout_is"]}
    )
    assert "rollout_is_weights" not in found.batch


def test_the_kl_estimate_is_never_negative() -> None:
    """k3: exp(d) - d - 1 with d = reference - policy."""
    d = math.log(0.5 / 0.4)
    found = kl_penalty(torch.tensor([0.4]).log(), torch.tensor([0.5]).log(), "low_var_kl")
    assert float(found) == pytest.approx(math.exp(d) - d - 1, abs=1e-6)


@pytest.mark.parametrize(
    ("recipe", "score", "errors", "reward"),
    [
        ("paper", 1.0, 0, 1.0),
        ("paper", 0.0, 1, -1.0),
        ("paper", 1.0, 1, 0.0),
        ("released_code", 0.0, 1, -0.5),
        ("released_code", 0.4, 2, -0.1),  # one penalty however many replies
    ],
)
def test_reward_is_score_minus_weighted_penalty(
    recipe: str, score: float, errors: int, reward: float
) -> None:
    config = load_config(ROOT / "configs" / "demo.yaml")
    overlay = compose(["configs/demo.yaml", f"configs/recipes/{recipe}.yaml"], ROOT)
    config.training.format_weight = overlay.training.format_weight
    outputs = make_outputs(job_of(config), attempt_of(score, errors))
    assert [output.reward_score for output in outputs] == pytest.approx([reward] * 2)
    assert [output.response_mask for output in outputs] == [[1, 1, 0, 1], [1]]
    facts = [SequenceFacts.of(output.extra_fields) for output in outputs]
    assert [fact.images for fact in facts] == [(0, 2), (1, 2)]
    assert [fact.to_extra_fields() for fact in facts] == [
        {"arpo": output.extra_fields["arpo"]} for output in outputs
    ]
    assert [len(output.multi_modal_data["images"]) for output in outputs] == [2, 2]
    assert facts[0].score == score
    seconds = {"prefill": 0.4, "reset": 0.2, "desktop": pytest.approx(0.3), "evaluate": 0.3}
    assert facts[0].seconds == seconds


def job_of(config: Any) -> Any:
    """The part of a job that ``make_outputs`` reads."""
    return SimpleNamespace(recipe=config.recipe("arpo"))


def attempt_of(score: float, errors: int) -> Attempts:
    """A finished rollout of three replies in two sequences."""
    step = SimpleNamespace(model_s=0.1, env_s=0.1)
    result = SimpleNamespace(
        hard_score=score, format_errors=errors, steps=[step] * 3, reset_s=0.2, evaluate_s=0.3
    )
    sequences = [
        TokenSequence([], 0, 2, [1, 2, 3, 4, 5, 6], [1, 1, 0, 1], [-0.5] * 4),
        TokenSequence([], 1, 2, [1, 2, 9], [1], [-0.5]),
    ]
    conversation = SimpleNamespace(
        versions=[3], sequences=sequences, images=["a", "b", "c"], seconds={"prefill": 0.4}
    )
    task = SimpleNamespace(domain="d", id="t")
    attempt = Attempts(task=task, step=4, rollout=0, started=0.0, errors=[])  # type: ignore[arg-type]
    attempt.result, attempt.conversation = result, conversation  # type: ignore[assignment]
    return attempt
