"""Invented studies in the exact layout on disk, for tests of scores, statistics and the report.

Nothing here was measured. The study's name starts with ``synthetic``.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image, ImageDraw

from arpo_replica.config.load import parse_config
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.claims import compare_claims
from arpo_replica.evaluation.provenance import write_provenance
from arpo_replica.evaluation.records import Summary
from arpo_replica.evaluation.scores import score_episodes
from arpo_replica.evaluation.summary import summarise_study
from arpo_replica.policy.manifest import Manifest, write_manifest
from arpo_replica.report.render import render_report
from arpo_replica.rollout.records import EpisodeRecord, StepRecord, to_webp, write_episode, write_index
from arpo_replica.tasks.left_out import resolve
from synthetic_full import outcome_fields, write_gates

PAPER = Path(__file__).parents[1] / "data" / "paper"
SCREEN = (168, 224)
WORDS = ["Okay", "Cancel", "Submit", "Next", "Yes", "No", "Send", "Back"]
PAGES = [
    "click-button",
    "click-tab",
    "click-dialog",
    "click-color",
    "focus-text",
    "enter-text",
    "click-shape",
]
COLOURS = ["#d7263d", "#1b998b", "#2e86ab", "#f5b700", "#6a4c93"]

Chooser = Callable[[str, str, int], Any]
"""(arm, task id, trial) -> outcome; empty: no episode."""


@dataclass
class Study:
    """Where the pieces of an invented study lie."""

    root: Path
    config: StudyConfig
    episodes: Path
    metrics: list[Path] = field(default_factory=list)
    manifests: list[Path] = field(default_factory=list)
    reports: list[Path] = field(default_factory=list)
    learning: list[Path] = field(default_factory=list)

    @property
    def results(self) -> Path:
        return self.root / "results" / self.config.study


# Invented episodes need not survive a power cut: thousands of flushes take minutes on a busy disk.
@mock.patch("os.fsync", lambda _: None)
def make_study(
    root: Path,
    *,
    name: str = "synthetic",
    tasks: int = 14,
    trials: int = 2,
    arms: tuple[str, ...] = ("base", "grpo", "arpo"),
    seeds: tuple[int, ...] = (0,),
    steps: int = 8,
    choose: Chooser | None = None,
    screenshots: bool = True,
    text: Callable[[int], str] | None = None,
    instruction: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> Study:
    """Write task files, splits, episodes, metrics and manifests of a study; ``trials=0``: no episode."""
    splits = {"train_4": 4, "train_32": 8, "test_in": tasks, "test_out": max(2, tasks - 4)}
    for split, count in splits.items():
        ids = [f"{PAGES[i % len(PAGES)]}_{split}_{i}" for i in range(count)]
        for i, task_id in enumerate(ids):
            words = instruction or f'Click on the "{WORDS[i % len(WORDS)]}" button.'
            raw = {"id": task_id, "instruction": words, "config": [], "evaluator": {"func": "miniwob"}}
            if split == "test_out" and i == count - 1:
                raw["evaluator"] = {"func": "infeasible"}
            _write(root / "data/tasks/miniwob" / f"{task_id}.json", json.dumps(raw))
        listing = {"name": split, "source": "synthetic", "tasks": {"miniwob": ids}}
        _write(root / f"data/splits/{split}.json", json.dumps(listing))
    raw_config = {
        "study": name,
        "size": "nano",
        "seeds": list(seeds),
        "desktop": {"screen": list(SCREEN), "count": 8},
        "tasks": {
            "root": str(root / "data/tasks"),
            "splits": {split: str(root / f"data/splits/{split}.json") for split in splits},
        },
        "policy": {"max_steps": 4},
        "arms": {arm: {} if arm == "base" else {"replay": {"enabled": arm == "arpo"}} for arm in arms},
        "training": {
            "tasks_per_step": 4,
            "stages": [
                {"name": "train_4", "split": "train_4", "steps": max(1, steps)},
                {"name": "train_32", "split": "train_32", "steps": max(1, steps * 2)},
            ],
        },
        "evaluation": {"splits": ["test_in", "test_out"], "trials": max(1, trials)},
        **(overrides or {}),
    }
    config = parse_config(raw_config, "synthetic")
    study = Study(root, config, root / "results" / name / "episodes")
    study.episodes.mkdir(parents=True, exist_ok=True)
    tsv = "s\th:m:s\tmax_rss\tcpu_time\n75.5\t0:01:15\t3120.4\t101.0\n"
    _write(study.results / "benchmarks/train_stage/arpo.seed_0.train_4.tsv", tsv)
    for arm in arms:
        for seed in seeds:
            if arm == "base" and seed != seeds[0]:
                continue
            stage = "base" if arm == "base" else config.training.stages[-1].name
            for split in config.evaluation.splits:
                for trial in range(trials):
                    _episodes(study, arm, seed, stage, split, trial, choose, screenshots, text)
            if arm == "base":
                _manifest(study, arm, seed, "base", 0)
            elif arm in config.offline_arms:
                _manifest(study, arm, seed, stage, steps)
                study.learning.append(_learning(study.manifests[-1].with_name("learning.jsonl"), steps))
            elif steps:
                _training(study, arm, seed)
    return study


def evaluate(study: Study) -> Summary:
    """Everything between episodes and the page, as the rules do it."""
    results = study.results
    score_episodes(study.config, [study.episodes], results / "scores.parquet")
    summary = summarise_study(
        study.config,
        results / "scores.parquet",
        study.metrics,
        study.manifests,
        results / "summary.json",
        reports=study.reports,
        learning=study.learning,
    )
    compare_claims(study.config, results / "summary.json", PAPER / "claims.yaml", results / "claims.json")
    write_origin(study)
    return summary


def write_origin(study: Study) -> None:
    """Where the study comes from, as the rule writes it."""
    splits = [resolve(study.config, split) for split in study.config.tasks.splits]
    write_provenance(
        study.config,
        study.results / "provenance.json",
        manifests=study.manifests,
        splits=splits,
        repository=PAPER.parents[1],
    )


def render(study: Study) -> Path:
    """The page of an evaluated study."""
    out = study.root / "reports" / study.config.study / "index.html"
    render_report(study.config, study.results, out, deviations=PAPER / "deviations.yaml")
    return out


def _episodes(
    study: Study,
    arm: str,
    seed: int,
    stage: str,
    split: str,
    trial: int,
    choose: Chooser | None,
    screenshots: bool,
    text: Callable[[int], str] | None,
) -> None:
    folder = study.episodes / arm / f"seed_{seed}" / f"stage_{stage}" / split / f"trial_{trial}"
    ids = json.loads((study.root / f"data/splits/{split}.json").read_text())["tasks"]["miniwob"]
    skill = {"base": 0.3, "grpo": 0.45, "arpo": 0.6}.get(arm, 0.4) * (1 if split == "test_in" else 0.7)
    for i, task_id in enumerate(ids):
        raw = json.loads((study.root / f"data/tasks/miniwob/{task_id}.json").read_text())
        dice = random.Random(f"{arm} {seed} {split} {trial} {task_id}")
        hard_task = random.Random(task_id).random()
        if choose is not None:
            outcome = choose(arm, task_id, trial)
        elif dice.random() < 0.04:
            outcome = "env_error"
        elif dice.random() < skill * 1.6 * (1 - hard_task) + 0.1:
            outcome = "success"
        else:
            outcome = dice.choice(["failure", "truncated"])
        if not outcome:
            continue
        infeasible = raw["evaluator"]["func"] == "infeasible"
        steps, images = _steps(dice, i, outcome, text, screenshots)
        record = EpisodeRecord(
            task_id=task_id,
            domain="miniwob",
            task_sha256="a" * 64,
            instruction=raw["instruction"],
            infeasible=infeasible,
            arm=arm,
            seed=seed,
            stage=stage,
            split=split,
            trial=trial,
            size="nano",
            desktop="process",
            checkpoint_sha256="b" * 64,
            sampling={"temperature": 0.6, "top_p": 1.0},
            **outcome_fields(outcome, infeasible, steps),
            started_at=1_700_000_000.0 + i,
            duration_s=round(1.3 + dice.random(), 3),
        )
        write_episode(folder, record, steps, images)
    folder.mkdir(parents=True, exist_ok=True)
    write_index(folder)


def _steps(
    dice: random.Random, i: int, outcome: str, text: Callable[[int], str] | None, screenshots: bool
) -> tuple[list[StepRecord], dict[str, bytes]]:
    if outcome == "env_error":
        return [], {}
    count = {"success": dice.randint(1, 2), "failure": dice.randint(1, 3), "truncated": 4}[outcome]
    buttons = [(20 + 60 * (k % 2), 80 + 40 * (k // 2), WORDS[(i + k * 3) % len(WORDS)]) for k in range(4)]
    steps, images = [], {}
    for index in range(count):
        x, y, word = buttons[0] if outcome == "success" else dice.choice(buttons)
        x, y = x + 25, y + 12
        kinds: list[dict[str, Any]] = [
            {"type": "click", "x": x, "y": y},
            {"type": "drag", "x": x, "y": y, "to_x": 130, "to_y": 190},
            {"type": "type_text", "text": word},
            {"type": "scroll", "direction": "down", "x": x, "y": y},
            {"type": "hotkey", "keys": ["ctrl", "a"]},
        ]
        last = index == count - 1
        action: dict[str, Any] | None = kinds[0] if last or dice.random() < 0.6 else dice.choice(kinds)
        problem = None
        said = (
            f"Thought: The button “{word}” is what the task asks for.\nAction: click(start_box='({x},{y})')"
        )
        if outcome == "failure" and last and dice.random() < 0.25:
            action, problem, said = None, "no Action: line", "Thought: I click I click I click I"
        steps.append(
            StepRecord(
                index=index,
                text=text(index) if text else said,
                action=action,
                action_id=f"e-{index}",
                format_error=problem,
                screenshot=f"step_{index:03d}.webp",
                model_s=round(0.2 + dice.random() / 3, 4),
                env_s=round(0.1 + dice.random() / 10, 4),
                prompt_tokens=180 + 60 * index,
                completion_tokens=24,
            )
        )
    if screenshots:
        images = {f"step_{index:03d}.webp": screen(i, buttons, None) for index in range(count)}
        images[f"step_{count:03d}.webp"] = screen(i, buttons, "#1b998b" if outcome == "success" else None)
    return steps, images


def screen(i: int, buttons: list[tuple[int, int, str]], done: str | None) -> bytes:
    """A page that looks a little like MiniWoB++, as WebP."""
    image = Image.new("RGB", SCREEN, "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, SCREEN[0], 50), fill="#ffff99")
    draw.text((4, 8), f'Click on the "{buttons[0][2]}"\nbutton.', fill="black")
    for k, (x, y, word) in enumerate(buttons):
        draw.rectangle((x, y, x + 50, y + 24), fill="#efefef", outline="#767676")
        draw.text((x + 6, y + 6), word, fill="black")
        draw.ellipse((x + 52, y + 2, x + 60, y + 10), fill=COLOURS[(i + k) % len(COLOURS)])
    if done:
        draw.rectangle((0, 51, SCREEN[0], 58), fill=done)
    out = io.BytesIO()
    image.save(out, "PNG")
    return to_webp(out.getvalue())


def _training(study: Study, arm: str, seed: int) -> None:
    dice = random.Random(f"{arm} {seed}")
    level = 0.22
    for number, (stage, count) in enumerate((s.name, s.steps) for s in study.config.training.stages):
        folder = study.results / "models" / arm / f"seed_{seed}" / f"stage_{stage}"
        lines = []
        level -= 0.08 * number
        for step in range(1, count + 1):
            level = min(0.95, level + (0.03 if arm == "arpo" else 0.018) + dice.gauss(0, 0.025))
            before = max(0.0, level)
            failed = dice.randint(0, 2)
            swapped = min(failed, dice.randint(0, 2)) if arm == "arpo" else 0
            line = {
                "step": step,
                "groups": 4,
                "rollouts": 16,
                "reward_before": before - 0.05,
                "reward_after": before - 0.05 + 0.06 * swapped,
                "success": before,
                "swapped_groups": swapped,
                "all_fail_groups": failed,
                "buffer_size": step if arm == "arpo" else 0,
                "entropy": 1.1 - 0.02 * step,
                "clip_fraction": 0.04 + dice.random() / 50,
                "unparsable": 0.06,
                "env_errors": 0,
                "lost_rollouts": 0,
                "probability_difference_mean": 0.004,
                "kl": None,
                "seconds": {
                    "rollout": 8 + dice.random(),
                    "update": 4,
                    "weight_sync": 0.8,
                    "save": None,
                    "total": 15,
                },
                "tasks": [{"task": f"miniwob/click-tab_{g}", "scores": [0.0] * 4} for g in range(4)],
                "swaps": [
                    {"group": g, "rollout": 0, "name": "x", "step": max(1, step - 2)} for g in range(swapped)
                ],
            }
            lines.append(json.dumps(line) + "\n")
        _write(folder / "metrics.jsonl", "".join(lines))
        study.metrics.append(folder / "metrics.jsonl")
        study.reports.append(write_gates(folder, arm, seed, stage, count))
        _manifest(study, arm, seed, stage, count)


def _manifest(study: Study, arm: str, seed: int, stage: str, step: int) -> None:
    path = study.results / "models" / arm / f"seed_{seed}" / f"stage_{stage}" / "manifest.json"
    manifest = Manifest(
        arm=arm,
        seed=seed,
        stage=stage,
        step=step,
        size="nano",
        model="model",
        weights={"model.safetensors": "c" * 64},
        sha256="b" * 64,
        parent=None if arm == "base" else "a" * 64,
        recipe={"data": {"samples": 12, "inexact_replies": 0}},
        versions={},
    )
    write_manifest(manifest, path)
    study.manifests.append(path)


def _learning(path: Path, steps: int) -> Path:
    rows = [
        {"step": step, "loss": 1 / step, "grad_norm": 2.0, "epoch": step / steps}
        for step in range(1, steps + 1)
    ]
    _write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
