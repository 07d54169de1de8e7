"""verl 0.9.1 on a machine without a GPU: what verl, torch and vLLM's CPU build lack, in one place.

verl knows the platforms cuda, rocm and npu (verl #3266 asks for a CPU, unanswered). Three parts:

1. a platform ``cpu``, registered the way verl offers (``PlatformRegistry.register``);
2. ``init_process_group``: verl asks for "cpu:gloo,<device>:<backend>"; with the device cpu that names one
   device twice, which torch refuses; plain gloo is meant;
3. vLLM's CPU build repacks every Linear weight at load and drops the original, so that verl's weight
   update finds empty parameters ("load weight [384, 128] into parameter [0]") and waits for the dead
   worker for ever. Plain weights are slower and can be loaded again.

Environment: ``VERL_PLATFORM=cpu``, and ``VERL_ENGINE_DEVICE=cuda`` because verl's registry of engines
knows the devices cuda and npu only. Ray is told of one GPU that stands for the CPU.
"""

import functools
import sys
import types
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import psutil
import torch
import torch.distributed
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

from arpo_replica.base.upstream_guards import require_function, require_verl, require_version

VLLM_VERSIONS = ("0.27.1",)


def always(answer: Any) -> Callable[..., Any]:
    """A function or method that takes whatever it is given and returns ``answer``."""
    return lambda *args, **kwargs: answer


def _memory(*args: object, **kwargs: object) -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return memory.available, memory.total


class CpuDevice(types.ModuleType):
    """``torch.cpu``, completed by the functions of ``torch.cuda`` that verl calls."""

    _missing: dict[str, Any] = {  # noqa: RUF012 - a constant of a module type
        **dict.fromkeys(["empty_cache", "ipc_collect", "synchronize", "set_device"], always(None)),
        **dict.fromkeys(["manual_seed", "manual_seed_all", "set_rng_state"], always(None)),
        **dict.fromkeys(["memory_allocated", "memory_reserved"], always(0)),
        **dict.fromkeys(["max_memory_allocated", "max_memory_reserved"], always(0)),
        "reset_peak_memory_stats": always(None),
        "mem_get_info": _memory,
        "get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
        "get_device_name": always("cpu"),
        "device_count": always(1),
    }

    def __getattr__(self, name: str) -> Any:
        if hasattr(torch.cpu, name):
            return getattr(torch.cpu, name)
        if name in self._missing:
            return self._missing[name]
        raise AttributeError(name)


ANSWERS: dict[str, Any] = {
    "is_available": True,
    "is_ipc_supported": False,  # weights reach vLLM through shared memory, not through CUDA's handles
    "communication_backend_name": "gloo",
    "ray_resource_name": "GPU",
    "ray_noset_envvars": [],
    "visible_devices_envvar": "CUDA_VISIBLE_DEVICES",
    "current_device": "cpu",
    "device_count": 1,
    "get_device_capability": (None, None),
    # Nothing to select, nothing that runs asynchronously, no cache or settings of an allocator, no profiler.
    **dict.fromkeys(["set_device", "synchronize", "empty_cache", "set_allocator_settings"]),
    **dict.fromkeys(["profiler_start", "profiler_stop", "cudart"]),
    "nvtx_range": nullcontext(),
}
"""Method of ``PlatformBase`` -> what it returns for a CPU, whatever it is asked."""
Answers: Any = type("Answers", (), {name: always(answer) for name, answer in ANSWERS.items()})


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(Answers, PlatformBase):
    """One "device", the CPU."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = CpuDevice("cpu_device")
    manual_seed = manual_seed_all = staticmethod(torch.manual_seed)


def keep_plain_weights(layer: torch.nn.Module, remove_weight: bool) -> None:
    """Stands for vLLM's ``dispatch_cpu_unquantized_gemm``: multiply with the weight as it is."""
    layer.cpu_linear = torch.nn.functional.linear


def _use_plain_gloo() -> None:
    original = require_function(torch.distributed, "init_process_group", ("backend",), __name__)

    @functools.wraps(original)
    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        original("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)

    torch.distributed.init_process_group = init_process_group


def install() -> None:
    """Put parts 2 and 3 in place (part 1 registers at import). Raises ``UpstreamChanged``."""
    require_verl(__name__)
    _use_plain_gloo()
    if "vllm" in sys.modules:  # true in vLLM's processes; the others need not pay for the import
        import vllm.model_executor.layers.utils as layer_utils

        require_version("vllm", VLLM_VERSIONS, __name__)
        require_function(layer_utils, "dispatch_cpu_unquantized_gemm", ("layer", "remove_weight"), __name__)
        layer_utils.dispatch_cpu_unquantized_gemm = keep_plain_weights
