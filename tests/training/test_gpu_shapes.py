"""Model folders of the GPU benchmarks: what a random policy says must cost what was sampled."""

from __future__ import annotations

import random
import sys

import pytest

from arpo_replica.base.environments import ROOT

sys.path.append(str(ROOT / "benchmarks"))
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
