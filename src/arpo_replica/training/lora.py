"""LoRA through verl 0.9.1: whole weights wherever they leave the trainer, and adapters that the seed decides.

verl trains adapters, but what it then hands on is no model. Its checkpoint in Hugging Face format is written
from the adapters' names, none of which such a file has a place for, so the file is left with random weights
and no error. Its merged weights for vLLM are rounded to bfloat16 on a CPU too, made by changing the trained
weights for a while, and without the adapters of layers outside of blocks. So both are taken from
``merged_weights``, which changes nothing. The adapters themselves verl draws from an unseeded generator and
rounds to the type of the frozen weights; in bfloat16 an update of 1e-5 would be lost to them.

verl imports this through ``arithmetic`` where it builds the model.
"""

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from verl.utils.checkpoint import fsdp_checkpoint_manager
from verl.utils.model import convert_weight_keys

from arpo_replica.base.upstream_guards import require_function, require_verl
from arpo_replica.training.job import VARIABLE, Job, current_job

BASE, A, B = ".base_layer.weight", ".lora_A.default.weight", ".lora_B.default.weight"
"""Ends of the names that PEFT gives the three weights of a layer with an adapter."""


def merged_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, whole weight) of the model without adapters: W + alpha / rank * B A, in the type of W.

    ``model``: PEFT's around a transformers model, sharded (FSDP2) or not. All processes must take all of it:
    each whole tensor is gathered from them.
    """
    weights, settings = model.state_dict(), model.peft_config["default"]
    for name, value in weights.items():
        if "lora_" in name:
            continue
        weight = whole(value)
        if name.endswith(BASE):
            layer = name.removesuffix(BASE)
            change = whole(weights[layer + B]).float() @ whole(weights[layer + A]).float()
            scaled = change * (settings.lora_alpha / settings.r)
            weight = (weight.float() + scaled).to(weight.dtype)
        yield name.removeprefix("base_model.model.").replace(".base_layer.", "."), weight


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor of which this process may hold a part."""
    return value.detach().full_tensor() if isinstance(value, DTensor) else value.detach()


def install(job: Job) -> None:
    """Put it in place. Raises ``UpstreamChanged`` on any other verl."""
    from verl.workers.engine.fsdp import transformer_impl

    engine = transformer_impl.FSDPEngine
    require_verl(__name__)
    build = require_function(engine, "_build_lora_module", ("self", "module"), __name__)
    require_function(engine, "_merged_lora_per_tensor_param", ("self",), __name__)
    require_function(fsdp_checkpoint_manager, "get_fsdp_full_state_dict", ("model",), __name__)

    def build_seeded(self: Any, module: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(job.seed)
            built = build(self, module)
        for weight in built.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
        return built

    def weights_for_vllm(self: Any) -> Iterator[tuple[str, torch.Tensor]]:
        try:
            for name, weight in merged_weights(self.module):
                (known,) = convert_weight_keys({name: weight}, self.module)
                on_gpu = weight.device.type != "cpu"
                yield known, weight.to(torch.bfloat16) if on_gpu else weight
        finally:
            if self._is_offload_param:
                transformer_impl.offload_fsdp_model_to_cpu(self.module)

    def weights_to_save(model: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        first = torch.distributed.get_rank() == 0  # the one that writes
        return {name: weight.cpu() for name, weight in merged_weights(model) if first}

    engine._build_lora_module = build_seeded
    engine._merged_lora_per_tensor_param = weights_for_vllm
    fsdp_checkpoint_manager.get_fsdp_full_state_dict = weights_to_save


if os.environ.get(VARIABLE):
    install(current_job())
