"""A study's episodes in the folder layout of OSWorld's runners, so that OSWorld's tools can read them.

    {out}/pyautogui/screenshot/{model}/{domain}/{task id}/traj.jsonl   one line per reply
    {out}/pyautogui/screenshot/{model}/{domain}/{task id}/step_{n}_{time}.png
    {out}/pyautogui/screenshot/{model}/{domain}/{task id}/result.txt   one number
    {out}/index.json                                                   what each {model} is; what has no score

OSWorld's ``show_result.py`` takes the mean over the tasks that have a ``result.txt``; a task without one
leaves the mean. So it shows the rate of valid episodes; the index says how many are not valid.
"""

import io
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from arpo_replica.actions.pyautogui_source import PREFIX, source_of
from arpo_replica.actions.types import Fail, Finished, Wait, from_json
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import write_document
from arpo_replica.config.desktop import desktop_mark
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.records import PROTOCOLS, Document, Protocol
from arpo_replica.evaluation.scores import find_indexes
from arpo_replica.rollout.records import EpisodeRecord, StepRecord, finished_episodes, read_episode
from arpo_replica.tasks.splits import left_out_of, load_split

ACTION_SPACE, OBSERVATION = "pyautogui", "screenshot"
"""Names of OSWorld's runners: actions are shown as pyautogui source, the policy sees screenshots."""
SAME = {"arm", "seed", "stage", "split", "trial", "size", "desktop", "checkpoint_sha256"}
"""Fields of a run that each of its episodes has."""
_WORDS = {Wait: "WAIT", Finished: "DONE", Fail: "FAIL"}
"""Actions that have a word of their own in OSWorld."""


class ExportedRun(Document):
    """One arm, seed, stage, split and trial: what OSWorld's tools call a model."""

    model: str
    """Name of its folder, and what ``show_result.py`` takes as ``--model``."""
    arm: str
    seed: int
    stage: str
    split: str
    trial: int
    size: str
    desktop: str
    desktop_mark: str
    """Never to be left out beside a score."""
    checkpoint_sha256: str
    tasks: int
    """Size of the split: what "of all" counts."""
    scored: int
    """Tasks with a ``result.txt``: what ``show_result.py`` counts."""
    mean_score: float | None
    """Mean over the scored tasks, as ``show_result.py`` shows it; partial scores count in part."""
    success_of_scored: float | None
    """Share of the scored tasks whose score is a success, as our own report counts."""
    env_errors: dict[str, str]
    """Task -> why it has no score."""
    missing: list[str]
    """Tasks of the split without an episode."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """Tasks that the study leaves out -> why; "of all" counts them."""


class ExportIndex(Document):
    study: str
    protocol: Protocol
    """hard: the state as it was left; standard: an episode cut at the step limit counts as FAIL."""
    success_above: float
    runs: list[ExportedRun] = Field(default_factory=list)


def export_osworld(
    config: StudyConfig, episodes: Path, out: Path, protocol: Protocol = "standard"
) -> ExportIndex:
    """Write every finished set of episodes under ``episodes`` to the new folder ``out``.

    ``protocol`` decides what ``result.txt`` holds (OSWorld's runners score by ``standard``). Raises
    ``UserError`` if ``out`` is not empty or there is nothing to export.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"The protocol is '{protocol}'; give one of {', '.join(PROTOCOLS)}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; name a new folder for the export.")
    if episodes.is_file():
        raise UserError(f"{episodes} is a file; name the folder of a study's episodes.")
    indexes = find_indexes([episodes])
    if not indexes:
        raise UserError(f"{episodes} holds no finished set of episodes; run the study first.")
    result = ExportIndex(study=config.study, protocol=protocol, success_above=config.evaluation.success_above)
    for index in indexes:
        folders = list(finished_episodes(index.parent).values())
        records = [read_episode(folder) for folder in folders]
        if records:
            result.runs.append(_export_run(config, records, folders, out, protocol))
    write_document(result, out / "index.json")
    return result


