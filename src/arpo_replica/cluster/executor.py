"""What has to be put right in snakemake-executor-plugin-slurm 2.8.0 before Snakemake may trust it.

It takes every state that it does not know for "still running", so Snakemake would wait for ever for a job
that ``sacct`` calls ``CANCELLED by 1000``, for one that was pre-empted for good, for one that could not be
launched; also for one that ``squeue`` has forgotten (``MinJobAge``). Of an array it asks ``sacct`` for raw
numbers, which name no task: the state of one would then count for all.

It looks for an account, or checks the one it is given, with programs that some sites do not have (``sacct``,
``sacctmgr``); then every submission fails. ``profile`` has checked the account already, and without one Slurm
takes the user's own.

After each look that finds no ended job it waits 10 seconds longer, up to three minutes. What follows a long
training or evaluation would then start minutes late. One look asks for all jobs at once, so it may be steady.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import snakemake_executor_plugin_slurm as executor

from arpo_replica.base.upstream_guards import require_function, require_version

FINAL = {
    "PREEMPTED": "CANCELLED",
    "REVOKED": "CANCELLED",
    "LAUNCH_FAILED": "FAILED",
    "RECONFIG_FAIL": "FAILED",
}
"""Final states that the executor does not know. Slurm requeues none of our jobs (the profile says so): a
pre-empted one is gone, and Snakemake submits it again."""
GONE = "UNKNOWN"
"""The executor then takes the job for ended, and Snakemake looks whether its output is there."""
Query = Callable[..., Awaitable[tuple[dict[str, str] | None, float | None]]]


def known_states(states: Mapping[str, str]) -> dict[str, str]:
    """Job -> state, without ``by 1000`` or ``+`` behind it and in the executor's words."""
    words = {job: (state.split() or [""])[0].rstrip("+") for job, state in states.items()}
    return {job: FINAL.get(word, word) for job, word in words.items()}


def teach_executor() -> None:
    """Put this process's executor right; a second call changes nothing. Raises ``UpstreamChanged``."""
    if not hasattr(executor.query_job_status, "plain"):
        require_version("snakemake-executor-plugin-slurm", ("2.8.0",), __name__)
        require_function(executor, "query_job_status", ("command",), __name__)
        require_function(executor, "query_job_status_sacct", ("runid",), __name__)
        require_function(executor, "validate_account", ("account", "logger"), __name__)
        require_function(executor, "get_account", ("logger",), __name__)
        executor.query_job_status = _translated(executor.query_job_status)
        executor.query_job_status_sacct = _by_task(executor.query_job_status_sacct)
        executor.validate_account = lambda account, logger: account
        executor.get_account = lambda logger: None
        executor.Executor.next_seconds_between_status_checks = property(
            lambda self: self.workflow.executor_settings.init_seconds_before_status_checks,
            lambda self, longer: None,
        )


def _translated(query: Query) -> Query:
    listed: set[str] = set()

    async def ask(command: str, *rest: Any) -> tuple[dict[str, str] | None, float | None]:
        states, seconds = await query(command, *rest)
        if states is None:
            return None, seconds
        found = known_states(states)
        if command.startswith("squeue"):
            found.update(dict.fromkeys(listed - found.keys(), GONE))
            listed.update(found)
        return found, seconds

    ask.plain = query  # type: ignore[attr-defined]
    return ask


def _by_task(command_for: Callable[[str], str]) -> Callable[[str], str]:
    def command(run: str) -> str:
        return command_for(run).replace("JobIdRaw,", "JobId,")  # 7_2 instead of the number that task 2 got

    return command
