"""Made-up demonstrations for tests of the nano policy: one grey box on white, click it, done."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from arpo_replica.config.models import StudyConfig
from arpo_replica.rollout.records import to_webp, write_episode
from arpo_replica.tasks.model import Task
from fakes import episode_record, small_study, step_record

SCREEN = (112, 84)


def small_config(**nano: Any) -> StudyConfig:
    """A study with a small screen and the smallest nano policy."""
    smallest = {"hidden_size": 64, "layers": 2, "vision_hidden_size": 64, "vision_layers": 1}
    return small_study(SCREEN, nano={**smallest, "vocabulary": 640, "batch_size": 8, "epochs": 2, **nano})


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
            step_record(number, text, action={})
            for number, text in enumerate(texts)
        ]  # fmt: skip
        task = Task(f"box-s{index:03d}", "miniwob", f"Click button {word}.", [], {}, {}, "")
        final = "step_001.webp"
        record = episode_record(
            task, outcome=outcome, n_steps=2, checkpoint_sha256="", final_screenshot=final
        )
        images = {"step_000.webp": webp(screenshot(box)), "step_001.webp": webp(screenshot(None))}
        write_episode(root, record, steps, images)
    return root
