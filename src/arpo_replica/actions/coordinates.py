"""From the pixels that the policy sees to the pixels of the screen, and back.

Qwen2-VL's image processor resizes every screenshot to multiples of 28 pixels; UI-TARS-1.5 answers in
pixels of that resized image, UI-TARS (Qwen2-VL) in thousandths of its width and height.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from arpo_replica.config.policy import PolicyConfig

Coordinates = Literal["absolute", "relative_1000"]
FACTOR = 28
MAX_RATIO = 200


def smart_resize(
    width: int, height: int, min_pixels: int, max_pixels: int, factor: int = FACTOR
) -> tuple[int, int]:
    """Width and height, in pixels, of the image that Qwen2-VL's processor makes of a screenshot.

    Same rule as ``transformers`` (``models/qwen2_vl/image_processing_qwen2_vl.py``) and ``ui_tars``:
    both sides multiples of ``factor``, area within the limits, aspect ratio nearly kept; 1920x1080
    becomes 1932x1092. Raises ValueError for a side that is not positive or a ratio above 200.
    """
    if min(width, height) < 1 or max(width, height) / min(width, height) > MAX_RATIO:
        raise ValueError(f"no image of {width}x{height}: sides must be positive, their ratio at most 200")
    new_width = max(factor, round(width / factor) * factor)
    new_height = max(factor, round(height / factor) * factor)
    if new_width * new_height > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        new_width = max(factor, math.floor(width / beta / factor) * factor)
        new_height = max(factor, math.floor(height / beta / factor) * factor)
    elif new_width * new_height < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        new_width = math.ceil(width * beta / factor) * factor
        new_height = math.ceil(height * beta / factor) * factor
    return new_width, new_height


@dataclass(frozen=True, slots=True)
class Frame:
    """How the policy's coordinates relate to the screen's. Sizes are (width, height) in pixels."""

    coordinates: Coordinates
    screen: tuple[int, int]
    image: tuple[int, int]
    """Size of the screenshot as the policy sees it, after ``smart_resize``."""

    @classmethod
    def of(cls, policy: PolicyConfig, screen: tuple[int, int]) -> Frame:
        """The frame of a policy that looks at screens of this size."""
        return cls(policy.coordinates, screen, smart_resize(*screen, policy.min_pixels, policy.max_pixels))

    @property
    def extent(self) -> tuple[int, int]:
        """What the policy's coordinates go up to: the resized image's size, or 1000 x 1000."""
        return (1000, 1000) if self.coordinates == "relative_1000" else self.image

    def to_screen(self, x: float, y: float) -> tuple[int, int]:
        """The screen pixel of a point of the policy.

        A point outside the screen becomes the nearest pixel inside: so do X11 and pyautogui in OSWorld,
        where ARPO's policies were trained without a penalty for it.
        """
        (width, height), (right, bottom) = self.screen, self.extent
        return _pixel(x * width / right, width), _pixel(y * height / bottom, height)

    def to_policy(self, x: int, y: int) -> tuple[int, int]:
        """The policy's coordinates of a screen pixel: what a perfect policy would write.

        ``to_screen`` gives the pixel back exactly when the image is not smaller than the screen.
        """
        (width, height), (right, bottom) = self.screen, self.extent
        return round(x * right / width), round(y * bottom / height)


def _pixel(value: float, size: int) -> int:
    return min(max(math.floor(value + 0.5), 0), size - 1)
