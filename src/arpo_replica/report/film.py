"""The same task under several arms, side by side: where they part, and an animation of it."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont
from pydantic import ValidationError

from arpo_replica.actions.types import Action, Fail, Finished
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import write_atomically
from arpo_replica.report.figures import PALETTE
from arpo_replica.report.gallery import (
    BROKEN,
    END,
    RING,
    Drawing,
    Ring,
    Shot,
    StepView,
    frames_of,
    read_screenshot,
)
from arpo_replica.rollout.records import EpisodeRecord, read_episode

# --- where two episodes part ---


def first_difference(one: Sequence[StepView], other: Sequence[StepView]) -> int | None:
    """Position of the first frame in which the two did something else; None if there is none.

    Points that lie within the ring that is drawn around a click are the same point, and so are final words: a
    policy that clicks three pixels further does the same. An episode that did not begin has no difference.
    """
    mine, yours = ([frame.actions for frame in frames if frame.actions] for frames in (one, other))
    if not mine or not yours:
        return None
    screen = next((frame.shot for frame in one if frame.shot), None)
    reach = RING * max(screen.width, screen.height) if screen else 0.0
    for place, (first, second) in enumerate(zip_longest(mine, yours)):
        if first is None or second is None or len(first) != len(second):
            return place
        if not all(_same(a, b, reach) for a, b in zip(first, second, strict=True)):
            return place
    return None


def _same(one: Action | None, other: Action | None, reach: float) -> bool:
    if type(one) is not type(other):
        return False
    if one is None or other is None or isinstance(one, Finished | Fail):
        return True
    mine, yours = one.to_json(), other.to_json()
    for name, value in mine.items():
        point = name in ("x", "y", "to_x", "to_y") and isinstance(value, int) and isinstance(yours[name], int)
        if abs(value - yours[name]) > reach if point else value != yours[name]:
            return False
    return True


# --- the animation ---

MARGIN = 16
FORMATS: dict[str, dict[str, Any]] = {
    ".gif": {"format": "GIF", "optimize": True},
    ".webp": {"format": "WEBP", "quality": 85, "kmin": 0, "kmax": 1},
}
"""Ending of the file -> how Pillow saves it. WebP: each frame whole, or old words leave a shadow."""
COLOURS = {"success": PALETTE["other1"], "failure": PALETTE["muted"], "truncated": PALETTE["other3"]}


@dataclass(frozen=True, slots=True)
class Reel:
    """One episode of an animation."""

    record: EpisodeRecord
    frames: list[StepView]
    pictures: dict[str, Image.Image]
    """By the ``id`` of a frame's shot."""


def export_animation(folders: Sequence[Path], out: Path, *, seconds: float, width: int) -> None:
    """Write the episodes of ``folders``, all of one task, as one animation, side by side in this order.

    ``seconds``: how long a frame stays; the last one stays three times as long. ``width``: of each screen, in
    pixels. Raises ``UserError`` for a folder without screenshots of an episode and for another ending.
    """
    if out.suffix.lower() not in FORMATS:
        raise UserError(f"{out}: the ending says the format; use one of {', '.join(FORMATS)}.")
    reels = [_reel(folder) for folder in folders]
    tasks = list(dict.fromkeys(f"{reel.record.domain}/{reel.record.task_id}" for reel in reels))
    if len(tasks) > 1:
        raise UserError(
            f"The episodes are of different tasks ({', '.join(tasks)}); name folders of one task."
        )
    parted = [first_difference(reels[0].frames, reel.frames) for reel in reels]
    count = max(len(reel.frames) for reel in reels)
    pictures = [_picture(reels, parted, place, width) for place in range(count)]
    lasts = [round(1000 * seconds)] * (count - 1) + [round(3000 * seconds)]
    data = io.BytesIO()
    pictures[0].save(
        data, save_all=True, append_images=pictures[1:], duration=lasts, loop=0, **FORMATS[out.suffix.lower()]
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, data.getvalue())


