"""Made-up episodes of a base policy, for tests of the arms that learn from them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from arpo_replica.config.models import StudyConfig
from arpo_replica.rollout.records import Outcome, write_episode, write_index
from arpo_replica.tasks.model import Task
from fakes import episode_record, small_study, step_record

BASE_SHA256 = "b" * 64
SCREEN = (84, 56)
GOOD = "Thought: I press the button.\nAction: click(point='<point>10 20</point>')"
BAD = "Action: click(point='<point>70 50</point>')"
END = "Action: finished()"


def offline_config(
    method: str = "rejection", training: dict[str, Any] | None = None, **offline: Any
) -> StudyConfig:
    """A study with one offline arm of the method's name; ``training``: further overrides of that arm."""
    arm = {"offline": {"method": method, **offline}, **(training or {})}
    arms = {"base": {}, "grpo": {}, method: arm}
    return small_study(SCREEN, arms=arms, offline={"rollouts_per_task": 2})


def write_rollout(
    root: Path,
    task: str,
    trial: int,
    texts: list[str],
    outcome: Outcome = "success",
    *,
    tokens: list[int] | None = None,
    checkpoint: str = BASE_SHA256,
    format_errors: int = 0,
    **fields: Any,
) -> Path:
    """One episode under ``root/trial_{trial}``; ``tokens``: length of each reply as the server counted it;
    ``fields``: further ones of the record."""
    folder = root / f"trial_{trial}"
    images = {f"step_{i:03d}.webp": screenshot(f"{task}{i}") for i in range(len(texts) + 1)}
    steps = [
        step_record(index, text, completion_tokens=tokens[index] if tokens else 0)
        for index, text in enumerate(texts)
    ]
    score = None if outcome == "env_error" else float(outcome == "success")
    record = episode_record(
        Task(task, "d", f"Press {task}.", [], {}, {}, "a" * 64),
        **{"split": "one", "trial": trial, "checkpoint_sha256": checkpoint, "outcome": outcome},
        **{"hard_score": score, "standard_score": score, "format_errors": format_errors},
        **{"n_steps": len(steps), "final_screenshot": f"step_{len(texts):03d}.webp"},
    )
    return write_episode(folder, record.model_copy(update=fields), steps, images)


def write_indexes(root: Path) -> list[Path]:
    """The indexes of all trials under ``root``."""
    return [write_index(folder) for folder in sorted(root.glob("trial_*"))]


def screenshot(key: str) -> bytes:
    """A screen of one colour that depends on ``key``."""
    red, green, blue = (sum(map(ord, key)) * factor % 256 for factor in (7, 31, 97))
    out = io.BytesIO()
    Image.new("RGB", SCREEN, (red, green, blue)).save(out, "PNG")
    return out.getvalue()
