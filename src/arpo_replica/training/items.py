"""Stored trajectories of the replay buffer: one file each, without pixels.

Pixel values are most of a trajectory (15 screenshots at 1080p: 0.76 GB as float32). They are a function of
the screenshots, which the recorded episode holds losslessly; so an item keeps the screenshots' names and
a checksum, and the image processor makes the very same values again.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from verl.utils.tensordict_utils import assign_non_tensor_stack

from arpo_replica.rollout.records import read_rollout
from arpo_replica.training.offline.data import digest
from arpo_replica.training.pixels import Normalisation, carry_bytes

INPUTS = "multi_modal_inputs"
PIXELS = "pixel_values"


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One row of TransferQueue: a sequence of a trajectory."""

    fields: Any
    """A TensorDict of batch size 1."""
    tag: dict[str, Any]
    screenshots: list[Path]
    """Files of its images, in order."""


@dataclass(eq=False)
class ItemStore:
    """Reads and writes items below ``folder``; screenshots are named relative to ``root``."""

    folder: Path
    root: Path
    model: Path
    """Folder of the processor."""
    processor_options: dict[str, Any]
    """As in ``data.mm_processor_kwargs``."""
    bytes_only: bool = field(default=False, kw_only=True)
    """Trajectories carry their pixels as bytes (``pixels``)."""
    play: Callable[[Path, Any], list[QueueRow]] | None = field(default=None, kw_only=True)
    """Makes the rows of a recorded episode, with this processor (``playback``)."""

    def save(self, name: str, rows: list[QueueRow]) -> None:
        """Write a trajectory, all its rows in order."""
        self._write(name, [self._without_pixels(row) for row in rows])

    def save_recorded(self, name: str, episode: Path) -> None:
        """Write down that a trajectory is a recorded episode: it is made rows of only when it is replayed."""
        content = digest([read_rollout(episode)])
        self._write(name, [{"episode": os.path.relpath(episode, self.root), "sha256": content}])

    def take_over(self, folder: Path, root: Path, name: str, new: str) -> None:
        """Write an item of another store under a ``new`` name: it lies in ``folder`` and names files relative
        to ``root``."""
        found = torch.load(folder / f"{name}.pt", weights_only=False)  # written by ``save`` there
        for item in found:
            if "episode" in item:
                item["episode"] = os.path.relpath(root / item["episode"], self.root)
            else:
                item["screenshots"] = [
                    os.path.relpath(root / path, self.root) for path in item["screenshots"]
                ]
        self._write(new, found)

    def _write(self, name: str, content: list[dict[str, Any]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{name}.tmp"
        torch.save(content, temporary)
        temporary.replace(self.folder / f"{name}.pt")

    def _without_pixels(self, row: QueueRow) -> dict[str, Any]:
        fields = row.fields.clone()
        inputs = dict(value_of(fields[INPUTS][0]))
        pixels = inputs.pop(PIXELS)
        assign_non_tensor_stack(fields, INPUTS, [inputs])
        return {
            "fields": fields,
            "tag": dict(row.tag),
            "screenshots": [str(path.relative_to(self.root)) for path in row.screenshots],
            "pixels_sha256": checksum(pixels),
        }

    def load(self, name: str) -> list[QueueRow]:
        """The rows as they were saved. Raises RuntimeError if the pixels, or a recorded episode, are not the
        same."""
        # Written by ``save`` in this very folder: not foreign data.
        found = torch.load(self.folder / f"{name}.pt", weights_only=False)
        if "episode" in found[0]:
            return self._played(found[0])
        return [self._with_pixels(name, item) for item in found]

    def _played(self, item: dict[str, Any]) -> list[QueueRow]:
        episode = self.root / item["episode"]
        if digest([read_rollout(episode)]) != item["sha256"]:
            raise RuntimeError(f"the recorded episode {episode}, which is in the replay store, has changed")
        assert self.play is not None
        return self.play(episode, self.processor)

    def _with_pixels(self, name: str, item: dict[str, Any]) -> QueueRow:
        fields, paths = item["fields"], [self.root / path for path in item["screenshots"]]
        images = [Image.open(path).convert("RGB") for path in paths]
        pixels = self.processor.image_processor(images=images, return_tensors="pt", **self.processor_options)[
            PIXELS
        ]
        if checksum(pixels) != item["pixels_sha256"]:
            raise RuntimeError(
                f"the screenshots of the stored trajectory {name} do not give the pixels that it was made "
                f"of; episodes or the image processor below {self.root} have changed"
            )
        inputs = {**value_of(fields[INPUTS][0]), PIXELS: pixels}
        assign_non_tensor_stack(fields, INPUTS, [inputs])
        return QueueRow(fields, item["tag"], paths)

    def keep_only(self, names: set[str]) -> None:
        for path in self.folder.glob("*.pt"):
            if path.stem not in names:
                path.unlink()

    @cached_property
    def processor(self) -> Any:
        """Tokenizer and image processor as verl's agent loops have them."""
        from verl.utils import hf_processor

        processor = hf_processor(str(self.model))
        if self.bytes_only:
            carry_bytes(processor.image_processor, Normalisation.of(self.model))
        return processor


def value_of(entry: Any) -> Any:
    """What a NonTensorData holds; anything else is itself."""
    return getattr(entry, "data", entry)


def checksum(values: torch.Tensor) -> str:
    """sha256 over shape, type and bytes."""
    digest = hashlib.sha256(f"{tuple(values.shape)} {values.dtype}".encode())
    digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()
