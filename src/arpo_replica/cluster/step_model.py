"""How long a GRPO step takes on GPUs: an event model of its rollouts, arithmetic for the rest.

A rollout is a queue: one process of verl drives all desktops of a training and prepares every turn, one front
of each vLLM takes screenshots one by one, and its engine prefills what has come between two decoding steps.
How long they wait for one another decides the step, so it is simulated (SimPy); updates are arithmetic at the
speed measured. Constants and their sources: ``data/cluster/step_costs.yaml``.
``tests/unit/test_step_model.py`` holds the model to every committed run (15 %).
"""

from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import simpy
from pydantic import Field

from arpo_replica.actions.coordinates import FACTOR, smart_resize
from arpo_replica.base.environments import ROOT
from arpo_replica.base.tables import load_yaml
from arpo_replica.cluster.costs import Arithmetic, Sourced
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.section import Positive, Section
from arpo_replica.training.job import outline
from arpo_replica.training.recipe import Speed

FULL_PIXELS = 1920 * 1080
PROMPT_TOKENS = 160
"""Of a trajectory, besides screenshots and replies: 159 in the committed runs."""
REPLY_TOKENS = 100
"""Of a reply, as in all committed runs; UI-TARS's are of about that length."""
TAIL_S = 1.7
"""What verl does with trajectories between rollout and update, and the weights' way to vLLM."""
FULL_PATCHES = 10_764
"""Of a screenshot of 1920x1080 under UI-TARS's `max_pixels`."""
Seconds = Field(ge=0)
Events = Generator[simpy.Event, Any, None]


class Host(Sourced):
    """Seconds on the CPU for a screenshot of 1920x1080; smaller ones cost in proportion to their pixels."""

    agent: float = Seconds
    """The training's process, for each turn."""
    front: float = Seconds
    """vLLM's front, for each turn."""
    resent_agent: float = Seconds
    """As ``agent``, without ``named_screenshots``."""
    resent_front: float = Seconds
    """As ``front``, without ``named_screenshots``."""
    resent_agent_history: float = Seconds
    """The same for each screenshot of the history besides."""
    resent_front_history: float = Seconds
    """The same for each screenshot of the history besides."""
    resent_tail: float = Seconds
    """For each episode at its end, then."""
    mp_history: float = Seconds
    """The engine, for each screenshot of the history, with executor ``mp`` and the history sent again."""
    start: float = Seconds
    """Of a rollout, before its first turn; this one does not depend on the screen."""


class Desktops(Sourced):
    """Seconds of a desktop, waits that the config asks for not included."""

    turn: float = Seconds
    """From a reply to the next screenshot."""
    reset: float = Seconds
    """Of an episode's reset and evaluation."""


class GpuSpeed(Arithmetic, Sourced):
    """One size of policy, and the speed at which one H200 computes it."""

    prefill: float = Field(gt=0)
    """Seconds for a screenshot of 1920x1080 in vLLM."""
    decode: float = Field(gt=0)
    """Seconds of a decoding step in vLLM, of a few sequences."""
    language_forward: float = Field(gt=0)
    """Seconds for 10^15 operations of a forward pass of the trainer's language model."""
    language_update: float = Field(gt=0)
    """The same for an update: forward, backward, layers computed twice."""
    tower_forward: float = Field(gt=0)
    """As ``language_forward``, of the tower."""
    tower_update: float = Field(gt=0)
    """As ``language_update``, of a tower that is trained."""
    measured_gpus: Positive
    """Most GPUs of the runs that the numbers were fitted to."""
    measured_tower_update: bool
    """Whether one of the runs trained the tower."""

    def petaflops(self, tokens: float, images: int, patches: int) -> tuple[float, float]:
        """10^15 operations of a forward pass over one trajectory: (language model, tower)."""
        parts = self.flops(tokens, images, patches)
        language = parts["language"] + parts["language_attention"]
        return language / 1e15, (parts["vision"] + parts["vision_attention"]) / 1e15


class StepCosts(Section):
    """``data/cluster/step_costs.yaml``"""

    host: Host
    """The machine's processors."""
    desktops: Desktops
    """Desktops."""
    machines: dict[str, GpuSpeed]
    """Size of policy -> GPU."""
    measured_trajectories: Positive
    """Of a step of the runs that the numbers were fitted to, each with a desktop of its own."""


@lru_cache(maxsize=1)
def step_costs(path: Path = ROOT / "data" / "cluster" / "step_costs.yaml") -> StepCosts:
    return StepCosts.model_validate(load_yaml(path.read_text()))


