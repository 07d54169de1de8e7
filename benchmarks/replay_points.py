"""Where does replay help? A toy of GRPO with ARPO's replay, and what trainings showed, in one figure.

    python benchmarks/replay_points.py [SUMMARY ...]

Writes benchmarks/results/replay/points.json and docs/pictures/replay_points.svg. ``POINTS`` are the regimes
of docs/replay_study.md; ``SUMMARY`` is a ``summary.json`` of one of them. A point without a summary, or with
an unfinished one, is "not run": nobody looks at a part of it.

The toy: every task is two decisions with twelve options, one of them right, and succeeds if both are. Groups,
advantages (unbiased standard deviation), one update a visit and the replay rule are ARPO's; tasks learn
alone. It knows nothing of pixels, so its learning rate has no unit: the prediction is the range over three.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from arpo_replica.base.checkout import git_state
from arpo_replica.base.errors import UserError
from arpo_replica.evaluation import replay_effect as effects
from arpo_replica.evaluation.records import Summary

matplotlib.use("svg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
DECISIONS, OPTIONS = 2, 12
TASKS = 32
SPREAD = 1.5
"""Standard deviation, between tasks, of the log odds of success."""
NOISE = 0.1
"""Standard deviation of what each update does to a logit besides: what the other tasks teach."""
RATES = (1.0, 2.0, 4.0)
TRAININGS = 60


@dataclass(frozen=True)
class Point:
    """A regime: how good the policy is before training, and how often it sees each task."""

    study: str
    base: float
    """Success of the untrained policy on the training tasks, as measured before (facts of the pilots)."""
    group: int
    """Rollouts of one task at one visit."""
    visits: int
    seeds: tuple[int, ...]


POINTS = (
    Point("replay", 0.16, 4, 12, tuple(effects.SEEDS) + tuple(effects.MORE_SEEDS)),
    Point("replay_base_600", 0.30, 4, 12, (2, 3, 4, 5, 6)),
    Point("replay_base_1200", 0.46, 4, 12, (2, 3, 4, 5, 6)),
    Point("replay_groups_8", 0.16, 8, 6, (2, 3, 4, 5, 6)),
)


def chances(mean: float, trainings: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Each task's chance of success, [trainings, TASKS], whose mean is ``mean``."""
    odds = SPREAD * random.normal(size=(trainings, TASKS))
    low, high = -12.0, 12.0
    while high - low > 1e-6:  # the middle that gives this mean
        middle = (low + high) / 2
        low, high = (low, middle) if (1 / (1 + np.exp(-odds - middle))).mean() > mean else (middle, high)
    return 1 / (1 + np.exp(-odds - low))


def train(
    point: Point, rate: float, *, replay: bool, seed: int = 0, trainings: int = TRAININGS
) -> tuple[NDArray[np.float64], float]:
    """Success after the last visit, per training, and the share of groups that replay changed."""
    random = np.random.default_rng(seed)
    right = np.sqrt(chances(point.base, trainings, random)).clip(1e-6, 1 - 1e-6)
    logits = 0.7 * random.normal(size=(trainings, TASKS, DECISIONS, OPTIONS))
    others = logits[..., 1:]
    others += (np.log1p(-right)[..., None] - np.log(np.exp(others).sum(-1)))[..., None]
    logits[..., 0] = np.log(right)[..., None]
    stored = np.zeros((trainings, TASKS), bool)
    changed = 0
    for _ in range(point.visits):
        shape = (trainings, TASKS, point.group, DECISIONS, OPTIONS)
        taken = (logits[:, :, None] + random.gumbel(size=shape)).argmax(-1)
        success = (taken == 0).all(-1)
        stored_before, solved = stored.copy(), success.any(-1)
        stored |= solved
        if replay:  # as released: a group without any success gets one stored trajectory
            swap = stored_before & ~solved
            taken[swap, 0], success[swap, 0] = 0, True
            changed += int(swap.sum())
        reward = success.astype(float)
        deviation = reward.std(-1, ddof=1, keepdims=True)
        advantage = np.where(deviation > 0, (reward - reward.mean(-1, keepdims=True)) / (deviation + 1e-6), 0)
        chosen = np.eye(OPTIONS)[taken]
        share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        gradient = (advantage[..., None, None] * (chosen - share[:, :, None])).mean(2) / DECISIONS
        logits = logits + rate * gradient + NOISE * random.normal(size=logits.shape)
    share = np.exp(logits[..., 0]) / np.exp(logits).sum(-1)
    return share.prod(-1).mean(-1), changed / (trainings * TASKS * point.visits)


