"""Model time of episodes with full-size screenshots: ours against plain ``vllm serve``.

    python benchmarks/gpu_serving.py --shape 7b --out result.json
    python benchmarks/gpu_serving.py --shape nano --accelerator cpu --out dry_run.json      no GPU needed
    python benchmarks/gpu_serving.py --shape 7b --quantization fp8 --servers ours --out fp8.json

Random weights of the shape (``gpu_shapes``, made up by vLLM itself); 8 conversations of 15 steps at once,
each step a new synthetic screenshot and 100 new tokens. ``plain``: ``vllm serve`` with its own defaults, the
whole history of PNGs sent again at every step. ``ours``: the server as the rollouts start it, asked as they
ask (each screenshot once, ``NamedImagePolicy``); in between, the plain client against our server. A figure
is the sum of an episode's replies in seconds, so desktops have no part in it. ``server_s_per_episode`` says
what vLLM's own counters make of it: what ``e2e`` has beside ``queue``, ``prefill`` and ``decode`` is work on
screenshots before the engine has them. Reduced weights (``serving.quantization``) are made from weights
in files, so ``--quantization`` writes random ones first, as ``--weights`` does without reducing them.
``by_log``: what vLLM's log says of memory, in GiB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from arpo_replica.base.environments import ROOT  # noqa: E402
from arpo_replica.config.models import StudyConfig  # noqa: E402
from arpo_replica.policy import vllm_server  # noqa: E402
from arpo_replica.policy.endpoint import (  # noqa: E402
    Endpoint,
    EndpointPolicy,
    NamedImagePolicy,
    Sampling,
)
from arpo_replica.policy.vllm_server import SERVED_NAME, VllmServer  # noqa: E402
from arpo_replica.tasks.model import Task  # noqa: E402
from gpu_shapes import SHAPES, build_shape, weight_counts  # noqa: E402
from gpu_training import SCREENS, Cards, cards, parse, study, versions  # noqa: E402
from scripted_desktop import screenshot  # noqa: E402

COUNTERS = {
    "queue": "request_queue_time_seconds_sum",
    "prefill": "request_prefill_time_seconds_sum",
    "decode": "request_decode_time_seconds_sum",
    "e2e": "e2e_request_latency_seconds_sum",
}
"""Parts of a request's time and vLLM's counters of them, in seconds."""
CACHES = {"prefix": "prefix_cache", "screenshots": "mm_cache"}
MEMORY = {
    "weights_gib": r"Model loading took ([\d.]+) GiB",
    "kv_cache_gib": r"Available KV cache memory: ([\d.]+) GiB",
    "graphs_gib": r"CUDA graph pool memory: ([\d.]+) GiB \(actual\)",
}
"""What a started vLLM's log says."""


class OurVllm(VllmServer):
    """The server of the rollouts, with made-up weights and its counters on."""

    further: tuple[str, ...] = ("--load-format", "dummy")
    """Arguments besides."""

    def command(self, scratch: Path) -> tuple[list[str], dict[str, str]]:
        command, environment = super().command(scratch)
        command.remove("--disable-log-stats")
        return [*command, *self.further], environment


class PlainVllm(VllmServer):
    """``vllm serve`` with the options that it cannot do without."""

    def command(self, scratch: Path) -> tuple[list[str], dict[str, str]]:
        command, environment = super().command(scratch)
        kept = ["--host", "--port", "--served-model-name", "--max-model-len", "--limit-mm-per-prompt"]
        kept += ["--mm-processor-kwargs", "--gpu-memory-utilization", "--generation-config", "--dtype"]
        kept += ["--tensor-parallel-size"]
        options = [part for i, part in enumerate(command) if part in kept or command[i - 1] in kept]
        start = [command[0], "-m", "vllm.entrypoints.cli.main", "serve", str(self.model)]
        if self.config.accelerator == "cpu":  # what the CPU build needs
            start = command[: command.index("--model") + 2]
            options += ["--distributed-executor-backend", "uni", "--enforce-eager", "--skip-mm-profiling"]
            options += ["--max-num-batched-tokens", "2048"]
        else:
            del environment["OMP_NUM_THREADS"]
        return [*start, *options, "--load-format", "dummy"], environment


