"""What every process of a training imports with verl: ``VERL_USE_EXTERNAL_MODULES=<this module>``.

verl imports it while its own package is still being set up, in the driver, in every Ray actor and in
vLLM's processes; so it must not import verl's trainers. It is early enough for two work-arounds, which
replace functions of verl before any module binds their names:

1. verl #7899 (open when 0.9.1 was current), on every device. The models of the Qwen2-VL family have position
   ids of shape (4, length) per sample, kept as one jagged tensor over the batch. If all samples are equally
   long (a batch of one always is), the tensor gets packed along its first dimension instead of the length,
   and the forward pass fails with "split_with_sizes expects split_sizes to sum exactly to <tokens> ... got
   [4, 4, ...]". verl's own repair (``maybe_fix_3d_position_ids``) only sets the mark of the ragged
   dimension; ours looks at the values and packs them anew;
2. TRL 1. Wherever TRL is installed, verl imports ``AutoModelForCausalLMWithValueHead`` from it when a model
   is built. TRL 1 has no such class, so every training fails with "cannot import name
   'AutoModelForCausalLMWithValueHead' from 'trl'". verl needs it for a critic only, and GRPO has none; the
   offline arms use TRL in the same environment. So verl is told that there is no TRL.
"""

import faulthandler
import os
import signal
import sys
from typing import Any

import torch
from verl.utils import import_utils, tensordict_utils

from arpo_replica.base.upstream_guards import UpstreamChanged, require_function, require_verl

TRL_USERS = ("verl.models.transformers.monkey_patch", "verl.utils.model")


def repair_position_ids(data: Any) -> None:
    """Give ``data["position_ids"]`` (a TensorDict's jagged tensor) its samples back, in place.

    Each sample is (rows, length of its ``input_ids``), jagged along the length. Tensors that are not
    jagged, or that are in order, stay as they are.
    """
    if "position_ids" not in data.keys():  # noqa: SIM118 - a TensorDict is no mapping of strings
        return
    ids = data["position_ids"]
    if not ids.is_nested or ids.dim() != 3:
        return
    values, offsets = ids._values, ids._offsets
    lengths = data["input_ids"].offsets().diff().cpu()
    packed_along_length = values.shape[-1] == int(lengths.sum()) and torch.equal(
        offsets.diff().cpu(), lengths
    )
    if packed_along_length:  # values are (rows, all tokens): only the mark can be lost
        ids._ragged_idx = 2
        return
    count = len(lengths)  # values are (samples * rows, common length)
    if values.shape[0] % count or values.shape[-1] < int(lengths.max()):
        raise RuntimeError(
            f"position_ids have values of shape {tuple(values.shape)} for {count} samples of "
            f"{lengths.tolist()} tokens: a layout that verl 0.9.1 does not make (see verl #7899)"
        )
    rows = values.shape[0] // count
    samples = [values[i * rows : (i + 1) * rows, : int(lengths[i])] for i in range(count)]
    data["position_ids"] = tensordict_utils.nested_tensor_from_tensor_list(samples, ragged_idx=2)


def no_trl() -> bool:
    """Stands for verl's ``is_trl_available``."""
    return False


def install() -> None:
    """Put both in place. Raises ``UpstreamChanged`` on any other verl, or if it is too late."""
    require_verl(__name__)
    require_function(tensordict_utils, "maybe_fix_3d_position_ids", ("data",), __name__)
    require_function(tensordict_utils, "nested_tensor_from_tensor_list", ("tensors", "ragged_idx"), __name__)
    tensordict_utils.maybe_fix_3d_position_ids = repair_position_ids
    if require_function(import_utils, "is_trl_available", (), __name__) is not no_trl:
        late = [name for name in TRL_USERS if name in sys.modules]
        if late:
            raise UpstreamChanged(f"{__name__} must be imported before {', '.join(late)}.")
        import_utils.is_trl_available = no_trl


def register_stack_dump() -> None:
    """SIGUSR1 writes the stacks of all threads of this process to ``$ARPO_STACKS/{pid}.txt``."""
    folder = os.environ.get("ARPO_STACKS")
    if folder:
        path = os.path.join(folder, f"{os.getpid()}.txt")  # noqa: PTH118 - pathlib is slow to import here
        faulthandler.register(signal.SIGUSR1, file=open(path, "a"), all_threads=True)  # noqa: SIM115, PTH123


def register_rollout() -> None:
    """Let verl take our sender of weights (``weight_socket``) and our server (``rollout_server``)."""
    from verl.workers.rollout import base, replica

    key = ("vllm", "async")
    if base._ROLLOUT_REGISTRY.get(key) != "verl.workers.rollout.vllm_rollout.ServerAdapter":
        raise UpstreamChanged(f"{__name__} replaces verl's rollout class {key}, which is another one now.")
    base._ROLLOUT_REGISTRY[key] = "arpo_replica.training.patches.weight_socket.PrivateServerAdapter"
    replica.RolloutReplicaRegistry.register("vllm", load_replica)


def load_replica() -> Any:
    """Our replica of vLLM; imported where it is needed, since it imports vLLM."""
    from arpo_replica.training.rollout_server import NamedReplica

    return NamedReplica


install()
register_rollout()
if os.environ.get("VERL_PLATFORM") == "cpu":
    from arpo_replica.training.patches import platform_cpu

    platform_cpu.install()
register_stack_dump()
