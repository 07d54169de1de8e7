"""vLLM as a child of the job that needs it: started, awaited, watched, and surely stopped."""

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import aiohttp

from arpo_replica.actions.coordinates import FACTOR
from arpo_replica.base.environments import ROOT, heavy_environment, python_of, short_root
from arpo_replica.base.errors import UserError
from arpo_replica.base.processes import free_port
from arpo_replica.base.supervisor import start_guarded, stop_guarded
from arpo_replica.base.tables import filled, table_of
from arpo_replica.config.models import StudyConfig
from arpo_replica.policy.manifest import read_manifest

SERVED_NAME = "policy"
GRACE_S = 5.0
"""Seconds between SIGTERM and SIGKILL when vLLM is stopped."""
POLL_S = 0.2
LOG_LINES = 20
"""Lines of vLLM's log in an error message."""
SERVE_MODULE = "arpo_replica.policy.serve"
STARTED = table_of(__file__)
"""Options and variables by when they apply."""


def serve_command(config: StudyConfig, model: Path, port: int, name: str = SERVED_NAME) -> list[str]:
    """The command line that serves ``model`` as ``name`` on loopback. Raises ``UserError`` without its
    environment."""
    python = python_of(heavy_environment(config.accelerator))
    if config.accelerator == "cpu":
        start = [str(python), "-m", SERVE_MODULE, "--model", str(model)]
    else:
        start = [str(python), "-m", "vllm.entrypoints.cli.main", "serve", str(model)]
    policy, serving = config.policy, config.serving
    options = filled(
        {
            **STARTED["options"],
            **(STARTED["several_gpus"] if serving.tensor_parallel > 1 else {}),
            **(STARTED["cpu"] if config.accelerator == "cpu" else {}),
        },
        policy=policy,
        serving=serving,
        port=port,
        name=name,
        dtype=serving_dtype(config),
        batched_tokens=batched_tokens(config),
        limits=json.dumps({"image": policy.max_images, "video": 0}),
        pixels=json.dumps({"min_pixels": policy.min_pixels, "max_pixels": policy.max_pixels}),
        graphs=graph_config(serving.max_num_seqs) if graphs(config) else None,
        image_cache=f"{image_cache_gib(config, serving.max_num_seqs):g}",
    )
    for option, value in options.items():
        if value is not None and value is not False:
            start += [f"--{option}"] if value is True else [f"--{option}", str(value)]
    return start


def serving_dtype(config: StudyConfig, on_gpu: str = "auto") -> str:
    """float32 on a CPU, where few have fast bfloat16; on a GPU what the model is stored in, or ``on_gpu``."""
    if config.serving.dtype != "auto":
        return config.serving.dtype
    return "float32" if config.accelerator == "cpu" else on_gpu


def graphs(config: StudyConfig) -> bool:
    """True if vLLM shall decode from CUDA graphs."""
    return config.accelerator == "cuda" and not config.serving.enforce_eager


def graph_config(conversations: int) -> str:
    """vLLM's compilation config, JSON: CUDA graphs for decoding, nothing compiled.

    Launching kernels one by one is most of a decoding step. Capturing graphs takes seconds; vLLM's default
    also compiles, which takes a minute and gains little in prefills as long as ours.
    """
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64, 128) if size < conversations] + [conversations]
    return json.dumps({"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": sizes})


def image_cache_gib(config: StudyConfig, conversations: int) -> float:
    """Memory for processed screenshots: all that running conversations hold, 4 to 32 GiB (vLLM's default: 4).

    With less, every step processes a conversation's whole history again. A screenshot of 1920x1080 takes 50
    MB as float32.
    """
    policy = config.policy
    patches = policy.max_pixels / 14**2
    needed = patches * 3 * 2 * 14**2 * 4 * policy.max_images * conversations / 2**30
    return round(min(32.0, max(4.0, 1.2 * needed)), 1)


def batched_tokens(config: StudyConfig) -> int:
    """Tokens per engine step: at least one whole image, so that its encoder runs once."""
    image = config.policy.max_pixels // FACTOR**2 + 2
    return max(image, min(config.policy.max_model_len, 8192), 2048)


