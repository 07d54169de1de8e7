"""Collect all episodes of one checkpoint: serve it once, run every split and trial, write the indexes."""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

from arpo_replica.actions.parse import UITarsParser
from arpo_replica.base.errors import UserError
from arpo_replica.base.locks import locked
from arpo_replica.base.unfinished import claim_folder
from arpo_replica.config.decides import decided
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.policy import PolicyConfig
from arpo_replica.desktop.interface import DesktopProvider
from arpo_replica.policy.endpoint import Endpoint, EndpointPolicy, NamedImagePolicy, Sampling
from arpo_replica.policy.manifest import Manifest, read_manifest
from arpo_replica.policy.vllm_server import SERVED_NAME, VllmServer, cards_of_copies
from arpo_replica.providers.pool import make_provider, one_line
from arpo_replica.rollout.collect import OutputRoot, PoolSettings, Progress, collect_episodes, open_episodes
from arpo_replica.rollout.episode import EpisodeLimits, Labels
from arpo_replica.rollout.records import write_index
from arpo_replica.tasks.model import Task
from arpo_replica.tasks.splits import ResolvedSplit

logger = logging.getLogger(__name__)


@dataclass
class Copy:
    """One server of a policy: a vLLM of ours, or one elsewhere."""

    endpoint: Endpoint
    server: VllmServer | None
    users: WeakSet[EndpointPolicy] = field(default_factory=WeakSet)
    """Of the episodes that it answers now."""

    async def check(self) -> None:
        """Raises ``UserError`` if it is gone."""
        if self.server is not None:
            self.server.check_alive()
        await self.endpoint.check()


@dataclass
class Serving:
    """A policy that is being served, perhaps not yet ready, by one server or several alike."""

    copies: list[Copy]

    async def ready(self) -> None:
        """Wait until all answer."""
        servers = [copy.server for copy in self.copies if copy.server is not None]
        for seconds in await asyncio.gather(*(server.ready() for server in servers)):
            logger.info(f"vLLM was ready after {seconds:.1f} s")
        await self.check()

    async def check(self) -> None:
        """Leave out what is gone; raises ``UserError`` if nothing remains."""
        for copy in list(self.copies):
            try:
                await copy.check()
            except UserError as error:
                if self.copies == [copy]:
                    raise
                if copy in self.copies:
                    self.copies.remove(copy)
                    logger.info(
                        f"going on with {len(self.copies)} of the policy's servers: {one_line(error)}"
                    )

    def policy(
        self, config: PolicyConfig, sampling: Sampling, seed_parts: tuple[object, ...]
    ) -> EndpointPolicy:
        """The policy for one episode, on the server with the fewest: its conversation stays there."""
        copy = min(self.copies, key=lambda copy: len(copy.users))
        if copy.server is None:
            policy = EndpointPolicy(copy.endpoint, config, sampling, seed_parts)
        else:
            # The history then holds the tokens that were sampled, special ones too (vLLM's own field).
            sampling = replace(sampling, extra={"skip_special_tokens": False})
            policy = NamedImagePolicy(copy.endpoint, config, sampling, seed_parts)
        copy.users.add(policy)
        return policy


def collect_rollouts(
    config: StudyConfig,
    *,
    manifest: Path,
    splits: Sequence[ResolvedSplit],
    roots: Sequence[Path],
    provider: DesktopProvider | None = None,
) -> Progress:
    """Collect the episodes of the checkpoint that ``manifest`` describes, on the tasks of ``splits``.

    ``roots``: output folders ``.../{split}/trial_{n}``; each gets one folder per episode and, last of all,
    ``episodes.jsonl``. Beside their splits lie ``heartbeat.json``, a lock and vLLM's log. Finished episodes
    are kept; with nothing left to do neither vLLM nor a desktop is started. Raises ``UserError`` before any
    long work for what a user can correct.
    """
    model = read_manifest(manifest, verify=True)
    config = config.of_arm(model.arm)
    tasks = {split.split: split.load() for split in splits}
    outputs = [output_root(tasks, path) for path in roots]
    labels = make_labels(config, model)
    beside = outputs[0].path.parents[1]
    with locked(beside / "rollouts.lock", "collects these episodes"):
        for output in outputs:
            # Episodes of an earlier version have no such mark; their records tell (``collect.belongs``).
            claim_folder(output.path, identity_of(config, model), adopt=True)
        if not open_episodes(outputs, labels):
            for output in outputs:
                write_index(output.path)
            total = sum(len(output.tasks) for output in outputs)
            logger.info(f"all {total} episodes are there, indexes written")
            return Progress(total, total)
        provider = provider or make_provider(config.desktop)
        provider.check()
        serving = serve(config, model.model_path(manifest), labels, beside / "vllm.log")
        return asyncio.run(collect_served(config, outputs, labels, provider=provider, serving=serving))


def output_root(tasks: Mapping[str, list[Task]], path: Path) -> OutputRoot:
    """The split, trial and tasks that a folder ``.../{split}/trial_{n}`` stands for."""
    split, number = path.parent.name, path.name.removeprefix("trial_")
    if split not in tasks or not number.isdigit():
        raise UserError(
            f"{path} is no folder for episodes; it must end in '<name of a split>/trial_<number>'."
        )
    return OutputRoot(path, split, int(number), tasks[split])


def make_labels(config: StudyConfig, model: Manifest) -> Labels:
    """What the records of all episodes of a checkpoint say alike."""
    return Labels(
        arm=model.arm,
        seed=model.seed,
        stage=model.stage,
        size=config.size,
        desktop=config.desktop.kind,
        checkpoint_sha256=model.sha256,
        sampling=describe_sampling(config),
    )


def sampled_as_in_training(config: StudyConfig) -> StudyConfig:
    """The config for episodes that are sampled as those of a training: never asked again, for example."""
    like = {"temperature": config.training.temperature, "top_p": 1.0, "reasks": 0, "call_user_waits": 0}
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update=like)})


def identity_of(config: StudyConfig, model: Manifest) -> dict[str, Any]:
    """Everything besides the task that decides an episode."""
    return {**decided(config, "collect_rollouts", arm=model.arm), "checkpoint": model.sha256}


def describe_sampling(config: StudyConfig) -> dict[str, Any]:
    """What an episode's record says of how the policy was asked: a part of what decides it."""
    found = decided(config, "collect_rollouts")
    evaluation, policy = (
        [key for key in found if key.startswith(f"{name}.")] for name in ("evaluation", "policy")
    )
    return {key.partition(".")[2]: found[key] for key in (*evaluation, "desktop.screen", *policy)}


async def collect_served(
    config: StudyConfig,
    outputs: Sequence[OutputRoot],
    labels: Labels,
    *,
    provider: DesktopProvider,
    serving: AbstractAsyncContextManager[Serving],
) -> Progress:
    """Collect the missing episodes of all outputs with a policy that is, or will be, served."""
    task = asyncio.current_task()
    assert task is not None
    # Snakemake and Slurm stop a job with SIGTERM: leave in order, so that desktops and vLLM are closed.
    with contextlib.suppress(NotImplementedError, RuntimeError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    evaluation = config.evaluation
    limits = replace(
        EpisodeLimits.of(config), call_user_waits=evaluation.call_user_waits, reasks=evaluation.reasks
    )
    began = time.monotonic()
    async with serving as served:
        sampling = Sampling(evaluation.temperature, evaluation.top_p, config.policy.max_new_tokens)
        progress = await collect_episodes(
            outputs,
            provider=provider,
            policy=lambda root, _: served.policy(
                config.policy, sampling, (labels.seed, labels.stage, root.trial)
            ),
            parser=UITarsParser.of(config.policy, config.desktop.screen),
            labels=labels,
            settings=PoolSettings.of(config, limits),
            policy_ready=served.ready,
            check_policy=served.check,
            heartbeat=outputs[0].path.parents[1] / "heartbeat.json",
        )
    logger.info(f"{progress.done} episodes in {time.monotonic() - began:.1f} s, indexes written")
    return progress


@asynccontextmanager
async def serve(config: StudyConfig, model: Path, labels: Labels, log: Path) -> AsyncIterator[Serving]:
    """Serve a checkpoint: by vLLM started here or, for weights that are given, by ``policy.endpoint``."""
    connect = partial(
        Endpoint,
        timeout_s=float(config.rollout.episode_timeout_s),
        connections=max(2, config.desktop.count),
    )
    policy = config.policy
    if policy.endpoint is not None and labels.arm not in config.trained_arms:
        variable = policy.api_key_variable
        async with connect(
            policy.endpoint, model=policy.served_model, api_key=None, key_variable=variable
        ) as endpoint:
            await endpoint.check()  # before any desktop is started
            yield Serving([Copy(endpoint, None)])
        return
    async with contextlib.AsyncExitStack() as stack:
        serving = Serving([])
        for number, cards in enumerate(cards_of_copies(config)):
            file = log.with_stem(f"{log.stem}_{number + 1}") if number else log
            server = await stack.enter_async_context(VllmServer(config, model, file, cards))
            endpoint = connect(server.url, model=SERVED_NAME, api_key=server.api_key)
            serving.copies.append(Copy(await stack.enter_async_context(endpoint), server))
        yield serving
