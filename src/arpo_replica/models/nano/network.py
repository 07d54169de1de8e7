"""The forward pass of a Qwen2.5-VL model for batches of equally large screenshots, made for training.

The same weights and the same result as ``transformers``' modules (tests compare the logits), in a third of
the time on a CPU: all screenshots of a batch go through the vision tower in one tensor, where
``transformers`` loops over images, and sequences are padded on the right, so that causal attention needs
no mask.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

VISION_THETA = 10_000.0
"""Base of the vision tower's rotary frequencies (fixed in ``transformers`` and vLLM)."""


def image_features(visual: Any, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """What the vision tower makes of screenshots: (images, tokens, width of the language model).

    ``patches``: (images, rows * columns, 3 * 14 * 14), normalised, in the processor's order. ``grid``:
    rows and columns of patches. Every layer must attend to the whole image (``fullatt_block_indexes``).
    """
    # A still image is a video of two equal frames; adding up the kernel's two halves saves one of them.
    hidden = F.linear(patches, visual.patch_embed.proj.weight.sum(2).flatten(1))
    images, count, width = hidden.shape
    cos, sin = _vision_rotation(visual, grid)
    for block in visual.blocks:
        attention = block.attn
        qkv = attention.qkv(_norm(hidden, block.norm1)).view(images, count, 3, attention.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query, key = _rotate(query, cos, sin).to(value.dtype), _rotate(key, cos, sin).to(value.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value)
        hidden = hidden + attention.proj(mixed.transpose(1, 2).reshape(images, count, width))
        hidden = hidden + _gated(block.mlp, _norm(hidden, block.norm2))
    unit = visual.spatial_merge_unit
    merged = _norm(hidden, visual.merger.ln_q).view(images, count // unit, unit * width)
    return visual.merger.mlp(merged)


def text_hidden(language: Any, embedded: Tensor, positions: Tensor) -> Tensor:
    """Last hidden states of the language model, after its final norm: (batch, length, width).

    ``embedded``: (batch, length, width), padded on the right. ``positions``: (3, batch, length), the
    temporal, vertical and horizontal positions of Qwen2.5-VL's rotary embedding.
    """
    batch, length, width = embedded.shape
    cos, sin = _text_rotation(language, positions)
    hidden = embedded
    for layer in language.layers:
        attention = layer.self_attn
        normed = _norm(hidden, layer.input_layernorm)
        shape = (batch, length, -1, attention.head_dim)
        query = attention.q_proj(normed).view(shape).transpose(1, 2)
        key = attention.k_proj(normed).view(shape).transpose(1, 2)
        value = attention.v_proj(normed).view(shape).transpose(1, 2)
        query, key = _rotate(query, cos, sin).to(value.dtype), _rotate(key, cos, sin).to(value.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + attention.o_proj(mixed.transpose(1, 2).reshape(batch, length, width))
        hidden = hidden + _gated(layer.mlp, _norm(hidden, layer.post_attention_layernorm))
    return _norm(hidden, language.norm)


def multimodal_hidden(
    model: Any, ids: Tensor, positions: Tensor, patches: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Last hidden states of a batch of conversations: (batch, length, width).

    ``ids``: (batch, length) with one image token per feature; ``patches`` holds the screenshots of all
    rows, in reading order.
    """
    features = image_features(model.model.visual, patches, grid)
    embedded = model.model.language_model.embed_tokens(ids)
    mask = (ids == model.config.image_token_id).unsqueeze(-1)
    embedded = embedded.masked_scatter(mask, features.to(embedded.dtype))
    return text_hidden(model.model.language_model, embedded, positions)


def rope_positions(ids: list[int], image_token: int, grid: tuple[int, int]) -> Tensor:
    """Positions of one conversation, (3, length): ``Qwen2_5_VLModel.get_rope_index`` for still images.

    ``grid``: rows and columns of an image's *tokens*.
    """
    rows, columns = grid
    count = rows * columns
    order = torch.arange(count)
    image = torch.stack([torch.zeros(count, dtype=torch.long), order // columns, order % columns])
    positions = torch.empty(3, len(ids), dtype=torch.long)
    index = offset = 0
    while index < len(ids):
        if ids[index] == image_token:
            positions[:, index : index + count] = image + offset
            index, offset = index + count, offset + max(rows, columns)
        else:
            positions[:, index] = offset
            index, offset = index + 1, offset + 1
    return positions


def _norm(hidden: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(hidden, (hidden.shape[-1],), norm.weight, norm.variance_epsilon)


def _gated(mlp: Any, hidden: Tensor) -> Tensor:
    return mlp.down_proj(F.silu(mlp.gate_proj(hidden)) * mlp.up_proj(hidden))


def _rotate(hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = hidden.shape[-1] // 2
    return hidden * cos + torch.cat((-hidden[..., half:], hidden[..., :half]), -1) * sin


def _vision_rotation(visual: Any, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (patches, head size): the row turns the first half of the pairs."""
    size = visual.config.hidden_size // visual.config.num_heads // 2
    frequencies = VISION_THETA ** (-torch.arange(0, size, 2).float() / size)
    places = patch_order(torch.stack(torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij"), -1))
    angles = (places.float().unsqueeze(-1) * frequencies).flatten(1)
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def _text_rotation(language: Any, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (batch, 1, length, head size); each section of the pairs has its own axis."""
    rope = language.config.rope_parameters
    size = language.layers[0].self_attn.head_dim
    frequencies = rope["rope_theta"] ** (-torch.arange(0, size, 2).float() / size)
    angles = positions.unsqueeze(-1).float() * frequencies
    sections = angles.split(list(rope["mrope_section"]), -1)
    angles = torch.cat([section[axis] for axis, section in enumerate(sections)], -1)
    angles = torch.cat((angles, angles), -1).unsqueeze(1)
    return angles.cos(), angles.sin()


def patch_order(grid: Tensor) -> Tensor:
    """(rows, columns, ...) -> (rows * columns, ...): the four patches of a token follow one another."""
    rows, columns, *rest = grid.shape
    blocks = grid.view(rows // 2, 2, columns // 2, 2, *rest).transpose(1, 2)
    return blocks.reshape(rows * columns, *rest)
