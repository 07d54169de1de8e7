"""The replay sampler of verl's ``colocate_async`` trainer: rollouts outlast an update (``asynchrony``)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBufferAsync

from arpo_replica.training.sampler import NOTHING, TRAIN, ReplaySampler, raise_crashes


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
        reasons: tuple[set[str], set[str], set[str], Counter[str]] = super()._terminal_eviction_reasons(
            global_steps, partition_id
        )
        return reasons

    def _drop_trained(self) -> None:
        """A checkpoint holds the batch of its own step too: trajectories whose prompts are gone."""
        prompts = set(self.prompt_global_steps[TRAIN])
        trained = [key for key in self.partitions[TRAIN] if key.split("_")[0] not in prompts]
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
