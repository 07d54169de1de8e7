"""One attempt at a stage, in the heavy environment.

Started as ``python -m arpo_replica.training.process.launch job.json``.

Starts the keeper of the desktops, writes verl's inputs, then runs verl's own entry point,
``verl.trainer.main_ppo``, in a process of its own: forked from the preloaded fork server
(``training.speed.preload``), or plainly started.
"""

import ctypes
import importlib
import importlib.util
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from arpo_replica.base.checkout import code_version
from arpo_replica.base.environments import die_with_parent
from arpo_replica.base.files import write_atomically
from arpo_replica.base.tables import table_of
from arpo_replica.tasks.model import Task
from arpo_replica.training.job import VARIABLE, Job, current_job
from arpo_replica.training.process.ray_cluster import RayCluster
from arpo_replica.training.recipe import (
    AGENT,
    PACKAGE,
    draws_needed,
    ray_numbers,
    to_arguments,
    verl_overrides,
)

logger = logging.getLogger(__name__)

ENTRY_POINT = "verl.trainer.main_ppo"
FIRST_RAY_JOB = "01000000"
IMPORTS = table_of(__file__)
"""What all processes of a training import, and vLLM's classes of models."""


def write_inputs(job: Job) -> list[str]:
    """The parquet of tasks and the list of agent loops; verl's command line for this attempt."""
    import pandas

    tasks = job.split.load()
    data, agents = job.work / "tasks.parquet", job.work / "agents.yaml"
    rows = [row(index, task) for index, task in enumerate(tasks)]
    pandas.DataFrame([rows[index] for index in draws(len(tasks), draws_needed(job), job.seed)]).to_parquet(
        data
    )
    # JSON is YAML. `Workplace` reads the rest from the job.
    agents.write_text(
        json.dumps([{"name": AGENT, "_target_": f"{PACKAGE}.agent_loop.DesktopAgentLoop"}]) + "\n"
    )
    packages = ("verl", "vllm", "torch", "transformers", "ray", "tensordict", "TransferQueue", "ui-tars")
    versions = {"arpo-replica": code_version(), "python": platform.python_version()}
    versions |= {name: version(name) for name in packages}
    (job.work / "versions.json").write_text(json.dumps(versions))
    return to_arguments(verl_overrides(job, tasks=len(tasks), data=data, agents=agents))


def draws(tasks: int, count: int, seed: int) -> list[int]:
    """Numbers of the tasks that a stage trains on, in order: one shuffle of all of them after another.

    verl 0.9.1 begins a new shuffle with every epoch and drops what is left of the one before, if the tasks
    are no multiple of a batch: of 127 tasks 31 an epoch. Here each is seen equally often, give or take one.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    found: list[int] = []
    while len(found) < count:
        found += torch.randperm(tasks, generator=generator).tolist()
    return found[:count]


def check_loggers(job: Job) -> None:
    """Leave a sentence for the user and end if a logger of the config is not installed here."""
    for name in job.recipe.loggers:
        if importlib.util.find_spec(name) is None:
            sentence = (
                f"training.loggers names '{name}', but the environment that trains has no package {name}; "
                "install it there or drop it from the key."
            )
            write_atomically(job.stop_file, sentence.encode())
            sys.exit(sentence)


def row(index: int, task: Task) -> dict[str, object]:
    """One task in the columns that verl's dataset reads."""
    return {
        "data_source": task.domain,
        "prompt": [{"role": "user", "content": task.instruction}],  # the agent loop builds the real one
        "ability": "gui",
        "reward_model": {"style": "rule", "ground_truth": ""},
        "extra_info": {"index": index, "task": f"{task.domain}/{task.id}"},
        "agent_name": AGENT,
    }


@contextmanager
def cuda_unused() -> Iterator[None]:
    """While entered, nothing starts CUDA, after which no process could be forked any more.

    NVML says of which generation the GPU is: verl 0.9.1 asks while it is imported (``constants_ppo``).
    Whatever else would start CUDA is told that it cannot, as on a machine without a GPU: vLLM 0.24.0's
    kernels of linear attention ask triton for the GPU (``fla/ops/utils.py``) and then do without; no policy
    here has that.
    """
    import torch
    from vllm.platforms import current_platform

    def refuse() -> None:
        raise RuntimeError("CUDA is not started while a training's packages are imported")

    originals = torch.cuda.get_device_capability, torch.cuda._lazy_init
    torch.cuda.get_device_capability = lambda device=None: current_platform.get_device_capability()
    torch.cuda._lazy_init = refuse
    try:
        yield
    finally:
        torch.cuda.get_device_capability, torch.cuda._lazy_init = originals