def serve_environment(config: StudyConfig, scratch: Path, api_key: str) -> dict[str, str]:
    """Environment of vLLM: quiet, offline, with its sockets and caches in ``scratch``."""
    variables = dict(os.environ)
    variables.pop("PYTHONDONTWRITEBYTECODE", None)  # byte code saves half of every later start
    variables |= {
        **quiet_environment(config, scratch),
        "VLLM_API_KEY": api_key,  # not an argument: those are public
        "VLLM_HOST_IP": "127.0.0.1",
    }
    # On a GPU these threads work on the screenshots, which vLLM takes one after another.
    variables["OMP_NUM_THREADS"] = str(max(1, config.threads // config.serving.data_parallel))
    if config.accelerator == "cpu":
        variables |= {"OMP_NUM_THREADS": str(engine_threads(config)), "OMP_WAIT_POLICY": "PASSIVE"}
    return variables


def quiet_environment(config: StudyConfig, scratch: Path) -> dict[str, str]:
    """Variables of a server of a rollout and of a training alike."""
    table = STARTED["environment"] | (STARTED["environment_cpu"] if config.accelerator == "cpu" else {})
    cache = str(config.serving.cpu_kv_cache_gib)
    return filled(table, scratch=str(scratch), cache=cache)


def engine_threads(config: StudyConfig) -> int:
    """Threads of a vLLM's engine on a CPU: all engines have half of the job's, the desktops the others.

    OpenMP's threads wait for each other by spinning. Beside two busy processes on two cores, 8
    conversations with a policy of 1.2 M weights got 54 tokens/s from two spinning threads, 480 from two
    that sleep (``OMP_WAIT_POLICY=PASSIVE``) and 870 from one.
    """
    return max(1, config.threads // 2 // config.serving.data_parallel)


def cards_of_copies(config: StudyConfig) -> list[str | None]:
    """For each copy of the model the GPUs that it shall see, as in ``CUDA_VISIBLE_DEVICES``; None: all.

    Raises ``UserError`` if the job sees fewer GPUs than the copies need.
    """
    copies, each = config.serving.data_parallel, config.serving.tensor_parallel
    if copies == 1 or config.accelerator == "cpu":
        return [None] * copies
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(copies * each)]
    if len(names) < copies * each:
        raise UserError(
            f"serving.data_parallel x serving.tensor_parallel is {copies * each} GPUs, but "
            f"CUDA_VISIBLE_DEVICES names {len(names)}; lower one of the keys or give the job more GPUs."
        )
    return [",".join(names[first : first + each]) for first in range(0, copies * each, each)]


class VllmServer:
    """vLLM under a guard (``base.supervisor``). Use as an async context manager.

    Entering starts it and returns at once; ``ready`` waits for it; leaving stops it with all its children.
    They are stopped too if this process is killed.
    """

    def __init__(self, config: StudyConfig, model: Path, log: Path, cards: str | None = None) -> None:
        """``log`` takes its output; ``cards``: the GPUs that it shall see (``cards_of_copies``)."""
        self.config, self.model, self.log, self.cards = config, model.resolve(), log, cards
        self.name = SERVED_NAME
        self.port = free_port()
        self.api_key = secrets.token_urlsafe(24)
        self.started_at = 0.0
        self._scratch: Path | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self, scratch: Path) -> tuple[list[str], dict[str, str]]:
        """Command line and environment. ``scratch``: a folder with a short path, removed in the end."""
        environment = serve_environment(self.config, scratch, self.api_key)
        if self.cards is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.cards
        return serve_command(self.config, self.model, self.port, self.name), environment

    async def __aenter__(self) -> Self:
        self._start()
        return self

    def _start(self) -> None:
        # A short path: UNIX sockets go below it, and their paths end at 107 bytes.
        self._scratch = Path(tempfile.mkdtemp(prefix="arpo-", dir=short_root()))
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command, env = self.command(self._scratch)
        self._guard = start_guarded(command, GRACE_S, log=self.log, scratch=self._scratch, cwd=ROOT, env=env)
        self.started_at = time.monotonic()

    async def __aexit__(self, *_: object) -> None:
        if self._guard is not None:
            await asyncio.shield(asyncio.to_thread(stop_guarded, self._guard, GRACE_S + 10))

    def check_alive(self) -> None:
        """Raises ``UserError`` with the end of the log if the server has died."""
        if self._guard is None or self._guard.poll() is not None:
            status = None if self._guard is None else self._guard.returncode
            raise UserError(
                f"vLLM ended with status {status}; mend what the end of its log names ({self.log}, below) or "
                f"leave this node out, and run again: finished episodes are kept.\n{self.log_tail()}"
            )

    def log_tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.log.read_bytes().decode("utf-8", "replace").split("\n")
            return "\n".join([line for line in lines if line.strip()][-LOG_LINES:])
        return ""

    async def ready(self) -> float:
        """Wait until the server answers; seconds since its start.

        Raises ``UserError`` if it is not ready in time or dies before.
        """
        headers, longest = {"Authorization": f"Bearer {self.api_key}"}, self.config.serving.start_timeout_s
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            for path in ("/health", "/v1/models"):
                while not await self._answers(session, path):
                    self.check_alive()
                    if time.monotonic() - self.started_at > longest:
                        raise UserError(
                            f"vLLM was not ready after {longest:g} s (its log: {self.log}); "
                            "raise serving.start_timeout_s or free cores and memory."
                        )
                    await asyncio.sleep(POLL_S)
        return time.monotonic() - self.started_at

    async def _answers(self, session: aiohttp.ClientSession, path: str) -> bool:
        try:
            async with session.get(self.url + path) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False


async def serve_policy(config: StudyConfig, manifest: Path, port: int, name: str) -> None:
    """Serve a finished model on loopback, for studies elsewhere, until this task is cancelled.

    The key comes from the variable that ``policy.api_key_variable`` names. Raises ``UserError`` without one,
    for a damaged model, and if vLLM does not come up or ends.
    """
    variable = config.policy.api_key_variable
    if not os.environ.get(variable):
        raise UserError(f"Set a key that the other side sends too: export {variable}=... before serving.")
    model = read_manifest(manifest, verify=True).model_path(manifest)
    server = VllmServer(config, model, Path("results", config.name, "logs", f"serve_policy_{port}.log"))
    server.port, server.api_key, server.name = port, os.environ[variable], name
    async with server:
        print(f"{name} is served at {server.url}/v1 after {await server.ready():.0f} s", flush=True)
        while True:
            server.check_alive()
            await asyncio.sleep(1)
