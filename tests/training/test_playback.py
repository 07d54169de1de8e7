"""A recorded episode gives the rows that verl makes of the same episode when it is a rollout."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.cpu_env
pytest.importorskip("verl")

import torch  # noqa: E402
import transfer_queue  # noqa: E402
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ  # noqa: E402
from verl.utils import hf_processor, hf_tokenizer  # noqa: E402
from verl.utils.tensordict_utils import list_of_dict_to_tensordict  # noqa: E402

from arpo_replica.config.models import StudyConfig  # noqa: E402
from arpo_replica.rollout.episode import EpisodeResult  # noqa: E402
from arpo_replica.rollout.records import read_rollout  # noqa: E402
from arpo_replica.tasks.splits import ResolvedSplit, ResolvedTask  # noqa: E402
from arpo_replica.training import sampler as sampling  # noqa: E402
from arpo_replica.training.agent_loop import Attempts, make_outputs  # noqa: E402
from arpo_replica.training.conversation import TokenConversation  # noqa: E402
from arpo_replica.training.items import ItemStore, value_of  # noqa: E402
from arpo_replica.training.job import Job, StartStore  # noqa: E402
from arpo_replica.training.metrics import Rollout  # noqa: E402
from arpo_replica.training.playback import Recorded, play  # noqa: E402
from arpo_replica.training.recipe import image_options  # noqa: E402
from arpo_replica.training.replay import ReplayBuffer, ReplayPlan, Stored, Swap  # noqa: E402
from fakes import make_task  # noqa: E402
from offline_episodes import END, GOOD, offline_config, write_rollout  # noqa: E402
from training.tiny_model import build_tiny_model  # noqa: E402

TASK = make_task(1)
TEXTS = [GOOD, GOOD, "Action: wait()", END]


class FakeSplit(ResolvedSplit):
    """A split of a task that is no file."""

    def load(self) -> list[Any]:
        return [TASK]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build_tiny_model(folder)
    return folder


def job_of(folder: Path, model: Path, *, images: int = 9, **fields: Any) -> Job:
    config: StudyConfig = offline_config()
    config.policy.max_images, config.policy.max_model_len, config.policy.max_new_tokens = images, 4096, 32
    config.arms["arpo"] = {"replay": {"enabled": True}}
    job = Job(
        config=config, arm="arpo", seed=0, stage_name="one", parent_model=model, parent_sha256="0" * 64,
        out=folder / "stage", scratch=folder, attempt=1, **fields,
    )  # fmt: skip
    split = FakeSplit(split="one", tasks=[ResolvedTask.model_construct()])
    return job.model_copy(update={"split": split})


def episode(folder: Path, processor: Any, texts: list[str] = TEXTS) -> Path:
    """A success, and how long the server counted its replies: the last one was cut before its end token."""
    tokens = [len(processor.tokenizer(text)["input_ids"]) + 1 for text in texts]
    tokens[-1] -= 1
    fields = {"domain": TASK.domain, "instruction": TASK.instruction, "format_errors": 1}
    return write_rollout(folder, TASK.id, 2, texts, tokens=tokens, **fields)


def rows_of_verl(job: Job, directory: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[Any]]:
    """(fields, tags) that verl's own agent-loop worker hands to TransferQueue."""
    recorded, put = read_rollout(directory), {}

    async def keep(**batch: Any) -> None:
        put.update(batch)

    async def nothing(*_: Any, **__: Any) -> None:
        pass

    async def run() -> None:
        processor = hf_processor(str(job.parent_model))
        tokenizer = hf_tokenizer(str(job.parent_model))
        end = [tokenizer.eos_token_id]
        ids = [tokenizer(step.text, add_special_tokens=False)["input_ids"] for step in recorded.steps]
        loop = Recorded(job, processor, [*(reply + end for reply in ids[:-1]), ids[-1]])
        loop.tokenizer = tokenizer
        conversation = TokenConversation(loop, TASK, sampling={}, seed_parts=(), policy=job.config.policy)
        for step in recorded.steps:
            await conversation.reply((directory / step.screenshot).read_bytes())
        result = EpisodeResult("success", 1.0, 1.0, 1, recorded.steps)
        outputs = make_outputs(job, Attempts(TASK, 0, 2, 0.0, [], result, conversation))
        loop._compute_score = loop._compute_teacher_logprobs = nothing
        worker = AgentLoopWorkerTQ.__ray_metadata__.modified_class
        for name in ("_compute_multi_modal_inputs", "_compute_position_ids"):
            setattr(loop, name, getattr(worker, name).__get__(loop))
        columns = {"uid": "u", "session_id": 0, "global_steps": 0, "extra_info": {"index": 3}}
        await worker._agent_loop_postprocess(loop, outputs, False, **columns)

    monkeypatch.setattr(transfer_queue, "async_kv_batch_put", keep)
    asyncio.run(run())
    return list(put["fields"]), put["tags"]


