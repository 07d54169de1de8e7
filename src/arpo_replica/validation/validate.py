"""Does a task set work on these desktops? Every task is run with no action, with FAIL, and with its script.

A task that scores for no action, an infeasible one that does not score for FAIL, a script that no longer
solves its task and an environment error are told apart, for each task, with the reason where it is known
(``data/osworld/known_issues.yaml``). What is not known stands in ``unexpected``.
"""

import asyncio
import hashlib
import json
import logging
import signal
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from arpo_replica.base.environments import find
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import write_atomically
from arpo_replica.config.desktop import desktop_mark
from arpo_replica.config.load import read_checked
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.section import Section
from arpo_replica.desktop.interface import DesktopProvider
from arpo_replica.policy.endpoint import Policy
from arpo_replica.providers.pool import make_provider
from arpo_replica.rollout.collect import OutputRoot, PoolSettings, collect_episodes
from arpo_replica.rollout.episode import EpisodeLimits, Labels
from arpo_replica.rollout.records import episode_dir, read_summary
from arpo_replica.suites.osworld.inventory import PATH as EVALUATORS
from arpo_replica.tasks.model import Task
from arpo_replica.tasks.splits import ResolvedSplit
from arpo_replica.validation.scripted import (
    DONE,
    FAIL,
    FOLDER,
    EndsAtOnce,
    Oracle,
    ScriptedOracle,
    find_oracles,
    screen_parser,
)

logger = logging.getLogger(__name__)

KNOWN_ISSUES = Path("data/osworld/known_issues.yaml")
MODES = ("noop", "fail", "oracle")
MAX_STEPS = 400
"""Steps of a script with all its waits."""
GOOD = ("ok", "no_oracle", "infeasible_ok")
Verdict = Literal[
    "ok",
    "no_oracle",
    "infeasible_ok",
    "false_positive",
    "infeasible_wrong",
    "fail_scored",
    "oracle_failed",
    "env_error",
]


class KnownIssue(Section):
    """Something about a task that is as it is, and why."""

    task: str
    """``{domain}/{id}``."""
    verdict: Verdict | Literal["unsolvable"]
    """``unsolvable``: nothing that can be done at the screen scores; such a task has no script."""
    desktops: list[str]
    """Kinds of desktop (``fidelity.MARKS``) it was seen on."""
    reason: str


Attempt = dict[str, Any]
"""What one policy reached on one task, as in the result; ``score`` None: an environment error."""


def judge(infeasible: bool, attempts: Mapping[str, list[Attempt]]) -> Verdict:
    """The verdict on a task. ``attempts``: mode -> one for each trial; the worst one decides."""
    if any(attempt["score"] is None for made in attempts.values() for attempt in made):
        return "env_error"
    scores = {mode: [attempt["score"] for attempt in made] for mode, made in attempts.items()}
    if infeasible:
        right = max(scores["noop"]) == 0 and min(scores["fail"]) == 1
        return "infeasible_ok" if right else "infeasible_wrong"
    if max(scores["noop"]) > 0:
        return "false_positive"
    if max(scores["fail"]) > 0:
        return "fail_scored"
    if "oracle" not in scores:
        return "no_oracle"
    return "ok" if min(scores["oracle"]) == 1 else "oracle_failed"


def load_known_issues(path: Path) -> list[KnownIssue]:
    """Read the list. Raises ``UserError`` for a file that is none."""
    return read_checked(path, f"The list of known issues {path}", list[KnownIssue])