def preload(accelerator: str) -> None:
    """Import everything that the processes of a training import."""
    started = time.perf_counter()
    # Ray's native library reads these when it is loaded, and its workers insist on them. A Ray that we
    # start ourselves has one job, the first; another number would stop its workers at once. A worker
    # ends when the second process does: here the fork server, which ends with the training.
    early = {"RAY_JOB_ID": FIRST_RAY_JOB, "RAY_RAYLET_PID": str(os.getpid())}
    os.environ.update(early)
    ray_ids = importlib.import_module(f"{PACKAGE}.patches.ray_ids")
    with ray_ids.generator_unused(), cuda_unused():
        for name in (*IMPORTS["preloaded"], *IMPORTS["workers"][accelerator]):
            importlib.import_module(name)
    registry = importlib.import_module("vllm").ModelRegistry
    for architecture, module in IMPORTS["model_classes"].items():
        registry.register_model(architecture, getattr(importlib.import_module(module), architecture))
    for name in early:
        del os.environ[name]
    logger.info(f"preloaded {len(sys.modules)} modules in {time.perf_counter() - started:.1f} s")


def unforkable(accelerator: str) -> str | None:
    """Why no process may be forked from this one: a lock or a GPU's context could be half alive in it."""
    threads = [path.joinpath("comm").read_text().strip() for path in Path("/proc/self/task").iterdir()]
    # NVML's (driver 580) only waits for events. CUDA's own have such names too: a forked process tries.
    if len(others := [name for name in threads if not name.startswith("cuda")]) > 1:
        return f"what was imported has started threads ({', '.join(sorted(others))})"
    if accelerator == "cuda" and (status := status_of_cuda_when_forked()):
        return f"what was imported has used a GPU (a forked process gets CUDA's error {status})"
    return None


def status_of_cuda_when_forked() -> int:
    """What CUDA says to a process forked from this one; 0: it can be used there."""
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            signal.alarm(30)  # ends it: a lock of the driver may be held for ever
            status = min(ctypes.CDLL("libcuda.so.1").cuInit(0), 255)
        finally:  # whatever happens, this process must not go on as its parent would
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_forked(job: Job, arguments: list[str]) -> int | None:
    """verl's entry point as the first child of a fork server; None if nothing can be forked here."""
    from arpo_replica.training.process import fork_client
    from arpo_replica.training.process.fork_server import ForkServer, Program, run_program

    preload(job.config.accelerator)
    if reason := unforkable(job.config.accelerator):
        logger.warning(f"The training's processes import everything themselves: {reason}.")
        return None
    client = job.scratch / "python"
    source = Path(fork_client.__file__).read_text().splitlines(keepends=True)
    client.write_text(f"#!{sys.executable} -IS\n" + "".join(source[1:]))
    client.chmod(0o755)
    path = job.scratch / "fork.sock"
    os.environ["ARPO_FORK_SERVER"], os.environ["ARPO_PYTHON"] = str(path), sys.executable
    from arpo_replica.training.patches import verl_plugin

    def train() -> None:
        verl_plugin.register_stack_dump()
        run_program(Program("module", ENTRY_POINT, [ENTRY_POINT, *arguments]))

    return ForkServer(path, client, verl_plugin.register_stack_dump).serve(train)


@contextmanager
def ray_over_nodes(job: Job) -> Iterator[dict[str, str]]:
    """Variables that lead verl to Ray: none on one node, where it starts its own."""
    recipe = job.recipe
    if recipe.nodes == 1:
        yield {}
        return
    log = job.work / "logs" / f"ray_{job.attempt:03d}.log"
    gpus, cpus = ray_numbers(job)
    with RayCluster(nodes=recipe.nodes, gpus=gpus, cpus=cpus, scratch=job.scratch, log=log) as ray:
        yield {"RAY_ADDRESS": ray.address}


def main() -> None:
    """Run the job named by the first argument; ends with verl's status."""
    os.environ[VARIABLE] = sys.argv[1]
    job = current_job()
    check_loggers(job)
    subprocess.Popen(
        [sys.executable, "-m", f"{PACKAGE}.process.keeper", sys.argv[1]],
        preexec_fn=die_with_parent,  # noqa: PLW1509  # one prctl call, no lock, no allocation
    )
    arguments = write_inputs(job)
    status = run_forked(job, arguments) if job.preload else None
    if status is None:
        with ray_over_nodes(job) as variables:
            command = [sys.executable, "-m", ENTRY_POINT, *arguments]
            status = subprocess.run(command, env={**os.environ, **variables}, check=False).returncode
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
