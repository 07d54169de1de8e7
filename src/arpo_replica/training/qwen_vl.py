"""Faster passes of the Qwen2-VL class through verl 0.9.1's FSDP trainer, without flash-attn.

verl imports this module where it builds the model (``actor_rollout_ref.model.external_lib``). It replaces
functions of ``verl.models.transformers.qwen2_vl``, which verl looks up when it patches the model class:

1. ``_custom_flash_attention_forward``: packed rows (``use_remove_padding``) with torch's own kernels, for
   which verl knows flash-attn only. The vision tower gets an attention of its own too, because transformers
   would call a kernel for each window of each screenshot;
2. ``forward_with_torch_backend`` (``use_fused_kernels``): logits only where a text token follows. A
   screenshot of 1920x1080 is 2,691 image tokens, which are never sampled; over a vocabulary of 152,000 their
   logits are most of the memory and, without flash-attn's cross entropy, most of the time: verl then takes
   one row of logits after another;
3. ``_get_input_embeds``: screenshots that came as bytes (``pixels``), and a frozen vision tower, whose
   features serve log-probabilities and update alike, or are those that vLLM made for the rollout.

What is switched on is the job's ``training.speed``.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from verl.models.transformers import qwen2_vl
from verl.utils.transformers_compat import unpack_visual_output
from verl.utils.ulysses import (
    gather_heads_scatter_seq,
    gather_seq_scatter_heads,
    get_ulysses_sequence_parallel_group,
    get_ulysses_sequence_parallel_world_size,
)

from arpo_replica.base.upstream_guards import require_function, require_verl
from arpo_replica.training import pixels
from arpo_replica.training.job import VARIABLE, Job, current_job
from arpo_replica.training.recipe import ATTENTION, Speed

logger = logging.getLogger(__name__)

LOGIT_ROWS = 1024
"""Rows of logits that exist at once: 0.6 GB over a vocabulary of 152,000."""
ROUND = 256
"""cuDNN makes a plan for every new length, some 0.1 s; lengths are rounded up to multiples of this."""
WINDOW = 256
"""Segments up to this length without a causal mask are the windows of a 7B's vision tower, some 180 in every
screenshot: ``flash`` takes all in one launch, whatever ``training.speed.attention`` says."""


class FeatureCache:
    """Features of screenshots under a frozen tower; the oldest fall out."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit = limit_bytes
        self.size = 0
        self.features: OrderedDict[str, torch.Tensor] = OrderedDict()

    def put(self, key: str, features: torch.Tensor) -> None:
        if key in self.features:
            return
        self.features[key] = features
        self.size += features.nbytes
        while self.size > self.limit and len(self.features) > 1:
            _, dropped = self.features.popitem(last=False)
            self.size -= dropped.nbytes


@dataclass
class Settings:
    """What this process uses; ``install`` sets it."""

    kernel: str = "flash"
    normalisation: pixels.Normalisation | None = None
    cache: FeatureCache | None = None
    """Present if the vision tower is frozen."""
    folder: pixels.FeatureFolder | None = None
    """Where vLLM leaves what its own tower made, if the job wants that."""


