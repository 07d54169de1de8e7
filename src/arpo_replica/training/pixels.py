"""Screenshots between processes as bytes, an eighth of what Qwen2-VL's processor gives.

The processor turns a screenshot of 1920x1080 into 10,764 patches of 1,176 float32 values, 50 MB. Each value
is one of 256, (byte / 255 - mean) / std, and each patch holds its picture twice, because a still image counts
as two equal frames. So the bytes of one frame, 6.3 MB, say the same; the trainer computes the floats again,
on the GPU. ``carry_bytes`` compares both ways on a picture before it relies on that.

An episode shows each of its screenshots to the processor several times (for its number of tokens, and once
more for the trainer); with ``carry_bytes`` the processor looks once.

While the vision tower is frozen, what vLLM's tower makes of a screenshot is what the trainer's would make.
``FeatureFolder`` takes it from one to the other (``training.speed.vision_from_rollout``): 8.3 MB a screenshot
of 1920x1080 and a 2B, in the place of a forward pass.
"""

import contextlib
import json
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from arpo_replica.training.job import Job

CHANNELS, FRAMES = 3, 2


@dataclass(frozen=True, slots=True)
class Normalisation:
    """What the image processor does to a byte."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, model: Path) -> Self:
        """As ``preprocessor_config.json`` of a model folder says."""
        config = json.loads((model / "preprocessor_config.json").read_bytes())
        return cls(tuple(config["image_mean"]), tuple(config["image_std"]))

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation on the scale of bytes, as the processor uses them: (1, channels, 1, 1)."""
        shape = (1, CHANNELS, 1, 1)
        mean = torch.tensor(self.mean, device=device) * 255.0
        std = torch.tensor(self.std, device=device) * 255.0
        return mean.view(shape), std.view(shape)


def expand(values: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """The processor's float32 values again, (patches, 1176)."""
    mean, std = normalisation.tensors(values.device)
    patches = values.view(values.shape[0], CHANNELS, 1, -1).float().sub_(mean).div_(std)
    return patches.expand(-1, -1, FRAMES, -1).reshape(values.shape[0], -1)


class ByteImages:
    """Stands for an image processor's ``preprocess``: pixel values as bytes, each image processed once."""

    def __init__(self, preprocess: Any) -> None:
        self.original = preprocess
        self._known: dict[tuple[int, str], tuple[weakref.ref[Image.Image], torch.Tensor, torch.Tensor]] = {}

    def __call__(self, images: Any, **options: Any) -> Any:
        """``pixel_values`` (patches, 588) uint8 and ``image_grid_thw``; nested lists are allowed."""
        from transformers import BatchFeature

        options = {key: value for key, value in options.items() if key != "return_tensors"}
        found = [self._of(image, options) for image in flatten(images)]
        values, grids = (torch.cat(parts) for parts in zip(*found, strict=True))
        return BatchFeature(data={"pixel_values": values, "image_grid_thw": grids})

    def _of(self, image: Image.Image, options: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        key = (id(image), f"{options.get('min_pixels')} {options.get('max_pixels')}")
        known = self._known.get(key)
        if known is not None and known[0]() is image:
            return known[1], known[2]
        raw = self.original(
            [image], **{**options, "do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
        )
        values = raw["pixel_values"]
        if values.dtype != torch.uint8:
            raise RuntimeError(f"the image processor gives {values.dtype} before normalisation, not bytes")
        frame = values.view(values.shape[0], CHANNELS, FRAMES, -1)[:, :, 0].flatten(1)
        gone = weakref.ref(image, lambda _: self._known.pop(key, None))
        self._known[key] = (gone, frame, raw["image_grid_thw"])
        return frame, raw["image_grid_thw"]


def flatten(images: Any) -> list[Image.Image]:
    """One image, a list or a list of lists as a list."""
    if isinstance(images, list | tuple):
        return [image for entry in images for image in flatten(entry)]
    return [images]


def carry_bytes(image_processor: Any, normalisation: Normalisation) -> None:
    """Let an image processor give bytes from now on. A second call changes nothing.

    Raises RuntimeError if the bytes would not give the processor's own values again.
    """
    if isinstance(image_processor.preprocess, ByteImages):
        return
    fast = ByteImages(image_processor.preprocess)
    picture = Image.effect_noise((140, 112), 90).convert("RGB")
    expected = fast.original([picture], return_tensors="pt")["pixel_values"]
    if not torch.allclose(expand(fast(picture)["pixel_values"], normalisation), expected, rtol=0, atol=1e-5):
        raise RuntimeError(
            "the image processor does more than scaling bytes; set training.speed.compact_pixels to false"
        )
    image_processor.preprocess = fast


def fingerprints(values: torch.Tensor, counts: list[int]) -> list[str]:
    """128 bits of each screenshot's pixel values (patches, n), computed where they lie."""
    raw = values.contiguous().view(torch.uint8).flatten(1)
    words = F.pad(raw, (0, -raw.shape[1] % 4)).contiguous().view(torch.int32).long()
    index = torch.arange(words.numel() // words.shape[0] * max(counts), device=values.device)
    found = []
    weights = [
        (index * odd + odd // 3) ^ (index * odd >> 29) for odd in (0x9E3779B97F4A7C1, 0x2545F4914F6CDD1D)
    ]
    for part, count in zip(words.split(counts), counts, strict=True):
        flat = part.flatten()
        sums = torch.stack([((flat + 1) * (w[: len(flat)] | 1)).sum() for w in weights])
        found.append("_".join(f"{number & 2**64 - 1:x}" for number in (count, *sums.tolist())))
    return found


class FeatureFolder:
    """Features of screenshots between the processes of one machine.

    vLLM saves them under the screenshot's name, the agent loop links its pixel values to that name, and the
    trainer asks by pixel values. What is not there, as of a replayed trajectory, passes the trainer's tower.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.old: set[tuple[str, int]] = set()
        """Name and inode of the files that were there at the last update."""

    @classmethod
    def of(cls, job: Job) -> Self:
        """That of an attempt; it goes with the attempt's scratch folder."""
        return cls(job.scratch / "features")

    def save(self, name: str, features: torch.Tensor) -> None:
        """Keep the features (tokens, width) of a screenshot, from the main memory."""
        temporary = self.path / f".{name}.{os.getpid()}"
        save_file({"features": features}, temporary)
        temporary.replace(self.path / name)

    def link(self, values: torch.Tensor, name: str) -> None:
        """Say what the screenshot of these pixel values (patches, n) is called."""
        (key,) = fingerprints(values, [len(values)])
        with contextlib.suppress(FileExistsError):
            (self.path / key).symlink_to(name)

    def read(self, key: str) -> torch.Tensor | None:
        """The features of the screenshot with this fingerprint, if vLLM has made them."""
        with contextlib.suppress(FileNotFoundError):
            return load_file(self.path / key)["features"]
        return None

    def forget(self) -> None:
        """Called when new weights arrive: drop what was there when the weights before them came."""
        there = {(entry.name, entry.inode()) for entry in os.scandir(self.path)}
        for name, _ in there & self.old:  # a file that was written again since has another inode
            (self.path / name).unlink(missing_ok=True)
        self.old = there - self.old
