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

from arpo_replica.errors import PolicyError  # noqa: E402
from arpo_replica.policy.prompt import build_messages  # noqa: E402
from arpo_replica.training.conversation import TokenConversation, with_image  # noqa: E402
from fakes import make_task  # noqa: E402
from training.tiny_model import build_tiny_model  # noqa: E402


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    build_tiny_model(folder)
    return transformers.AutoProcessor.from_pretrained(folder)


class Loop:
    """The part of verl's agent loop that a conversation uses, with its own helpers, and a scripted server."""

    ct_build_initial_tokens = AgentLoopBase.ct_build_initial_tokens
    ct_merge_assistant_token = AgentLoopBase.ct_merge_assistant_token
    ct_merge_context_msg = AgentLoopBase.ct_merge_context_msg
    _cap_text_prompt_length = AgentLoopBase._cap_text_prompt_length
    _get_mm_processor_kwargs = AgentLoopBase._get_mm_processor_kwargs

    def __init__(self, processor: Any, replies: list[list[int]]) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.mm_processor_kwargs: dict[str, Any] = {}
        self.rollout_config = SimpleNamespace(prompt_length=4096)
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
        settings = {"max_new_tokens": 32, "max_model_len": 4096, "language": "English", **options}
        conversation = TokenConversation(
            loop, make_task(1), sampling={"temperature": 1.0}, seed_parts=(0, "stage", 1), **settings
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
    messages = build_messages(make_task(1).instruction, texts[:2], max_images=9)
    images = [Image.open(io.BytesIO(screenshot(40 * turn))) for turn in range(3)]
    for message in messages:
        if any(part["type"] == "image" for part in message["content"]):
            message["content"] = with_image(message, images[0])["content"]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    whole = processor(text=[text], images=images)["input_ids"][0]
    assert list(loop.requests[2]["prompt_ids"]) == list(whole)
    assert conversation.ids == [*whole, *encode(processor, f"{texts[2]}<|im_end|>")]
    assert [len(request["image_data"]) for request in loop.requests] == [1, 2, 3]
    pad = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert conversation.ids.count(pad) == 3 * (168 // 28) * (224 // 28)


def test_sampled_tokens_are_never_tokenised_again(processor: Any) -> None:
    """A reply spelt letter by letter, as no tokenizer would: these ids stay and are trained on."""
    spelt = [encode(processor, letter)[0] for letter in "click"]
    assert spelt != encode(processor, "click")
    end = encode(processor, "<|im_end|>")
    conversation, loop = converse(processor, [[*spelt, *end], [*spelt, *end]])
    sampled = [token for token, bit in zip(response(conversation), conversation.mask, strict=True) if bit]
    assert sampled == [*spelt, *end] * 2
    prompt = loop.requests[1]["prompt_ids"]
    first = len(loop.requests[0]["prompt_ids"])
    assert prompt[first : first + len(spelt)] == spelt
    assert len(conversation.logprobs) == len(conversation.mask)
    assert {
        logprob for logprob, bit in zip(conversation.logprobs, conversation.mask, strict=True) if bit
    } == {-0.5}


def response(conversation: TokenConversation) -> list[int]:
    return conversation.ids[len(conversation.ids) - len(conversation.mask) :]


def test_the_mask_leaves_observations_out(processor: Any) -> None:
    end = encode(processor, "<|im_end|>")
    conversation, _ = converse(processor, [encode(processor, "ab") + end, encode(processor, "c") + end])
    bits = "".join(map(str, conversation.mask))
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


def test_a_full_context_is_an_environment_error(processor: Any) -> None:
    end = encode(processor, "<|im_end|>")
    with pytest.raises(PolicyError, match=r"policy\.max_model_len"):
        converse(processor, [end], max_model_len=64)


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
