"""The replay buffer inside verl 0.9.1: a custom sampler, and the callback that saves it.

verl calls ``sample`` on the driver with the whole batch, after generation and reward and before old
log-probabilities and advantages. So a replayed trajectory gets its old log-probabilities under the
current policy and starts at ratio 1: as in ARPO's released code. The log-probabilities of the policy that
sampled it (``rollout_log_probs``) are part of what is stored, so that verl's rollout correction
(``training.importance_correction``) can weight its tokens.

Both arms run this very class; with ``replay.enabled: false`` it only measures.

A stored trajectory is a file that never changes (``items``); the buffer itself (``replay``) holds its name,
so a checkpoint is a small JSON file and memory does not grow with the buffer.
"""

import hashlib
import json
import shutil
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer as VerlReplayBuffer
from verl.trainer.ppo.v1.replay_buffer import ReplayBufferAsync
from verl.utils import tensordict_utils

from arpo_replica.base.files import write_atomically
from arpo_replica.rollout.records import episode_dir, read_rollout
from arpo_replica.training.items import ItemStore, QueueRow, value_of
from arpo_replica.training.job import PREFIX_VERL, REPLAY_FILE, Job, current_job, mark_complete
from arpo_replica.training.metrics import (
    Replaced,
    Rollout,
    RowKey,
    SequenceFacts,
    in_updates,
    measure,
    rows_per_update,
    too_many_lost,
)
from arpo_replica.training.playback import play
from arpo_replica.training.recipe import Speed, data_parallel, image_options
from arpo_replica.training.replay import (
    RECORDED,
    Group,
    ReplayBuffer,
    ReplayPlan,
    Stored,
    continued,
    is_recorded,
)

TRAIN = "train"
NOTHING = "no materializable trajectories"
"""What verl's sampler says about a batch whose rollouts were all lost."""
POLL_S = 0.2
"""verl's default of 2 s costs up to 2 s of each step."""
Tags = dict[str, dict[str, Any]]
"""Key of a row in TransferQueue -> its tag."""