@pytest.mark.parametrize("images", [9, 2])
def test_the_rows_are_those_of_verl(
    tmp_path: Path, model: Path, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two screenshots at most the episode is several sequences."""
    job, processor = job_of(tmp_path, model, images=images), hf_processor(str(model))
    directory = episode(tmp_path, processor)
    rows = play(job, directory, processor)
    fields, tags = rows_of_verl(job, directory, monkeypatch)
    assert len(rows) == len(fields) == (1 if images == 9 else 3)
    for row, wanted, tag in zip(rows, fields, tags, strict=True):
        assert row.tag == tag
        columns = {"uid", "session_id", "global_steps", "extra_info"}
        assert set(row.fields.keys()) == set(wanted.keys()) - columns
        for name in set(row.fields.keys()) - {"multi_modal_inputs", "extra_fields"}:
            ours, theirs = row.fields[name][0], wanted[name]
            same = torch.equal(ours, theirs) if torch.is_tensor(ours) else value_of(ours) == value_of(theirs)
            assert same, name
        ours, theirs = (
            value_of(value_of(found))
            for found in (row.fields["multi_modal_inputs"][0], wanted["multi_modal_inputs"])
        )
        assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert float(row.fields["rm_scores"][0].sum()) == 1.0 - job.recipe.format_weight
    assert sum(len(row.screenshots) for row in rows) == len(TEXTS) + (2 if images == 2 else 0)


def test_a_replayed_one_stands_in_the_batch_as_the_rollout_that_gave_way(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own tokens and reward; the uid of its group and what the data set says of the task."""
    job, processor = job_of(tmp_path, model), hf_processor(str(model))
    directory = episode(tmp_path, processor)
    (fields,), (tag,) = rows_of_verl(job, directory, monkeypatch)
    queue: dict[str, Any] = {"u_0_0": list_of_dict_to_tensordict([dict(fields.items())])}
    monkeypatch.setattr(transfer_queue, "kv_batch_get", lambda keys, **_: queue[keys[0]].clone())
    monkeypatch.setattr(transfer_queue, "kv_clear", lambda keys, **_: [queue.pop(key) for key in keys])
    put = lambda keys, fields, **_: queue.update({keys[0]: fields})  # noqa: E731
    monkeypatch.setattr(transfer_queue, "kv_batch_put", put)
    columns = {name: queue["u_0_0"][name] for name in ("session_id", "global_steps", "extra_info")}

    made = make_sampler(job.model_copy(update={"store": StartStore(episodes=[directory])}))
    made._begin()
    name = f"{TASK.domain}/{TASK.id}"
    (stored,) = made.buffer.tasks[name]
    lost = Rollout(
        task=name, score=0.0, format_errors=0, attempts=1, turns=1, rollout=0, step=1, version=0, session=0,
        keys=("u_0_0",), images=((0, 1),), reward=0.0,
    )  # fmt: skip
    plan = ReplayPlan(swaps=[Swap(0, 0, stored)])
    replaced, tags = made._swap(plan, [[lost]], {"u_0_0": tag}, step=1)
    assert replaced == {(0, 0): (1.0, 1.0 - job.recipe.format_weight)}
    assert tags == {"u_0_0": {**tag, "replayed_from": 0, "global_steps": 1}}
    (row,) = play(job, directory, processor)
    found = queue["u_0_0"]
    assert set(found.keys()) == set(fields.keys())
    assert torch.equal(found["input_ids"][0], row.fields["input_ids"][0])
    assert value_of(found["uid"][0]) == "u"
    for column, before in columns.items():
        assert value_of(found[column][0]) == value_of(before[0]), column


def make_sampler(job: Job) -> sampling.ReplaySampler:
    """The sampler without verl's own part."""
    made = object.__new__(sampling.ReplaySampler)
    made.job, made.buffer = job, ReplayBuffer(job.recipe.replay, job.seed)
    options = image_options(job.config.policy)
    made.items = ItemStore(
        job.items, job.out, job.parent_model, options, play=lambda path, processor: play(job, path, processor)
    )
    return made


def test_a_stage_begins_with_recorded_episodes_and_hands_them_on(tmp_path: Path, model: Path) -> None:
    """Names, ages and files over two stages; the second one replays what lies in the first one's reach."""
    directory = episode(tmp_path / "offline", hf_processor(str(model)))
    first = make_sampler(job_of(tmp_path, model, store=StartStore(episodes=[directory])))
    first._begin()
    name = f"base_{sampling.named_task(f'{TASK.domain}/{TASK.id}')}_002"
    assert first.buffer.names() == {name}
    assert (first.items.folder / f"{name}.pt").is_file()
    first.items.save("000003_own_000", first.items.load(name))
    first.buffer.store("d/other", Stored("000003_own_000", 3))
    checkpoint = first.job.checkpoint(3)
    checkpoint.mkdir(parents=True)
    first.save(checkpoint)

    store = StartStore(before=first.job.out, stage="one", steps=3)
    job = job_of(tmp_path, model, store=store).model_copy(update={"out": tmp_path / "next"})
    second = make_sampler(job)
    second._begin()
    found = {task: list(queue) for task, queue in second.buffer.tasks.items()}
    assert found == {
        f"{TASK.domain}/{TASK.id}": [Stored(f"one.{name}", -3)],
        "d/other": [Stored("one.000003_own_000", 0)],
    }
    assert first.buffer.random.getstate() == second.buffer.random.getstate(), "the stage draws anew"
    for stored in second.buffer.names():
        (row,), (wanted,) = second.items.load(stored), first.items.load(name)
        assert torch.equal(row.fields["input_ids"][0], wanted.fields["input_ids"][0])
        assert [path.resolve() for path in row.screenshots] == [path.resolve() for path in wanted.screenshots]

    (directory / "step_001.webp").write_bytes((directory / "step_000.webp").read_bytes())
    with pytest.raises(RuntimeError, match=r"recorded episode .* has changed"):
        second.items.load(f"one.{name}")