def validate_tasks(
    config: StudyConfig,
    resolved: ResolvedSplit,
    out: Path,
    *,
    trials: int = 1,
    provider: DesktopProvider | None = None,
    oracles: Path = FOLDER,
    known: Path = KNOWN_ISSUES,
) -> dict[str, Any]:
    """Run the split's tasks and write the result to ``out``; episodes go to ``episodes/`` beside it.

    Finished episodes of the same tasks, scripts and desktops are kept. Returns what it wrote. Raises
    ``UserError`` for what a user can correct.
    """
    if trials < 1:
        raise UserError(f"--trials is {trials}; give 1 or more.")
    split, tasks = resolved.split, resolved.load()
    scripts = find_oracles(tasks, config.desktop.screen, oracles)
    chosen = provider or make_provider(config.desktop)
    chosen.check()
    policies: dict[str, Policy] = {
        "noop": EndsAtOnce(DONE),
        "fail": EndsAtOnce(FAIL),
        "oracle": ScriptedOracle(scripts),
    }
    attempts: dict[str, dict[str, list[Attempt]]] = {task.id: {} for task in tasks}
    for mode, policy in policies.items():
        wanted = [task for task in tasks if mode != "oracle" or (task.id in scripts and not task.infeasible)]
        labels = make_labels(config, mode, scripts if mode == "oracle" else {})
        roots = [
            OutputRoot(out.parent / "episodes" / mode / split / f"trial_{trial}", split, trial, wanted)
            for trial in range(trials)
        ]
        asyncio.run(_collect(config, chosen, policy, roots, labels))
        for task in wanted:
            attempts[task.id][mode] = [read_attempt(root.path, task) for root in roots]
    kind = config.desktop.kind
    document = {
        "split": split,
        "trials": trials,
        "finished_at": round(time.time()),
        "kind": kind,
        "mark": desktop_mark(kind),
        "evaluator": {"package": "desktop-env", "version": json.loads(EVALUATORS.read_text())["version"]},
        "desktop": chosen.describe(),
        **summarise(
            tasks, attempts, [issue for issue in load_known_issues(find(known)) if kind in issue.desktops]
        ),
    }
    write_atomically(out, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    return document


def make_labels(config: StudyConfig, mode: str, scripts: Mapping[str, Oracle]) -> Labels:
    """Labels of a mode's episodes; a changed script is another policy."""
    written = "".join(scripts[key].model_dump_json() for key in sorted(scripts))
    return Labels(
        arm=mode,
        seed=0,
        stage="validation",
        size=config.size,
        desktop=config.desktop.kind,
        checkpoint_sha256=hashlib.sha256(f"{mode}/{written}".encode()).hexdigest(),
        sampling={"policy": mode, "screen": list(config.desktop.screen)},
    )


async def _collect(
    config: StudyConfig,
    provider: DesktopProvider,
    policy: Policy,
    roots: list[OutputRoot],
    labels: Labels,
) -> None:
    running = asyncio.current_task()
    assert running is not None
    # Snakemake stops a job with SIGTERM: leave in order, so that desktops are closed.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    limits = EpisodeLimits(MAX_STEPS, config.evaluation.success_above, config.rollout.episode_timeout_s)
    await collect_episodes(
        roots,
        provider=provider,
        policy=lambda *_: policy,
        parser=screen_parser(config.desktop.screen),
        labels=labels,
        settings=PoolSettings.of(config, limits),
    )


def read_attempt(root: Path, task: Task) -> Attempt:
    record = read_summary(episode_dir(root, task.domain, task.id))
    found = {"score": record["hard_score"], "steps": record["n_steps"]}
    times = {"seconds": "duration_s", "reset_s": "reset_s", "evaluate_s": "evaluate_s"}
    found |= {name: round(record[key], 2) for name, key in times.items()}
    return found | ({"errors": record["errors"]} if record["errors"] else {})


def summarise(
    tasks: Iterable[Task],
    attempts: Mapping[str, Mapping[str, list[Attempt]]],
    known: Iterable[KnownIssue],
) -> dict[str, Any]:
    """What each task scored, what that means, and what was not expected.

    ``attempts``: task id -> mode -> trials; ``known``: the issues known of these desktops.
    """
    reasons = {(issue.task, issue.verdict): issue.reason for issue in known}
    rows, unexpected = [], []
    for task in tasks:
        name, made = f"{task.domain}/{task.id}", attempts[task.id]
        verdict = judge(task.infeasible, made)
        reason = reasons.get((name, verdict))
        if verdict not in GOOD and reason is None:
            unexpected.append(name)
        row: dict[str, Any] = {"task": name, "sha256": task.sha256, "infeasible": task.infeasible}
        row |= {**made, "verdict": verdict, "known": reason, "unsolvable": reasons.get((name, "unsolvable"))}
        rows.append(row)
    counts = Counter(row["verdict"] for row in rows)
    return {"counts": dict(sorted(counts.items())), "unexpected": unexpected, "tasks": rows}


def tell(document: Mapping[str, Any]) -> int:
    """Say what was found, a line for each task; 1 if something was not expected, else 0."""
    for row in document["tasks"]:
        scores = " ".join(
            f"{mode} {'/'.join(_score(attempt['score']) for attempt in row[mode])}"
            for mode in MODES
            if mode in row
        )
        logger.info(f"{row['task']}: {row['verdict']} ({scores}){'; known' if row['known'] else ''}")
    counts = ", ".join(f"{number} {verdict}" for verdict, number in document["counts"].items())
    logger.info(
        f"{document['split']} on {document['mark']}: {counts}; {len(document['unexpected'])} unexpected"
    )
    return int(bool(document["unexpected"]))


def _score(score: float | None) -> str:
    return "env_error" if score is None else f"{score:g}"


# --- do two kinds of desktop give the same scores? ---

SIDE = ("split", "kind", "mark", "evaluator", "desktop", "trials", "finished_at")
"""What is kept of each result."""


def read_validation(path: Path) -> dict[str, Any]:
    """A result of ``validate_tasks``. Raises ``UserError`` for a file that is none."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        rows = {row["task"]: row for row in document["tasks"]}
        _ = document["kind"]
        for row in rows.values():
            _ = row["sha256"], row["infeasible"], [_scores(row[mode]) for mode in MODES if mode in row]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no result of validate-tasks ({error!r}).") from error
    return document | {"rows": rows}


def compare_validations(first: Path, second: Path) -> dict[str, Any]:
    """The scores of the tasks that both have, and where they differ.

    Raises ``UserError`` if they have no task in common, or one in two versions.
    """
    one, two = read_validation(first), read_validation(second)
    common = [name for name in one["rows"] if name in two["rows"]]
    if not common:
        raise UserError(f"{first} and {second} have no task in common.")
    rows, different = [], []
    for name in common:
        ours, theirs = one["rows"][name], two["rows"][name]
        if ours["sha256"] != theirs["sha256"]:
            raise UserError(f"{first} and {second} have the task {name} in two versions.")
        row: dict[str, Any] = {"task": name, "infeasible": ours["infeasible"]}
        for mode in MODES:
            if mode in ours and mode in theirs:
                row[mode] = {"first": _scores(ours[mode]), "second": _scores(theirs[mode])}
                if set(row[mode]["first"]) != set(row[mode]["second"]):
                    different.append(f"{name}: {mode}")
        rows.append(row)
    return {
        "first": {key: one[key] for key in SIDE if key in one},
        "second": {key: two[key] for key in SIDE if key in two},
        "different": different,
        "tasks": rows,
    }


def _scores(attempts: list[Mapping[str, Any]]) -> list[float | None]:
    return [attempt["score"] for attempt in attempts]
