"""GRPO steps of the real shapes through this package's own training: seconds by phase, MFU, memory.

    python benchmarks/gpu_training.py --shape 2b --screens 10 --steps 3 --out result.json
    python benchmarks/gpu_training.py --shape nano --accelerator cpu --out dry_run.json     no GPU needed

Random weights of the shape (``gpu_shapes``), desktops that are scripted (``scripted_desktop``): everything
else is what ``train_stage`` runs, verl and vLLM included. Nothing is saved: a checkpoint's size is known
without writing it. ``--set training.speed.freeze_vision=true`` (any key of the study's config, repeatable) is
how variants are compared; ``--plain 1`` measures a step of verl as it is, too: beside it if there is a second
GPU, else afterwards. The result is one JSON object with the conditions, the versions and, per step, seconds
by phase, where the rollout's went, tokens per second and three shares of 989 TFLOP/s per GPU for the update:
``update_mfu`` (the arithmetic that the update needs, attention included, each thing once: ``model_flops``),
``update_utilisation`` (recomputation counted too) and ``update_mfu_6n`` (6 x weights x tokens, which counts
neither attention nor the four patches behind every image token, but frozen weights).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from arpo_replica.base.environments import ROOT  # noqa: E402
from arpo_replica.base.errors import Stopped, UserError  # noqa: E402
from arpo_replica.base.files import read_rows  # noqa: E402
from arpo_replica.cluster.costs import Arithmetic  # noqa: E402
from arpo_replica.config.models import StudyConfig, merge  # noqa: E402
from arpo_replica.tasks.splits import resolve  # noqa: E402
from arpo_replica.training.job import Job, outline  # noqa: E402
from arpo_replica.training.metrics import PARTS  # noqa: E402
from arpo_replica.training.process.attempt import (  # noqa: E402
    Attempt,
    Notice,
)
from arpo_replica.training.recipe import (  # noqa: E402
    Speed,
    check_recipe,
)
from arpo_replica.training.run import forkable, prepare_work, short_folder  # noqa: E402
from gpu_shapes import SHAPES, build_shape, weight_counts  # noqa: E402

PEAK_FLOPS = 989e12
"""Dense bfloat16 of an H100 or H200, by its datasheet."""
SCREENS = {"full": (1920, 1080), "seed": (1280, 720), "nano": (224, 168)}
MAX_PIXELS = {"full": 2_116_800, "seed": 2_116_800, "nano": 100_352}
PROMPT_TOKENS = 1500
BUCKET = "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"
"""It must hold the embedding: 2.18 GB of the 7B's as float32."""
KEPT = ("timing_s/", "perf/", "training/", "actor/", "response_length/mean", "prompt_length/mean", "arpo/")
PLAIN = {
    "pack": False,
    "text_log_probs": False,
    "compact_pixels": False,
    "skip_log_probs": False,
    "named_screenshots": False,
}
"""``training.speed`` as verl does it by itself without flash-attn."""