@dataclass(frozen=True, slots=True)
class Step:
    """What a step of training does and where."""

    trajectories: int
    turns: int
    pixels: int
    """Of a screenshot as the desktop makes it."""
    patches: int
    """Of a screenshot as the policy sees it; four for each image token."""
    desktops: int
    turn_s: float
    """Of a desktop between reply and screenshot."""
    reset_s: float
    gpus: int
    replicas: int
    """vLLMs."""
    speed: Speed
    """``training.speed``"""

    @classmethod
    def of(cls, config: StudyConfig, arm: str, desktop: Desktops) -> Self:
        """A step of an arm whose episodes all use their full number of turns."""
        recipe, policy = config.recipe(arm), config.policy
        width, height = smart_resize(*config.desktop.screen, policy.min_pixels, policy.max_pixels)
        gpus = recipe.gpus * recipe.nodes
        return cls(
            trajectories=recipe.tasks_per_step * recipe.rollouts_per_task,
            turns=policy.max_steps,
            pixels=config.desktop.screen[0] * config.desktop.screen[1],
            patches=4 * width * height // FACTOR**2,
            desktops=config.desktop.count,
            turn_s=desktop.turn + config.desktop.pause_seconds,
            reset_s=desktop.reset,
            gpus=gpus,
            replicas=max(1, gpus // recipe.tensor_parallel),
            speed=Speed.of(outline(config, arm, "")),
        )


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step."""

    rollout: float
    log_probs: float
    update: float
    computing: float
    """Of the rollouts, those in which a GPU computes."""

    @property
    def step(self) -> float:
        return self.rollout + self.log_probs + self.update + TAIL_S

    @property
    def gpu_busy(self) -> float:
        """Share of the step in which the GPUs compute."""
        return (self.computing + self.log_probs + self.update) / self.step


def step_time(step: Step, host: Host, machine: GpuSpeed) -> StepTime:
    rollout, computing = rollout_time(step, host, machine)
    tokens = step.turns * (step.patches / 4 + REPLY_TOKENS) + PROMPT_TOKENS
    language, tower = machine.petaflops(tokens, step.turns, step.patches)
    share = step.trajectories / step.gpus
    tower_forward = 0.0 if step.speed.vision_from_rollout else tower * machine.tower_forward
    forward = language * machine.language_forward + tower_forward
    update = language * machine.language_update
    if not step.speed.freeze_vision:
        update += tower * machine.tower_update
    elif step.speed.skip_log_probs:  # else its features are there from the pass
        update += tower_forward
    log_probs = 0.0 if step.speed.skip_log_probs else share * forward
    return StepTime(rollout, log_probs, share * update, computing)


def rollout_time(step: Step, host: Host, machine: GpuSpeed) -> tuple[float, float]:
    """Seconds of the rollouts of a step, and seconds of it in which a GPU computes (mean over GPUs)."""
    world = simpy.Environment()
    agent, desktops = simpy.Resource(world), simpy.Resource(world, step.desktops)
    fronts = [simpy.Resource(world) for _ in range(step.replicas)]
    queues = [simpy.Store(world) for _ in range(step.replicas)]
    scale = step.pixels / FULL_PIXELS
    language, tower = machine.petaflops(step.patches / 4, 1, step.patches)
    full = machine.petaflops(FULL_PATCHES / 4, 1, FULL_PATCHES)
    prefill = machine.prefill * (language + tower) / sum(full)
    computing = 0.0

    def busy(resource: simpy.Resource, seconds: float) -> Events:
        with resource.request() as granted:
            yield granted
            yield world.timeout(seconds)

    def engine(queue: simpy.Store) -> Events:
        nonlocal computing
        tokens_left: dict[simpy.Event, int] = {}
        while True:
            new = [] if tokens_left else [(yield queue.get())]
            new += queue.items
            queue.items.clear()
            work = machine.decode + prefill * len(new)
            sent_again = 0 if step.speed.executor == "uni" else sum(turn for _, turn in new)
            computing += work
            yield world.timeout(work + scale * host.mp_history * sent_again)
            tokens_left |= {replied: REPLY_TOKENS for replied, _ in new}
            for replied in list(tokens_left):
                tokens_left[replied] -= 1
                if not tokens_left[replied]:
                    del tokens_left[replied]
                    replied.succeed()

    def episode(replica: int) -> Events:
        with desktops.request() as granted:
            yield granted
            yield world.timeout(step.reset_s)
            for turn in range(1, step.turns + 1):
                yield world.timeout(step.turn_s)
                if step.speed.named_screenshots:
                    prepare, accept = host.agent, host.front
                else:
                    prepare = host.resent_agent + turn * host.resent_agent_history
                    accept = host.resent_front + turn * host.resent_front_history
                yield from busy(agent, scale * prepare)
                yield from busy(fronts[replica], scale * accept)
                replied = world.event()
                queues[replica].put((replied, turn))
                yield replied
        if not step.speed.named_screenshots:
            yield from busy(agent, scale * host.resent_tail)

    for queue in queues:
        world.process(engine(queue))
    episodes = [world.process(episode(number % step.replicas)) for number in range(step.trajectories)]
    world.run(world.all_of(episodes))
    return float(world.now) + host.start, computing / step.replicas


def describe_step(config: StudyConfig, arm: str) -> str | None:
    """A training step of an arm in ``plan``'s words; None for a size that was not measured."""
    costs = step_costs()
    machine = costs.machines.get(config.plain_size)
    if machine is None or config.accelerator != "cuda":
        return None
    step, recipe = Step.of(config, arm, costs.desktops), config.recipe(arm)
    time = step_time(step, costs.host, machine)
    beyond = [
        f"{asked} {what} (measured: {most})"
        for what, asked, most in (
            ("GPUs", step.gpus, machine.measured_gpus),
            ("trajectories a step", step.trajectories, costs.measured_trajectories),
            ("desktops", step.desktops, costs.measured_trajectories),
        )
        if asked > most
    ]
    beyond += [f"{recipe.nodes} nodes (measured: 1)"] if recipe.nodes > 1 else []
    known_tower = step.speed.freeze_vision or machine.measured_tower_update
    beyond += [] if known_tower else ["a trained tower of this size"]
    beyond += ["offload, not counted"] if recipe.offload else []
    beyond += ["vLLM on several GPUs"] if recipe.tensor_parallel > 1 else []
    return (
        f"{time.step:.0f} s = rollouts {time.rollout:.0f} + log-probabilities {time.log_probs:.0f} + update "
        f"{time.update:.0f} + rest {TAIL_S:.0f}; {3600 / time.step:.1f} steps an hour, GPUs busy "
        f"{time.gpu_busy:.0%}. "
        + (f"Extrapolated: {', '.join(beyond)}." if beyond else "Within what was measured.")
    )
