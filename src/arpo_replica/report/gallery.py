"""Episodes as the page shows them: screenshots within a budget, and where the policy clicked."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from PIL import Image

from arpo_replica.actions.types import Action, Drag, Scroll, from_json
from arpo_replica.base.tables import grouped
from arpo_replica.evaluation.scores import read_steps
from arpo_replica.rollout.records import StepRecord, read_summary

if TYPE_CHECKING:
    from arpo_replica.report.film import Film

PLAIN_BYTES = 1_500_000
"""Most that the HTML of plain cards may take, so that the first view does not wait for the last episode."""
BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for a file that is no image, or a hostile one."""
LARGEST_SCREENSHOT = 32 * 2**20
"""A file above this is no screenshot of ours; bytes."""
RING = 0.032
"""Radius of the ring around a click, as a part of the screen's longer side."""
DIRECTIONS = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}
END = "End state"
"""Title of the last frame."""
REFUSALS = 8
"""So many episodes in a row that did not fit into the budget end the search for smaller ones."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Points of an action in screen pixels: where, and where to (drag and scroll)."""

    x: int
    y: int
    to: tuple[int, int] | None = None
    direction: str | None = None


class Ring(NamedTuple):
    """A circle."""

    x: float
    y: float
    r: float


Stroke = Ring | list[tuple[float, float]]
"""A circle, or the corners of a line."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """What to draw, in screen pixels, and the width of its line and of the light halo under it."""

    strokes: list[Stroke]
    line: float
    halo: float

    @property
    def path(self) -> str:
        """The same as the path of an SVG."""
        return "".join(map(_path, self.strokes))


@dataclass(frozen=True, slots=True)
class Shot:
    """A screenshot in the page's store or, with a ``file``, in the folder beside the page."""

    id: str
    width: int
    height: int
    """Of the screen, in pixels, whatever the size of the stored image."""
    file: str | None = None
    """Path relative to the page."""


@dataclass(frozen=True, slots=True)
class StepView:
    """One frame of the viewer."""

    title: str
    action: str
    """What was done, in words; empty for the end state."""
    detail: str
    """Typed text, keys or the final word of the policy."""
    text: str
    problem: str
    shot: Shot | None
    drawing: Drawing | None
    """Where the action touched the screen."""
    model_s: float | None = None
    env_s: float | None = None
    tokens: int | None = None
    actions: tuple[Action | None, ...] = ()
    """What was done; None stands for no valid action. Empty for the end state."""


@dataclass(slots=True)
class EpisodeView:
    """One card of the gallery."""

    id: str
    row: dict[str, Any]
    steps: list[StepView]
    errors: list[str]
    has_shots: bool = False
    thumbnail: StepView | None = None
    expected: str = ""
    """What the evaluator wanted, and what it found; empty where the record does not say it."""
    found: str = ""
    film: Film | None = None
    """The same task and trial under other arms too."""
    flip: str = "none"
    """Against the reference arm on this task: gained, lost, same, mixed, none (nothing to compare)."""


@dataclass
class Gallery:
    """All episodes with what the page needs to show them."""

    episodes: list[EpisodeView]
    images: list[dict[str, Any]] = field(default_factory=list)
    """id, width, height, data URI of each distinct screenshot."""
    with_shots: int = 0
    without_files: int = 0
    """Episodes whose screenshots are not on disk."""
    over_budget: int = 0
    """Episodes left without screenshots because the budget was spent."""
    used_bytes: int = 0
    budget_bytes: int = 0
    beside: int = 0
    """Screenshots in the folder beside the page."""
    order: list[int] = field(default_factory=list)
    """Positions in ``episodes``, arms, splits and outcomes in turn: who comes first when room is short."""