def predicted(point: Point) -> list[dict[str, float]]:
    """What the toy expects, for each of its learning rates. Fractions."""
    rows = []
    for rate in RATES:
        (without, _), (ours, changed) = (train(point, rate, replay=replay) for replay in (False, True))
        row = {"gain": ours.mean() - without.mean(), "grpo": without.mean(), "changed": changed}
        rows.append({"learning_rate": rate} | {name: round(float(value), 4) for name, value in row.items()})
    return rows


def measured(point: Point, summary: Summary) -> dict[str, Any] | None:
    """Mean gain of the pairs with its interval over trainings; None while a pair is unfinished."""
    regime = effects.regime_of(summary, point.seeds, ())
    paired = None if regime.unfinished else effects.over_pairs(list(regime.primary.values()))
    if paired is None:
        return None
    split = effects.training_split(summary)
    base = next(
        row.of_valid.value
        for row in summary.rates
        if (row.arm, row.split, row.protocol) == ("base", split, "hard") and row.of_valid is not None
    )
    interval = {"gain": paired.interval.value, "low": paired.interval.low, "high": paired.interval.high}
    facts = {"base": base, "changed": regime.effect.changed, "pairs": len(point.seeds)}
    return interval | facts | {"commit": summary.commit}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The toy's range as a bar, a measured mean as a dot with its 95 % interval."""
    plt.rcParams.update({"svg.hashsalt": "replay", "font.size": 9, "svg.fonttype": "none"})
    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for place, row in enumerate(rows):
        gains = [100 * each["gain"] for each in row["predicted"]]
        axes.bar(place - 0.12, max(gains) - min(gains), 0.2, min(gains), color="#c8d3e0")
        if found := row["measured"]:
            value, low, high = (100 * found[name] for name in ("gain", "low", "high"))
            axes.errorbar(place + 0.15, value, [[value - low], [high - value]], fmt="o", color="#b3541e")
        else:
            axes.annotate(
                "not run", (place + 0.15, 0), ha="center", va="bottom", color="#b3541e", rotation=90
            )
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.set_xticks(
        range(len(rows)), [f"{row['base']:.0%}\n{row['group']} × {row['visits']}" for row in rows]
    )
    axes.set_xlabel("success of the untrained policy; rollouts a visit × visits of each task")
    axes.set_ylabel("gain by replay, points")
    axes.set_title(
        "toy: range over learning rates (grey) · measured, 95 % over trainings (brown)", fontsize=9
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Read what is there, predict, write, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("summaries", nargs="*", type=Path, metavar="SUMMARY")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/replay/points.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/pictures/replay_points.svg")
    options = parser.parse_args()
    try:
        found = {summary.study: summary for summary in map(effects.read_summary, options.summaries)}
    except UserError as error:
        sys.exit(str(error))
    if unknown := found.keys() - {point.study for point in POINTS}:
        sys.exit(f"{', '.join(sorted(unknown))} is no point of this figure; the points are those of POINTS.")
    rows = [
        asdict(point)
        | {"predicted": predicted(point)}
        | {"measured": measured(point, found[point.study]) if point.study in found else None}
        for point in POINTS
    ]
    options.out.write_text(json.dumps({"commit": git_state(ROOT)["commit"], "points": rows}, indent=1) + "\n")
    draw(rows, options.picture)
    for row in rows:
        gains = ", ".join(f"{100 * each['gain']:.1f}" for each in row["predicted"])
        said = row["measured"]
        ours = f"{100 * said['gain']:.1f}" if said else "not run"
        print(f"{row['study']}: toy {gains} points at learning rates {RATES}; measured: {ours}")


if __name__ == "__main__":
    main()
