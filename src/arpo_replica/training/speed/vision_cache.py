"""Features of screenshots under a vision tower that does not change, found again by their pixels."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F


class FeatureCache:
    """Features of screenshots under a frozen tower; the oldest fall out."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit = limit_bytes
        self.size = 0
        self.features: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()

    def put(self, key: tuple[int, ...], features: torch.Tensor) -> None:
        """Keep the features of a screenshot."""
        if key in self.features:
            return
        self.features[key] = features
        self.size += features.nbytes
        while self.size > self.limit and len(self.features) > 1:
            _, dropped = self.features.popitem(last=False)
            self.size -= dropped.nbytes


def fingerprints(values: torch.Tensor, counts: list[int]) -> list[tuple[int, ...]]:
    """128 bits of each screenshot's pixel values (patches, n), computed where they lie."""
    raw = values.contiguous().view(torch.uint8).flatten(1)
    words = F.pad(raw, (0, -raw.shape[1] % 4)).contiguous().view(torch.int32).long()
    index = torch.arange(words.numel() // words.shape[0] * max(counts), device=values.device)
    found: list[tuple[int, ...]] = []
    weights = [
        (index * odd + odd // 3) ^ (index * odd >> 29) for odd in (0x9E3779B97F4A7C1, 0x2545F4914F6CDD1D)
    ]
    for part, count in zip(words.split(counts), counts, strict=True):
        flat = part.flatten()
        sums = torch.stack([((flat + 1) * (w[: len(flat)] | 1)).sum() for w in weights])
        found.append((count, *sums.tolist()))
    return found
