"""Work-around for verl #7899 (open when 0.9.1 was current). Needed on every device.

The models of the Qwen2-VL family have position ids of shape (4, length) per sample, kept as one jagged
tensor over the batch. If all samples are equally long (a batch of one always is), the tensor gets
packed along its first dimension instead of the length, and the forward pass fails with
"split_with_sizes expects split_sizes to sum exactly to <tokens> ... got [4, 4, ...]". verl's own repair
(``maybe_fix_3d_position_ids``) only sets the mark of the ragged dimension; this one looks at the values
and packs them anew.

Imported with ``import verl`` (see ``verl_plugin``), before any worker binds the function's name.
"""

from __future__ import annotations

from typing import Any

import torch
from verl.utils import tensordict_utils

from arpo_replica.base.upstream_guards import require_function, require_version

VERL_VERSIONS = ("0.9.1",)


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


def install() -> None:
    """Put the repair in place. Raises ``UpstreamChanged`` on any other verl."""
    require_version("verl", VERL_VERSIONS, __name__)
    require_function(tensordict_utils, "maybe_fix_3d_position_ids", ("data",), __name__)
    require_function(tensordict_utils, "nested_tensor_from_tensor_list", ("tensors", "ragged_idx"), __name__)
    tensordict_utils.maybe_fix_3d_position_ids = repair_position_ids
