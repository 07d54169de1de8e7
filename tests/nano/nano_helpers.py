"""Made-up demonstrations for tests of the nano policy: one grey box on white, click it, done."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from arpo_replica.config.models import StudyConfig
from arpo_replica.rollout.records import EpisodeRecord, StepRecord, to_webp, write_episode

SCREEN = (112, 84)


def small_config(**nano: Any) -> StudyConfig:
    """A study with a small screen and the smallest nano policy."""
    return StudyConfig.model_validate(
        {
            "study": "test",
            "size": "nano",
            "desktop": {"screen": list(SCREEN)},
            "tasks": {"splits": {"one": "data/splits/one.json"}},
            "policy": {"min_pixels": 3136, "max_pixels": 100352, "max_images": 3, "max_model_len": 1024},
            "nano": {
                "hidden_size": 64, "layers": 2, "vision_hidden_size": 64, "vision_layers": 1,
                "vocabulary": 640, "batch_size": 8, "epochs": 2, **nano,
            },
            "training": {"stages": [{"name": "one", "split": "one", "steps": 1}]},
            "evaluation": {"splits": ["one"]},
        }
    )  # fmt: skip


def screenshot(box: tuple[int, int] | None, size: tuple[int, int] = SCREEN) -> Image.Image:
    """A white screen with a grey box of 16 x 12 pixels, or the end sheet."""
    image = Image.new("RGB", size, "white" if box else "#dfeee0")
    if box:
        left, top = box
        ImageDraw.Draw(image).rectangle((left, top, left + 16, top + 12), fill="#888888", outline="black")
    return image


def webp(image: Image.Image) -> bytes:
    """As the records keep it."""
    png = io.BytesIO()
    image.save(png, "PNG")
    return to_webp(png.getvalue())


def write_demonstrations(root: Path, count: int, outcome: str = "success") -> Path:
    """``count`` episodes of two steps under ``root``."""
    source = random.Random(7)
    for index in range(count):
        box = (source.randrange(SCREEN[0] - 20), source.randrange(SCREEN[1] - 16))
        word = source.choice(["ONE", "TWO"])
        point = f"<point>{box[0] + 8} {box[1] + 6}</point>"
        texts = [
            f"Thought: Click {word}.\nAction: click(point='{point}')",
            "Thought: Done.\nAction: finished(content='')",
        ]
        steps = [
            StepRecord(
                index=number, text=text, action={}, action_id=None, format_error=None,
                screenshot=f"step_{number:03d}.webp", model_s=0, env_s=0,
                prompt_tokens=0, completion_tokens=0,
            )
            for number, text in enumerate(texts)
        ]  # fmt: skip
        record = EpisodeRecord(
            task_id=f"box-s{index:03d}", domain="miniwob", task_sha256="",
            instruction=f"Click button {word}.", infeasible=False, arm="expert", seed=0,
            stage="demonstrations", split="demonstrations", trial=0, size="nano", desktop="process",
            checkpoint_sha256="", sampling={}, outcome=outcome, hard_score=1, standard_score=1,
            format_errors=0, n_steps=2, attempts=1, errors=[], final_screenshot="step_001.webp",
            started_at=0, duration_s=0,
        )  # fmt: skip
        images = {"step_000.webp": webp(screenshot(box)), "step_001.webp": webp(screenshot(None))}
        write_episode(root, record, steps, images)
    return root
