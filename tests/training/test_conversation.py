"""Token in, token out: what is trained on is what was sampled, and what vLLM is asked is what HF renders."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.cpu_env
pytest.importorskip("verl")

import transformers  # noqa: E402
from verl.experimental.agent_loop.agent_loop import AgentLoopBase  # noqa: E402
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder  # noqa: E402

from arpo_replica.base.errors import DesktopError, PolicyError, RefusedError  # noqa: E402
from arpo_replica.config.models import PolicyConfig  # noqa: E402
from arpo_replica.policy.prompt import build_messages  # noqa: E402
from arpo_replica.training import agent_loop  # noqa: E402
from arpo_replica.training.conversation import (  # noqa: E402
    FORGOTTEN,
    TokenConversation,
    TokenSequence,
    with_pictures,
)
from fakes import make_task  # noqa: E402
from training.tiny_model import build_tiny_model  # noqa: E402


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    build_tiny_model(folder)
    return transformers.AutoProcessor.from_pretrained(folder)


class Loop:
    """The part of verl's agent loop that a conversation uses, with its own helpers, and a scripted server."""

    _get_mm_processor_kwargs = AgentLoopBase._get_mm_processor_kwargs

    def __init__(self, processor: Any, replies: list[list[int]]) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.mm_processor_kwargs: dict[str, Any] = {}
        self.loop = asyncio.get_running_loop()
        self.continuous_token_builder = create_continuous_token_builder(
            self.tokenizer, hf_model_type="qwen2_5_vl", processor=processor
        )
        self.server_manager = self
        self.replies, self.requests = replies, []

    async def generate(self, **request: Any) -> Any:
        self.requests.append(request)
        tokens = self.replies.pop(0)
        return SimpleNamespace(
            token_ids=tokens,
            log_probs=[-0.5] * len(tokens),
            stop_reason="completed",
            extra_fields={"min_global_steps": 4, "max_global_steps": 4},
        )


def screenshot(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (168, 224), (shade, 30, 60)).save(out, "PNG")
    return out.getvalue()


def converse(processor: Any, replies: list[list[int]], **options: Any) -> tuple[TokenConversation, Loop]:
    async def run() -> tuple[TokenConversation, Loop]:
        loop = Loop(processor, list(replies))
        policy = PolicyConfig(**{"max_new_tokens": 32, "max_model_len": 4096, **options})
        conversation = TokenConversation(
            loop, make_task(1), sampling={"temperature": 1.0}, seed_parts=(0, "stage", 1), policy=policy
        )
        for turn in range(len(replies)):
            reply = await conversation.reply(screenshot(40 * turn))
            assert reply.completion_tokens == len(replies[turn])
        return conversation, loop

    return asyncio.run(run())


def encode(processor: Any, text: str) -> list[int]:
    return processor.tokenizer.encode(text, add_special_tokens=False)


