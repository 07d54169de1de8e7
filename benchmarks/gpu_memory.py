"""Peak GPU memory of one update of a real shape: which cards train what, with adapters and without.

    python benchmarks/gpu_memory.py --out memory.jsonl                     all cases, in order of worth
    python benchmarks/gpu_memory.py --cases nano_lora_tower --accelerator cpu --screens 2 --out dry.jsonl

The update is the training's own: verl's actor worker with the keys that ``train_stage`` gives it, without
Ray, vLLM and desktops. Weights are random and are built on the GPU. A small update comes first, so that the
optimiser's state is there; the measured one has two trajectories, one after another as ``micro_batch`` 1
asks for, so that the second meets the first one's gradients. Each case is a process of its own, forked after
the imports, with a time limit; its row is written as soon as it is there.

A row: ``peak_gib`` what torch's allocator held at most (``reserved``: what it had taken from the card),
``resident_gib`` what stays between updates, ``seconds``, tokens and weights. A card needs the peak and some
1 GiB for CUDA itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

import gpu_training  # noqa: E402
from arpo_replica.actions.coordinates import smart_resize  # noqa: E402
from arpo_replica.training.job import VARIABLE, Job  # noqa: E402
from arpo_replica.training.process.attempt import environment  # noqa: E402
from arpo_replica.training.recipe import Speed, to_arguments, verl_overrides  # noqa: E402
from gpu_shapes import FIRST_SPECIAL, SHAPES, build_shape  # noqa: E402

RANK, ALPHA = 32, 64
CASES = ("7b_lora_frozen", "2b_lora_frozen", "7b_lora_tower", "2b_lora_tower", "2b_full_frozen")
"""Shape, adapters or all weights, vision tower left out or trained."""
GIB = 2**30
PICTURES = "multi_modal_inputs"


def job_of(case: str, options: argparse.Namespace, folder: Path) -> Job:
    """The training that a case is an update of."""
    shape, weights, tower = case.rsplit("_", 2)
    keys = [f"training.speed.freeze_vision={json.dumps(tower == 'frozen')}"]
    if weights == "lora":
        keys += [f"training.lora={{rank: {RANK}, alpha: {ALPHA}}}"]
    arguments = ["--shape", shape, "--out", "-", "--accelerator", options.accelerator, "--arm", "grpo"]
    arguments += ["--screens", str(options.screens), "--tasks", "1", "--rollouts", "2", "--steps", "2"]
    for key in keys + options.set:
        arguments += ["--set", key]
    for key in options.verl:
        arguments += ["--verl", key]
    return Job(
        config=gpu_training.study(gpu_training.parse(arguments)),
        arm="grpo",
        seed=0,
        stage_name="bench",
        parent_model=folder / shape,
        parent_sha256="0" * 64,
        out=folder / case,
        scratch=folder / case,
        attempt=1,
    )


def trajectory(job: Job, screens: int, new_tokens: int, prompt: int) -> dict[str, Any]:
    """One row as verl has it: a prompt, then screenshots and sampled tokens in turns, all random."""
    import torch

    patches = gpu_training.image_patches(job.config)
    width, height = job.config.desktop.screen
    policy = job.config.policy
    columns, rows = (side // 14 for side in smart_resize(width, height, policy.min_pixels, policy.max_pixels))
    begin, end, pad = FIRST_SPECIAL + 9, FIRST_SPECIAL + 10, FIRST_SPECIAL + 12
    image = [begin, *[pad] * (patches // 4), end]
    sampled = torch.randint(1000, (new_tokens,)).tolist()
    first = [*torch.randint(1000, (prompt,)).tolist(), *image]
    response, mask = [*sampled], [1] * new_tokens
    for _ in range(screens - 1):
        response += [*image, *sampled]
        mask += [0] * len(image) + [1] * new_tokens
    ids = torch.tensor([*first, *response])
    values = torch.randint(256, (patches * screens, 588), dtype=torch.uint8)
    if not Speed.of(job).compact_pixels:
        values = torch.rand(patches * screens, 1176)
    probabilities = torch.full((len(response),), -5.0)
    return {
        "input_ids": ids,
        "position_ids": torch.arange(len(ids)).expand(4, -1).contiguous(),
        "prompts": torch.tensor(first),
        "responses": torch.tensor(response),
        "response_mask": torch.tensor(mask),
        "loss_mask": torch.tensor(mask),
        "old_log_probs": probabilities,
        "rollout_log_probs": probabilities,
        "advantages": torch.tensor(mask).float(),
        "returns": torch.tensor(mask).float(),
        PICTURES: {
            "pixel_values": values,
            "image_grid_thw": torch.tensor([[1, rows, columns]] * screens),
        },
    }


def random_model(hf_config: Any) -> Any:
    """Stands for the class whose ``from_pretrained`` verl calls: weights at once where they will be."""
    import torch
    from transformers import AutoModelForImageTextToText

    class Random:
        @staticmethod
        def from_pretrained(torch_dtype: torch.dtype, config: Any, **unused: Any) -> Any:
            with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
                return AutoModelForImageTextToText.from_config(config, dtype=torch_dtype)

    return Random


def measure(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """Build the worker and update twice."""
    import torch
    import verl.utils.model
    from hydra import compose, initialize_config_dir
    from verl.utils import tensordict_utils
    from verl.workers.engine_workers import ActorRolloutRefWorker

    verl.utils.model.get_hf_auto_model_class = random_model
    nowhere = job.work / "none"
    overrides = verl_overrides(job, tasks=4, data=nowhere, agents=nowhere)
    arguments = to_arguments({k: v for k, v in overrides.items() if not k.startswith("hydra.")})
    defaults = Path(verl.__file__).parent / "trainer" / "config"
    with initialize_config_dir(str(defaults), version_base=None):
        config = compose("ppo_trainer", overrides=arguments)
    clock = time.perf_counter()
    actor = config.actor_rollout_ref.actor
    actor.optim.total_training_steps = job.stage.steps
    worker = ActorRolloutRefWorker(config.actor_rollout_ref, role="actor")
    worker.init_model()
    built = time.perf_counter() - clock
    on_gpu = torch.cuda.is_available()

    def update(screens: int, count: int, prompt: int) -> tuple[int, float]:
        rows = [trajectory(job, screens, options.new_tokens, prompt) for _ in range(count)]
        tokens = len(rows[0]["input_ids"])
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        nested = tensordict_utils.nested_tensor_from_tensor_list
        fields = {key: value if key == PICTURES else nested(value) for key, value in columns.items()}
        settings = {
            "calculate_entropy": actor.calculate_entropy,
            **{"global_batch_size": count, "mini_batch_size": count, "epochs": 1, "seed": 0},
            **{"dataloader_kwargs": {"shuffle": False}, "temperature": 1.0, "distillation_use_topk": False},
        }
        data = tensordict_utils.get_tensordict(fields, settings)
        began = time.perf_counter()
        found = worker.update_actor(data)
        norm = float(tensordict_utils.get(found, "metrics")["grad_norm"][0])
        if not norm > 0:
            raise RuntimeError(f"the gradient's norm is {norm}: nothing was trained")
        return tokens, time.perf_counter() - began

    update(1, 1, 64)
    if on_gpu:
        torch.cuda.synchronize()
        resident = torch.cuda.memory_allocated()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    tokens, seconds = update(options.screens, 2, gpu_training.PROMPT_TOKENS)
    weights = list(worker.actor.engine.module.parameters())
    result: dict[str, Any] = {
        "tokens": tokens,
        "screens": options.screens,
        "screen": list(job.config.desktop.screen),
        "weights": sum(w.numel() for w in weights),
        "trained_weights": sum(w.numel() for w in weights if w.requires_grad),
        "seconds": {"build": round(built, 1), "update": round(seconds, 2)},
    }
    if on_gpu:
        result |= {
            "card": torch.cuda.get_device_name(),
            "resident_gib": round(resident / GIB, 2),
            "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
            "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
        }
    return result


def run_case(case: str, options: argparse.Namespace, folder: Path, results: Any) -> None:
    """One case in this process; its row, or its error, into the queue."""
    job = job_of(case, options, folder)
    job.work.mkdir(parents=True)
    os.environ |= environment(job) | {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(29_500 + options.cases.index(case))
    os.environ[VARIABLE] = str(job.work / "job.json")
    Path(os.environ[VARIABLE]).write_text(job.model_dump_json())
    log = (job.out / "log.txt").open("w")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    try:
        row = measure(job, options)
    except Exception as error:
        import traceback

        traceback.print_exc()
        row = {"error": f"{type(error).__name__}: {error}"[:600]}
    results.put(row)


def preload() -> str:
    """Import what all cases need; returns how a case's process may begin."""
    import hydra  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl
    import transformers.models.qwen2_vl.modeling_qwen2_vl  # noqa: F401
    import verl.workers.engine.fsdp.transformer_impl
    import verl.workers.engine_workers  # noqa: F401

    return "spawn" if torch.cuda.is_initialized() else "fork"


