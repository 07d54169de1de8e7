"""The episode loop: screenshot, reply, action, until the policy ends it or the step limit is reached.

Rollouts for evaluation and rollouts inside verl both run this very function.
"""

import asyncio
import math
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from arpo_replica.actions.types import Action, Fail, Finished, Wait
from arpo_replica.base.errors import DesktopError, FormatError, RefusedError
from arpo_replica.config.models import StudyConfig
from arpo_replica.desktop.interface import Desktop, Score
from arpo_replica.policy.endpoint import AsksAgain, Conversation, Policy, Reply
from arpo_replica.rollout.records import EpisodeRecord, Outcome, Show, StepRecord, unwatched, write_episode
from arpo_replica.tasks.model import Task


class ReplyParser(Protocol):
    """Text of the policy -> actions in screen pixels."""

    def actions(self, text: str) -> list[Action]:
        """What the reply does, in order; never empty. Raises ``FormatError`` for anything else."""


@dataclass(frozen=True, slots=True)
class EpisodeLimits:
    """When an episode ends and what counts as a success."""

    max_steps: int
    success_above: float
    timeout_s: float
    call_user_waits: int = 0
    """So many first ``call_user`` (or ``error_env``) of an episode are a ``wait``."""
    reasks: int = 0
    """So many times an unparsable reply is asked for again."""

    @classmethod
    def of(cls, config: StudyConfig) -> Self:
        """Those of a training: a reply is final."""
        return cls(config.policy.max_steps, config.evaluation.success_above, config.rollout.episode_timeout_s)


@dataclass
class EpisodeResult:
    """What one attempt at a task gave. Never made for a broken desktop: that raises."""

    outcome: Outcome
    hard_score: float
    standard_score: float
    format_errors: int
    steps: list[StepRecord] = field(default_factory=list)
    screenshots: dict[str, bytes] = field(default_factory=dict)
    """File name in the record (``step_000.webp``) -> PNG bytes as they came; ``write_episode`` converts."""
    final_screenshot: str | None = None
    refusal: str = ""
    """What the server said when it refused to go on; see ``EpisodeRecord``."""
    expected: str = ""
    """What the evaluator wanted, and what it found; see ``EpisodeRecord``."""
    found: str = ""
    reset_s: float = 0.0
    """Seconds until the desktop showed the task."""
    evaluate_s: float = 0.0
    """Seconds of the evaluator."""
    ran_on: dict[str, str] = field(default_factory=dict)
    """See ``Desktop``."""

    @property
    def taken(self) -> int:
        """Steps of ``policy.max_steps`` that were used up."""
        return sum(step.taken for step in self.steps)


TOLD = (
    *("outcome", "hard_score", "standard_score", "expected", "found", "format_errors", "refusal"),
    *("final_screenshot", "reset_s", "evaluate_s", "ran_on"),
)
"""What a record takes over from a result."""
LOST = EpisodeResult("env_error", None, None, 0)  # type: ignore[arg-type]  # environment errors have no score


@dataclass(frozen=True, slots=True)
class Labels:
    """What all episodes of a job have in common, as it goes into their records."""

    arm: str
    seed: int
    stage: str
    size: str
    desktop: str
    checkpoint_sha256: str
    sampling: dict[str, Any]


def make_record(
    task: Task,
    result: EpisodeResult | None,
    labels: Labels,
    *,
    split: str,
    trial: int,
    errors: list[str],
    started_at: float,
) -> EpisodeRecord:
    """The summary of an episode that ends now; ``result`` None: every attempt was an environment error.

    ``errors``: one line for each attempt that was one. ``started_at``: Unix time of the first attempt.
    """
    told = result or LOST
    return EpisodeRecord(
        task_id=task.id,
        domain=task.domain,
        task_sha256=task.sha256,
        instruction=task.instruction,
        infeasible=task.infeasible,
        **asdict(labels),
        split=split,
        trial=trial,
        **{name: getattr(told, name) for name in TOLD},
        n_steps=told.taken,
        attempts=len(errors) + (result is not None),
        errors=list(errors),
        started_at=started_at,
        duration_s=round(time.time() - started_at, 3),
    )


def record_episode(
    root: Path, task: Task, result: EpisodeResult | None, labels: Labels, **facts: Any
) -> None:
    """Write the episode of a task below ``root``; ``facts``: as for ``make_record``. Call it in a thread."""
    record, told = make_record(task, result, labels, **facts), result or LOST
    write_episode(root, record, told.steps, told.screenshots)


