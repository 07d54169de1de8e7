"""``metrics.jsonl`` of a stage: one object per step, made from verl's own log and the sampler's files.

It is a pure function of what the attempts left on disk, so that a resume neither loses nor repeats a step:
an attempt that went on from step r replaces every later row of the attempts before it.
"""

import json
import math
from pathlib import Path
from typing import Any

from arpo_replica.base.files import read_rows
from arpo_replica.training.replay import is_recorded

MEANS = ("reward_before", "reward_after", "score_before", "score_after", "success", "unparsable", "turns")
OURS = (
    *MEANS,
    *("groups", "rollouts", "all_fail_groups", "all_success_groups", "failed_groups", "varying_groups"),
    *("redrawn_groups", "sequences", "swapped_groups", "buffer_size", "buffer_tasks", "replay_age"),
    *("lost_rollouts", "env_errors", "refilled_rollouts", "lone_groups"),
    *("staleness_mean", "staleness_max", "stale_rollouts"),
)
"""Metrics of the sampler, ``arpo/...`` in verl's log."""
COUNTS = {*OURS} - {*MEANS, "replay_age", "staleness_mean"}
KEYS = {name: f"arpo/{name}" for name in OURS} | {
    "entropy": "actor/entropy",
    "loss": "actor/pg_loss",
    "kl": "actor/ppo_kl",
    "clip_fraction": "actor/pg_clipfrac",
    "clip_fraction_lower": "actor/pg_clipfrac_lower",
    "grad_norm": "actor/grad_norm",
    "learning_rate": "actor/lr",
    "kl_loss": "actor/kl_loss",
    "importance_mean": "rollout_corr/rollout_is_mean",
    "importance_max": "rollout_corr/rollout_is_max",
    "probability_difference_mean": "training/rollout_probs_diff_mean",
    "probability_difference_max": "training/rollout_probs_diff_max",
    "probability_correlation": "training/rollout_actor_probs_pearson_corr",
    "prompt_tokens": "prompt_length/mean",
    "response_tokens": "response_length/mean",
}
"""Our key -> verl's key (0.9.1)."""
DIFFERENCES = ("probability_difference_mean", "probability_difference_max", "probability_correlation")
SUMS = "actor/probs_"
"""How the keys of ``arithmetic.Differences`` begin."""
PARTS = "arpo/seconds/"
"""Before the parts of a rollout's time, means over rollouts (``measure``)."""
SECONDS = {
    "rollout": "timing_s/gen",
    "old_log_probs": "timing_s/old_log_prob",
    "update": "timing_s/update_actor",
    "weight_sync": "timing_s/update_weights",
    "save": "timing_s/save_checkpoint",
    "total": "timing_s/step",
}


def collect(logs: Path, steps: Path) -> list[dict[str, Any]]:
    """All rows so far, by step. ``logs``: folder of ``verl_{attempt}.jsonl``; ``steps``: of step files."""
    rows: dict[int, dict[str, Any]] = {}
    for path in sorted(logs.glob("verl_*.jsonl")):
        entries = read_rows(path)
        if entries:
            first = entries[0]["step"]
            rows = {step: row for step, row in rows.items() if step < first}
        attempt = int(path.stem.rsplit("_", 1)[1])
        for entry in entries:
            rows[entry["step"]] = translate(entry["step"], attempt, entry["data"])
    for step, row in rows.items():
        details = steps / f"step_{step:06d}.json"
        if details.is_file():
            found = json.loads(details.read_bytes())
            row["tasks"], row["swaps"] = found["groups"], found["swaps"]
            if any(is_recorded(swap["name"]) for swap in found["swaps"]):
                row.update(dict.fromkeys(DIFFERENCES))  # of recorded replies nobody knows them
    return [rows[step] for step in sorted(rows)]


def translate(step: int, attempt: int, data: dict[str, Any]) -> dict[str, Any]:
    """verl's metrics of one step under our names; a metric that verl did not report is null."""
    row: dict[str, Any] = {"step": step, "attempt": attempt}
    for ours, theirs in KEYS.items():
        value = data.get(theirs)
        row[ours] = round(value) if ours in COUNTS and value is not None else value
    row |= probability_figures(data)
    row["seconds"] = {ours: data.get(theirs) for ours, theirs in SECONDS.items()}
    parts = {key.removeprefix(PARTS): value for key, value in data.items() if key.startswith(PARTS)}
    row["rollout_seconds"] = parts
    return row


def probability_figures(data: dict[str, Any]) -> dict[str, Any]:
    """What verl's pass for old probabilities would have reported, of a step without it; else nothing.

    verl averages the sums that ``arithmetic.Differences`` reports, so they are right up to a common factor.
    The entropy's mean takes in rows without effect, as 0.
    """
    if f"{SUMS}tokens" not in data:
        return {}
    tokens, first, apart, x, y, xx, yy, xy, weight, grew, weight_grew = (
        data[f"{SUMS}{name}"]
        for name in (
            *("tokens", "first", "apart", "x", "y", "xx", "yy", "xy", "weight"),
            *("difference_grew", "weight_grew"),
        )
    )
    spread = (tokens * xx - x * x) * (tokens * yy - y * y)
    weighted = weight > 0
    rows = data["arpo/rows"]
    return {
        "probability_difference_mean": apart / tokens if tokens else None,
        "probability_difference_max": grew / first if first else None,
        "probability_correlation": (tokens * xy - x * y) / math.sqrt(spread) if spread > 0 else None,
        "importance_mean": weight / tokens if weighted else None,
        "importance_max": weight_grew / first if weighted else None,
        "entropy": data["actor/entropy_loss"] * rows / max(1.0, rows - data["arpo/empty_rows"]),
    }


def unbroken(rows: list[dict[str, Any]]) -> int:
    """Number n such that the rows of steps 1 ... n are all there."""
    count = 0
    for row in rows:
        if row["step"] != count + 1:
            break
        count += 1
    return count


def to_jsonl(rows: list[dict[str, Any]]) -> bytes:
    """The rows as ``metrics.jsonl``."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
