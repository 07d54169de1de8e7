"""Episodes count alike however many rows they have, and a loss without a pass for old probabilities."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.cpu_env
pytest.importorskip("verl")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from omegaconf import DictConfig  # noqa: E402
from tensordict import TensorDict  # noqa: E402
from verl import DataProto  # noqa: E402
from verl.trainer.ppo.core_algos import (  # noqa: E402
    compute_grpo_outcome_advantage,
    compute_policy_loss_vanilla,
)
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights  # noqa: E402
from verl.trainer.ppo.utils import create_rl_sampler  # noqa: E402
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories  # noqa: E402
from verl.utils import tensordict_utils  # noqa: E402
from verl.utils.debug.metrics import calculate_debug_metrics  # noqa: E402
from verl.utils.metric import AggregationType, Metric, reduce_metrics  # noqa: E402
from verl.workers.config import FSDPActorConfig  # noqa: E402
from verl.workers.utils.losses import ppo_loss  # noqa: E402

from arpo_replica.base.environments import ROOT  # noqa: E402
from arpo_replica.tasks.splits import split_size  # noqa: E402
from arpo_replica.training import arithmetic  # noqa: E402
from arpo_replica.training.job import outline  # noqa: E402
from arpo_replica.training.metrics import translate  # noqa: E402
from arpo_replica.training.parity import compose, read_facts  # noqa: E402
from arpo_replica.training.process.launch import draws  # noqa: E402
from arpo_replica.training.recipe import (  # noqa: E402
    ADVANTAGES,
    draws_needed,
)

MODE = "seq-mean-token-mean"


def actor(rows: int) -> Any:
    """verl's config of a trainer alone, whose update has so many rows."""
    config = FSDPActorConfig(
        **{"strategy": "fsdp2", "rollout_n": 4, "ppo_micro_batch_size_per_gpu": 1, "loss_agg_mode": MODE},
        **{"clip_ratio_low": 0.2, "clip_ratio_high": 0.3},
    )
    config.global_batch_info.clear()
    config.global_batch_info.update(dp_size=1, batch_num_tokens=None, global_batch_size=rows)
    return config


def advantages(rewards: list[float], masks: list[list[int]], names: list[str]) -> torch.Tensor:
    """As verl's trainer asks for them: ours, by name."""
    mask = padded(masks)
    scores = torch.zeros_like(mask)
    scores[:, 0] = torch.tensor(rewards)
    data = DataProto.from_dict(
        tensors={"token_level_rewards": scores, "token_level_scores": scores, "response_mask": mask},
        non_tensors={"uid": np.array(names, dtype=object)},
    )
    done = compute_advantage_for_multi_trajectories(
        data, batch_keys=[f"{name}_0" for name in names], adv_estimator=ADVANTAGES, config={}
    )
    return done.batch["advantages"]


def padded(rows: list[list[Any]]) -> torch.Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[float(x) for x in row] + [0.0] * (longest - len(row)) for row in rows])


