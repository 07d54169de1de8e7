"""What the end of a training's log means to its user: one sentence with the key to change."""

import re
from typing import Any

from arpo_replica.base.tables import table_of
from arpo_replica.training.job import Job

ENV_ERROR = re.compile(r"env_error in [^\n]{1,200}?attempt \d+: ([^\n]{1,300})")
"""A line of the agent loop's."""
FAILURES: dict[str, dict[str, Any]] = table_of(__file__)
"""Name -> what a log says (``log``) and what to do (``fix``). The first that fits counts."""
PORT_TAKEN = "port_taken"
"""The one failure that the next start may not have."""


def known(log: str) -> tuple[str, re.Match[str]] | None:
    """Name of the failure that a log shows and where it does; None for any other."""
    for name, failure in FAILURES.items():
        says = failure["log"]
        if found := re.search(says if isinstance(says, str) else "|".join(says), log):
            return name, found
    return None


def explain(log: str, job: Job, killed: int = 0) -> str | None:
    """The sentence for a known failure, None for any other.

    ``killed``: processes that the kernel ended for lack of memory meanwhile; they leave no line in a log.
    """
    if (fit := known(log)) is None:
        return kernel_killed(killed) if killed else None
    (name, found), config, recipe = fit, job.config, job.recipe
    reasons = ENV_ERROR.findall(log, 0, found.start())
    last = f" (the last one: {reasons[-1].strip().rstrip('.')})" if reasons else ""
    cache = f"training.speed.rollout_memory ({recipe.speed.rollout_memory})"
    if config.accelerator == "cpu":
        cache = f"serving.cpu_kv_cache_gib ({config.serving.cpu_kv_cache_gib})"
    fix: str = FAILURES[name]["fix"]
    return fix.format(config=config, recipe=recipe, out=job.out, found=found, last=last, cache=cache)


def kernel_killed(number: int) -> str:
    """The kernel's way to say that memory is full."""
    return (
        f"The kernel ended {number} process{'es' if number > 1 else ''} of this machine for lack of memory; "
        "lower training.micro_batch, desktop.count or desktop.memory_mb, or run on a machine with more."
    )
