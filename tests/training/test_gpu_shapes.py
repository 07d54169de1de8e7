"""The GPU benchmarks without a GPU: what a random policy says costs what was sampled; planned rows start."""

from __future__ import annotations

import json
import random
import shlex
import sys

import pytest
import yaml

from arpo_replica.base.environments import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import gpu_serving
import gpu_training
from arpo_replica.training.job import outline
from arpo_replica.training.recipe import verl_overrides
from gpu_shapes import FIRST_SPECIAL, SHAPES, write_tokenizer

pytestmark = pytest.mark.cpu_env


@pytest.mark.parametrize("shape", ["2b", "7b"])
def test_random_tokens_survive_as_text(shape, tmp_path):
    from transformers import AutoTokenizer

    write_tokenizer(shape, tmp_path, 3136, 100_352)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    size = SHAPES[shape]["text"]["vocab_size"]
    assert len(tokenizer) == size
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") == FIRST_SPECIAL + 1
    numbers = random.Random(0)
    for _ in range(20):
        sampled = [numbers.randrange(2000, size) for _ in range(100)]
        sampled = [token for token in sampled if not FIRST_SPECIAL <= token < FIRST_SPECIAL + 14]
        assert tokenizer.encode(tokenizer.decode(sampled), add_special_tokens=False) == sampled
    anything = [numbers.randrange(FIRST_SPECIAL) for _ in range(1500)]
    assert abs(len(tokenizer.encode(tokenizer.decode(anything), add_special_tokens=False)) - 1500) < 75


def test_the_rows_of_the_next_lease_are_commands_that_train(tmp_path):
    """Each is what its script takes, a valid study, and has a prediction; calls fit into ten minutes."""
    rows = yaml.safe_load((ROOT / "benchmarks" / "gpu_rows.yaml").read_text())
    files = ("predictions_r7.json", "predictions_r7_one.json")
    first, last = (json.loads((ROOT / "benchmarks/results/gpu" / name).read_bytes()) for name in files)
    predicted = last | first
    assert [row["call"] for row in rows] == sorted(row["call"] for row in rows)
    for row in rows:
        script, *arguments = shlex.split(row["command"])
        assert (ROOT / script).is_file() and row["seconds"] < 600
        if script == "benchmarks/gpu_shapes.py":
            assert arguments[0] in SHAPES and len(arguments) == 2
            continue
        if script == "benchmarks/gpu_serving.py":
            assert gpu_serving.options_of(arguments).conversations == 32
            assert predicted[row["name"]]["episodes_per_hour"] > 0
            continue
        options = gpu_training.parse(arguments)
        options.out = tmp_path / options.out
        config = gpu_training.study(options)
        job = outline(config, "arpo", "bench", tmp_path).model_copy(update={"out": tmp_path})
        assert verl_overrides(job, tasks=32, data=tmp_path, agents=tmp_path)
        assert options.limit <= 540 and predicted[options.out.stem]["seconds"]["step"] > 0
        assert options.out.stem == row["name"]
        assert config.recipe("arpo").gpus == (2 if "x2" in row["name"] else 1)


def test_memory_is_read_from_vllms_log():
    """Lines of vLLM 0.24.0; what a log lacks, as the CPU build's does, is left out."""
    lines = (
        "[gpu_model_runner.py:5255] Model loading took 8.95 GiB memory and 3 seconds",
        "(EngineCore pid=7) INFO 11-30 [gpu_worker.py:508] Available KV cache memory: 108.45 GiB",
        "CUDA graph pool memory: 0.03 GiB (actual), 0.04 GiB (estimated), difference: 0.0 GiB (15.4%).",
    )
    found = {"weights_gib": 8.95, "kv_cache_gib": 108.45, "graphs_gib": 0.03}
    assert gpu_serving.by_log("\n".join(lines)) == found
    assert gpu_serving.by_log(lines[1]) == {"kv_cache_gib": 108.45}
