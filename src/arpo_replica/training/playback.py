"""A recorded episode as the rows that verl would have made of it, had it been a rollout of this training.

The conversation of the agent loop is held once more, with the recorded screenshots, and with a server that
answers with the recorded replies. So prompts, masks and image tokens are made where they are made for
rollouts. A record holds text: its tokens are those that the tokenizer writes it in (``offline.trainers``),
and their probabilities when they were sampled are not known, which is a probability of 1 here
(``preload.check_preload`` and ``metrics.collect`` see that nothing is made of it).
"""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput, AgentLoopWorker
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from arpo_replica.rollout.episode import EpisodeResult
from arpo_replica.rollout.records import RecordedEpisode, read_rollout
from arpo_replica.tasks.model import Task
from arpo_replica.training.agent_loop import Attempts, make_outputs
from arpo_replica.training.conversation import TokenConversation
from arpo_replica.training.items import QueueRow
from arpo_replica.training.job import Job
from arpo_replica.training.offline.data import turn_of
from arpo_replica.training.offline.trainers import completion
from arpo_replica.training.recipe import image_options

STEP = 0
"""Before the first one; its policy has no update behind it."""


class Recorded:
    """What a conversation uses of verl's agent loop, and a server that says what was said."""

    _get_mm_processor_kwargs = AgentLoopBase._get_mm_processor_kwargs

    def __init__(self, job: Job, processor: Any, replies: list[list[int]]) -> None:
        self.processor, self.tokenizer, self.replies = processor, processor.tokenizer, iter(replies)
        self.mm_processor_kwargs = image_options(job.config.policy)
        self.continuous_token_builder = create_continuous_token_builder(
            self.tokenizer,
            hf_model_type=json.loads((job.parent_model / "config.json").read_bytes())["model_type"],
            chat_template_kwargs={},
            mm_processor_kwargs=self.mm_processor_kwargs,
            processor=processor,
        )
        self.loop, self.server_manager = asyncio.get_running_loop(), self

    async def generate(self, **_: Any) -> Any:
        """The next reply, in the form of verl's server."""
        ids = next(self.replies)
        versions = {"min_global_steps": STEP, "max_global_steps": STEP}
        return SimpleNamespace(
            token_ids=ids, log_probs=[0.0] * len(ids), stop_reason="completed", extra_fields=versions
        )


def play(job: Job, episode: Path, processor: Any) -> list[QueueRow]:
    """The rows of a recorded episode of one of the job's tasks, without the columns of its data set."""
    recorded = read_rollout(episode)
    task = next(task for task in job.split.load() if f"{task.domain}/{task.id}" == recorded.task)
    return asyncio.run(_play(job, recorded, task, processor))


async def _play(job: Job, recorded: RecordedEpisode, task: Task, processor: Any) -> list[QueueRow]:
    policy, record, steps = job.config.policy, recorded.record, recorded.steps
    tokenizer = processor.tokenizer
    turns = [turn_of(recorded, index, policy) for index in range(len(steps))]
    replies = [
        tokenizer(completion(turn, tokenizer), add_special_tokens=False)["input_ids"] for turn in turns
    ]
    loop = Recorded(job, processor, replies)
    conversation = TokenConversation(loop, task, sampling={}, seed_parts=(), policy=policy)
    shown = [recorded.screenshot(index) for index in range(len(steps))]
    for path in shown:
        file = path.read_bytes()
        conversation.files[file] = asyncio.Future()  # it is in the form of the record already
        await conversation.reply(file)
    assert record.hard_score is not None and record.standard_score is not None
    result = EpisodeResult(
        record.outcome, record.hard_score, record.standard_score, record.format_errors, steps
    )
    rollout = Attempts(task, STEP, record.trial, 0.0, [], result, conversation)
    return [
        _row(loop, output, shown[sequence.first_image : sequence.first_image + sequence.images])
        for sequence, output in zip(conversation.sequences, make_outputs(job, rollout), strict=True)
    ]


def _row(loop: Recorded, output: AgentLoopOutput, screenshots: list[Path]) -> QueueRow:
    """As verl 0.9.1 puts it into TransferQueue (``AgentLoopWorkerTQ._agent_loop_postprocess``)."""
    ids = torch.tensor([*output.prompt_ids, *output.response_ids], dtype=torch.int64)
    inputs = AgentLoopWorker._compute_multi_modal_inputs(loop, output, ids)
    fields = output.as_dict()
    fields.pop("multi_modal_data")
    fields["loss_mask"], fields["input_ids"], fields["multi_modal_inputs"] = (
        fields["response_mask"],
        ids,
        inputs,
    )
    row = ids.unsqueeze(0)
    positions = AgentLoopWorker._compute_position_ids(loop, row, torch.ones_like(row), inputs)
    fields["position_ids"] = positions.squeeze(0)
    lengths = {"prompt_len": len(output.prompt_ids), "response_len": len(output.response_ids)}
    tag = {"status": "success", **lengths, "seq_len": len(ids), "global_steps": STEP}
    tag |= {"min_global_steps": STEP, "max_global_steps": STEP}
    return QueueRow(list_of_dict_to_tensordict([fields]), tag, screenshots)