class Store:
    """Distinct screenshots within a budget of bytes (as they stand in the page)."""

    def __init__(self, budget: int, width: int) -> None:
        self.budget = budget
        self.width = width
        self.used = 0
        self.images: dict[str, dict[str, Any]] = {}
        self._known: dict[str, dict[str, Any] | None] = {}

    def add(self, pictures: Iterable[tuple[str, bytes | None]]) -> dict[str, Shot] | None:
        """All of an episode's screenshots or, if they do not fit, none (None). Broken ones are left out."""
        shots: dict[str, Shot] = {}
        new: dict[str, dict[str, Any]] = {}
        for name, data in pictures:
            loaded = self._load(data)
            if loaded is None:
                continue
            shots[name] = Shot(loaded["id"], loaded["screen"][0], loaded["screen"][1])
            if loaded["id"] not in self.images:
                new[loaded["id"]] = loaded
        cost = sum(len(image["uri"]) for image in new.values())
        if self.used + cost > self.budget:
            return None
        self.used += cost
        self.images.update(new)
        return shots

    def pictures(self) -> list[dict[str, Any]]:
        """id, width, height and data URI of each, as templates write them."""
        return [
            {"id": key, "uri": image["uri"], "width": image["screen"][0], "height": image["screen"][1]}
            for key, image in sorted(self.images.items())
        ]

    def _load(self, data: bytes | None) -> dict[str, Any] | None:
        if data is None:
            return None
        # The first screens of a task are the same in every arm: each is decoded once.
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._known:
            self._known[digest] = self._decode(data)
        return self._known[digest]

    def _decode(self, data: bytes) -> dict[str, Any] | None:
        try:
            with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
                screen = image.size
                if image.width > self.width:
                    height = max(1, round(image.height * self.width / image.width))
                    small = image.convert("RGB").resize((self.width, height), Image.Resampling.LANCZOS)
                    out = io.BytesIO()
                    small.save(out, "WEBP", quality=70, method=4)
                    data = out.getvalue()
                else:
                    image.load()
        except BROKEN:
            return None
        return {
            "id": f"i{hashlib.sha256(data).hexdigest()[:16]}",
            "screen": screen,
            "uri": f"data:image/webp;base64,{base64.b64encode(data).decode()}",
        }


def read_screenshots(files: Iterable[Path]) -> Iterator[tuple[str, bytes | None]]:
    """(name of the file, its bytes) of each."""
    return ((file.name, read_screenshot(file)) for file in files)


def read_screenshot(file: Path) -> bytes | None:
    """None for what cannot be read and for what is no screenshot of ours."""
    try:
        return file.read_bytes() if file.stat().st_size <= LARGEST_SCREENSHOT else None
    except OSError:
        return None


def build_gallery(
    scores: pd.DataFrame,
    root: Path,
    *,
    budget_mb: float,
    width: int,
    page_mb: float = math.inf,
    beside: Path | None = None,
) -> Gallery:
    """Read the episodes of ``scores`` below ``root`` (the study's folder of episodes).

    Where the budget does not reach for all, screenshots go in turn to arms, splits and outcomes, so that
    each kind is seen; text, actions and timing are there for every episode. The budget shrinks where text
    would push the page beyond ``page_mb``. With ``beside``, every screenshot that is not in the page is
    copied into that folder, as it was taken.
    """
    known = scores.astype(object).where(scores.notna(), None)
    records = [{str(k): v for k, v in row.items()} for row in known.to_dict("records")]
    records.sort(key=_place)
    raw_steps = [read_steps(root / row["directory"]) for row in records]
    finals = [read_summary(root / row["directory"]) for row in records]
    budget = max(0.0, min(budget_mb * 1e6, page_mb * 1e6 - _text_bytes(raw_steps)))
    store = Store(round(budget), width)
    gallery = Gallery(episodes=[], order=list(_fair_order(records)))
    shots: dict[int, dict[str, Shot]] = {}
    refused = 0
    for index in gallery.order:
        present = files_of(root / records[index]["directory"], raw_steps[index], finals[index])
        if not present:
            gallery.without_files += 1
            continue
        added = store.add(read_screenshots(present)) if refused < REFUSALS else None
        if added is None:
            gallery.over_budget += 1
            refused += 1
            if beside is not None:
                shots[index] = _copy_beside(present, beside)
        elif not added:
            gallery.without_files += 1
        else:
            shots[index] = added
            refused = 0
    for index, row in enumerate(records):
        gallery.episodes.append(view_of(index, row, raw_steps[index], finals[index], shots.get(index, {})))
    gallery.images = store.pictures()
    in_folder = [shot.file for found in shots.values() for shot in found.values() if shot.file]
    gallery.beside = len(set(in_folder))
    gallery.with_shots = sum(not any(shot.file for shot in found.values()) for found in shots.values())
    gallery.used_bytes, gallery.budget_bytes = store.used, round(budget)
    return gallery