async def run_episode(
    task: Task,
    desktop: Desktop,
    policy: Policy,
    parser: ReplyParser,
    limits: EpisodeLimits,
    *,
    show: Show = unwatched,
) -> EpisodeResult:
    """Run one episode on a desktop that is started but not yet reset. ``show`` is called with every screen.

    An unparsable reply ends the episode (released code: verl/trainer/gui_agent.py:814-819); the
    evaluator still runs; so it does when the conversation has become too long for the server. Of a reply with
    several actions, those beyond the step limit do not run. Raises ``DesktopError`` or ``PolicyError``: the
    attempt is an ``env_error``.
    """
    scope = asyncio.timeout(limits.timeout_s)
    try:
        async with scope:
            return await _run(task, desktop, policy, parser, limits, show=show)
    except TimeoutError as error:
        if scope.expired():
            raise DesktopError(f"episode took longer than {limits.timeout_s:g} s") from error
        raise DesktopError(f"something in the episode timed out: {error}") from error


async def _run(
    task: Task, desktop: Desktop, policy: Policy, parser: ReplyParser, limits: EpisodeLimits, *, show: Show
) -> EpisodeResult:
    began = time.monotonic()
    await desktop.reset(task)
    conversation = policy.start(task)
    episode = uuid.uuid4().hex
    steps: list[StepRecord] = []
    screenshots: dict[str, bytes] = {}
    last: Action | None = None
    ended = False
    refusal = ""
    format_errors = taken = waits = 0
    png = await desktop.screenshot()
    reset_s = time.monotonic() - began
    while taken < limits.max_steps and not ended:
        index = len(steps)
        name = f"step_{index:03d}.webp"
        screenshots[name] = png
        await show(png, steps)
        observed = time.monotonic()
        try:
            reply, actions, discarded, problem = await _ask(conversation, png, parser, limits.reasks)
        except RefusedError as error:
            if not steps:
                raise  # nothing has grown yet: the server takes no conversation like this one
            refusal = str(error)
            break
        replied = time.monotonic()
        format_errors += problem is not None
        actions = actions[: limits.max_steps - taken]
        if actions and isinstance(actions[0], Fail) and waits < limits.call_user_waits:
            actions, waits = [Wait()], waits + 1
        last = actions[-1] if actions else None
        ended = last is None or isinstance(last, Finished | Fail)
        # An action is applied at most once: each has an id of its own.
        ids = [f"{episode}-{index}" + (f".{number}" if number else "") for number in range(len(actions))]
        if not ended:
            for action, action_id in zip(actions, ids, strict=True):
                await desktop.act(action, action_id)
            png = await desktop.screenshot()
        steps.append(
            StepRecord(
                index=index,
                text=reply.text,
                action=actions[0].to_json() if actions else None,
                further=[action.to_json() for action in actions[1:]],
                discarded=discarded,
                action_id=None if ended else ids[0],
                format_error=problem,
                screenshot=name,
                model_s=round(replied - observed, 4),
                env_s=round(time.monotonic() - replied, 4),
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.completion_tokens,
                weights=reply.weights,
            )
        )
        taken += steps[-1].taken
    final = f"step_{len(steps):03d}.webp"
    screenshots[final] = png
    finished = time.monotonic()
    hard = await desktop.evaluate(task, last)
    if not (math.isfinite(hard) and 0 <= hard <= 1):
        raise DesktopError(f"the evaluator gave {hard!r}, which is no score in [0, 1]")
    if ended:
        outcome: Outcome = "success" if hard > limits.success_above else "failure"
        standard = hard
    else:
        outcome, standard = "truncated", hard if refusal else float(task.infeasible)
    told = hard if isinstance(hard, Score) else Score(hard)
    return EpisodeResult(
        outcome=outcome,
        hard_score=float(hard),
        standard_score=float(standard),
        expected=told.expected,
        found=told.found,
        format_errors=format_errors,
        refusal=refusal,
        steps=steps,
        screenshots=screenshots,
        final_screenshot=final,
        reset_s=round(reset_s, 4),
        evaluate_s=round(time.monotonic() - finished, 4),
        ran_on=dict(desktop.ran_on),
    )


async def _ask(
    conversation: Conversation, screenshot: bytes, parser: ReplyParser, reasks: int
) -> tuple[Reply, list[Action], list[str], str | None]:
    """The next reply, its actions, unparsable replies before it, and why it is unparsable itself."""
    reply = await conversation.reply(screenshot)
    discarded: list[str] = []
    while True:
        try:
            return reply, parser.actions(reply.text), discarded, None
        except FormatError as error:
            if len(discarded) == reasks or not isinstance(conversation, AsksAgain):
                return reply, [], discarded, str(error)
        discarded.append(reply.text)
        reply = await conversation.again()
