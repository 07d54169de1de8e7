"""Stored trajectories of the replay buffer: one file each, without pixels.

Pixel values are most of a trajectory (15 screenshots at 1080p: 0.76 GB as float32). They are a function of
the screenshots, which the recorded episode holds losslessly; so an item keeps the screenshots' names and
a checksum, and the image processor makes the very same values again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from verl.utils.tensordict_utils import assign_non_tensor_stack

INPUTS = "multi_modal_inputs"
PIXELS = "pixel_values"


class ItemStore:
    """Reads and writes items below ``folder``; screenshots are named relative to ``root``."""

    def __init__(self, folder: Path, root: Path, model: Path, processor_options: dict[str, Any]) -> None:
        """``model``: folder of the processor; ``processor_options``: as in ``data.mm_processor_kwargs``."""
        self.folder, self.root, self.model = folder, root, model
        self.processor_options = processor_options
        self._processor: Any = None

    def save(self, name: str, fields: Any, tag: dict[str, Any], screenshots: list[Path]) -> None:
        """Write a trajectory: one row of TransferQueue (a TensorDict of batch size 1) and its tag."""
        fields = fields.clone()
        inputs = dict(value_of(fields[INPUTS][0]))
        pixels = inputs.pop(PIXELS)
        assign_non_tensor_stack(fields, INPUTS, [inputs])
        item = {
            "fields": fields,
            "tag": dict(tag),
            "screenshots": [str(path.relative_to(self.root)) for path in screenshots],
            "pixels_sha256": checksum(pixels),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{name}.tmp"
        torch.save(item, temporary)
        temporary.replace(self.folder / f"{name}.pt")

    def load(self, name: str) -> tuple[Any, dict[str, Any]]:
        """The row and its tag, as they were saved. Raises RuntimeError if the pixels are not the same."""
        # Written by ``save`` in this very folder: not foreign data.
        item = torch.load(self.folder / f"{name}.pt", weights_only=False)
        fields, tag = item["fields"], item["tag"]
        images = [Image.open(self.root / path).convert("RGB") for path in item["screenshots"]]
        pixels = self._image_processor()(images=images, return_tensors="pt", **self.processor_options)[PIXELS]
        if checksum(pixels) != item["pixels_sha256"]:
            raise RuntimeError(
                f"the screenshots of the stored trajectory {name} do not give the pixels that it was made "
                f"of; episodes or the image processor below {self.root} have changed"
            )
        inputs = {**value_of(fields[INPUTS][0]), PIXELS: pixels}
        assign_non_tensor_stack(fields, INPUTS, [inputs])
        return fields, tag

    def keep_only(self, names: set[str]) -> None:
        """Delete all other items."""
        for path in self.folder.glob("*.pt"):
            if path.stem not in names:
                path.unlink()

    def _image_processor(self) -> Any:
        if self._processor is None:
            from verl.utils import hf_processor

            self._processor = hf_processor(str(self.model)).image_processor
        return self._processor


def value_of(entry: Any) -> Any:
    """What a NonTensorData holds; anything else is itself."""
    return getattr(entry, "data", entry)


def checksum(values: torch.Tensor) -> str:
    """sha256 over shape, type and bytes."""
    digest = hashlib.sha256(f"{tuple(values.shape)} {values.dtype}".encode())
    digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()
