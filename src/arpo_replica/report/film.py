"""The same task under several arms, side by side: where they part, and an animation of it."""

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

from arpo_replica.actions.types import same_action
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import write_atomically
from arpo_replica.report.figures import PALETTE
from arpo_replica.report.gallery import (
    BROKEN,
    END,
    RING,
    Drawing,
    EpisodeView,
    Ring,
    Shot,
    StepView,
    frames_of,
    read_screenshot,
)
from arpo_replica.report.matrix import Cell, Column, SplitPart
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
        if not all(
            a == b or (a and b and same_action(a, b, reach)) for a, b in zip(first, second, strict=True)
        ):
            return place
    return None


# --- the page's films ---


@dataclass(slots=True)
class Film:
    """One task and trial under every arm."""

    id: str
    row: dict[str, Any]
    """Of the first arm's episode."""
    reels: dict[Column, tuple[EpisodeView, int | None]]
    """Per arm: the episode, and its first frame that is unlike the first arm's."""
    flip: str
    """What became of the task in the arms, e.g. ``gained`` or ``gained lost``, for the filter."""

    @property
    def flipped(self) -> bool:
        """It shows how the task was gained or lost."""
        return self.flip != "same" and any(map(self.shows_change, self.reels))

    @property
    def pictured(self) -> bool:
        """Every arm has screenshots in the page."""
        return all(episode.thumbnail for episode, _ in self.reels.values())

    def shows_change(self, column: Column) -> bool:
        """The arm succeeds where the first arm fails, or the other way round."""
        first = next(iter(self.reels.values()))[0]
        return column in self.reels and self.reels[column][0].row["success_hard"] != first.row["success_hard"]


def build_films(parts: Sequence[SplitPart]) -> list[Film]:
    """One film per task, trial and training seed, in the order of the tables.

    Each episode learns of its film, and each cell that flipped of one in which the two episodes show it.
    """
    films: list[Film] = []
    rows = [(part.columns, row) for part in parts for domain in part.domains for row in domain.rows]
    for columns, row in rows:
        here: list[Film] = []
        most = max(row.cells, key=lambda cell: len(cell.by_seed))
        for run in most.episodes:
            shown = {
                column: episode
                for column, cell in zip(columns, row.cells, strict=True)
                if (episode := _same_run(cell, run)) is not None
            }
            if len(shown) < 2:
                continue
            first = next(iter(shown.values()))
            reels = {
                column: (episode, first_difference(first.steps, episode.steps))
                for column, episode in shown.items()
            }
            here.append(Film(f"film{len(films) + len(here)}", first.row, reels, row.flips or "same"))
            for episode in shown.values():
                episode.film = episode.film or here[-1]
        for column, cell in zip(columns, row.cells, strict=True):
            found = sorted(here, key=lambda film: not film.shows_change(column))
            cell.film = found[0].id if found and cell.flip in ("gained", "lost") else ""
        films += here
    return films


def first_films(films: Sequence[Film], most: int) -> list[Film]:
    """Those to be seen first, one per task: such that show a flip, gained, lost and the splits in turn."""
    groups: dict[bool, dict[tuple[str, str], list[Film]]] = {True: {}, False: {}}
    seen: set[tuple[str, str, str]] = set()
    for film in sorted(films, key=lambda film: not film.flipped):
        task = (film.row["split"], film.row["domain"], film.row["task_id"])
        if task not in seen:
            seen.add(task)
            groups[film.flipped].setdefault((film.flip, film.row["split"]), []).append(film)
    turns = [turn for found in groups.values() for turn in zip_longest(*found.values())]
    return [film for turn in turns for film in turn if film is not None][:most]


def _same_run(cell: Cell, run: EpisodeView) -> EpisodeView | None:
    """The cell's episode of the same trial and seed; an untrained policy has one seed for all."""
    same = [episode for episode in cell.episodes if episode.row["trial"] == run.row["trial"]]
    return next((e for e in same if e.row["seed"] == run.row["seed"] or len(cell.by_seed) == 1), None)


# --- the animation ---

MARGIN = 16
FORMATS: dict[str, dict[str, Any]] = {
    ".gif": {"format": "GIF", "optimize": True},
    ".webp": {"format": "WEBP", "quality": 85, "kmin": 0, "kmax": 1},
}
"""Ending of the file -> how Pillow saves it. WebP: each frame whole, or old words leave a shadow."""
COLOURS = {"success": PALETTE["other1"], "failure": PALETTE["muted"], "truncated": PALETTE["other3"]}


@dataclass(frozen=True, slots=True)
class Take:
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
    takes = [_take(folder) for folder in folders]
    tasks = list(dict.fromkeys(f"{take.record.domain}/{take.record.task_id}" for take in takes))
    if len(tasks) > 1:
        raise UserError(
            f"The episodes are of different tasks ({', '.join(tasks)}); name folders of one task."
        )
    parted = [first_difference(takes[0].frames, take.frames) for take in takes]
    count = max(len(take.frames) for take in takes)
    pictures = [_picture(takes, parted, place, width) for place in range(count)]
    lasts = [round(1000 * seconds)] * (count - 1) + [round(3000 * seconds)]
    data = io.BytesIO()
    pictures[0].save(
        data, save_all=True, append_images=pictures[1:], duration=lasts, loop=0, **FORMATS[out.suffix.lower()]
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, data.getvalue())


def _take(folder: Path) -> Take:
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
    return Take(record, frames_of(steps, record.model_dump(), shots), pictures)


def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib brings it along: the same picture on every machine, and most scripts.
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def _picture(takes: Sequence[Take], parted: Sequence[int | None], place: int, width: int) -> Image.Image:
    """One frame of the animation. An episode that is over stays on its end."""
    heights = [
        round(width * shot.height / shot.width)
        for take in takes
        for shot in [next(frame.shot for frame in take.frames if frame.shot)]
    ]
    size, full = max(12, width // 24), MARGIN + len(takes) * (width + MARGIN)
    text, line = _font(size), round(1.45 * size)
    head = textwrap.wrap(takes[0].record.instruction, max(20, int(full / (0.62 * size))), max_lines=2)
    top = MARGIN + line * len(head) + line // 2
    sheet = Image.new("RGB", (full, top + max(heights) + round(4.6 * line)), "white")
    pen = ImageDraw.Draw(sheet)
    pen.multiline_text((MARGIN, MARGIN), "\n".join(head), PALETTE["ink"], text, spacing=line - size)
    for at, (take, height, differs) in enumerate(zip(takes, heights, parted, strict=True)):
        x = MARGIN + at * (width + MARGIN)
        frame = take.frames[min(place, len(take.frames) - 1)]
        record = take.record
        pen.text((x, top), record.arm, PALETTE.get(record.arm, PALETTE["ink"]), text)
        if frame.shot:
            screen = take.pictures[frame.shot.id].resize((width, height), Image.Resampling.LANCZOS)
            if frame.drawing:
                _draw(ImageDraw.Draw(screen), frame.drawing, width / frame.shot.width)
            sheet.paste(screen, (x, top + line))
        pen.rectangle((x - 1, top + line - 1, x + width, top + line + height), outline=PALETTE["grid"])
        below = top + line + height + line // 3
        words, colour = _caption(record, frame)
        lines = textwrap.wrap(words, max(12, int(width / (0.6 * size))), max_lines=2, placeholder=" …")
        pen.multiline_text((x, below), "\n".join(lines), colour, text, spacing=line - size)
        if differs is not None and place == differs:
            pen.text((x, below + 2 * line), f"unlike {takes[0].record.arm} from here", MAGENTA, text)
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