def _export_run(
    config: StudyConfig,
    records: Sequence[tuple[EpisodeRecord, list[StepRecord]]],
    folders: Sequence[Path],
    out: Path,
    protocol: Protocol,
) -> ExportedRun:
    first = records[0][0]
    model = f"{first.arm}.seed_{first.seed}.{first.stage}.{first.split}.trial_{first.trial}"
    scores: list[float] = []
    env_errors = {}
    for (record, steps), folder in zip(records, folders, strict=True):
        target = out / ACTION_SPACE / OBSERVATION / model / record.domain / record.task_id
        target.mkdir(parents=True)
        score = record.hard_score if protocol == "hard" else record.standard_score
        lines = list(_write_steps(record, steps, folder, target))
        if record.outcome == "env_error" or score is None:
            why = record.errors[-1] if record.errors else "environment failure"
            env_errors[f"{record.domain}/{record.task_id}"] = why
            lines.append({"Error": why})
        else:
            scores.append(score)
            (target / "result.txt").write_text(f"{score}\n")
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (target / "traj.jsonl").write_text(text, encoding="utf-8")
    tasks = _tasks_of(config, first.split)
    present = {f"{record.domain}/{record.task_id}" for record, _ in records}
    dropped = {entry.task: entry.because for entry in left_out_of(config, first.split)} if tasks else {}
    above = config.evaluation.success_above
    return ExportedRun(
        model=model,
        tasks=len(tasks) or len(records),
        scored=len(scores),
        mean_score=sum(scores) / len(scores) if scores else None,
        success_of_scored=sum(score > above for score in scores) / len(scores) if scores else None,
        desktop_mark=desktop_mark(first.desktop),
        env_errors=env_errors,
        missing=sorted(set(tasks) - present - set(dropped)),
        left_out=dropped,
        **first.model_dump(include=SAME),
    )


def _tasks_of(config: StudyConfig, split: str) -> list[str]:
    if split not in config.tasks.splits:
        return []
    return [task.name for task in load_split(config.tasks.splits[split], config.tasks.root)]


def _write_steps(
    record: EpisodeRecord, steps: Sequence[StepRecord], folder: Path, target: Path
) -> Iterator[dict[str, Any]]:
    """Write the screenshots; give a line of ``traj.jsonl`` for each action. ``step_num`` counts replies."""
    # The attempt that counted ended with the evaluator; earlier attempts lie before it.
    spent = sum(step.model_s + step.env_s for step in steps)
    now = record.started_at + record.duration_s - record.evaluate_s - spent
    if steps:
        _write_png(folder / steps[0].screenshot, target / f"step_0_{_stamp(now)}.png")
    for number, step in enumerate(steps, start=1):
        acted = now + step.model_s
        now = acted + step.env_s
        after = steps[number].screenshot if number < len(steps) else record.final_screenshot
        name = f"step_{number}_{_stamp(now)}.png"
        shown = after is not None and _write_png(folder / after, target / name)
        last = number == len(steps)
        ended = last and record.outcome in ("success", "failure")
        actions = [step.action, *step.further]
        for place, action in enumerate(actions, start=1):
            # A screenshot was taken after the last action of a reply alone.
            final = place == len(actions)
            yield {
                "step_num": number,
                "action_timestamp": _stamp(acted),
                "action": _action(action),
                "response": step.text,
                "reward": 0,
                "done": ended and final,
                "info": {"format_error": step.format_error} if step.format_error else {},
                "screenshot_file": name if shown and final else None,
            }


def _action(written: dict[str, Any] | None) -> str:
    """The action as OSWorld's runners write it; empty for a reply that was no action."""
    if written is None:
        return ""
    action = from_json(written)
    return _WORDS.get(type(action)) or (source_of(action) or "").removeprefix(PREFIX)


def _write_png(source: Path, target: Path) -> bool:
    """False if there is no such screenshot: an episode may have been stripped of its images."""
    from PIL import Image

    if not source.is_file():
        return False
    buffer = io.BytesIO()
    with Image.open(source) as image:
        image.convert("RGB").save(buffer, "PNG", compress_level=1)
    target.write_bytes(buffer.getvalue())
    return True


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%d@%H%M%S%f")
