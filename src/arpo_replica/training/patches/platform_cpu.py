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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
import torch.distributed
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

from arpo_replica.base.upstream_guards import require_function, require_version

VERL_VERSIONS = ("0.9.1",)
VLLM_VERSIONS = ("0.27.1",)


def _nothing(*args: object, **kwargs: object) -> None:
    return None


def _zero(*args: object, **kwargs: object) -> int:
    return 0


def _memory(*args: object, **kwargs: object) -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return memory.available, memory.total


class CpuDevice(types.ModuleType):
    """``torch.cpu``, completed by the functions of ``torch.cuda`` that verl calls."""

    _missing: dict[str, Any] = {  # noqa: RUF012 - a constant of a module type
        **dict.fromkeys(
            [
                "empty_cache",
                "ipc_collect",
                "synchronize",
                "set_device",
                "manual_seed",
                "manual_seed_all",
                "reset_peak_memory_stats",
                "set_rng_state",
            ],
            _nothing,
        ),
        **dict.fromkeys(
            ["memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"], _zero
        ),
        "mem_get_info": _memory,
        "get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
        "get_device_name": lambda *args, **kwargs: "cpu",
        "device_count": lambda: 1,
    }

    def __getattr__(self, name: str) -> Any:
        if hasattr(torch.cpu, name):
            return getattr(torch.cpu, name)
        if name in self._missing:
            return self._missing[name]
        raise AttributeError(name)


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """One "device", the CPU. See ``PlatformBase`` for what each method is."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = CpuDevice("cpu_device")

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return True

    def is_ipc_supported(self) -> bool:
        """False: weights reach vLLM through shared memory, not through CUDA's handles."""
        return False

    def communication_backend_name(self) -> str:
        return "gloo"

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_resource_options(self, num_gpus: float) -> dict[str, Any]:
        return {"num_gpus": num_gpus}

    def ray_noset_envvars(self) -> list[str]:
        return []

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def current_device(self) -> Any:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_device(self, device_index: int) -> None:
        """Nothing to select."""

    def synchronize(self, device_index: int | None = None) -> None:
        """Nothing runs asynchronously."""

    def set_allocator_settings(self, settings: str) -> None:
        """The CPU's allocator has none of these settings."""

    def empty_cache(self) -> None:
        """The CPU's allocator keeps no cache."""

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        """No device profiler."""

    def profiler_stop(self) -> None:
        """No device profiler."""

    def cudart(self) -> Any:
        return None


def keep_plain_weights(layer: torch.nn.Module, remove_weight: bool) -> None:
    """Stands for vLLM's ``dispatch_cpu_unquantized_gemm``: multiply with the weight as it is."""
    layer.cpu_linear = torch.nn.functional.linear


def _use_plain_gloo() -> None:
    original = require_function(torch.distributed, "init_process_group", ("backend",), __name__)

    @functools.wraps(original)
    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        original("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)

    torch.distributed.init_process_group = init_process_group


def _keep_vllm_weights() -> None:
    import vllm.model_executor.layers.utils as layer_utils

    require_version("vllm", VLLM_VERSIONS, __name__)
    require_function(layer_utils, "dispatch_cpu_unquantized_gemm", ("layer", "remove_weight"), __name__)
    layer_utils.dispatch_cpu_unquantized_gemm = keep_plain_weights


def install() -> None:
    """Put parts 2 and 3 in place (part 1 registers at import). Raises ``UpstreamChanged``."""
    require_version("verl", VERL_VERSIONS, __name__)
    _use_plain_gloo()
    if "vllm" in sys.modules:  # true in vLLM's processes; the others need not pay for the import
        _keep_vllm_weights()
