"""``status``: how far a study is, from files alone; it may run anywhere that sees them, at any time."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arpo_replica.base.files import latest, read_json, read_rows
from arpo_replica.config.docs import render_text
from arpo_replica.config.models import StudyConfig
from arpo_replica.providers.pool_folder import announced
from arpo_replica.rollout.collect import clock
from arpo_replica.training.job import PREFIX_TRL, checkpoints
from arpo_replica.workflow.study import Study

SHOWN_JOBS = 12
"""Jobs that are listed, the newest: all of it must fit on one screen."""
STALE_S = 120.0
"""A heartbeat older than this means that the job waits, hangs or is gone."""


@dataclass(frozen=True, slots=True)
class Line:
    """One training or one checkpoint's rollouts."""

    name: str
    state: str
    """``done``, ``running``, ``silent`` (began, but says nothing any more) or ``waiting``."""
    progress: str
    details: str
    share: float = 0.0
    """How much of it is done, 0 to 1."""
    rewards: Sequence[float] = ()
    """Mean reward of each update so far, before replay."""


def study_status(config: StudyConfig, root: Path = Path(), now: float | None = None) -> list[Line]:
    """Every training and every evaluation of a study. ``root``: the checkout; ``now``: Unix time, seconds."""
    study, now = Study(config), time.time() if now is None else now
    results = root / "results" / study.name
    trainings = (training_line(config, results, key, now) for key in study.stages())
    offline = (offline_line(results, key, now) for key in study.offline_trainings())
    rollouts = (rollout_line(study, results, key, now) for key in study.checkpoints())
    return [*trainings, *offline, *rollouts]


def training_line(config: StudyConfig, results: Path, key: tuple[str, int, str], now: float) -> Line:
    """One stage (``key``: arm, seed, stage): step, reward, pace, environment errors, time left."""
    arm, seed, stage = key
    folder = results / "models" / arm / f"seed_{seed}" / f"stage_{stage}"
    name, steps = f"train {arm} seed {seed} {stage}", config.stage(stage).steps
    rows = read_rows(folder / "metrics.jsonl")
    rewards = [row["reward_before"] for row in rows]
    if (folder / "manifest.json").is_file():
        return Line(name, "done", f"{steps}/{steps} steps", _reward(rows).rstrip(", "), 1.0, rewards)
    newest = latest([folder / "metrics.jsonl", *(folder / "checkpoints" / "logs").glob("*")])
    newest = max(newest, latest((folder / "episodes").glob("step_*/rollout_*")))
    if not newest:
        return Line(name, "waiting", f"0/{steps} steps", "")
    step = rows[-1]["step"] if rows else 0
    pace = [row["seconds"]["total"] or 0.0 for row in rows[-5:]]
    left = f"ETA {clock(sum(pace) / len(pace) * (steps - step))}" if pace else "ETA ?"
    recipe = config.recipe(arm)
    rate = ""
    if pace and sum(pace):
        episodes = recipe.tasks_per_step * recipe.rollouts_per_task * len(pace)
        rate = f"{3600 * episodes / sum(pace):.0f} episodes/h, "
    errors = sum(row["env_errors"] for row in rows)
    details = f"{_reward(rows)}{rate}env errors {errors}, {left}"
    return Line(name, _state(newest, now), f"{step}/{steps} steps", details, step / steps, rewards)


def offline_line(results: Path, key: tuple[str, int, str], now: float) -> Line:
    """One offline arm: updates and loss; while it runs, the newest checkpoint."""
    arm, seed, stage = key
    folder = results / "models" / arm / f"seed_{seed}" / f"stage_{stage}"
    name = f"train {arm} seed {seed}"
    if (folder / "manifest.json").is_file():
        rows = read_rows(folder / "learning.jsonl")
        return Line(name, "done", f"{rows[-1]['step']} updates", f"loss {rows[-1]['loss']:.3f}", 1.0)
    steps = checkpoints(folder / "checkpoints", PREFIX_TRL)
    newest = latest([folder / "checkpoints" / "job.json", *(folder / "checkpoints").glob(f"{PREFIX_TRL}*")])
    state = _state(newest, now) if newest else "waiting"
    return Line(name, state, f"{max(steps, default=0)} updates saved", "")


def rollout_line(study: Study, results: Path, key: tuple[str, int, str], now: float) -> Line:
    """One checkpoint's evaluation: episodes, outcomes, pace, time left."""
    arm, seed, stage = key
    folder = results / "episodes" / arm / f"seed_{seed}" / f"stage_{stage}"
    name = f"rollouts {arm} seed {seed} {stage}"
    beat = read_json(folder / "heartbeat.json")
    if all(Path(index).is_file() for index in study.episode_indexes(str(folder))):
        return Line(name, "done", f"{beat.get('total', '?')} episodes", _outcomes(beat).rstrip(", "), 1.0)
    if not beat:
        return Line(name, "waiting", "0 episodes", "")
    rate, left = beat["per_hour"], beat["total"] - beat["done"]
    eta = clock(3600 * left / rate) if rate else "?"
    return Line(
        name,
        _state(beat["time"], now),
        f"{beat['done']}/{beat['total']} episodes",
        f"{_outcomes(beat)}{rate:.0f} episodes/h, ETA {eta}",
        beat["done"] / max(1, beat["total"]),
    )


def render(config: StudyConfig, lines: Sequence[Line], jobs: Sequence[dict[str, Any]]) -> str:
    """The screen, by ``status.txt.j2``: the parts, pools that announced themselves, Slurm's jobs."""
    folder = config.desktop.remote.folder if config.desktop.provider == "remote" else None
    pools = [] if folder is None else announced(folder, draining=True)
    return render_text(
        Path(__file__).with_name("status.txt.j2"),
        config=config,
        lines=lines,
        counts=Counter(line.state for line in lines),
        width=max((len(line.name) for line in lines), default=0),
        folder=folder,
        pools=pools,
        desktops=sum(int(pool.get("count", 0)) for pool in pools if not pool.get("draining")),
        jobs=jobs[-SHOWN_JOBS:],
        earlier=len(jobs) - SHOWN_JOBS,
    )


def _state(newest: float, now: float) -> str:
    return "running" if now - newest < STALE_S else "silent"


def _reward(rows: list[dict[str, Any]]) -> str:
    return f"reward {rows[-1]['reward_before']:.3f}, success {rows[-1]['success']:.2f}, " if rows else ""


def _outcomes(beat: dict[str, Any]) -> str:
    # A job counts its own episodes; those of earlier jobs are only kept.
    counts = {"kept": beat.get("kept", 0), **dict(sorted(beat.get("outcomes", {}).items()))}
    return "".join(f"{name} {count}, " for name, count in counts.items() if count)