class ReplaySampler(VerlReplayBuffer):
    """verl's sampler with ARPO's replay."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.job = current_job()
        recipe, policy = self.job.recipe, self.job.config.policy
        kwargs.setdefault("poll_interval", POLL_S)
        if recipe.dynamic_sampling:  # verl hands these to its own class only
            kwargs |= {
                "filter_groups_metric": "reward",
                "train_batch_size": recipe.tasks_per_step,
                "gen_batch_size": 1,
            }
        super().__init__(*args, **kwargs)
        self.buffer = ReplayBuffer(recipe.replay, self.job.seed)
        self.items = ItemStore(
            self.job.items,
            self.job.out,
            self.job.parent_model,
            image_options(policy),
            bytes_only=Speed.of(self.job).compact_pixels,
            play=partial(play, self.job),
        )
        self.redrawn = 0
        """Groups of this step that dynamic sampling has given up."""
        if self.job.resume_step:
            path = self.job.checkpoint(self.job.resume_step) / REPLAY_FILE
            self.buffer.restore(json.loads(path.read_bytes()))
        else:
            self._begin()

    def _begin(self) -> None:
        """Fill the empty buffer with what the stage begins with (``preload``)."""
        start = self.job.store
        for episode in start.episodes:
            rollout = read_rollout(episode)
            name = f"{RECORDED}{named_task(rollout.task)}_{rollout.record.trial:03d}"
            self.items.save_recorded(name, episode)
            self.buffer.store(rollout.task, Stored(name, 0))
        if start.before is not None:
            work = start.before / self.job.work.name
            state = json.loads((work / f"{PREFIX_VERL}{start.steps}" / REPLAY_FILE).read_bytes())
            for task, queue in state["tasks"].items():
                for entry in queue:
                    stored = continued(start.stage, Stored(entry["name"], entry["step"]), start.steps)
                    self.items.take_over(work / self.job.items.name, start.before, entry["name"], stored.name)
                    self.buffer.store(task, stored)

    def sample(
        self, global_steps: int, partition_id: str, batch_size: int
    ) -> tuple[KVBatchMeta, dict[str, Any]]:
        """verl's batch of this step, with failed groups repaired, and our metrics."""
        self.redrawn = 0
        try:
            batch, metrics = super().sample(
                global_steps=global_steps, partition_id=partition_id, batch_size=batch_size
            )
        except RuntimeError as error:
            if NOTHING in str(error):
                self._write_step(
                    ReplayPlan(), [], batch_size * self.job.recipe.rollouts_per_task, global_steps
                )
                self._stop_if_desktops_fail()
            raise
        if partition_id != TRAIN:
            return batch, metrics
        raise_crashes(self.job.scratch)
        if self.job.save_file.exists() and SaveState.current is not None:
            # The job must end soon: verl saves after this step and every later one.
            SaveState.current.config.trainer.save_freq = 1
        tags = dict(zip(batch.keys, batch.tags, strict=True))
        groups = read_groups(batch.keys)
        plan = self.buffer.plan([Group(g[0].task, tuple(r.score for r in g)) for g in groups])
        self._keep(plan, groups, tags)
        # In an order of its own, not in that of arrival: sums of floating-point numbers depend on it.
        mixed = in_updates(groups, self.job.recipe, f"{self.job.seed}.{global_steps}")
        ordered: Tags = {key: tags[key] for group in mixed for rollout in group for key in rollout.keys}
        replaced, ordered = self._swap(plan, groups, ordered, global_steps)
        lost = batch_size * self.job.recipe.rollouts_per_task - sum(len(group) for group in groups)
        self._mask_lone(groups, ordered)
        rows = self._fill(ordered)
        name_episodes(list(ordered))
        metrics |= measure(
            plan,
            groups,
            replaced,
            step=global_steps,
            lost=lost,
            retries=self.job.config.rollout.env_error_retries,
            refills=self.job.recipe.lost_rollout_refills,
            success_above=self.job.config.evaluation.success_above,
        )
        metrics |= {
            "arpo/buffer_size": float(len(self.buffer)),
            "arpo/buffer_tasks": float(sum(bool(queue) for queue in self.buffer.tasks.values())),
            "arpo/redrawn_groups": float(self.redrawn),
            "arpo/rows": float(len(ordered)),
            "arpo/empty_rows": float(sum(tag.get("is_padding", False) for tag in ordered.values())),
            "arpo/updates": float(len(ordered) // rows),
        }
        self._write_step(plan, groups, lost, global_steps)
        self._stop_if_desktops_fail()
        changed = KVBatchMeta(
            partition_id=TRAIN,
            keys=list(ordered),
            tags=list(ordered.values()),
            extra_info=dict(batch.extra_info or {}),
        )
        return changed, metrics

    def _dapo_filtered_keys(self, partition_id: str) -> tuple[set[str], Counter[float]]:
        """verl's groups without reward variance, less those that replay repairs and those above the limit.

        A group that lost all its rollouts is kept as in every other mode, and counted; verl 0.9.1 would end
        the training because it has no reward.
        """
        finished = self.finished_keys[partition_id]
        lost = finished - {RowKey.of(key).group for key in self.partitions[partition_id]}
        finished -= lost
        try:
            found, _ = super()._dapo_filtered_keys(partition_id)
        finally:
            finished |= lost
        recipe, chosen = self.job.recipe, {}
        for uid in sorted(found):
            if self.redrawn >= recipe.dynamic_sampling_max * recipe.tasks_per_step:
                break
            keys = [key for key in self.partitions[partition_id] if RowKey.of(key).group == uid]
            ((*rollouts,),) = read_groups(keys)
            if not self.buffer.repairs(Group(rollouts[0].task, tuple(r.score for r in rollouts))):
                self.redrawn += 1
                chosen[uid] = rollouts[0].reward
        return set(chosen), Counter(chosen.values())

    def _stop_if_desktops_fail(self) -> None:
        steps = sorted(self.job.steps.glob("step_*.json"))
        lost = [json.loads(path.read_bytes())["lost_rollouts"] for path in steps]
        newest = self.job.out / "episodes" / steps[-1].stem
        if reason := too_many_lost(lost, self.job.recipe, newest):
            write_atomically(self.job.stop_file, reason.encode())
            raise RuntimeError(reason)

    def save(self, folder: Path) -> None:
        write_atomically(folder / REPLAY_FILE, json.dumps(self.buffer.state()).encode())

    def _keep(self, plan: ReplayPlan, groups: list[list[Rollout]], tags: Tags) -> None:
        """Write the trajectories to store to disk; they enter the buffer in ``_swap``, afterwards."""
        for group, index in plan.store:
            chosen = groups[group][index]
            domain, _, task_id = chosen.task.partition("/")
            episode = episode_dir(self.job.episodes(chosen.step, chosen.rollout), domain, task_id)
            rows = [
                QueueRow(
                    tq.kv_batch_get(keys=[key], partition_id=TRAIN),
                    tags[key],
                    [episode / f"step_{turn:03d}.webp" for turn in range(first, first + count)],
                )
                for key, (first, count) in zip(chosen.keys, chosen.images, strict=True)
            ]
            self.items.save(item_name(chosen), rows)

    def _swap(
        self, plan: ReplayPlan, groups: list[list[Rollout]], tags: Tags, step: int
    ) -> tuple[Replaced, Tags]:
        """Carry out the plan. Returns what replaced whom, and the tags of the batch as it is then."""
        replaced: Replaced = {}
        instead: dict[str, Tags] = {}
        for swap in plan.swaps:
            rows = self.items.load(swap.stored.name)
            given_way = groups[swap.group][swap.rollout]
            if is_recorded(swap.stored.name):  # what the data set says of the task, which is the same
                columns = tq.kv_batch_get(keys=[given_way.keys[0]], partition_id=TRAIN)
                for row in rows:
                    for name in set(columns.keys()) - set(row.fields.keys()):
                        row.fields[name] = columns[name]
            tq.kv_clear(keys=list(given_way.keys), partition_id=TRAIN)
            # A key's uid and session tell verl which rows are one rollout.
            place = RowKey.of(given_way.keys[0])
            put: Tags = {}
            for index, row in enumerate(rows):
                # The field's uid is what GRPO groups by.
                tensordict_utils.assign_non_tensor_stack(row.fields, "uid", [place.group])
                key = str(place._replace(row=index))
                put[key] = {**row.tag, "replayed_from": swap.stored.step, "global_steps": step}
                tq.kv_batch_put(keys=[key], partition_id=TRAIN, fields=row.fields, tags=[put[key]])
            instead[given_way.keys[0]] = put
            for key in given_way.keys[1:]:
                instead[key] = {}
            last = rows[-1].fields
            score = SequenceFacts.of(value_of(last["extra_fields"][0])).score
            replaced[swap.group, swap.rollout] = (score, float(last["rm_scores"].unbind()[0].sum()))
        for group, rollout in plan.store:
            chosen = groups[group][rollout]
            self.buffer.store(chosen.task, Stored(item_name(chosen), chosen.step))
        changed: Tags = {}
        for key, tag in tags.items():
            changed |= instead.get(key, {key: tag})
        return replaced, changed

    def _fill(self, tags: Tags) -> int:
        """Add rows without effect until the batch divides into updates over all GPUs; ``tags`` follows.

        Returns the rows of an update, which verl then takes for its mini batch: with a number of its own, a
        batch with more rows than rollouts would be several updates.

        verl does this itself (``padding_utils``), but with rows without images, on which verl 0.9.1 fails
        for the Qwen2-VL class with transformers 5 ('BaseModelOutputWithPooling' object has no attribute
        'mean') when a micro batch holds nothing else. Ours are copies of the shortest trajectory with an
        empty response mask: no loss, no entropy, a group of their own, no part in metrics.
        """
        recipe = self.job.recipe
        rows = rows_per_update(recipe, data_parallel(self.job), len(tags))
        if SaveState.current is not None:
            actor = SaveState.current.config.actor_rollout_ref.actor
            actor.ppo_mini_batch_size = rows // recipe.rollouts_per_task
        missing = rows * (recipe.tasks_per_step // recipe.minibatch_tasks) - len(tags)
        if not missing:
            return rows
        shortest = min(tags, key=lambda key: tags[key]["seq_len"])
        uid = f"pad{uuid.uuid4().hex}"
        for session in range(missing):
            fields = tq.kv_batch_get(keys=[shortest], partition_id=TRAIN)
            without_effect(fields)
            tensordict_utils.assign_non_tensor_stack(fields, "uid", [uid])
            key = str(RowKey(uid, session, 0))
            tags[key] = {**tags[shortest], "is_padding": True}
            tq.kv_batch_put(keys=[key], partition_id=TRAIN, fields=fields, tags=[tags[key]])
        return rows

    def _mask_lone(self, groups: list[list[Rollout]], tags: Tags) -> None:
        """Take the effect from a rollout that is left alone in its group; ``tags`` follows.

        It can be compared with nothing, and verl would take its reward itself for its advantage. If nothing
        else is left of a step, its reward alone is taken, so that its advantage is 0: verl 0.9.1 fails on a
        batch without any token to train on (an empty array has no maximum, ``_compute_metrics``).
        """
        nothing_else = all(len(group) == 1 for group in groups)
        for group in groups:
            for key in group[0].keys if len(group) == 1 else ():
                fields = tq.kv_batch_get(keys=[key], partition_id=TRAIN)
                if nothing_else:
                    fields["rm_scores"] = torch.zeros_like(fields["rm_scores"])
                else:
                    without_effect(fields)
                    tags[key] = {**tags[key], "is_padding": True}
                tq.kv_batch_put(keys=[key], partition_id=TRAIN, fields=fields, tags=[tags[key]])

    def _write_step(self, plan: ReplayPlan, groups: list[list[Rollout]], lost: int, step: int) -> None:
        details = {
            "step": step,
            "groups": [
                {
                    "task": g[0].task,
                    "scores": [r.score for r in g],
                    "staleness": [r.staleness(step) for r in g],
                }
                for g in groups
            ],
            "swaps": [
                {"group": swap.group, "rollout": swap.rollout, **asdict(swap.stored)} for swap in plan.swaps
            ],
            "lost_rollouts": lost,
        }
        write_atomically(self.job.step_file(step), json.dumps(details).encode())


class AsyncReplaySampler(ReplaySampler, ReplayBufferAsync):
    """``ReplaySampler`` over verl's asynchronous sampler instead of its synchronous one."""

    resumed = False
    """True once the leftovers of the checkpoint are gone."""

    def _terminal_eviction_reasons(
        self, global_steps: int, partition_id: str
    ) -> tuple[set[str], set[str], set[str], Counter[str]]:
        """Groups that verl gives up. It would replace crashed ones for ever: stop instead."""
        raise_crashes(self.job.scratch)
        if partition_id == TRAIN and not self.resumed:
            self.resumed = True
            self._drop_trained()
        return super()._terminal_eviction_reasons(global_steps, partition_id)  # type: ignore[no-any-return]

    def _drop_trained(self) -> None:
        """A checkpoint holds the batch of its own step too: trajectories whose prompts are gone."""
        prompts = set(self.prompt_global_steps[TRAIN])
        trained = [key for key in self.partitions[TRAIN] if RowKey.of(key).group not in prompts]
        if trained:
            tq.kv_clear(keys=trained, partition_id=TRAIN)
            for key in trained:
                del self.partitions[TRAIN][key]

    def _materialize_batch(
        self,
        partition_id: str,
        selected_prompt_uids: list[str],
        partition_snapshot: dict[str, dict[str, Any]],
    ) -> KVBatchMeta:
        """verl's batch; as in the synchronous mode one without any trajectory is an error."""
        batch = super()._materialize_batch(partition_id, selected_prompt_uids, partition_snapshot)
        if not batch.keys:
            raise RuntimeError(f"the groups of this step have {NOTHING}")
        return batch


class SaveState(CheckpointCallback):
    """After verl saved a checkpoint: add the buffer, mark it complete, drop what is no longer needed."""

    current: "SaveState | None" = None
    """The one of this process."""

    def __init__(self, config: Any = None) -> None:
        """``config``: the trainer's own, which it reads after every step."""
        super().__init__(config=config)
        SaveState.current = self

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


def read_groups(keys: Sequence[str]) -> list[list[Rollout]]:
    """The batch as groups of rollouts, sorted by task."""
    data = tq.kv_batch_get(keys=list(keys), partition_id=TRAIN, select_fields=["rm_scores", "extra_fields"])
    facts = [SequenceFacts.of(value_of(entry)) for entry in data["extra_fields"]]
    rewards = [float(row.sum()) for row in data["rm_scores"].unbind()]
    groups: dict[str, list[Rollout]] = {}
    rows = sorted(zip(map(RowKey.of, keys), facts, rewards, strict=True), key=lambda row: row[0])
    for first, run in groupby(rows, key=lambda row: row[0][:2]):
        places, sequences, given = zip(*run, strict=True)
        groups.setdefault(first[0], []).append(
            Rollout.joined(sequences, session=first[1], keys=list(map(str, places)), reward=given[-1])
        )
    return sorted(groups.values(), key=lambda group: (group[0].task, group[0].step, group[0].rollout))


def item_name(rollout: Rollout) -> str:
    """Name of a stored trajectory: the same when a step is done again after a resume."""
    return f"{rollout.step:06d}_{named_task(rollout.task)}_{rollout.rollout:03d}"


def named_task(task: str) -> str:
    """A task in the name of a file."""
    return hashlib.sha256(task.encode()).hexdigest()[:12]


def name_episodes(keys: list[str]) -> None:
    """Let each row's uid, by which verl groups, name its episode too: ``{group}_{session}``."""
    names = TensorDict({}, batch_size=len(keys))
    tensordict_utils.assign_non_tensor_stack(names, "uid", [RowKey.of(key).episode for key in keys])
    tq.kv_batch_put(keys=keys, partition_id=TRAIN, fields=names)


def without_effect(fields: Any) -> None:
    """Make rows that are trained on and measured nowhere of these (a TensorDict)."""
    for name in ("response_mask", "loss_mask", "rm_scores"):
        fields[name] = torch.zeros_like(fields[name])


def raise_crashes(scratch: Path) -> None:
    """Stop the training if an episode ended in a programming error: verl would train on the others."""
    crashes = sorted(scratch.glob("crash_*.txt"))
    if crashes:
        raise RuntimeError(f"{len(crashes)} episodes crashed, the first one with:\n{crashes[0].read_text()}")


def prune(job: Job, keep: int) -> list[Path]:
    """Delete all but the newest ``keep`` checkpoints; returns those kept, oldest first."""
    folders = sorted(job.work.glob("global_step_*"), key=lambda path: int(path.name.rsplit("_", 1)[1]))
    for path in folders[:-keep]:
        shutil.rmtree(path.replace(path.with_name(f".deleted_{path.name}")))
    return [path for path in folders[-keep:] if (path / REPLAY_FILE).is_file()]
