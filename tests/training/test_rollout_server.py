"""What our server adds to verl's: names of screenshots, and where a reply's seconds went."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.cpu_env
pytest.importorskip("verl")

from arpo_replica.base.environments import ROOT  # noqa: E402
from arpo_replica.config import load_config  # noqa: E402
from arpo_replica.training.job import VARIABLE, outline  # noqa: E402
from arpo_replica.training.recipe import image_options, verl_overrides  # noqa: E402
from arpo_replica.training.rollout_server import NamingEngine, reply_seconds  # noqa: E402
from training.tiny_model import build_tiny_model  # noqa: E402

STATS = SimpleNamespace(queued_ts=10.0, scheduled_ts=10.5, first_token_ts=12.0, last_token_ts=15.0)


class Engine:
    """Answers once, and remembers what it was asked."""

    async def generate(self, *, prompt: Any, request_id: str, **options: Any) -> AsyncIterator[Any]:
        self.asked = prompt
        yield SimpleNamespace(metrics=STATS)


async def answer(engine: NamingEngine, request: str) -> None:
    prompt = {"prompt_token_ids": [1], "mm_processor_kwargs": {"min_pixels": 1}}
    async for _ in engine.generate(prompt=prompt, request_id=request):
        pass


def test_a_request_gets_its_own_names_and_leaves_its_times() -> None:
    inner = Engine()
    engine = NamingEngine(inner)
    engine.names["a"] = ["shot"]
    asyncio.run(answer(engine, "a"))
    assert inner.asked == {"prompt_token_ids": [1], "multi_modal_uuids": {"image": ["shot"]}}
    assert engine.stats == {"a": STATS}
    asyncio.run(answer(engine, "b"))
    assert "multi_modal_uuids" not in inner.asked and "mm_processor_kwargs" in inner.asked


def test_the_parts_of_a_reply_add_up() -> None:
    found = reply_seconds(STATS, decoding=0.2, engine=6.0)
    assert found == {"png": 0.2, "queue": 0.5, "prefill": 1.5, "sampling": 3.0, "front": 1.0}
    assert sum(reply_seconds(None, 0.2, 6.0).values()) == pytest.approx(6.2)


SERVE = """
import json, os, sys
from pathlib import Path
from PIL import Image
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    model, picture, options = Path(sys.argv[1]), Image.open(sys.argv[2]), json.loads(sys.argv[3])
    engine = LLM(str(model), dtype="float32", max_model_len=512, max_num_seqs=1, enforce_eager=True,
                 skip_mm_profiling=True, seed=0, **options)
    ids = engine.get_tokenizer().encode("<|vision_start|><|image_pad|><|vision_end|>What?")
    prompt = {"prompt_token_ids": ids, "multi_modal_data": {"image": picture},
              "multi_modal_uuids": {"image": ["the_name"]}}
    print(engine.generate(prompt, SamplingParams(max_tokens=4), use_tqdm=False)[0].outputs[0].text)
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_vllm_leaves_the_features_that_the_trainers_tower_would_make(tmp_path: Path) -> None:
    """With the keys that a training gives it, under the screenshot's own name."""
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    config = load_config(ROOT / "configs/demo.yaml")
    speed = config.training.speed
    speed.freeze_vision = speed.compact_pixels = speed.vision_from_rollout = True
    model, path = tmp_path / "model", tmp_path / "shot.png"
    build_tiny_model(model)
    picture = Image.effect_noise((224, 168), 90).convert("RGB")
    picture.save(path)
    job = outline(config, "arpo", "train_4", model).model_copy(
        update={"out": tmp_path, "scratch": tmp_path / "s"}
    )
    (tmp_path / "job.json").write_text(job.model_dump_json())
    prefix = "+actor_rollout_ref.rollout.engine_kwargs.vllm."
    overrides = verl_overrides(job, tasks=4, data=tmp_path, agents=tmp_path)
    options = {
        key: json.loads(overrides[prefix + key]) for key in ("ec_transfer_config", "mm_processor_kwargs")
    }
    variables = {"PYTHONPATH": str(ROOT / "src"), VARIABLE: str(tmp_path / "job.json")}
    variables |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    script = tmp_path / "serve.py"
    script.write_text(SERVE)
    command = [sys.executable, str(script), str(model), str(path), json.dumps(options)]
    ended = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]

    network = Qwen2_5_VLForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    inputs = AutoProcessor.from_pretrained(model).image_processor(
        images=[picture], return_tensors="pt", **image_options(config.policy)
    )
    with torch.no_grad():
        expected = network.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    features = load_file(tmp_path / "s" / "features" / "the_name")["features"]
    torch.testing.assert_close(features, expected.pooler_output, rtol=1e-3, atol=1e-4)
