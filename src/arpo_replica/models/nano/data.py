"""From demonstrations (episode records) to batches of conversations.

One episode is one conversation with all its screenshots and replies; the loss is on every token of the
replies. An episode with more steps than ``policy.max_images`` becomes one conversation per step, as the
policy would see it then, with the loss on the last reply.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from arpo_replica.actions.coordinates import Frame
from arpo_replica.base.errors import UserError
from arpo_replica.config.policy import PolicyConfig
from arpo_replica.models.nano.model import MERGE, PATCH
from arpo_replica.models.nano.network import patch_order, rope_positions
from arpo_replica.models.nano.tokenizer import REPLY_PHRASES, SPECIAL_TOKENS
from arpo_replica.policy.prompt import build_messages, kept_images
from arpo_replica.rollout.records import RecordedEpisode, finished_episodes, read_rollout

IMAGE_TOKEN = SPECIAL_TOKENS.index("<|image_pad|>")
_START, _END = SPECIAL_TOKENS.index("<|im_start|>"), SPECIAL_TOKENS.index("<|im_end|>")
OTHER, ABSCISSA, ORDINATE = 0, 1, 2
"""What a token of a reply is: text, or one of the two coordinates of a point."""


@dataclass(frozen=True)
class TrainingSequence:
    """One sequence to learn from. The first three fields are equally long."""

    ids: list[int]
    learned: list[bool]
    """True for the tokens of replies, their ``<|im_end|>`` included."""
    kinds: list[int]
    """OTHER, ABSCISSA or ORDINATE for every token."""
    positions: Tensor
    """(3, length), for the rotary embedding."""
    screenshots: list[int]
    """Indices into ``Screenshots.patches``, in reading order."""


@dataclass
class Screenshots:
    """Patches of all distinct screenshots: (images, rows * columns, 3 * 14 * 14), uint8."""

    frame: Frame
    patches: list[Tensor] = field(default_factory=list)
    _known: dict[bytes, int] = field(default_factory=dict)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        width, height = self.frame.image
        return height // PATCH, width // PATCH

    @property
    def token_grid(self) -> tuple[int, int]:
        rows, columns = self.grid
        return rows // MERGE, columns // MERGE

    def add(self, path: Path) -> int:
        """Index of a screenshot file; equal files share one."""
        data = path.read_bytes()
        digest = hashlib.sha256(data).digest()
        if digest not in self._known:
            self._known[digest] = len(self.patches)
            self.patches.append(read_patches(path, self.frame))
        return self._known[digest]


@dataclass(frozen=True)
class Batch:
    """Conversations padded on the right with token 0; see ``TrainingSequence``."""

    ids: Tensor
    learned: Tensor
    kinds: Tensor
    positions: Tensor
    patches: Tensor


def read_demonstrations(root: Path) -> tuple[list[RecordedEpisode], str]:
    """The successful episodes under ``root`` by name, and a hash over all that is learned from them.

    Raises ``UserError`` if there is none.
    """
    found = []
    digest = hashlib.sha256()
    for directory in finished_episodes(root).values():
        episode = read_rollout(directory)
        record = episode.record
        if record.outcome != "success":
            continue
        found.append(episode)
        digest.update(f"{record.task_id}\0{record.instruction}\0".encode())
        for index, step in enumerate(episode.steps):
            digest.update(f"{step.text}\0".encode())
            digest.update(hashlib.sha256(episode.screenshot(index).read_bytes()).digest())
    if not found:
        raise UserError(f"{root} holds no successful demonstration; run record_demonstrations first.")
    return found, digest.hexdigest()


def read_patches(path: Path, frame: Frame) -> Tensor:
    """A screenshot as ``Qwen2VLImageProcessor`` cuts it, before normalisation: uint8, one frame."""
    image = Image.open(path).convert("RGB")
    if image.size != frame.image:
        image = image.resize(frame.image, Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image))
    height, width, _ = pixels.shape
    cut = pixels.permute(2, 0, 1).reshape(3, height // PATCH, PATCH, width // PATCH, PATCH)
    return patch_order(cut.permute(1, 3, 0, 2, 4)).reshape(-1, 3 * PATCH * PATCH).contiguous()


def make_conversations(
    demonstration: RecordedEpisode, tokenizer: Any, policy: PolicyConfig, screenshots: Screenshots
) -> list[TrainingSequence]:
    """The conversations of one episode. ``tokenizer``: transformers' tokenizer with the chat template."""
    replies = [step.text for step in demonstration.steps]
    # One conversation teaches all replies only as long as no turn and no screenshot has left it.
    if len(kept_images(len(replies), policy)) == len(replies):
        cuts, only_last = [len(replies)], False
    else:
        cuts, only_last = list(range(1, len(replies) + 1)), True
    made = []
    for cut in cuts:
        messages = build_messages(demonstration.record.instruction, replies[: cut - 1], policy)
        messages.append({"role": "assistant", "content": [{"type": "text", "text": replies[cut - 1]}]})
        images = [screenshots.add(demonstration.screenshot(index)) for index in kept_images(cut, policy)]
        made.append(_conversation(messages, images, tokenizer, screenshots, only_last))
    return made


def _conversation(
    messages: list[dict[str, Any]],
    images: list[int],
    tokenizer: Any,
    screenshots: Screenshots,
    only_last: bool,
) -> TrainingSequence:
    rows, columns = screenshots.token_grid
    pad = SPECIAL_TOKENS[IMAGE_TOKEN]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer.encode(text.replace(pad, pad * rows * columns), add_special_tokens=False)
    learned = _reply_mask(ids, tokenizer.encode("assistant\n", add_special_tokens=False), only_last)
    return TrainingSequence(
        ids,
        learned,
        _kinds(ids, learned, tokenizer),
        rope_positions(ids, IMAGE_TOKEN, (rows, columns)),
        images,
    )


def _reply_mask(ids: list[int], header: list[int], only_last: bool) -> list[bool]:
    mask = [False] * len(ids)
    begins = [
        index + 1 + len(header)
        for index, token in enumerate(ids)
        if token == _START and ids[index + 1 : index + 1 + len(header)] == header
    ]
    for begin in begins[-1:] if only_last else begins:
        end = ids.index(_END, begin)
        mask[begin : end + 1] = [True] * (end + 1 - begin)
    return mask


def _kinds(ids: list[int], learned: list[bool], tokenizer: Any) -> list[int]:
    """A point's coordinates are the two tokens that follow a phrase that opens it."""
    opening = {
        tokenizer.encode(phrase, add_special_tokens=False)[0]
        for phrase in REPLY_PHRASES
        if phrase.endswith("<point>")
    }
    kinds = [OTHER] * len(ids)
    for index, token in enumerate(ids[:-2]):
        if learned[index] and token in opening:
            kinds[index + 1 : index + 3] = [ABSCISSA, ORDINATE]
    return kinds


def make_batch(conversations: Sequence[TrainingSequence], screenshots: Screenshots) -> Batch:
    """Pad conversations to the longest of them and gather their screenshots."""
    return Batch(
        pad_sequence([torch.tensor(c.ids) for c in conversations], batch_first=True),
        pad_sequence([torch.tensor(c.learned) for c in conversations], batch_first=True),
        pad_sequence([torch.tensor(c.kinds) for c in conversations], batch_first=True),
        pad_sequence([c.positions.T for c in conversations], batch_first=True).movedim(-1, 0).contiguous(),
        torch.stack([screenshots.patches[index] for c in conversations for index in c.screenshots]),
    )
