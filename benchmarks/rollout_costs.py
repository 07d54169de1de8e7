"""What one turn of a training's rollout costs on a CPU beside the model: seconds by part, one thread each.

    envs/cpu/.venv/bin/python benchmarks/rollout_costs.py --screens 10 --out result.json

Every turn, verl's agent loop gives vLLM's process all screenshots of the history as pictures: they are
pickled, unpickled and hashed again. The new one is decoded, looked at by the processor of the agent loop (for
its tokens) and by that of vLLM (for its pixels). All this happens in two processes, in one thread each, for
all episodes in turn (torch's threads help the processors only). It needs no GPU, and nothing of vLLM runs but
its hash.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from arpo_replica.training.pixels import Normalisation, carry_bytes  # noqa: E402
from gpu_shapes import write_tokenizer  # noqa: E402
from gpu_training import MAX_PIXELS, SCREENS, versions  # noqa: E402
from scripted_desktop import screenshot  # noqa: E402


def seconds(work: Callable[[], Any], repeats: int = 5) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return sorted(times)[repeats // 2]


def costs(screens: int, threads: int) -> dict[str, Any]:
    """Seconds per screenshot, and per turn with the mean history of an episode."""
    from transformers import AutoImageProcessor
    from vllm.multimodal.hasher import MultiModalHasher

    torch.set_num_threads(threads)
    size, pixels = SCREENS["full"], {"min_pixels": 3136, "max_pixels": MAX_PIXELS["full"]}
    png = screenshot(size, "cost")
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer("2b", Path(folder), **pixels)
        floats, as_bytes = (AutoImageProcessor.from_pretrained(folder) for _ in range(2))
        carry_bytes(as_bytes, Normalisation.of(Path(folder)))
    protocol = pickle.HIGHEST_PROTOCOL
    pickled = pickle.dumps(picture, protocol)

    def fresh() -> Image.Image:
        return picture.copy()  # the processor knows pictures that it has seen

    once = {
        "decode_png": seconds(lambda: Image.open(io.BytesIO(png)).convert("RGB")),
        "processor_bytes": seconds(lambda: as_bytes.preprocess([fresh()], **pixels)),
        "processor_floats": seconds(lambda: floats.preprocess([fresh()], return_tensors="pt", **pixels)),
    }
    each_of_history = {
        "pickle": seconds(lambda: pickle.dumps(picture, protocol)),
        "unpickle": seconds(lambda: pickle.loads(pickled)),
        "hash": seconds(lambda: MultiModalHasher.hash_kwargs("blake3", model_id="m", image=picture)),
    }
    history = (screens + 1) / 2
    turn = sum(once.values()) + history * sum(each_of_history.values())
    return {
        "make_screenshot_s": round(seconds(lambda: screenshot(size, "cost")), 4),
        "once_per_screenshot_s": {name: round(value, 4) for name, value in once.items()},
        "each_turn_per_screenshot_of_history_s": {
            name: round(value, 4) for name, value in each_of_history.items()
        },
        "pickled_bytes": len(pickled),
        "turn_s": round(turn, 3),
        "step_of_8_episodes_s": round(8 * screens * turn, 1),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--screens", type=int, default=10, help="steps, and screenshots, of an episode")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--out", type=Path, required=True, help="JSON file that is written")
    options = parser.parse_args()
    result = {
        "command": " ".join(sys.argv),
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "versions": versions(),
        "screenshot": SCREENS["full"],
        **costs(options.screens, options.threads),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
