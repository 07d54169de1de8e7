"""The event model of a training step against every run that was measured."""

import json
from pathlib import Path

import pytest

from arpo_replica.cluster.step_model import Step, describe_step, step_costs, step_time
from arpo_replica.config import load_config
from arpo_replica.training.recipe import Speed

RUNS = Path(__file__).parents[2] / "benchmarks" / "results" / "gpu"
OTHER_CODE = {
    "r0_2b.json",  # screenshots as floats, which nobody turns on: six times the work on the CPU
    "r6_failed.json",
    "r7_failed.json",
}
SCRIPTED_S = 0.065
"""What a scripted desktop of the benchmark takes for a screenshot of 1920x1080."""


def measured() -> list[Path]:
    return [path for path in sorted(RUNS.glob("[ru][0-9]*.json")) if path.name not in OTHER_CODE]


def step_of(run: dict) -> Step:
    """What the run did, from its own record; keys that were not there yet have their later switch's "off"."""
    recipe, (width, height, tokens) = run["training"], run["screenshot"]
    speed, pixels = recipe["speed"], width * height
    executor = speed.get("executor", "mp")
    return Step(
        trajectories=recipe["tasks_per_step"] * recipe["rollouts_per_task"],
        turns=run["policy"]["max_steps"],
        pixels=pixels,
        patches=4 * int(tokens.split()[0]),
        desktops=recipe["tasks_per_step"] * recipe["rollouts_per_task"],
        turn_s=SCRIPTED_S * pixels / (1920 * 1080),
        reset_s=0.0,
        gpus=recipe["gpus"],
        replicas=recipe["gpus"] // recipe["tensor_parallel"],
        speed=Speed.model_construct(
            named_screenshots=speed.get("named_screenshots", False),
            executor="uni" if executor != "mp" or "uni" in recipe["verl"].values() else "mp",
            skip_log_probs="skip_log_probs" in speed,
            freeze_vision=speed["freeze_vision"],
            vision_from_rollout=speed.get("vision_from_rollout", False),
        ),
    )


@pytest.mark.parametrize("path", measured(), ids=lambda path: path.stem)
def test_it_predicts_the_measured_steps(path):
    run, costs = json.loads(path.read_text()), step_costs()
    predicted = step_time(step_of(run), costs.host, costs.machines[run["shape"]])
    later = [step["seconds"]["step"] for step in run["steps"][1:]]  # the first one compiles and fills caches
    assert predicted.step == pytest.approx(sum(later) / len(later), rel=0.15)
    assert 0.3 < predicted.gpu_busy < 1


def test_there_are_runs_to_be_held_to():
    assert len(measured()) >= 10


@pytest.fixture
def paper():
    return load_config(Path("configs/paper.yaml"), Path("configs/recipes/paper.yaml"))


def test_more_desktops_and_gpus_never_make_a_step_slower(paper):
    costs = step_costs()
    machine = costs.machines["7b"]

    def seconds(**changes: int) -> float:
        recipe = paper.training.model_copy(update={"nodes": 1, "gpus": changes.pop("gpus", 8)})
        desktop = paper.desktop.model_copy(update=changes)
        config = paper.model_copy(update={"training": recipe, "desktop": desktop})
        return step_time(Step.of(config, "arpo", costs.desktops), costs.host, machine).step

    assert seconds(count=256) < seconds(count=64) < seconds(count=16)
    assert seconds(gpus=8) < seconds(gpus=2)


def test_what_was_not_measured_is_said(paper):
    sentence = describe_step(paper, "arpo")
    for beyond in (
        "16 GPUs (measured: 2)",
        "256 desktops (measured: 8)",
        "2 nodes",
        "trained tower",
        "offload",
    ):
        assert beyond in sentence
    assert "Within what was measured" in describe_step(load_config(Path("configs/seed_2b.yaml")), "arpo")
    assert describe_step(load_config(Path("configs/demo.yaml")), "arpo") is None