def loss_of(log_probs: torch.Tensor, given: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """verl's loss of an update where old and current policy are one."""
    loss, _ = compute_policy_loss_vanilla(
        log_probs.detach(), log_probs, given, mask.bool(), MODE, actor(len(mask))
    )
    return loss


@pytest.mark.parametrize("name", ["paper", "released_code"])
def test_each_task_is_seen_fifteen_times_or_once_more(name: str) -> None:
    """Of 128 tasks one is left out, and 127 are no multiple of a batch."""
    config = compose(read_facts(ROOT).recipes[name], ROOT)
    job = outline(config, "arpo", config.training.stages[-1].name)
    tasks = split_size(config, job.stage.split)
    assert tasks == 127
    seen = Counter(draws(tasks, draws_needed(job), seed=0))
    assert len(seen) == tasks
    assert set(seen.values()) == {15, 16}


def test_tasks_are_drawn_in_the_order_of_verls_own_sampler() -> None:
    """Where a batch divides the tasks, whole shuffles follow one another there, too."""
    sampler = create_rl_sampler(DictConfig({"shuffle": True, "seed": 3}), range(8))
    assert draws(8, 24, 3) == [index for _ in range(3) for index in sampler]


def test_without_cuts_and_empty_rows_they_are_verls_to_the_bit() -> None:
    torch.manual_seed(0)
    rewards = torch.randint(0, 3, (16,)).float() / 3
    masks = [[1] * int(n) for n in torch.randint(1, 9, (16,))]
    groups = np.array([f"g{row // 4}" for row in range(16)], dtype=object)
    mask = padded(masks)
    scores = torch.zeros_like(mask)
    scores[:, 0] = rewards
    expected, _ = compute_grpo_outcome_advantage(scores, mask, groups)
    found = advantages(rewards.tolist(), masks, [f"{group}_{row % 4}" for row, group in enumerate(groups)])
    assert torch.equal(found, expected)


def test_cut_episodes_have_the_gradient_of_whole_ones() -> None:
    """Three episodes of a group with 5, 3 and 4 sampled tokens. Whole: one row each. Cut: the first leaves
    three rows, the second two, and two empty rows fill the batch up. Each token's gradient is the same."""
    tokens = torch.linspace(-3.0, -0.1, 12).requires_grad_()
    rewards = {"g_0": 1.0, "g_1": 0.0, "g_2": -0.5}
    whole = [("g_0", [0, 1, 2, 3, 4]), ("g_1", [5, 6, 7]), ("g_2", [8, 9, 10, 11])]
    cut = [
        *(("g_0", [0, 1, 2]), ("g_0", [3]), ("g_0", [4])),
        *(("g_1", [5, 6]), ("g_1", [7]), ("g_2", [8, 9, 10, 11]), ("padx_0", []), ("padx_1", [])),
    ]
    found = []
    for rows in (whole, cut):
        # An observation follows every reply: it lies in the row and is masked.
        masks = [[bit for _ in places for bit in (1, 0)] or [0] for _, places in rows]
        given = advantages([rewards.get(name, 0.0) for name, _ in rows], masks, [name for name, _ in rows])
        mask = padded(masks)
        values = torch.zeros_like(mask)
        for row, (_, places) in enumerate(rows):
            for position, place in enumerate(places):
                values = values.index_put((torch.tensor(row), torch.tensor(2 * position)), tokens[place])
        (gradient,) = torch.autograd.grad(loss_of(values, given, mask), tokens)
        found.append(gradient)
        shares = (given * mask).sum(-1) / mask.sum(-1).clamp_min(1)
        assert float(shares.sum()) == pytest.approx(0.0, abs=1e-5), "a group's advantages add up to 0"
    assert torch.allclose(found[0], found[1], rtol=1e-5, atol=1e-7)
    assert float(found[0].abs().min()) > 0.01


def test_the_kl_term_of_cut_episodes_is_that_of_whole_ones() -> None:
    """Two episodes with 5 and 3 sampled tokens, whole and cut into three and two rows beside an empty one: KL
    term and gradient of each token are the same; uncut they are verl's own to the bit."""
    tokens = torch.linspace(-3.0, -0.1, 8).requires_grad_()
    reference = torch.linspace(-0.2, -2.0, 8)
    whole = [("g_0", [0, 1, 2, 3, 4]), ("g_1", [5, 6, 7])]
    cut = [("g_0", [0, 1, 2]), ("g_0", [3]), ("g_0", [4]), ("g_1", [5, 6]), ("g_1", [7]), ("padx_0", [])]
    found = []
    for rows in (whole, cut):
        masks = [[1.0] * len(places) or [0.0] for _, places in rows]
        names = np.array([name for name, _ in rows], dtype=object)
        rewards = padded(masks) * torch.tensor([[float(name == "g_0")] for name in names])
        given, shares = arithmetic.episode_advantages(rewards, padded(masks), names)
        places = [places or [0] for _, places in rows]
        nested = {
            "prompts": [torch.zeros(1) for _ in rows],
            "responses": [torch.zeros(len(row)) for row in masks],
            "response_mask": [torch.tensor(row) for row in masks],
            "old_log_probs": [tokens.detach()[row] for row in places],
            "ref_log_prob": [reference[row] for row in places],
            "advantages": [row[: len(mask)] for row, mask in zip(given, masks, strict=True)],
            "returns": [row[: len(mask)] for row, mask in zip(shares, masks, strict=True)],
        }
        data = TensorDict(
            {name: torch.nested.as_nested_tensor(rows, layout=torch.jagged) for name, rows in nested.items()},
            batch_size=len(rows),
        )
        batch = {"dp_size": 1, "batch_num_tokens": None, "global_batch_size": len(rows)}
        tensordict_utils.assign_non_tensor(data, **batch)
        # What the model gives stands one place before the token that it is about, the prompt's one included.
        flat = torch.cat([torch.cat([tokens[row], torch.zeros(1)]) for row in places])
        config = actor(len(rows))
        object.__setattr__(config, "use_kl_loss", True)
        object.__setattr__(config, "kl_loss_coef", 0.5)
        losses = [loss(config, {"log_probs": flat}, data) for loss in (arithmetic.loss_with_kl, ppo_loss)]
        (gradient,) = torch.autograd.grad(losses[0][0], tokens, retain_graph=True)
        found.append((losses[0][1]["kl_loss"].aggregate(), gradient))
        same = [float(loss.detach()) for loss, _ in losses]
        assert (same[0] == same[1]) == (rows is whole), "verl counts each row like an episode"

    (one, gradients), (other, others) = found
    assert one == pytest.approx(other, rel=1e-5)
    assert one == pytest.approx(2.036, abs=0.01), "by hand, the first token's value clamped at 10"
    assert torch.allclose(gradients, others, rtol=1e-5, atol=1e-7)


def test_lost_rollouts_leave_the_mean() -> None:
    """Three of four rollouts are left: their loss is that of three, not three quarters of it."""
    names, rewards = ["g_0", "g_1", "g_2"], [1.0, 0.0, 0.0]
    sizes = []
    for filling in (0, 1):
        masks = [[1, 1]] * 3 + [[0, 0]] * filling
        given = advantages([*rewards, *[0.0] * filling], masks, names + [f"pad_{n}" for n in range(filling)])
        log_probs = torch.full_like(given, -1.0, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss_of(log_probs, given, padded(masks)), log_probs)
        sizes.append(gradient[:3])
    assert torch.allclose(*sizes)


@pytest.mark.parametrize("correction", ["none", "truncated"])
def test_the_pass_for_old_probabilities_can_be_left_out(
    monkeypatch: pytest.MonkeyPatch, correction: str
) -> None:
    """Same loss, gradients and figures as with the pass, over four micro batches; some tokens were sampled by
    an older policy, as replayed ones are."""
    torch.manual_seed(1)
    recipe = SimpleNamespace(importance_correction=correction, importance_max=2.0)
    monkeypatch.setattr(arithmetic, "current_job", lambda: SimpleNamespace(recipe=recipe))
    monkeypatch.setattr(arithmetic, "DIFFERENCES", arithmetic.Differences())
    rows, length = 8, 12
    log_probs = (-3 * torch.rand(rows, length)).requires_grad_()
    sampled = log_probs.detach() + 0.1 * torch.randn(rows, length)
    sampled[0] -= 1.5
    mask = (torch.rand(rows, length) > 0.3).float()
    given = torch.randn(rows, 1) * mask
    old = log_probs.detach()  # what the pass computes
    weights, seen = compute_rollout_correction_weights(old - sampled, mask, "token", 2.0)
    loss, plain = compute_policy_loss_vanilla(
        old, log_probs, given, mask.bool(), MODE, actor(rows), weights if correction == "truncated" else None
    )
    (expected,) = torch.autograd.grad(loss, log_probs)
    debug = calculate_debug_metrics(
        DataProto.from_dict(
            tensors={
                **{"rollout_log_probs": sampled, "old_log_probs": old},
                **{"response_mask": mask, "responses": mask},
            }
        )
    )

    for _ in range(2):  # the second update begins anew
        collected: dict[str, Any] = {}
        total = torch.zeros(())
        for some in torch.arange(rows).split(2):
            part, figures = arithmetic.current_policy_loss(
                sampled[some], log_probs[some], given[some], mask[some].bool(), MODE, actor(rows)
            )
            total = total + part
            for name, metric in Metric.from_dict(figures, AggregationType.MEAN).items():
                collected.setdefault(name, metric.init_list()).append(metric)
        (gradient,) = torch.autograd.grad(total, log_probs)
        assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-8)
        assert float(total) == pytest.approx(float(loss), rel=1e-5)
        data = reduce_metrics(collected)
        data |= {"actor/entropy_loss": 0.6, "arpo/rows": 8.0, "arpo/empty_rows": 2.0}
        row = translate(1, 1, data)
        assert row["kl"] == plain["actor/ppo_kl"] == 0.0
        names = {
            "probability_difference_mean": "training/rollout_probs_diff_mean",
            "probability_difference_max": "training/rollout_probs_diff_max",
            "probability_correlation": "training/rollout_actor_probs_pearson_corr",
        }
        for ours, theirs in names.items():
            assert row[ours] == pytest.approx(debug[theirs], rel=1e-4), ours
        assert row["entropy"] == pytest.approx(0.8)
        if correction == "truncated":
            assert row["importance_mean"] == pytest.approx(seen["rollout_is_mean"], rel=1e-4)
            assert row["importance_max"] == pytest.approx(seen["rollout_is_max"], rel=1e-4) == 2.0
        else:
            assert row["importance_mean"] is None