def make_screenshots(size: tuple[int, int], seeds: list[str]) -> list[bytes]:
    """PNGs, made beforehand: they are the desktops' business."""
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(screenshot, [size] * len(seeds), seeds, chunksize=4))


async def episodes(
    policy: EndpointPolicy, size: tuple[int, int], name: str, conversations: int, turns: int
) -> dict[str, Any]:
    """Run them at once; figures."""
    seeds = [f"{name}.{c}.{t}" for c in range(conversations) for t in range(turns)]
    pngs = await asyncio.to_thread(make_screenshots, size, seeds)

    async def converse(number: int) -> tuple[list[float], int, int]:
        conversation = policy.start(Task(f"task-{name}-{number}", "bench", "Click OK.", [], {}, {}, ""))
        seconds, prompt = [], 0
        for turn in range(turns):
            began = time.perf_counter()
            reply = await conversation.reply(pngs[number * turns + turn])
            seconds.append(time.perf_counter() - began)
            prompt = reply.prompt_tokens
        return seconds, prompt, getattr(conversation, "refused", 0)

    began = time.perf_counter()
    found = await asyncio.gather(*(converse(number) for number in range(conversations)))
    elapsed = time.perf_counter() - began
    sums = [sum(seconds) for seconds, _, _ in found]
    return {
        "conversations": conversations,
        "turns": turns,
        "model_s_per_episode_mean": round(sum(sums) / len(sums), 2),
        "model_s_per_episode_max": round(max(sums), 2),
        "first_step_s": round(sum(seconds[0] for seconds, _, _ in found) / len(found), 3),
        "last_step_s": round(sum(seconds[-1] for seconds, _, _ in found) / len(found), 3),
        "seconds": round(elapsed, 2),
        "episodes_per_hour": round(3600 * conversations / elapsed),
        "prompt_tokens_at_end": max(prompt for _, prompt, _ in found),
        "names_forgotten": sum(refused for _, _, refused in found),
        "png_bytes_mean": round(sum(map(len, pngs)) / len(pngs)),
    }


async def counters(url: str) -> dict[str, float]:
    """vLLM's counters, without their prefix and labels."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as answer:
        lines = re.findall(r"^vllm:(\w+?)(?:_total)?(?:\{[^\n]*\})? ([-+.\de]+)$", await answer.text(), re.M)
    found: dict[str, float] = {}
    for name, value in lines:
        found[name] = found.get(name, 0.0) + float(value)
    return found


def by_counters(before: dict[str, float], after: dict[str, float], episodes: int) -> dict[str, Any]:
    """Where the server's time went between two readings, and what its caches knew."""
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    tokens = grown.get("inter_token_latency_seconds_count", 0.0)
    return {
        "server_s_per_episode": {
            part: round(grown[name] / episodes, 2) for part, name in COUNTERS.items() if name in grown
        },
        "hit_rates": {
            cache: round(grown[f"{name}_hits"] / grown[f"{name}_queries"], 3)
            for cache, name in CACHES.items()
            if grown.get(f"{name}_queries")
        },
        "ms_between_tokens": round(1000 * grown["inter_token_latency_seconds_sum"] / tokens, 2)
        if tokens
        else None,
    }


def by_log(text: str) -> dict[str, float]:
    """Memory of the card in GiB, as vLLM's log has it; the CPU build says little of it."""
    return {name: float(found[1]) for name, line in MEMORY.items() if (found := re.search(line, text))}