def _text_bytes(steps: Sequence[Sequence[StepRecord]]) -> float:
    """What everything but screenshots will take, roughly: plain cards, compressed cards and films, tables."""
    squeezer = zlib.compressobj(1)
    squeezed = 0
    for step in (step for episode in steps for step in episode):
        squeezed += len(squeezer.compress(step.model_dump_json().encode()))
    squeezed += len(squeezer.flush())
    plain = sum(700 + 5 * len(step.text) for episode in steps for step in episode)
    return 1e6 + min(plain, PLAIN_BYTES) + 4 / 3 * squeezed + 850 * len(steps)


def files_of(folder: Path, steps: list[StepRecord], record: dict[str, Any]) -> list[Path]:
    """The screenshots of an episode that are on disk, in order."""
    names = [step.screenshot for step in steps]
    final = record.get("final_screenshot")
    names += [final] if isinstance(final, str) else []
    files = [folder / Path(name).name for name in dict.fromkeys(names)]
    return [file for file in files if file.is_file()]


def _copy_beside(files: list[Path], folder: Path) -> dict[str, Shot]:
    """Copy screenshots into ``folder`` under the name of their hash. What is no screenshot is left out."""
    shots: dict[str, Shot] = {}
    for file in files:
        data = read_screenshot(file)
        if data is None:
            continue
        try:
            with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
                screen = image.size
                image.verify()
        except BROKEN:
            continue
        name = hashlib.sha256(data).hexdigest()[:24]
        target = folder / name[:2] / f"{name}.webp"
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        shots[file.name] = Shot(name, *screen, file=f"{folder.name}/{name[:2]}/{name}.webp")
    return shots


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    place = (row["split"], row["arm"], row["stage"], row["seed"])
    return (*place, natural(row["domain"], row["task_id"]), row["trial"])


def natural(domain: str, task_id: str) -> tuple[str, list[str | int]]:
    """Sort key in which numbers inside a task's name count as numbers."""
    parts = re.split(r"([0-9]+)", task_id)
    return domain, [int(part) if index % 2 else part for index, part in enumerate(parts)]


def _fair_order(records: list[dict[str, Any]]) -> Iterable[int]:
    kinds = [(row["split"], row["arm"], row["outcome"]) for row in records]
    for turn in zip_longest(*grouped(range(len(kinds)), kinds.__getitem__).values()):
        yield from (index for index in turn if index is not None)


def view_of(
    index: int,
    row: dict[str, Any],
    steps: list[StepRecord],
    record: dict[str, Any],
    shots: dict[str, Shot],
) -> EpisodeView:
    frames = frames_of(steps, record, shots)
    errors = [str(line) for line in record.get("errors", [])]
    view = EpisodeView(f"ep{index}", row, frames, errors, has_shots=bool(shots))
    view.expected, view.found = str(record.get("expected", "")), str(record.get("found", ""))
    acted = [frame for frame in frames if frame.drawing]
    pictured = [frame for frame in frames if frame.shot]
    view.thumbnail = next(iter(reversed(acted or pictured)), None)
    return view


def frames_of(
    steps: Iterable[StepRecord], record: Mapping[str, Any], shots: Mapping[str, Shot]
) -> list[StepView]:
    """One frame per reply, and the end state where its screenshot is known.

    ``record``: of the episode, as in its file; ``shots``: by the names that steps and record have for them.
    """
    frames, before = [], 0
    for step in steps:
        frames.append(_frame(step, shots.get(step.screenshot), before))
        before += step.taken
    final = shots.get(str(record.get("final_screenshot")))
    if final is not None:
        frames.append(StepView(END, "", "", "", "", final, None))
    return frames