def main() -> None:
    """Measure each case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES), help=f"of the shapes {sorted(SHAPES)}")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; added to")
    parser.add_argument("--accelerator", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--screens", type=int, default=15)
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--limit", type=float, default=75.0, help="seconds for a case")
    parser.add_argument("--total", type=float, default=1e9, help="seconds after which no case begins")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the config")
    parser.add_argument("--verl", action="append", default=[], metavar="KEY=VALUE", help="a key of verl")
    parser.add_argument("--keep-logs", type=Path, help="folder for the cases' logs")
    options = parser.parse_args()
    options.cases = options.cases.split(",")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="gpu_memory_") as name:
        folder = Path(name)
        # verl reads these when it is imported, once for all cases.
        shared = environment(job_of(options.cases[0], options, folder))
        os.environ |= {key: value for key, value in shared.items() if key not in (VARIABLE, "ARPO_STACKS")}
        method = preload()
        processes = multiprocessing.get_context(method)
        print(f"imported in {time.perf_counter() - began:.1f} s, processes by {method}", flush=True)
        for case in options.cases:
            if time.perf_counter() - began > options.total:
                break
            job = job_of(case, options, folder)
            policy = job.config.policy
            if not job.parent_model.exists():
                pixels = {"min_pixels": policy.min_pixels, "max_pixels": policy.max_pixels}
                build_shape(job.parent_model.name, job.parent_model, weights=False, **pixels)
            row = {"case": case, "rank": RANK if job.recipe.lora else None} | in_time(
                processes, case, options, folder
            )
            text = json.dumps(row)
            print(text, flush=True)
            with options.out.open("a") as file:
                file.write(text + "\n")
            if options.keep_logs and (log := job.out / "log.txt").exists():
                options.keep_logs.mkdir(parents=True, exist_ok=True)
                (options.keep_logs / f"{case}.txt").write_bytes(log.read_bytes()[-200_000:])


def in_time(processes: Any, case: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The row of a case, or that it took too long."""
    results = processes.SimpleQueue()
    process = processes.Process(target=run_case, args=(case, options, folder, results))
    process.start()
    process.join(options.limit)
    if process.exitcode is None:
        process.kill()
        process.join()
        return {"error": f"not through after {options.limit:.0f} s"}
    with contextlib.suppress(OSError, EOFError):
        if not results.empty():
            found: dict[str, Any] = results.get()
            return found
    return {"error": f"its process ended with status {process.exitcode}"}


if __name__ == "__main__":
    main()