def _reel(folder: Path) -> Reel:
    try:
        record, steps = read_episode(folder)
    except (OSError, ValidationError) as error:
        raise UserError(
            f"{folder} holds no episode that can be read; name a folder with episode.json."
        ) from error
    shots, pictures = {}, {}
    for name in [*(step.screenshot for step in steps), record.final_screenshot]:
        if name is None or (data := read_screenshot(folder / Path(name).name)) is None:
            continue
        try:
            with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
                pictures[name] = image.convert("RGB")
        except BROKEN:
            continue
        shots[name] = Shot(name, *pictures[name].size)
    if not shots:
        raise UserError(f"{folder} holds no screenshot; an episode without one cannot be shown.")
    return Reel(record, frames_of(steps, record.model_dump(), shots), pictures)


def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib brings it along: the same picture on every machine, and most scripts.
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def _picture(reels: Sequence[Reel], parted: Sequence[int | None], place: int, width: int) -> Image.Image:
    """One frame of the animation. An episode that is over stays on its end."""
    heights = [
        round(width * shot.height / shot.width)
        for reel in reels
        for shot in [next(frame.shot for frame in reel.frames if frame.shot)]
    ]
    size, full = max(12, width // 24), MARGIN + len(reels) * (width + MARGIN)
    text, line = _font(size), round(1.45 * size)
    head = textwrap.wrap(reels[0].record.instruction, max(20, int(full / (0.62 * size))), max_lines=2)
    top = MARGIN + line * len(head) + line // 2
    sheet = Image.new("RGB", (full, top + max(heights) + round(4.6 * line)), "white")
    pen = ImageDraw.Draw(sheet)
    pen.multiline_text((MARGIN, MARGIN), "\n".join(head), PALETTE["ink"], text, spacing=line - size)
    for at, (reel, height, differs) in enumerate(zip(reels, heights, parted, strict=True)):
        x = MARGIN + at * (width + MARGIN)
        frame = reel.frames[min(place, len(reel.frames) - 1)]
        record = reel.record
        pen.text((x, top), record.arm, PALETTE.get(record.arm, PALETTE["ink"]), text)
        if frame.shot:
            screen = reel.pictures[frame.shot.id].resize((width, height), Image.Resampling.LANCZOS)
            if frame.drawing:
                _draw(ImageDraw.Draw(screen), frame.drawing, width / frame.shot.width)
            sheet.paste(screen, (x, top + line))
        pen.rectangle((x - 1, top + line - 1, x + width, top + line + height), outline=PALETTE["grid"])
        below = top + line + height + line // 3
        words, colour = _caption(record, frame)
        lines = textwrap.wrap(words, max(12, int(width / (0.6 * size))), max_lines=2, placeholder=" …")
        pen.multiline_text((x, below), "\n".join(lines), colour, text, spacing=line - size)
        if differs is not None and place == differs:
            pen.text((x, below + 2 * line), f"unlike {reels[0].record.arm} from here", MAGENTA, text)
    return sheet


def _caption(record: EpisodeRecord, frame: StepView) -> tuple[str, str]:
    if frame.title != END:
        words = f"{frame.title}: {frame.action}" + (f" “{frame.detail}”" if frame.detail else "")
        return words, PALETTE["ink"]
    if record.hard_score is None:
        return "environment failure: not scored", PALETTE["arpo"]
    solved = "solved" if record.outcome == "success" else "not solved"
    return f"{solved}: score {record.hard_score:g}", COLOURS[record.outcome]


MAGENTA = "#d1006f"
"""Of marks, as in report.css."""


def _draw(pen: ImageDraw.ImageDraw, drawing: Drawing, scale: float) -> None:
    """Halo and mark, as the page's SVG has them."""
    for colour, thick in (("white", drawing.halo), (MAGENTA, drawing.line)):
        width = max(1, round(thick * scale))
        for stroke in drawing.strokes:
            if isinstance(stroke, Ring):
                x, y, r = (scale * value for value in stroke)
                pen.circle((x, y), r + width / 2, outline=colour, width=width)
            else:
                pen.line([(scale * x, scale * y) for x, y in stroke], colour, width, joint="curve")
