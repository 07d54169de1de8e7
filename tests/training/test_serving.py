"""vLLM for real: what it serves is the model, it stops without a trace, it dies with its owner."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image
from tiny_model import build_tiny_model

from arpo_replica.actions.coordinates import smart_resize
from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import PolicyError, UserError
from arpo_replica.config import load_config
from arpo_replica.config.policy import PolicyConfig
from arpo_replica.policy.endpoint import Endpoint, EndpointPolicy, Sampling
from arpo_replica.policy.prompt import build_messages
from arpo_replica.policy.vllm_server import SERVED_NAME, VllmServer
from arpo_replica.rollout.episode import Labels
from arpo_replica.rollout.run import serve
from fakes import make_task, png

pytestmark = pytest.mark.cpu_env
REPLY_TOKENS = 24


@pytest.fixture(scope="module")
def config():
    return load_config(ROOT / "configs/demo.yaml")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    build_tiny_model(folder)
    return folder


def noise(seed: int, size: tuple[int, int] = (168, 224)) -> bytes:
    data = bytes((i * (seed + 7) // 3) % 256 for i in range(size[0] * size[1] * 3))
    out = io.BytesIO()
    Image.frombytes("RGB", size, data).save(out, "PNG")
    return out.getvalue()


async def replies(endpoint: Endpoint, config, shots: list[bytes], *, temperature: float, trial: int = 0):
    sampling = Sampling(temperature, 1.0, REPLY_TOKENS, {"skip_special_tokens": False, "ignore_eos": True})
    policy = EndpointPolicy(endpoint, config.policy, sampling, (0, "base", trial))
    conversation = policy.start(make_task())
    return [await conversation.reply(shot) for shot in shots]


def by_transformers(model: Path, shots: list[bytes], said: list[str]):
    """(prompt tokens, greedy continuation) of the same conversation with the plain library."""
    import torch
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    processor = AutoProcessor.from_pretrained(model)
    network = Qwen2_5_VLForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    prompt = processor.apply_chat_template(
        build_messages(make_task().instruction, said, PolicyConfig(max_images=6)),
        add_generation_prompt=True,
        tokenize=False,
    )
    images = [Image.open(io.BytesIO(shot)).convert("RGB") for shot in shots]
    inputs = processor(text=[prompt], images=images, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    ids = network.generate(
        **inputs, do_sample=False, min_new_tokens=REPLY_TOKENS, max_new_tokens=REPLY_TOKENS
    )
    return length, processor.tokenizer.decode(ids[0, length:])


def alive(process: psutil.Process) -> bool:
    """True unless it is gone, or has ended and only waits for whoever inherited it to take note."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_is_served_is_the_model(config, model, tmp_path):
    """One start of vLLM for all that it must be."""
    shots = [noise(1), noise(2), png()]
    big = noise(3, (640, 360))

    async def main():
        async with VllmServer(config, model, tmp_path / "vllm.log") as server:
            seconds = await server.ready()
            family = psutil.Process(server._guard.pid).children(recursive=True)
            options = {"timeout_s": 60.0, "connections": 8}
            async with Endpoint(server.url, model=SERVED_NAME, api_key="wrong", **options) as stranger:
                with pytest.raises(UserError, match="refuses the key"):
                    await stranger.check()
            async with Endpoint(server.url, model=SERVED_NAME, api_key=server.api_key, **options) as endpoint:
                await endpoint.check()
                greedy = await replies(endpoint, config, shots, temperature=0.0)
                one, again, other = await asyncio.gather(
                    replies(endpoint, config, shots[:1], temperature=1.0),
                    replies(endpoint, config, shots[:1], temperature=1.0),
                    replies(endpoint, config, shots[:1], temperature=1.0, trial=1),
                )
                reduced = await replies(endpoint, config, [big], temperature=0.0)
        return seconds, family, server._scratch, greedy, one, again, other, reduced

    seconds, family, scratch, greedy, one, again, other, reduced = asyncio.run(main())
    print(f"ready after {seconds:.1f} s")
    # Turn by turn, the prompt that vLLM saw and the text it gave are those of transformers.
    for turn, reply in enumerate(greedy):
        said = [earlier.text for earlier in greedy[:turn]]
        length, text = by_transformers(model, shots[: turn + 1], said)
        # vLLM holds back a character whose last bytes are still to come.
        assert (reply.prompt_tokens, reply.text.rstrip("\ufffd")) == (length, text.rstrip("\ufffd"))
        assert reply.completion_tokens == REPLY_TOKENS
    # A request's seed decides its draw, whatever else runs at the time.
    assert one == again
    assert one != other
    # The config's limits decide the size of the image.
    width, height = smart_resize(640, 360, config.policy.min_pixels, config.policy.max_pixels)
    assert (width, height) != (640, 360)
    small = (168 // 28) * (224 // 28)
    assert reduced[0].prompt_tokens - greedy[0].prompt_tokens == (width // 28) * (height // 28) - small
    # Nothing is left.
    assert not [process for process in family if alive(process)]
    assert not scratch.exists()
    assert "enable_prefix_caching=True" in (tmp_path / "vllm.log").read_text()


OWNER = """
import asyncio, sys
from pathlib import Path
from arpo_replica.config import load_config
from arpo_replica.policy.vllm_server import VllmServer
async def main():
    async with VllmServer(load_config(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3])) as server:
        print(server._guard.pid, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


def test_vllm_dies_with_its_killed_owner(model, tmp_path):
    log = tmp_path / "vllm.log"
    command = [sys.executable, "-c", OWNER, str(ROOT / "configs/demo.yaml"), str(model), str(log)]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ))
    watcher = psutil.Process(int(owner.stdout.readline()))
    deadline = time.monotonic() + 60
    while "EngineCore" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    family = watcher.children(recursive=True)
    assert len(family) >= 2, log.read_text()[-2000:]
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    _, left = psutil.wait_procs([watcher, *family], timeout=20)
    assert left == []


def test_a_copy_that_dies_leaves_its_episodes_to_the_other(config, model, tmp_path):
    copies = config.serving.model_copy(update={"data_parallel": 2})
    two = config.model_copy(update={"serving": copies})
    labels = Labels("base", 0, "base", "nano", "process", "", {})
    sampling = Sampling(0.0, 1.0, REPLY_TOKENS, {})

    async def main():
        async with serve(two, model, labels, tmp_path / "vllm.log") as serving:
            await serving.ready()
            policies = [serving.policy(two.policy, sampling, (0, "base", trial)) for trial in range(2)]
            conversations = [policy.start(make_task()) for policy in policies]
            alike = [await conversation.reply(noise(1)) for conversation in conversations]
            dying = next(copy for copy in serving.copies if copy.endpoint is policies[0].endpoint)
            for process in psutil.Process(dying.server._guard.pid).children(recursive=True):
                process.kill()
            with pytest.raises(PolicyError):
                await conversations[0].reply(noise(2))
            await serving.check()
            assert [copy.endpoint for copy in serving.copies] == [policies[1].endpoint]
            heir = serving.policy(two.policy, sampling, (0, "base", 0)).start(make_task())
            return [*alike, await heir.reply(noise(1))]

    first, second, third = asyncio.run(main())
    assert first == second == third
    assert (tmp_path / "vllm_2.log").is_file()


def test_a_folder_that_is_no_model_fails_with_the_reason(config, tmp_path):
    async def main():
        async with VllmServer(config, tmp_path / "nothing", tmp_path / "vllm.log") as server:
            await server.ready()

    with pytest.raises(UserError, match=r"(?s)vLLM ended with status 1.*nothing"):
        asyncio.run(main())