# --- attention ----------------------------------------


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    *,
    causal: bool,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention within each of the segments that lie one after another; (tokens, heads, size) each."""
    short = not causal and max(lengths) <= WINDOW
    if query.device.type == "cuda" and (SETTINGS.kernel == "flash" or short):
        ends = torch.tensor([0, *lengths], device=query.device).cumsum(0, dtype=torch.int32)
        longest = max(lengths)
        attended: torch.Tensor = torch.ops.aten._flash_attention_forward(
            query, key, value, ends, ends, longest, longest, 0.0, causal, False, scale=scale
        )[0]
        return attended
    parts, start = [], 0
    for length, run in groupby(lengths):
        count = len(list(run))
        rows = slice(start, start + count * length)
        start = rows.stop
        padding = -length % ROUND if causal and query.device.type == "cuda" else 0
        # Padding comes after every real token, which a causal mask hides from them.
        q, k, v = (
            F.pad(x[rows].unflatten(0, (count, length)), (0, 0, 0, 0, 0, padding)).transpose(1, 2)
            for x in (query, key, value)
        )
        with _kernel(query.device):
            part = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
        parts.append(part.transpose(1, 2)[:, :length].flatten(0, 1))
    return torch.cat(parts)


@contextmanager
def _kernel(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    with sdpa_kernel([*order, SDPBackend.MATH], set_priority=True):
        yield


@torch.compiler.disable  # type: ignore[untyped-decorator]
def packed_attention(  # noqa: PLR0917 - verl's signature
    query_states: torch.Tensor,
    key_states: torch.Tensor,
    value_states: torch.Tensor,
    attention_mask: torch.Tensor | None,
    query_length: int,
    is_causal: bool = True,
    position_ids: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **unused: Any,
) -> torch.Tensor:
    """Stands for verl's ``_custom_flash_attention_forward``. All states: (1, tokens, heads, size).

    ``position_ids``: (1, tokens), beginning with 0 in each trajectory.
    """
    if position_ids is None or attention_mask is not None or sliding_window is not None:
        raise RuntimeError("packed rows need position ids and neither a mask nor a window")
    spread = get_ulysses_sequence_parallel_world_size()
    if spread > 1:  # every GPU gets all tokens of its share of the heads
        query_states, key_states, value_states = (
            gather_seq_scatter_heads(states, seq_dim=1, head_dim=2)
            for states in (query_states, key_states, value_states)
        )
        shards = [torch.empty_like(position_ids) for _ in range(spread)]
        dist.all_gather(shards, position_ids.contiguous(), group=get_ulysses_sequence_parallel_group())
        position_ids = torch.cat(shards, dim=-1)
    dtype = torch.bfloat16 if query_states.device.type == "cuda" else query_states.dtype
    attended = attend(
        query_states[0].to(dtype),
        key_states[0].to(dtype),
        value_states[0].to(dtype),
        segment_lengths(position_ids[0]),
        causal=is_causal,
    ).unsqueeze(0)
    if spread > 1:
        attended = gather_heads_scatter_seq(attended, head_dim=2, seq_dim=1)
    return attended


def segment_lengths(position_ids: torch.Tensor) -> list[int]:
    """Lengths of the trajectories in a packed row, from its position ids (tokens,)."""
    starts = (position_ids == 0).nonzero().flatten().tolist()
    if not starts or starts[0] != 0:
        raise RuntimeError("a packed row must begin with position 0")
    return [end - start for start, end in zip(starts, [*starts[1:], len(position_ids)], strict=True)]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def vision_attention(  # noqa: PLR0917 - transformers' signature
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    is_causal: bool = False,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' interface, for the tower: (1, heads, patches, size) -> (1, patches, heads, size)."""
    lengths = [query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.diff().tolist()
    dtype = torch.bfloat16 if query.device.type == "cuda" else query.dtype
    q, k, v = (states[0].transpose(0, 1).to(dtype) for states in (query, key, value))
    return attend(q, k, v, lengths, causal=is_causal, scale=scaling).unsqueeze(0), None


# --- log-probabilities ----------------------------------------


def text_log_probs(
    self: Any,
    input_ids: torch.Tensor,
    labels: torch.Tensor | None = None,
    temperature: float = 1.0,
    shift_labels: torch.Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """Stands for verl's ``forward_with_torch_backend``: 0 where the next token is an image token."""
    outputs = qwen2_vl.qwen2_vl_forward(self, input_ids, **kwargs)
    hidden = outputs[0]
    targets = shift_labels
    if targets is None:
        targets = torch.roll(input_ids if labels is None else labels, shifts=-1, dims=-1)
    wanted = targets != self.config.image_token_id
    rows, chosen = hidden[wanted], targets[wanted]
    found = [
        checkpoint(row_log_probs, self.lm_head, some, ids, temperature, use_reentrant=False)
        for some, ids in zip(rows.split(LOGIT_ROWS), chosen.split(LOGIT_ROWS), strict=True)
    ]
    log_probs, entropy = (
        torch.zeros(targets.shape, device=hidden.device).masked_scatter(wanted, torch.cat(values))
        for values in zip(*found, strict=True)
    )
    return qwen2_vl.Qwen2VLCausalLMOutputForPPO(
        log_probs=log_probs, entropy=entropy, hidden_states=outputs.hidden_states
    )


def row_log_probs(
    head: Any, hidden: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities of ``targets``, entropies), float32, from hidden states (rows, width)."""
    logits = head(hidden).float() / temperature
    normaliser = logits.logsumexp(-1)
    log_probs = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - normaliser
    entropy = normaliser - (logits.softmax(-1) * logits).sum(-1)
    return log_probs, entropy


# --- the vision tower ----------------------------------------


def image_features(visual: Any, values: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """(tokens, width) of all screenshots of a micro batch. ``values``: floats or bytes, (patches, n)."""
    cache = SETTINGS.cache
    if cache is None:
        return run_tower(visual, values, grid)
    counts = grid.prod(-1).tolist()
    keys = pixels.fingerprints(values, counts)
    known = {key: cache.features[key] for key in keys if key in cache.features}
    if SETTINGS.folder is not None:
        made = {key: SETTINGS.folder.read(key) for key in keys if key not in known}
        found = {key: features.to(values.device) for key, features in made.items() if features is not None}
        logger.info(f"features of {len(found)} screenshots come from vLLM, not of {len(made) - len(found)}")
        known |= found
    missing = [index for index, key in enumerate(keys) if key not in known]
    with torch.no_grad():
        if missing:
            parts = values.split(counts)
            fresh = run_tower(visual, torch.cat([parts[index] for index in missing]), grid[missing])
            tokens = [counts[index] // visual.spatial_merge_size**2 for index in missing]
            known |= {keys[i]: part.clone() for i, part in zip(missing, fresh.split(tokens), strict=True)}
        for key, features in known.items():
            cache.put(key, features)
        if any_rank(bool(missing), values.device) and not missing:
            # Another GPU runs the tower, whose weights are spread over all of them: take part.
            run_tower(visual, values[:16].clone(), grid.new_tensor([[1, 4, 4]]))
        return torch.cat([known[key] for key in keys])


def any_rank(mine: bool, device: torch.device) -> bool:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return mine
    flag = torch.tensor(int(mine), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def run_tower(visual: Any, values: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """What the vision tower makes of pixel values, floats or bytes."""
    if values.dtype == torch.uint8:
        if SETTINGS.normalisation is None:
            raise RuntimeError("pixel values came as bytes, but training.speed.compact_pixels is off")
        values = pixels.expand(values, SETTINGS.normalisation)
    features: torch.Tensor = unpack_visual_output(visual(values.type(visual.dtype), grid_thw=grid))[0]
    return features


def input_embeds(  # noqa: PLR0917 - verl's signature
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    pixel_values: torch.Tensor | None = None,
    pixel_values_videos: torch.Tensor | None = None,
    image_grid_thw: torch.Tensor | None = None,
    video_grid_thw: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Stands for verl's ``_get_input_embeds``. Every row of this package has images and none has videos."""
    if pixel_values is None or image_grid_thw is None or pixel_values_videos is not None:
        raise RuntimeError("a trajectory without screenshots, or with videos, reached the trainer")
    embeds = model.get_input_embeddings()(input_ids)
    features = image_features(model.visual, pixel_values, image_grid_thw)
    places = input_ids == model.config.image_token_id
    if int(places.sum()) != features.shape[0]:
        raise ValueError(
            f"Image features and image tokens do not match: tokens: {int(places.sum())}, "
            f"features {features.shape[0]}"
        )
    features = features.to(embeds.device, embeds.dtype)
    return embeds.masked_scatter(places.unsqueeze(-1).expand_as(embeds), features), attention_mask


def keep_some_activations(model: Any, share: float) -> None:
    """When checkpointing is switched on later, let it be for the first ``share`` of the language layers."""
    original = model.gradient_checkpointing_enable

    def enable(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        layers = model.model.language_model.layers
        for layer in layers[round(share * len(layers)) :]:
            layer.gradient_checkpointing = False

    model.gradient_checkpointing_enable = enable


def compile_layers(model: Any, **options: Any) -> None:
    """Let torch compile each layer, before and after its attention, which has kernels of its own.

    One compilation serves all layers and all lengths. The methods are replaced, not the modules, so that what
    FSDP and checkpointing hang on these stays outside.
    """
    for layer in [*model.model.language_model.layers, *model.model.visual.blocks]:
        layer.forward = torch.compile(layer.forward, dynamic=True, **options)


# --- installation ----------------------------------------

SETTINGS = Settings()


def install(job: Job) -> None:
    """Put in place what the job's ``training.speed`` asks for. Raises ``UpstreamChanged``."""
    speed = Speed.of(job)
    require_verl(__name__)
    SETTINGS.kernel = speed.attention
    if speed.compact_pixels:
        SETTINGS.normalisation = pixels.Normalisation.of(job.parent_model)
    if speed.freeze_vision:
        SETTINGS.cache = FeatureCache(speed.vision_cache_mib * 2**20)
    if speed.vision_from_rollout:
        SETTINGS.folder = pixels.FeatureFolder.of(job)
    if speed.freeze_vision or speed.compile_layers or 0 < speed.checkpoint_share < 1:
        _prepare_when_built(speed)
    require_function(qwen2_vl, "_get_input_embeds", ("model", "input_ids", "attention_mask"), __name__)
    qwen2_vl._get_input_embeds = input_embeds
    if speed.text_log_probs:
        require_function(qwen2_vl, "forward_with_torch_backend", ("self", "input_ids", "labels"), __name__)
        qwen2_vl.forward_with_torch_backend = text_log_probs
    if speed.pack:
        require_function(
            qwen2_vl, "_custom_flash_attention_forward", ("query_states", "key_states"), __name__
        )
        qwen2_vl._custom_flash_attention_forward = packed_attention
        # Defined there only if flash-attn is installed, and used without asking.
        qwen2_vl._flash_use_top_left_mask = False
        AttentionInterface.register(ATTENTION, vision_attention)
        _tell_segments_to_vision()


def _prepare_when_built(speed: Speed) -> None:
    """verl 0.9.1 has the key ``actor.freeze_vision_tower`` but nothing that reads it."""
    from verl.workers.engine.fsdp import transformer_impl

    original = require_function(transformer_impl, "apply_monkey_patch", ("model",), __name__)

    def patch_and_prepare(model: Any, *args: Any, **kwargs: Any) -> None:
        original(model, *args, **kwargs)
        if speed.freeze_vision:
            model.model.visual.requires_grad_(False)
        if 0 < speed.checkpoint_share < 1:
            keep_some_activations(model, speed.checkpoint_share)
        if speed.compile_layers:
            compile_layers(model)

    transformer_impl.apply_monkey_patch = patch_and_prepare


def _tell_segments_to_vision() -> None:
    """transformers tells only attentions that it takes for flash-attn where segments end."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
    from transformers.models.qwen2_vl import modeling_qwen2_vl

    for module in (modeling_qwen2_vl, modeling_qwen2_5_vl):
        original = require_function(module, "is_flash_attention_requested", ("config",), __name__)

        def asks_for_segments(
            config: Any = None, *args: Any, _original: Any = original, **kwargs: Any
        ) -> bool:
            if getattr(config, "_attn_implementation", None) == ATTENTION:
                return True
            return bool(_original(config, *args, **kwargs))

        module.is_flash_attention_requested = asks_for_segments


if os.environ.get(VARIABLE):
    install(current_job())