def test_ids_are_those_of_the_whole_conversation(processor: Any) -> None:
    """Three turns grown token by token equal one rendering of all messages by the processor."""
    texts = ["Thought: a\nAction: click(point='<point>1 2</point>')", "Action: wait()", "Action: finished()"]
    conversation, loop = converse(processor, [encode(processor, f"{text}<|im_end|>") for text in texts])
    whole = rendered(processor, texts[:2], [0, 1, 2], max_images=9)
    assert list(loop.requests[2]["prompt_ids"]) == whole
    (sequence,) = conversation.sequences
    assert sequence.ids == [*whole, *encode(processor, f"{texts[2]}<|im_end|>")]
    assert [len(request["image_data"]) for request in loop.requests] == [1, 2, 3]
    pad = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert sequence.ids.count(pad) == 3 * (168 // 28) * (224 // 28)


def test_a_screenshot_travels_once_and_again_if_vllm_forgot_it(processor: Any) -> None:
    """Named screenshots: file at first, name afterwards, all files after a forgotten name; same ids."""
    end = encode(processor, "Action: wait()<|im_end|>")

    class Forgetful(Loop):
        async def generate(self, **request: Any) -> Any:
            if len(self.requests) == 2 and not self.refused:
                self.refused = request
                return SimpleNamespace(token_ids=[], log_probs=None, stop_reason=FORGOTTEN, extra_fields={})
            return await super().generate(**request)

    async def run() -> Forgetful:
        loop = Forgetful(processor, [end] * 3)
        loop.refused = None
        policy = PolicyConfig(max_new_tokens=32, max_model_len=4096)
        conversation = TokenConversation(
            loop, make_task(1), sampling={}, seed_parts=(0,), policy=policy, named=True
        )
        for turn in range(3):
            await conversation.reply(screenshot(40 * turn))
        webp = [await conversation.files[screenshot(40 * turn)] for turn in range(3)]
        assert [pixels(file) for file in webp] == [pixels(screenshot(40 * turn)) for turn in range(3)]
        assert set(conversation.seconds) == {"png", "tokens", "way"}
        return loop

    loop = asyncio.run(run())
    shown = [[file for _, file in request["image_data"]] for request in (*loop.requests, loop.refused)]
    shots = [screenshot(40 * turn) for turn in range(3)]
    assert shown == [shots[:1], [None, shots[1]], shots, [None, None, shots[2]]]
    names = [[name for name, _ in request["image_data"]] for request in loop.requests]
    assert names[2][:2] == names[1] and len(set(names[2])) == 3
    _, plain = converse(processor, [end] * 3)
    assert [r["prompt_ids"] for r in loop.requests] == [r["prompt_ids"] for r in plain.requests]


def pixels(file: bytes) -> bytes:
    return Image.open(io.BytesIO(file)).convert("RGB").tobytes()


def test_sampled_tokens_are_never_tokenised_again(processor: Any) -> None:
    """A reply spelt letter by letter, as no tokenizer would: these ids stay and are trained on."""
    spelt = [encode(processor, letter)[0] for letter in "click"]
    assert spelt != encode(processor, "click")
    end = encode(processor, "<|im_end|>")
    conversation, loop = converse(processor, [[*spelt, *end], [*spelt, *end]])
    (sequence,) = conversation.sequences
    assert trained(sequence) == [*spelt, *end] * 2
    prompt = loop.requests[1]["prompt_ids"]
    first = len(loop.requests[0]["prompt_ids"])
    assert prompt[first : first + len(spelt)] == spelt
    assert len(sequence.logprobs) == len(sequence.mask)
    assert {value for value, bit in zip(sequence.logprobs, sequence.mask, strict=True) if bit} == {-0.5}
    assert {value for value, bit in zip(sequence.logprobs, sequence.mask, strict=True) if not bit} == {0.0}


def rendered(processor: Any, texts: list[str], shots: list[int], **history: Any) -> list[int]:
    """The prompt of a history as the processor renders it in one go; ``shots``: its screenshots."""
    images = [Image.open(io.BytesIO(screenshot(40 * turn))) for turn in shots]
    messages = with_pictures(build_messages(make_task(1).instruction, texts, PolicyConfig(**history)), images)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(processor(text=[text], images=images)["input_ids"][0])


def trained(sequence: TokenSequence) -> list[int]:
    """The tokens that train."""
    return [token for token, bit in zip(sequence.response, sequence.mask, strict=True) if bit]


TEXTS = ["Thought: a\nAction: wait()", "Action: wait()", "Thought: c\nAction: wait()", "Action: finished()"]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"max_images": 9}, [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]),
        ({"max_images": 2}, [[0], [0, 1], [1, 2], [2, 3]]),
        ({"max_images": 1}, [[0], [1], [2], [3]]),
        ({"max_images": 3, "max_turns": 1}, [[0], [0, 1], [1, 2], [2, 3]]),
    ],
)
@pytest.mark.parametrize("prompt", ["uitars", "uitars_box", "arpo"])
def test_a_reply_is_trained_on_under_the_prompt_it_was_given_to(
    processor: Any, options: dict[str, Any], kept: list[list[int]], prompt: str
) -> None:
    """However much the history forgets: vLLM is asked what evaluation asks, and that very prompt trains."""
    replies = [encode(processor, f"{text}<|im_end|>") for text in TEXTS]
    conversation, loop = converse(processor, replies, prompt=prompt, **options)
    for turn, shots in enumerate(kept):
        expected = rendered(processor, TEXTS[:turn], shots, prompt=prompt, **options)
        assert list(loop.requests[turn]["prompt_ids"]) == expected
        assert loop.requests[turn]["image_data"] == conversation.images[shots[0] : shots[-1] + 1]
    turn = 0
    for sequence in conversation.sequences:
        rest = trained(sequence)
        while rest:  # which replies it trains on, in order
            reply, turn = replies[turn], turn + 1
            assert rest[: len(reply)] == reply
            rest = rest[len(reply) :]
        assert sequence.ids == [*loop.requests[turn - 1]["prompt_ids"], *replies[turn - 1]]
        assert (sequence.first_image, sequence.images) == (kept[turn - 1][0], len(kept[turn - 1]))
    assert turn == len(replies)


