"""Supervised learning of the nano policy on demonstrations, reproducible to the bit on one machine."""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from arpo_replica.config.models import NanoConfig
from arpo_replica.models.nano.data import OTHER, Batch, Screenshots, TrainingSequence, make_batch
from arpo_replica.models.nano.model import IMAGE_MEAN, IMAGE_STD
from arpo_replica.models.nano.network import multimodal_hidden

SPREAD = 2.0
"""Standard deviation, in pixels, of the target around a demonstrated coordinate: near misses are near."""
MATRIX_RATE = 2.5
"""Muon's learning rate for matrices is ``nano.learning_rate`` times this."""
WARM_UP = 0.05
"""Share of the updates over which learning rates rise; afterwards they fall to zero in a line."""
CHUNK = 8
"""Conversations of similar length that go through the network together."""
PROGRESS_S = 5.0


class NumberTokens:
    """Which tokens are the coordinates 0, 1, 2 ...; one row for abscissas, one for ordinates."""

    def __init__(self, tokenizer: Any, numbers: int) -> None:
        self.tokens = torch.tensor(
            [[tokenizer.encode(f"{space}{n}").ids[0] for n in range(numbers)] for space in ("", " ")]
        )
        self.values = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.long)
        for row in self.tokens:
            self.values[row] = torch.arange(numbers)


def train(
    model: Any,
    conversations: Sequence[TrainingSequence],
    screenshots: Screenshots,
    tokens: NumberTokens,
    nano: NanoConfig,
    *,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train ``model`` in place for ``nano.epochs`` passes; give what the manifest says of it.

    Same weights, conversations, config and number of threads: same result, bit for bit.
    """
    torch.use_deterministic_algorithms(True)
    order = _order(len(conversations), nano)
    updates = max(1, len(order) // nano.batch_size)
    optimizers = _optimizers(model, nano.learning_rate)
    rates = [LambdaLR(optimizer, lambda update: _schedule(update / updates)) for optimizer in optimizers]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    tail: list[tuple[float, float]] = []  # losses of the last tenth of the updates
    began = said = time.monotonic()
    for update in range(updates):
        chosen = order[update * nano.batch_size : (update + 1) * nano.batch_size]
        text, coordinates = _accumulate(
            model, [conversations[index] for index in chosen], screenshots, tokens
        )
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            rate.step()
        if update >= updates * 0.9 or update == updates - 1:
            tail.append((text, coordinates))
        now = time.monotonic()
        if now - said >= PROGRESS_S or update == updates - 1:
            said = now
            speed = (update + 1) / (now - began)
            progress(
                f"nano: update {update + 1}/{updates}, loss text {text:.3f} "
                f"coordinates {coordinates:.3f}, {speed * nano.batch_size:.0f} episodes/s, "
                f"ETA {(updates - update - 1) / speed:.0f} s"
            )
    final = (round(sum(values) / len(tail), 4) for values in zip(*tail, strict=True))
    return {
        "conversations_seen": updates * nano.batch_size,  # repetitions counted
        "final_loss": dict(zip(("text", "coordinates"), final, strict=True)),
    }


def _order(count: int, nano: NanoConfig) -> list[int]:
    """Indices of all passes, one after the other, each shuffled; at least one whole batch."""
    source = random.Random(f"nano/{nano.seed}")
    order: list[int] = []
    for _ in range(nano.epochs):
        epoch = list(range(count))
        source.shuffle(epoch)
        order += epoch
    return order if len(order) >= nano.batch_size else (order * nano.batch_size)[: nano.batch_size]


def _schedule(done: float) -> float:
    """Factor on the learning rates after this share of the updates."""
    return (1 - done) / (1 - WARM_UP) if done > WARM_UP else (done + 1e-3) / WARM_UP


def _optimizers(model: Any, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the network, AdamW for embeddings, patch kernel, biases and norms."""
    inner: list[Tensor] = []
    outer: list[Tensor] = []
    for name, weight in model.named_parameters():
        matrix = weight.ndim == 2 and "embed_tokens" not in name
        (inner if matrix else outer).append(weight)
    return [
        Muon(inner, lr=rate * MATRIX_RATE, momentum=0.9),
        torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def _accumulate(
    model: Any, batch: Sequence[TrainingSequence], screenshots: Screenshots, tokens: NumberTokens
) -> tuple[float, float]:
    """Gradients of the mean loss per learned token over a batch.

    Gives the losses before the update, in nats: per token that is no coordinate, and per coordinate, above
    the entropy of its blurred target.
    """
    ordered = sorted(batch, key=lambda conversation: len(conversation.ids))
    total = sum(sum(conversation.learned) for conversation in ordered)
    sums = torch.zeros(2)
    counts = torch.zeros(2)
    for start in range(0, len(ordered), CHUNK):
        part = make_batch(ordered[start : start + CHUNK], screenshots)
        losses, kinds = token_losses(model, part, screenshots.grid, tokens)
        (losses.sum() / total).backward()
        for row, chosen in enumerate((kinds == OTHER, kinds != OTHER)):
            sums[row] += losses.detach()[chosen].sum()
            counts[row] += chosen.sum()
    text, coordinates = (sums / counts.clamp(min=1)).tolist()
    return text, coordinates


def token_losses(
    model: Any, batch: Batch, grid: tuple[int, int], tokens: NumberTokens
) -> tuple[Tensor, Tensor]:
    """Loss and kind of every learned token of a batch, two vectors of the same length.

    The target of a coordinate is a bell curve of ``SPREAD`` pixels over the numbers around it; its
    entropy is taken off, so that a perfect prediction costs nothing.
    """
    patches = (batch.patches.float() / 255 - IMAGE_MEAN) / IMAGE_STD
    hidden = multimodal_hidden(model, batch.ids, batch.positions, patches, grid)
    learned = batch.learned[:, 1:]
    targets, kinds = batch.ids[:, 1:][learned], batch.kinds[:, 1:][learned]
    logits = F.linear(hidden[:, :-1][learned], model.lm_head.weight)
    logarithms = F.log_softmax(logits.float(), -1)
    losses = -logarithms.gather(1, targets.unsqueeze(1)).squeeze(1)
    grid_line = torch.arange(tokens.tokens.shape[1]).float()
    for row, numbers in enumerate(tokens.tokens, start=1):
        places = (kinds == row).nonzero().squeeze(1)
        values = tokens.values[targets[places]].float()
        bell = torch.softmax(-0.5 * ((grid_line - values.unsqueeze(1)) / SPREAD) ** 2, -1)
        divergence = (bell * (bell.clamp(min=1e-12).log() - logarithms[places][:, numbers])).sum(1)
        losses = losses.index_put((places,), divergence)
    return losses, kinds


_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
"""Of Muon's iteration (Keller Jordan, github.com/KellerJordan/Muon)."""


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal. For matrices only; Nesterov momentum, no weight decay.

    ``torch.optim.Muon`` does the same in bfloat16, which takes seconds per step on CPUs that have no
    instructions for it; this one computes in the weights' own precision.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(state["momentum"], group["momentum"]))
                rows, columns = weight.shape
                weight.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly the closest matrix whose singular values are all 1 (Newton-Schulz iteration, quintic)."""
    a, b, c = _COEFFICIENTS
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(_STEPS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide
