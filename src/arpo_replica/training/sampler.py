"""The replay buffer inside verl 0.9.1: a custom sampler, and the callback that saves it.

verl calls ``sample`` on the driver with the whole batch, after generation and reward and before old
log-probabilities and advantages. So a replayed trajectory gets its old log-probabilities under the
current policy and starts at ratio 1, without importance correction: as in ARPO's released code.

Both arms run this very class; with ``replay.enabled: false`` it only measures.

A stored trajectory is a file that never changes (``items``); the buffer itself (``replay``) holds its name,
so a checkpoint is a small JSON file and memory does not grow with the buffer.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer as VerlReplayBuffer
from verl.utils import tensordict_utils

from arpo_replica.rollout.records import episode_dir, write_atomically
from arpo_replica.training.items import ItemStore, value_of
from arpo_replica.training.job import Job, current_job
from arpo_replica.training.recipe import image_options
from arpo_replica.training.replay import Group, Plan, ReplayBuffer, Stored

TRAIN = "train"
POLL_S = 0.2
"""verl's default of 2 s costs up to 2 s of each step."""
REPLAY_FILE = "replay.json"
COMPLETE_FILE = "complete.json"


@dataclass(frozen=True, slots=True)
class Rollout:
    """One trajectory of the batch."""

    session: int
    key: str
    """Its row in TransferQueue."""
    task: str
    score: float
    """Task score, without the format term."""
    reward: float
    """What verl trains on: score plus weighted format term."""
    format_errors: int
    attempts: int
    turns: int


class ReplaySampler(VerlReplayBuffer):
    """verl's sampler with ARPO's replay."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("poll_interval", POLL_S)
        super().__init__(*args, **kwargs)
        self.job = current_job()
        self.buffer = ReplayBuffer(self.job.recipe.replay, self.job.seed)
        policy = self.job.config.policy
        self.items = ItemStore(self.job.items, self.job.out, self.job.parent_model, image_options(policy))
        if self.job.resume_step:
            path = self.job.checkpoint(self.job.resume_step) / REPLAY_FILE
            self.buffer.restore(json.loads(path.read_bytes()))

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, dict]:
        """verl's batch of this step, with failed groups repaired, and our metrics."""
        batch, metrics = super().sample(
            global_steps=global_steps, partition_id=partition_id, batch_size=batch_size
        )
        if partition_id != TRAIN:
            return batch, metrics
        raise_crashes(self.job.scratch)
        tags = dict(zip(batch.keys, batch.tags, strict=True))
        uids, groups = read_groups(batch.keys)
        plan = self.buffer.plan([Group(g[0].task, tuple(r.score for r in g)) for g in groups])
        self._keep(plan, groups, tags, global_steps)
        after = self._swap(plan, uids, groups, tags, global_steps)
        lost = batch_size * self.job.recipe.rollouts_per_task - sum(len(group) for group in groups)
        self._fill(tags)
        metrics.update(self._measure(plan, groups, after, lost, global_steps))
        self._write_step(plan, groups, lost, global_steps)
        changed = KVBatchMeta(
            partition_id=TRAIN,
            keys=list(tags),
            tags=list(tags.values()),
            extra_info=dict(batch.extra_info or {}),
        )
        return changed, metrics

    def save(self, folder: Path) -> None:
        """Write buffer and random generator into a checkpoint."""
        write_atomically(folder / REPLAY_FILE, json.dumps(self.buffer.state()).encode())

    def _keep(self, plan: Plan, groups: list[list[Rollout]], tags: dict[str, dict], step: int) -> None:
        """Write the trajectories to store to disk; they enter the buffer in ``_swap``, afterwards."""
        for group, rollout in plan.store:
            chosen = groups[group][rollout]
            domain, _, task_id = chosen.task.partition("/")
            episode = episode_dir(self.job.episodes(step, chosen.session), domain, task_id)
            self.items.save(
                item_name(step, chosen),
                tq.kv_batch_get(keys=[chosen.key], partition_id=TRAIN),
                tags[chosen.key],
                [episode / f"step_{turn:03d}.webp" for turn in range(chosen.turns)],
            )

    def _swap(
        self, plan: Plan, uids: list[str], groups: list[list[Rollout]], tags: dict[str, dict], step: int
    ) -> dict[tuple[int, int], tuple[float, float]]:
        """Carry out the plan; ``tags`` follows. Returns (score, reward) of what replaced (group, rollout)."""
        replaced = {}
        for swap in plan.swaps:
            fields, tag = self.items.load(swap.stored.name)
            given_way = groups[swap.group][swap.rollout]
            tq.kv_clear(keys=[given_way.key], partition_id=TRAIN)
            del tags[given_way.key]
            # The key's uid tells verl the session, the field's uid is what GRPO groups by.
            tensordict_utils.assign_non_tensor_stack(fields, "uid", [uids[swap.group]])
            tags[given_way.key] = {**tag, "replayed_from": swap.stored.step, "global_steps": step}
            tq.kv_batch_put(
                keys=[given_way.key], partition_id=TRAIN, fields=fields, tags=[tags[given_way.key]]
            )
            score = value_of(fields["extra_fields"][0])["arpo"]["score"]
            replaced[swap.group, swap.rollout] = (score, float(fields["rm_scores"].values().sum()))
        for group, rollout in plan.store:
            chosen = groups[group][rollout]
            self.buffer.store(chosen.task, Stored(item_name(step, chosen), step))
        return replaced

    def _fill(self, tags: dict[str, dict]) -> None:
        """Add rows without effect until the batch divides into minibatches again; ``tags`` follows.

        verl does this itself (``padding_utils``), but with rows without images, on which verl 0.9.1 fails
        for the Qwen2-VL class with transformers 5 ('BaseModelOutputWithPooling' object has no attribute
        'mean') when a micro batch holds nothing else. Ours are copies of the shortest trajectory with an
        empty response mask: no loss, no entropy, a group of their own, no part in metrics.
        """
        recipe = self.job.recipe
        missing = -len(tags) % (recipe.minibatch_tasks * recipe.rollouts_per_task)
        if not missing:
            return
        shortest = min(tags, key=lambda key: tags[key]["seq_len"])
        uid = f"pad{uuid.uuid4().hex}"
        for session in range(missing):
            fields = tq.kv_batch_get(keys=[shortest], partition_id=TRAIN)
            for name in ("response_mask", "loss_mask", "rm_scores"):
                fields[name] = torch.zeros_like(fields[name])
            tensordict_utils.assign_non_tensor_stack(fields, "uid", [uid])
            key = f"{uid}_{session}_0"
            tags[key] = {**tags[shortest], "is_padding": True}
            tq.kv_batch_put(keys=[key], partition_id=TRAIN, fields=fields, tags=[tags[key]])

    def _measure(
        self,
        plan: Plan,
        groups: list[list[Rollout]],
        replaced: dict[tuple[int, int], tuple[float, float]],
        lost: int,
        step: int,
    ) -> dict[str, float]:
        rollouts = [rollout for group in groups for rollout in group]
        after = [
            replaced.get((i, j), (rollout.score, rollout.reward))
            for i, group in enumerate(groups)
            for j, rollout in enumerate(group)
        ]
        success_above = self.job.config.evaluation.success_above
        attempts_lost = lost * (self.job.config.rollout.env_error_retries + 1)
        ages = [step - swap.stored.step for swap in plan.swaps]
        return {
            "arpo/reward_before": fmean(rollout.reward for rollout in rollouts),
            "arpo/reward_after": fmean(reward for _, reward in after),
            "arpo/score_before": fmean(rollout.score for rollout in rollouts),
            "arpo/score_after": fmean(score for score, _ in after),
            "arpo/success": fmean(float(rollout.score > success_above) for rollout in rollouts),
            "arpo/unparsable": fmean(float(rollout.format_errors > 0) for rollout in rollouts),
            "arpo/turns": fmean(rollout.turns for rollout in rollouts),
            "arpo/groups": float(len(groups)),
            "arpo/rollouts": float(len(rollouts)),
            "arpo/all_fail_groups": float(
                sum(all(r.score <= success_above for r in group) for group in groups)
            ),
            "arpo/all_success_groups": float(
                sum(all(r.score > success_above for r in group) for group in groups)
            ),
            "arpo/failed_groups": float(plan.failed_groups),
            "arpo/swapped_groups": float(len(plan.swaps)),
            "arpo/buffer_size": float(len(self.buffer)),
            "arpo/buffer_tasks": float(sum(bool(queue) for queue in self.buffer.tasks.values())),
            "arpo/replay_age": fmean(ages) if ages else 0.0,
            "arpo/lost_rollouts": float(lost),
            "arpo/env_errors": float(sum(r.attempts - 1 for r in rollouts) + attempts_lost),
        }

    def _write_step(self, plan: Plan, groups: list[list[Rollout]], lost: int, step: int) -> None:
        details = {
            "step": step,
            "groups": [{"task": g[0].task, "scores": [r.score for r in g]} for g in groups],
            "swaps": [
                {"group": swap.group, "rollout": swap.rollout, **asdict(swap.stored)} for swap in plan.swaps
            ],
            "lost_rollouts": lost,
        }
        write_atomically(self.job.step_file(step), json.dumps(details).encode())


class SaveState(CheckpointCallback):
    """After verl saved a checkpoint: add the buffer, mark it complete, drop what is no longer needed."""

    def on_save(
        self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **kwargs: Any
    ) -> None:
        """verl's event, on the driver. An exception here stops the training: a checkpoint must be whole."""
        sampler = trainer.replay_buffer
        folder = Path(checkpoint_dir)
        sampler.save(folder)
        mark_complete(folder)
        job = sampler.job
        kept = prune(job, job.recipe.keep_checkpoints)
        needed = sampler.buffer.names()
        for path in kept:
            state = json.loads((path / REPLAY_FILE).read_bytes())
            needed |= {entry["name"] for queue in state["tasks"].values() for entry in queue}
        sampler.items.keep_only(needed)


def read_groups(keys: Sequence[str]) -> tuple[list[str], list[list[Rollout]]]:
    """The batch as groups of rollouts, sorted by task; and the uid of each group."""
    data = tq.kv_batch_get(keys=list(keys), partition_id=TRAIN, select_fields=["rm_scores", "extra_fields"])
    rewards = [float(row.sum()) for row in data["rm_scores"].unbind()]
    facts = [value_of(entry)["arpo"] for entry in data["extra_fields"]]
    groups: dict[str, list[Rollout]] = defaultdict(list)
    for key, reward, fact in zip(keys, rewards, facts, strict=True):
        uid, session, index = key.rsplit("_", 2)
        if index != "0":
            raise RuntimeError(f"{key}: a rollout of several outputs; our agent loop gives one")
        groups[uid].append(Rollout(session=int(session), key=key, reward=reward, **fact))
    ordered = sorted(groups.items(), key=lambda entry: (entry[1][0].task, entry[0]))
    return [uid for uid, _ in ordered], [sorted(group, key=lambda r: r.session) for _, group in ordered]


def item_name(step: int, rollout: Rollout) -> str:
    """Name of a stored trajectory: the same when a step is done again after a resume."""
    task = hashlib.sha256(rollout.task.encode()).hexdigest()[:12]
    return f"{step:06d}_{task}_{rollout.session:03d}"


def raise_crashes(scratch: Path) -> None:
    """Stop the training if an episode ended in a programming error: verl would train on the others."""
    crashes = sorted(scratch.glob("crash_*.txt"))
    if crashes:
        raise RuntimeError(f"{len(crashes)} episodes crashed, the first one with:\n{crashes[0].read_text()}")


def mark_complete(folder: Path) -> None:
    """Write the list of a checkpoint's files and sizes, last."""
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != COMPLETE_FILE
    }
    write_atomically(folder / COMPLETE_FILE, json.dumps(sizes, indent=1).encode())


def prune(job: Job, keep: int) -> list[Path]:
    """Delete all but the newest ``keep`` checkpoints; returns those kept, oldest first."""
    folders = sorted(job.work.glob("global_step_*"), key=lambda path: int(path.name.rsplit("_", 1)[1]))
    for path in folders[:-keep]:
        shutil.rmtree(path.replace(path.with_name(f".deleted_{path.name}")))
    return [path for path in folders[-keep:] if (path / REPLAY_FILE).is_file()]