def test_a_short_history_makes_a_sequence_of_every_later_reply(processor: Any) -> None:
    end = encode(processor, "<|im_end|>")
    replies = [encode(processor, text) + end for text in "abcd"]
    conversation, _ = converse(processor, replies, max_images=2)
    assert [trained(sequence) for sequence in conversation.sequences] == [
        replies[0] + replies[1],
        replies[2],
        replies[3],
    ]


def test_the_mask_leaves_observations_out(processor: Any) -> None:
    end = encode(processor, "<|im_end|>")
    conversation, _ = converse(processor, [encode(processor, "ab") + end, encode(processor, "c") + end])
    bits = "".join(map(str, conversation.sequences[0].mask))
    own = len(encode(processor, "ab")) + 1, len(encode(processor, "c")) + 1
    assert bits.startswith("1" * own[0] + "0") and bits.endswith("0" + "1" * own[1])
    assert bits.count("1") == sum(own)


def test_requests_carry_seeds_that_depend_on_the_turn_alone(processor: Any) -> None:
    end = encode(processor, "<|im_end|>")
    seeds = [
        [request["sampling_params"]["seed"] for request in converse(processor, [end, end])[1].requests]
        for _ in range(2)
    ]
    assert seeds[0] == seeds[1]
    assert seeds[0][0] != seeds[0][1]


def test_a_rollout_whose_desktop_died_draws_the_same_again_and_a_refill_anew(monkeypatch: Any) -> None:
    begun: list[dict[str, Any]] = []

    def begin(*_: Any, **given: Any) -> SimpleNamespace:
        begun.append(given)
        return SimpleNamespace(seconds={"wait": 0.0})

    def desktop() -> None:
        raise DesktopError("it is gone")

    monkeypatch.setattr(agent_loop, "TokenConversation", begin)
    job = SimpleNamespace(seed=0, stage_name="a", config=SimpleNamespace(policy=None))
    place: Any = SimpleNamespace(job=job, pool=SimpleNamespace(desktop=desktop), named=False, features=None)
    rollout = agent_loop.Attempts(task=make_task(1), step=2, rollout=3, started=0.0, errors=[])
    loop: Any = None
    for refill in (0, 1):
        asyncio.run(agent_loop.DesktopAgentLoop._round(loop, place, {}, rollout, refill, 2))
    first, again, refilled, _ = (given["seed_parts"] for given in begun)
    assert first == again != refilled
    assert [given["attempt"] for given in begun] == [0, 1, 2, 3]  # each has requests of its own


@pytest.mark.parametrize("max_images", [9, 1])
def test_a_context_that_fills_up_leaves_what_was_replied_before(processor: Any, max_images: int) -> None:
    """The episode is cut there, and trains like one that was cut at its step limit."""
    end = encode(processor, "<|im_end|>")
    with pytest.raises(RefusedError, match=r"policy\.max_model_len"):
        converse(processor, [end], max_model_len=64)  # the first screenshot does not fit
    _, loop = converse(processor, [end, end], max_images=max_images)
    room = len(loop.requests[1]["prompt_ids"]) + 32

    async def run() -> TokenConversation:
        policy = PolicyConfig(max_new_tokens=32, max_model_len=room, max_images=max_images)
        full = TokenConversation(
            Loop(processor, [end] * 9),
            make_task(1),
            sampling={"temperature": 1.0},
            seed_parts=(0, "stage", 1),
            policy=policy,
        )
        with pytest.raises(RefusedError):
            for turn in range(9):
                await full.reply(screenshot(40 * turn))
        return full

    full = asyncio.run(run())
    done = len(full.replies)
    assert done >= 2
    expected, _ = converse(processor, [end] * done, max_images=max_images)
    assert full.sequences == expected.sequences
    assert len(full.images) == done


def test_an_answer_without_tokens_is_an_environment_error(processor: Any) -> None:
    with pytest.raises(PolicyError, match="no tokens"):
        converse(processor, [[]])


def test_image_bytes_become_the_same_pixels(processor: Any, tmp_path: Path) -> None:
    """What is stored of an episode (lossless WebP) gives the pixel values that were trained on."""
    from arpo_replica.rollout.records import to_webp

    png = screenshot(90)
    pixels = [
        processor.image_processor(images=[Image.open(io.BytesIO(data)).convert("RGB")], return_tensors="pt")
        for data in (png, to_webp(png))
    ]
    assert (pixels[0]["pixel_values"] == pixels[1]["pixel_values"]).all()
