"""Where the policy touched the screen, as one SVG path in screen pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from arpo_replica.actions.types import Action, Drag, Scroll

DIRECTIONS = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}


@dataclass(frozen=True, slots=True)
class Mark:
    """Points of an action in screen pixels: where, and where to (drag and scroll)."""

    x: int
    y: int
    to: tuple[int, int] | None = None
    direction: str | None = None


@dataclass(frozen=True, slots=True)
class Drawing:
    """A path and the width of its line and of the light halo under it."""

    path: str
    line: float
    halo: float


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
    r = 0.032 * max(width, height)
    x, y = mark.x, mark.y
    if mark.to is not None:
        path = _ring(x, y, 0.6 * r) + _arrow(x, y, *mark.to, r)
    elif mark.direction is not None:
        dx, dy = DIRECTIONS[mark.direction]
        path = _ring(x, y, 0.6 * r) + _arrow(x, y, x + 3 * r * dx, y + 3 * r * dy, r)
    else:
        path = _ring(x, y, r)
        for dx, dy in DIRECTIONS.values():
            path += _line(x + 0.5 * r * dx, y + 0.5 * r * dy, x + 1.7 * r * dx, y + 1.7 * r * dy)
    return Drawing(path, round(0.24 * r, 2), round(0.5 * r, 2))


def _ring(x: float, y: float, r: float) -> str:
    return f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 0 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 0 {-2 * r:.1f} 0"


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"


def _arrow(x1: float, y1: float, x2: float, y2: float, r: float) -> str:
    length = math.hypot(x2 - x1, y2 - y1)
    if length == 0:
        return ""
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    left = (x2 - r * (1.3 * ux - 0.8 * uy), y2 - r * (1.3 * uy + 0.8 * ux))
    right = (x2 - r * (1.3 * ux + 0.8 * uy), y2 - r * (1.3 * uy - 0.8 * ux))
    return _line(x1, y1, x2, y2) + _line(*left, x2, y2) + f"L{right[0]:.1f} {right[1]:.1f}"


def _is_pixel(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 100_000
