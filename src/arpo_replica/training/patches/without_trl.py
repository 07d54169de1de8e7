"""Work-around for verl 0.9.1 beside TRL 1: verl's trainers go on as if TRL were not there.

Wherever TRL is installed, verl imports ``AutoModelForCausalLMWithValueHead`` from it when a model is built.
TRL 1 has no such class, so every training fails with "cannot import name
'AutoModelForCausalLMWithValueHead' from 'trl'". verl needs it for a critic only, and GRPO has none; the
offline arms use TRL in the same environment.

Imported with ``import verl`` (see ``verl_plugin``), before any module binds the function's name.
"""

from __future__ import annotations

import sys

from verl.utils import import_utils

from arpo_replica.base.upstream_guards import UpstreamChanged, require_function, require_version

VERL_VERSIONS = ("0.9.1",)
USERS = ("verl.models.transformers.monkey_patch", "verl.utils.model")


def absent() -> bool:
    """What verl is told."""
    return False


def install() -> None:
    """Put it in place. Raises ``UpstreamChanged`` on any other verl, or if it is too late."""
    require_version("verl", VERL_VERSIONS, __name__)
    if require_function(import_utils, "is_trl_available", (), __name__) is absent:
        return
    late = [name for name in USERS if name in sys.modules]
    if late:
        raise UpstreamChanged(f"{__name__} must be imported before {', '.join(late)}.")
    import_utils.is_trl_available = absent