async def measure(
    server: VllmServer,
    config: StudyConfig,
    options: argparse.Namespace,
    *,
    clients: list[str],
    result: dict[str, Any],
    save: Callable[[], None],
) -> None:
    """Figures of one server with several clients, into ``result`` and saved as they come."""
    sampling = Sampling(1.0, 1.0, config.policy.max_new_tokens, {"ignore_eos": True})
    async with server:
        result["ready_s"] = round(await server.ready(), 1)
        result["by_log"] = by_log(server.log.read_text(errors="replace"))
        print(f"ready after {result['ready_s']} s", result["by_log"], flush=True)
        async with Endpoint(
            server.url, model=SERVED_NAME, api_key=server.api_key, timeout_s=300, connections=64
        ) as endpoint:
            for client in clients:
                kind = NamedImagePolicy if client.startswith("named") else EndpointPolicy
                policy = kind(endpoint, config.policy, sampling, (client,))
                label = f"{type(server).__name__}.{client}"
                await episodes(policy, config.desktop.screen, f"warm.{label}", 2, 2)
                count = 1 if client.endswith("alone") else options.conversations
                before = await counters(server.url)
                result[client] = await episodes(policy, config.desktop.screen, label, count, options.turns)
                result[client] |= by_counters(before, await counters(server.url), count)
                print(label, json.dumps(result[client]), flush=True)
                save()


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON file that is written")
    parser.add_argument("--accelerator", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--conversations", type=int, default=8)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--servers", nargs="+", default=["ours", "plain"], choices=("ours", "plain"))
    parser.add_argument(
        "--clients", nargs="+", default=["named", "resend"], help="or named_alone: our server"
    )
    parser.add_argument("--gpus", type=int, default=1, help="that hold the model together")
    parser.add_argument("--memory", type=float, default=0.85, help="share of the GPU's memory")
    parser.add_argument("--vllm", action="append", default=[], help="an argument of our server, --vllm=--x=y")
    parser.add_argument("--quantization", choices=("fp8", "bitsandbytes"), help="serving.quantization")
    parser.add_argument("--weights", action="store_true", help="our server loads them from files")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--keep-log", action="store_true", help="vLLM's log beside OUT")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure both servers."""
    options = options_of()
    os.chdir(ROOT)
    screen = "nano" if options.shape.startswith("nano") else "full"
    config = study(
        parse(
            [
                *("--shape", options.shape, "--out", "unused", "--accelerator", options.accelerator),
                *("--screens", str(options.turns), "--new-tokens", str(options.new_tokens)),
            ]
        )
    )
    config.serving.gpu_memory_utilization = options.memory
    config.serving.enforce_eager = options.accelerator == "cpu"
    config.serving.max_num_seqs = options.conversations
    config.serving.tensor_parallel = options.gpus
    config.serving.quantization = options.quantization
    in_files = options.weights or options.quantization is not None
    OurVllm.further = (*(() if in_files else OurVllm.further), *options.vllm)
    # This machine's environment, whatever its name.
    python = mock.patch.object(vllm_server, "python_of", lambda _: Path(options.python))
    result: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "shape": options.shape,
        "weights": weight_counts(options.shape),
        "screenshot": SCREENS[screen],
        "new_tokens": options.new_tokens,
        "quantization": options.quantization,
        "cards": cards(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions(),
    }
    with tempfile.TemporaryDirectory() as folder, Cards() as monitor, python:
        model = build_shape(
            options.shape, Path(folder) / "model", weights=in_files, max_pixels=config.policy.max_pixels
        )

        def save() -> None:
            options.out.write_text(json.dumps(result | {"gpus": monitor.summary()}, indent=1) + "\n")

        for name in options.servers:
            log = options.out.with_suffix(f".{name}.log") if options.keep_log else Path(folder) / "vllm.log"
            server = {"ours": OurVllm, "plain": PlainVllm}[name](config, model, log.absolute())
            result[name] = {}
            try:
                clients = options.clients if name == "ours" else ["resend"]
                asyncio.run(measure(server, config, options, clients=clients, result=result[name], save=save))
            except Exception as error:  # what was measured before is kept
                result[name] |= {"error": f"{type(error).__name__}: {error}", "log": server.log_tail()}
                print(result[name]["error"], flush=True)
            save()


if __name__ == "__main__":
    main()
