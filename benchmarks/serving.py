"""How fast vLLM starts and answers: ``envs/controller/.venv/bin/python benchmarks/serving.py MODEL``.

Starts vLLM for a model folder twice, as the rollouts do and as plain ``vllm serve`` does, and prints JSON:
seconds until ready, and tokens per second of several conversations at once whose history grows by one
screenshot a turn. ``--busy`` runs that many processes beside it that never rest, as desktops may.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from arpo_replica.config import StudyConfig, load_config
from arpo_replica.policy.endpoint import Endpoint, EndpointPolicy, Sampling
from arpo_replica.policy.vllm_server import SERVE_MODULE, SERVED_NAME, VllmServer
from arpo_replica.tasks.model import Task

ROOT = Path(__file__).resolve().parents[1]


class PlainVllm(VllmServer):
    """``vllm serve`` as it comes: three processes that import everything one after another."""

    def command(self, scratch: Path) -> tuple[list[str], dict[str, str]]:
        command, environment = super().command(scratch)
        at = command.index(SERVE_MODULE)
        command[at : at + 2] = ["vllm.entrypoints.cli.main", "serve"]
        at = command.index("--distributed-executor-backend")
        del command[at : at + 2]
        del environment["VLLM_ENABLE_V1_MULTIPROCESSING"]
        return command, environment | {
            "OMP_NUM_THREADS": str(self.config.threads),
            "OMP_WAIT_POLICY": "ACTIVE",
        }


def screenshot(size: tuple[int, int], seed: int) -> bytes:
    """A screen full of noise, so that no cache knows it."""
    out = io.BytesIO()
    Image.frombytes("RGB", size, random.Random(seed).randbytes(size[0] * size[1] * 3)).save(out, "PNG")
    return out.getvalue()


async def measure(config: StudyConfig, server: VllmServer, options: argparse.Namespace) -> dict[str, float]:
    """Figures of one server."""
    sampling = Sampling(1.0, 1.0, config.policy.max_new_tokens, {"ignore_eos": True})
    async with server:
        ready_s = await server.ready()
        async with Endpoint(
            server.url,
            model=SERVED_NAME,
            api_key=server.api_key,
            timeout_s=300,
            connections=options.conversations,
        ) as endpoint:

            async def converse(number: int, turns: int) -> list[float]:
                task = Task(f"task-{number}", "bench", "Click on the button.", [], {}, {}, "")
                conversation = EndpointPolicy(endpoint, config.policy, sampling, (number,)).start(task)
                seconds = []
                for turn in range(turns):
                    png = screenshot(config.desktop.screen, 1000 * number + turn)
                    began = time.perf_counter()
                    await conversation.reply(png)
                    seconds.append(time.perf_counter() - began)
                return seconds

            await converse(-1, 1)
            began = time.perf_counter()
            turns = await asyncio.gather(*(converse(n, options.turns) for n in range(options.conversations)))
            seconds = time.perf_counter() - began
    flat = [turn for conversation in turns for turn in conversation]
    return {
        "ready_s": round(ready_s, 1),
        "tokens_per_s": round(len(flat) * config.policy.max_new_tokens / seconds, 1),
        "mean_turn_s": round(sum(flat) / len(flat), 3),
    }


def main() -> None:
    """Measure both servers and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="model folder in Hugging Face format")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/demo.yaml")
    parser.add_argument("--conversations", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5, help="at most policy.max_images are useful")
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.cores :])
    config = load_config(options.config)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, kind in (("rollouts", VllmServer), ("vllm serve", PlainVllm)):
                server = kind(config, options.model, Path(folder) / "vllm.log")
                figures = asyncio.run(measure(config, server, options))
                print(
                    json.dumps({"server": name, "busy": options.busy, "load": os.getloadavg()[0]} | figures)
                )
    finally:
        for process in busy:
            process.kill()


if __name__ == "__main__":
    main()
