"""What every process of a training imports with verl: ``VERL_USE_EXTERNAL_MODULES=<this module>``.

verl imports it while its own package is still being set up, in the driver, in every Ray actor and in
vLLM's processes; so it must not import verl's trainers.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from typing import Any

from arpo_replica.base.upstream_guards import UpstreamChanged
from arpo_replica.training.patches import mrope_layout, without_trl


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


mrope_layout.install()
without_trl.install()
register_rollout()
if os.environ.get("VERL_PLATFORM") == "cpu":
    from arpo_replica.training.patches import platform_cpu

    platform_cpu.install()
register_stack_dump()
