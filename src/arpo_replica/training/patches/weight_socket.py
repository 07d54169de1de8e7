"""Work-around for verl 0.9.1: two trainings on one machine would share one weight-transfer socket.

verl names the ZMQ socket that carries the weights from trainer to vLLM
``/tmp/rl-colocate-zmq-{Ray job id}-replica-{r}-rank-{k}.sock``. The job id is meant to keep two
trainings apart, but the first job of *every* Ray cluster is ``01000000``, so two trainings that each
start their own Ray use the same socket: at best one hangs, at worst a policy gets the other's weights.
Here the socket lies in the training's own scratch folder (``ARPO_SCRATCH``).

Both classes enter by verl's and vLLM's own keys: the rollout registry and ``worker_extension_cls``.
"""

import os
from pathlib import Path
from typing import Any

from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from verl.workers.rollout.vllm_rollout.vllm_rollout import ServerAdapter
from vllm.distributed.ec_transfer import get_ec_transfer, has_ec_transfer

from arpo_replica.base.upstream_guards import UpstreamChanged, require_function, require_verl

SHARED = "ipc:///tmp/rl-colocate-zmq-"


def private_handle(handle: str, scratch: str) -> str:
    """verl's socket address moved into the folder ``scratch``."""
    if not handle.startswith(SHARED):
        raise UpstreamChanged(f"{__name__} expects verl's socket at {SHARED}*, but it is {handle}.")
    return f"ipc://{Path(scratch).absolute()}/weights-{handle.removeprefix(SHARED)}"


class PrivateServerAdapter(ServerAdapter):
    """The sender, in the trainer's process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        require_verl(__name__)
        super().__init__(*args, **kwargs)
        shared: str = self.zmq_handle
        self.zmq_handle: str = private_handle(shared, os.environ["ARPO_SCRATCH"])


class PrivateWorkerExtension(vLLMColocateWorkerExtension):
    """The receiver, in vLLM's worker."""

    def _get_zmq_handle(self) -> str:
        return private_handle(super()._get_zmq_handle(), os.environ["ARPO_SCRATCH"])

    def update_weights_from_ipc(self, *args: Any, **kwargs: Any) -> None:
        """As verl's; features of the steps before are no longer wanted (``rollout_server``)."""
        super().update_weights_from_ipc(*args, **kwargs)
        if has_ec_transfer():
            get_ec_transfer().folder.forget()


require_function(vLLMColocateWorkerExtension, "_get_zmq_handle", ("self",), __name__)