def study(options: argparse.Namespace) -> StudyConfig:
    """The study that is measured."""
    width, height = SCREENS[options.screen]
    max_pixels = MAX_PIXELS[options.screen]
    # A side is rounded to a multiple of 28, so the pixels may grow by a little before the cap is applied.
    image = min(max_pixels, (width + 28) * (height + 28)) // 28**2 + 4
    length = PROMPT_TOKENS + options.screens * (image + options.new_tokens + 16)
    raw = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    raw = {key: raw[key] for key in ("tasks", "evaluation")} | {
        "study": "gpu_training",
        "size": "nano" if options.shape.startswith("nano") else f"{options.shape}_random",
        "model": {"shape_only": not options.shape.startswith("nano")},
        "accelerator": options.accelerator,
        "threads": options.threads,
        "desktop": {"screen": [width, height], "count": options.tasks * options.rollouts},
        "policy": {
            "min_pixels": 3136,
            "max_pixels": max_pixels,
            "max_images": options.screens,
            "max_steps": options.screens,
            "max_new_tokens": options.new_tokens,
            "max_model_len": -(-length // 1024) * 1024,
        },
        "rollout": {"episode_timeout_s": 1800},
        "arms": {"base": {}, options.arm: {"replay": {"enabled": options.arm == "arpo"}}},
        "training": {
            "stages": [{"name": "bench", "split": "train_32", "steps": options.steps}],
            "tasks_per_step": options.tasks,
            "rollouts_per_task": options.rollouts,
            "minibatch_tasks": options.tasks,
            "micro_batch": options.micro_batch,
            "stall_timeout_s": options.stall,
            "verl": {"trainer.save_freq": -1, BUCKET: 256 if options.accelerator == "cpu" else 3072},
        },
    }
    for entry in options.set:
        key, _, value = entry.partition("=")
        *path, last = key.split("/") if "/" in key else key.split(".")
        overlay: Any = {last: yaml.safe_load(value)}
        for part in reversed(path):
            overlay = {part: overlay}
        raw = merge(raw, overlay)
    if options.as_plain:
        executor = "mp" if options.accelerator == "cuda" else "uni"  # on a CPU verl's would never start
        start = raw["training"].get("speed", {}).get("preload")  # only steps are compared
        raw["training"] |= {"speed": PLAIN | {"executor": executor, "preload": start}}
        raw["serving"] = {"enforce_eager": True}
    for entry in options.verl:
        key, _, value = entry.partition("=")
        raw["training"]["verl"][key] = yaml.safe_load(value)
    return StudyConfig.model_validate(raw)


class Cards:
    """Memory and load of the GPUs, read by ``nvidia-smi`` twice a second while this is entered."""

    QUERY = "index,memory.used,utilization.gpu,power.draw"

    def __enter__(self) -> Cards:
        self.rows: list[tuple[float, int, float, float, float]] = []
        self.process: subprocess.Popen[str] | None = None
        try:
            self.process = subprocess.Popen(
                ["nvidia-smi", f"--query-gpu={self.QUERY}", "--format=csv,noheader,nounits", "-lms", "500"],
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError:
            return self
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def _read(self) -> None:
        assert self.process is not None and self.process.stdout is not None
        for line in self.process.stdout:
            index, *values = line.split(",")
            used, load, power = (float(value) if value.strip()[:1].isdigit() else 0.0 for value in values)
            self.rows.append((time.time(), int(index), used, load, power))

    def __exit__(self, *error: object) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    def summary(self, since: float = 0.0, until: float = math.inf) -> list[dict[str, float]]:
        """Per card: highest memory in GiB, mean load in percent, mean power in watts.

        ``busy_percent``: the mean load between two moments, those when the first and the last step ended.
        """
        found = []
        for index in sorted({row[1] for row in self.rows}):
            own = [row for row in self.rows if row[1] == index]
            count = len(own)
            later = [row[3] for row in own if since <= row[0] <= until]
            found.append(
                {
                    "peak_memory_gib": round(max(row[2] for row in own) / 1024, 2),
                    "mean_load_percent": round(sum(row[3] for row in own) / count, 1),
                    "mean_power_w": round(sum(row[4] for row in own) / count, 1),
                    "busy_percent": round(sum(later) / max(1, len(later)), 1),
                }
            )
        return found


class StepEnds:
    """When each step ended: when its line of verl's metrics appeared, while this is entered."""

    def __init__(self, path: Path) -> None:
        self.path, self.times = path, list[float]()
        self.over = threading.Event()

    def __enter__(self) -> None:
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.over.wait(0.1):
            self._look()

    def _look(self) -> None:
        lines = len(read_rows(self.path))
        self.times += [time.time()] * (lines - len(self.times))

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()
        self._look()


def image_patches(config: StudyConfig) -> int:
    """Patches of one screenshot: four for each of the language model's image tokens."""
    from arpo_replica.actions.coordinates import smart_resize

    policy, (width, height) = config.policy, config.desktop.screen
    new_width, new_height = smart_resize(width, height, policy.min_pixels, policy.max_pixels)
    return new_width * new_height // 14**2


def model_flops(
    shape: str, *, tokens: float, trajectories: int, images: int, patches: int
) -> dict[str, float]:
    """Arithmetic of one forward pass over a batch, by part.

    ``tokens``: in all, over ``trajectories`` of equal length; ``images``: in all, of ``patches`` patches.
    """
    sizes, weights = SHAPES[shape], weight_counts(shape)
    text, vision = sizes["text"], sizes["vision"]
    width = vision.get("embed_dim") or vision["hidden_size"]
    full = len(vision["fullatt_block_indexes"]) if "window_size" in vision else vision["depth"]
    arithmetic = Arithmetic(
        language=weights["language"],
        language_width=text["hidden_size"] * text["num_hidden_layers"],
        tower=weights["vision"],
        tower_width=width * full,
        tower_windowed=width * (vision["depth"] - full),
    )
    parts = arithmetic.flops(tokens / trajectories, images / trajectories, patches)
    return {part: trajectories * value for part, value in parts.items()}


def step_figures(options: argparse.Namespace, config: StudyConfig, data: dict[str, Any]) -> dict[str, Any]:
    """Figures of one step from verl's metrics."""
    trajectories = options.tasks * options.rollouts
    length = data["prompt_length/mean"] + data["response_length/mean"]
    tokens, turns = length * trajectories, data["arpo/turns"]
    recipe = config.recipe(options.arm)
    gpus, speed = recipe.gpus, Speed.of(outline(config, options.arm, "bench"))
    weights = sum(weight_counts(options.shape).values())
    update, total = data["timing_s/update_actor"], data["timing_s/step"]
    flops = model_flops(
        options.shape,
        tokens=tokens,
        trajectories=trajectories,
        images=round(trajectories * turns),
        patches=image_patches(config),
    )
    language, tower = (
        sum(value for key, value in flops.items() if key.startswith(part)) for part in ("language", "vision")
    )
    # Forwards once and twice as much backwards; a frozen tower runs forwards, unless its features are there.
    there = speed.vision_from_rollout or not speed.skip_log_probs
    passes = 3.0 if not speed.freeze_vision else 0.0 if there else 1.0
    needed = 3.0 * language + passes * tower
    again = speed.checkpoint_share * (language + (0.0 if speed.freeze_vision else tower))
    capacity = update * PEAK_FLOPS * gpus
    parts = {key.removeprefix(PARTS): value for key, value in data.items() if key.startswith(PARTS)}
    return {
        "seconds": {
            "rollout": data["timing_s/gen"],
            "old_log_probs": data.get("timing_s/old_log_prob"),
            "update": update,
            "weight_sync": data["timing_s/update_weights"],
            "step": total,
        },
        "rollout_seconds": {key: round(value, 3) for key, value in parts.items()},
        "rollout_accounted": round(sum(parts.values()) / data["timing_s/gen"], 3),
        "tokens": round(tokens),
        "tokens_per_trajectory": round(length),
        "turns": turns,
        "tokens_per_s": round(tokens / total, 1),
        "sampled_tokens_per_s_of_rollout": round(
            trajectories * turns * options.new_tokens / data["timing_s/gen"], 1
        ),
        "update_tokens_per_s": round(tokens / update, 1),
        "update_mfu": round(needed / capacity, 4),
        "update_utilisation": round((needed + again) / capacity, 4),
        "update_mfu_6n": round(6.0 * weights * tokens / update / PEAK_FLOPS / gpus, 4),
        "model_flops_forward": flops,
        "verl": {key: value for key, value in data.items() if key.startswith(KEPT)},
    }


def versions() -> dict[str, str]:
    """What took part."""
    names = ("torch", "vllm", "verl", "ray", "transformers", "tensordict", "triton", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except ImportError:
            found[name] = "none"
    return found


def cards() -> list[str]:
    """Names and drivers of the GPUs."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def measure(options: argparse.Namespace, folder: Path, scratch: Path) -> dict[str, Any]:
    """Train and collect."""
    config = study(options)
    model = options.model
    if model is None:
        model = build_shape(
            options.shape,
            folder / "model",
            weights=True,
            min_pixels=config.policy.min_pixels,
            max_pixels=config.policy.max_pixels,
        )
    job = Job(
        config=config,
        arm=options.arm,
        seed=0,
        stage_name="bench",
        split=resolve(config, config.stage("bench").split).absolute(),
        parent_model=model.absolute(),
        parent_sha256="0" * 64,
        out=folder / "stage",
        scratch=scratch,
        attempt=1,
        provider="scripted_desktop:ScriptedProvider",
        parser="scripted_desktop:make_parser",
        preload=forkable(config, options.arm),
    )
    check_recipe(job, 32)
    prepare_work(job)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(HERE), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    result: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "shape": options.shape,
        "weights": weight_counts(options.shape),
        "cards": cards(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions(),
        "training": config.recipe(options.arm).model_dump(mode="json"),
        "policy": config.policy.model_dump(mode="json"),
        "screenshot": [*config.desktop.screen, f"{image_patches(config) // 4} tokens"],
    }
    began = time.time()
    error = None
    ends = StepEnds(job.verl_metrics)
    with Cards() as monitor, ends:
        try:
            notice = Notice()
            if options.limit:
                timer = threading.Timer(options.limit, notice.give, kwargs={"at_once": True})
                timer.daemon = True
                timer.start()
            attempt = Attempt(job, Path(options.python), notice)
            attempt.wait()
            result["peak_main_memory_mb"] = round(attempt.peak_mb)
        except (RuntimeError, UserError, Stopped) as problem:  # what was measured before is kept
            error = str(problem)
    entries = read_rows(job.verl_metrics)
    result["seconds"] = {
        "all": round(time.time() - began, 1),
        "until_step_ends": [round(end - began, 1) for end in ends.times],
    }
    result["steps"] = [step_figures(options, config, entry["data"]) for entry in entries]
    times = ends.times or [began]
    result["gpus"] = monitor.summary(times[0], times[-1])
    if error:
        result["error"] = error[-4000:]
    if options.keep_log:
        log = job.work / "logs" / "train_001.log"
        options.out.with_suffix(".log").write_bytes(log.read_bytes()[-3_000_000:])
    return result


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON file that is written")
    parser.add_argument("--model", type=Path, help="folder of gpu_shapes.py; none: built first")
    parser.add_argument("--accelerator", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--screen", choices=SCREENS, help="size of the screenshots (default: full)")
    parser.add_argument("--screens", type=int, default=10, help="steps, and screenshots, of an episode")
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--tasks", type=int, default=2)
    parser.add_argument("--rollouts", type=int, default=4)
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--arm", choices=("grpo", "arpo"), default="arpo")
    parser.add_argument("--threads", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--stall", type=int, default=240, help="seconds without progress that end the run")
    parser.add_argument("--limit", type=float, default=0.0, help="seconds after which the run ends")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the config")
    parser.add_argument("--verl", action="append", default=[], metavar="KEY=VALUE", help="a key of verl")
    parser.add_argument("--plain", type=int, default=0, metavar="STEPS", help="as many of plain verl, too")
    parser.add_argument("--as-plain", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the training")
    parser.add_argument("--folder", type=Path, help="work folder (default: a temporary one)")
    parser.add_argument("--keep-log", action="store_true", help="the training's log beside OUT")
    options = parser.parse_args(arguments)
    if options.screen is None:
        options.screen = "nano" if options.shape.startswith("nano") else "full"
    return options


def start_plain(options: argparse.Namespace, gpu: str | None = None) -> subprocess.Popen[bytes]:
    """The same command with verl as it is. ``gpu``: the only one that it sees."""
    command = [sys.executable, __file__, *sys.argv[1:], "--as-plain", "--plain", "0"]
    command += ["--steps", str(options.plain), "--out", str(options.out.with_suffix(".plain.json"))]
    environment = os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
    return subprocess.Popen(command, env=environment)


def finish_plain(options: argparse.Namespace, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Its result; its file is removed, since the result goes into ours."""
    process.wait()
    path = options.out.with_suffix(".plain.json")
    if not path.is_file():
        return {"steps": [], "error": f"ended with status {process.returncode}"}
    found: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    return found


def main() -> None:
    """Measure once."""
    options = parse()
    os.chdir(ROOT)
    options.out = options.out.absolute()
    beside = options.plain and len(cards()) > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ
    plain = start_plain(options, gpu="1") if beside else None
    if beside:
        os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, short_folder() as scratch:
        result = measure(options, Path(folder), scratch)
    if options.plain:
        result["plain"] = finish_plain(options, plain or start_plain(options))
        steps = [found["steps"] for found in (result, result["plain"])]
        if all(steps):
            ours, theirs = (found[min(map(len, steps)) - 1]["seconds"]["step"] for found in steps)
            result["times_as_fast_as_plain"] = round(theirs / ours, 2)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    short = [{**step["seconds"], "mfu": step["update_mfu"]} for step in result["steps"]]
    error = result.get("error", "")[-1500:]
    print(json.dumps({"steps": short, "gpus": result["gpus"], "error": error}, indent=1))


if __name__ == "__main__":
    main()