def _frame(step: StepRecord, shot: Shot | None, before: int) -> StepView:
    """``before``: steps that earlier replies used up. Drawn is the first action: it met the screen shown."""
    written = [step.action, *step.further] if step.action is not None else []
    actions = [action_of(raw) for raw in written]
    told = [describe_action(action) if action else ("unknown action", "") for action in actions]
    mark = mark_of(actions[0] if actions else None)
    title = f"Step {before + 1}" if step.taken == 1 else f"Steps {before + 1} to {before + step.taken}"
    return StepView(
        title=title,
        action=", then ".join(words for words, _ in told) or "no valid action",
        detail=", then ".join(detail for _, detail in told if detail),
        text=step.text,
        problem=step.format_error or "",
        shot=shot,
        drawing=drawing(mark, shot.width, shot.height) if mark and shot else None,
        model_s=step.model_s,
        env_s=step.env_s,
        tokens=step.completion_tokens,
        actions=tuple(actions) or (None,),
    )


def action_of(raw: dict[str, Any]) -> Action | None:
    """None for what is no action of ours."""
    try:
        return from_json(raw)
    except (ValueError, TypeError):
        return None


def describe_action(action: Action) -> tuple[str, str]:
    """(what was done, its text) of an action, in words."""
    values = action.to_json()
    words = str(values.pop("type")).replace("_", " ")
    if isinstance(action, Drag):
        return f"{words} ({action.x}, {action.y}) to ({action.to_x}, {action.to_y})", ""
    if isinstance(action, Scroll):
        words += f" {action.direction}"
    if isinstance(values.get("x"), int):
        return f"{words} at ({values['x']}, {values['y']})", ""
    detail = values.get("keys") or values.get("text") or values.get("content") or values.get("reason") or ""
    return words, " + ".join(map(str, detail)) if isinstance(detail, tuple | list) else str(detail)


# --- where the policy touched the screen ---


def mark_of(action: Action | None) -> Mark | None:
    """What to draw for an action; None if it touches no point."""
    x, y = getattr(action, "x", None), getattr(action, "y", None)
    if not (_is_pixel(x) and _is_pixel(y)):
        return None
    assert isinstance(x, int) and isinstance(y, int)
    if isinstance(action, Drag):
        usable = _is_pixel(action.to_x) and _is_pixel(action.to_y)
        return Mark(x, y, to=(action.to_x, action.to_y)) if usable else None
    if isinstance(action, Scroll):
        return Mark(x, y, direction=action.direction if action.direction in DIRECTIONS else None)
    return Mark(x, y)


def drawing(mark: Mark, width: int, height: int) -> Drawing:
    """Ring and cross for a click, ring and arrow for a drag or scroll, scaled to the screen's size."""
    r = RING * max(width, height)
    x, y = mark.x, mark.y
    strokes: list[Stroke] = [Ring(x, y, r if mark.to is None and mark.direction is None else 0.6 * r)]
    if mark.to is not None:
        strokes += _arrow(x, y, *mark.to, r)
    elif mark.direction is not None:
        dx, dy = DIRECTIONS[mark.direction]
        strokes += _arrow(x, y, x + 3 * r * dx, y + 3 * r * dy, r)
    else:
        strokes += [
            [(x + 0.5 * r * dx, y + 0.5 * r * dy), (x + 1.7 * r * dx, y + 1.7 * r * dy)]
            for dx, dy in DIRECTIONS.values()
        ]
    return Drawing(strokes, round(0.24 * r, 2), round(0.5 * r, 2))


def _path(stroke: Stroke) -> str:
    if isinstance(stroke, Ring):
        x, y, r = stroke
        return (
            f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 0 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 0 {-2 * r:.1f} 0"
        )
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in stroke)


def _arrow(x1: float, y1: float, x2: float, y2: float, r: float) -> list[Stroke]:
    length = math.hypot(x2 - x1, y2 - y1)
    if length == 0:
        return []
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    left = (x2 - r * (1.3 * ux - 0.8 * uy), y2 - r * (1.3 * uy + 0.8 * ux))
    right = (x2 - r * (1.3 * ux + 0.8 * uy), y2 - r * (1.3 * uy - 0.8 * ux))
    return [[(x1, y1), (x2, y2)], [left, (x2, y2), right]]


def _is_pixel(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 100_000
