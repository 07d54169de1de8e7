"""An invented study of the full size, for tests of the page's speed and of the tables.

Nothing here was measured. Every episode says ``synthetic: true`` in its own record; the scores, the summary
and the claims take it over from there, no claim gets a verdict, and publishing refuses the study. Nothing but
editing each episode by hand removes the mark.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml
from PIL import Image, ImageDraw
from scipy import stats

from arpo_replica.config.desktop import desktop_mark
from arpo_replica.config.load import parse_config
from arpo_replica.config.models import StudyConfig, merge
from arpo_replica.evaluation import statistics
from arpo_replica.evaluation.claims import compare_claims
from arpo_replica.evaluation.provenance import write_provenance
from arpo_replica.evaluation.scores import as_table, score_episodes
from arpo_replica.evaluation.summary import summarise_study
from arpo_replica.evaluation.tables import write_tables
from arpo_replica.policy.manifest import Manifest, write_manifest
from arpo_replica.rollout.records import EpisodeRecord, Outcome, StepRecord, write_index
from arpo_replica.tasks.left_out import resolve
from arpo_replica.training.gates import Gate, StageReport

ROOT = Path(__file__).resolve().parents[1]
DOMAINS = {
    "chrome": 46, "gimp": 26, "libreoffice_calc": 47, "libreoffice_impress": 47, "libreoffice_writer": 23,
    "multi_apps": 101, "os": 24, "thunderbird": 15, "vlc": 17, "vs_code": 23,
}  # fmt: skip
"""Shape of OSWorld's 369 tasks; the tasks themselves are invented."""
SKILL = {"base": 0.24, "grpo": 0.28, "arpo": 0.34}
"""Invented mean success of the arms that have one of their own; others get 0.26."""
MAX_STEPS = 15
ADJECTIVES = ("first", "second", "largest", "oldest", "hidden", "shared", "blue", "empty")
NOUNS = ("sheet", "folder", "bookmark", "layer", "message", "slide", "playlist", "setting")


@dataclass(frozen=True)
class SyntheticStudy:
    """Where an invented study lies."""

    config: StudyConfig
    config_file: Path
    results: Path
    metrics: tuple[Path, ...]
    manifests: tuple[Path, ...]
    reports: tuple[Path, ...]


def make_synthetic(
    out: Path,
    *,
    tasks: int = 369,
    arms: tuple[str, ...] = ("base", "grpo", "arpo", "kto"),
    trials: int = 3,
    screen: tuple[int, int] = (480, 270),
    updates: int = 120,
    paper: Path = Path("data/paper"),
) -> SyntheticStudy:
    """Write an invented study below ``out``: tasks, splits, config, episodes, scores, summary, claims.

    ``screen`` is the size of the screenshots in pixels. The same arguments give the same bytes, apart from
    the provenance, which names this machine.
    """
    config, config_file = _write_config(out, tasks, arms=arms, trials=trials, screen=screen, updates=updates)
    results = out / "results" / config.study
    metrics, manifests, reports = [], [], []
    last = config.training.stages[-1].name
    for arm in arms:
        stage = "base" if arm == "base" else last
        manifests.append(write_invented_manifest(results, arm, stage, updates))
        if arm != "base":
            metrics.append(write_metrics(results, config, arm, stage, updates))
            reports.append(write_gates(metrics[-1].parent, arm, 0, stage, updates))
        for trial in range(trials):
            _write_episodes(results, config, arm, stage, trial)
    study = SyntheticStudy(config, config_file, results, tuple(metrics), tuple(manifests), tuple(reports))
    evaluate(study, paper)
    return study


def evaluate(study: SyntheticStudy, paper: Path = Path("data/paper")) -> None:
    """Everything between the episodes and the page, as the rules do it."""
    config, results = study.config, study.results
    scores, summary = results / "scores.parquet", results / "summary.json"
    score_episodes(config, [results / "episodes"], scores)
    summarise_study(config, scores, study.metrics, study.manifests, summary, reports=study.reports)
    compare_claims(config, summary, paper / "claims.yaml", results / "claims.json")
    splits = [resolve(config, split) for split in config.tasks.splits]
    write_provenance(config, results / "provenance.json", manifests=study.manifests, splits=splits)
    write_tables(summary, results / "claims.json", scores, results / "tables")


def _write_config(
    out: Path, tasks: int, *, arms: tuple[str, ...], trials: int, screen: tuple[int, int], updates: int
) -> tuple[StudyConfig, Path]:
    names = [
        (domain, f"synthetic-{domain}-{i:03d}") for domain, count in DOMAINS.items() for i in range(count)
    ]
    chosen = names[:: max(1, len(names) // tasks)][:tasks]
    trained = [name for name in chosen if _unit("trained", name[1]) < 128 / 369]
    others = [name for name in chosen if name not in set(trained)]
    for domain, task_id in chosen:
        infeasible = _unit("infeasible", task_id) < 30 / 369
        raw = {
            "id": task_id,
            "instruction": _instruction(domain, task_id),
            "config": [],
            "evaluator": {"func": "infeasible" if infeasible else "synthetic"},
        }
        write_text(out / "data/tasks" / domain / f"{task_id}.json", json.dumps(raw))
    for split, members in (("synthetic_in", trained), ("synthetic_out", others)):
        listed: dict[str, list[str]] = {}
        for domain, task_id in members:
            listed.setdefault(domain, []).append(task_id)
        content = {"name": split, "source": "invented, no benchmark", "tasks": listed}
        write_text(out / f"data/splits/{split}.json", json.dumps(content, indent=1))
    raw_config = {
        "study": "synthetic",
        "size": "nano",
        "desktop": {"screen": list(screen)},
        "tasks": {
            "root": str(out / "data/tasks"),
            "splits": {
                name: str(out / f"data/splits/{name}.json") for name in ("synthetic_in", "synthetic_out")
            },
        },
        "policy": {"max_steps": MAX_STEPS},
        "arms": {arm: {} if arm == "base" else {"replay": {"enabled": arm == "arpo"}} for arm in arms},
        "training": {
            "tasks_per_step": 16,
            "stages": [{"name": "full", "split": "synthetic_in", "steps": max(1, updates)}],
        },
        "evaluation": {"splits": ["synthetic_in", "synthetic_out"], "trials": trials},
        "targets": {
            "benchmark": "synthetic_out",
            "selected": "synthetic_in",
            "in_domain": "synthetic_in",
            "out_of_domain": "synthetic_out",
        },
    }
    config_file = out / "synthetic.yaml"
    heading = "# Invented by `make-synthetic`: no number of this study was measured.\n"
    write_text(config_file, heading + yaml.safe_dump(raw_config, sort_keys=False))
    return parse_config(raw_config, str(config_file)), config_file


RATES = {
    "osworld_369": {"base": (0.182, 0.235), "grpo": (0.209, 0.260), "arpo": (0.238, 0.299)},
    "arpo_128": {"base": (0.523, 0.687), "grpo": (0.560, 0.725), "arpo": (0.590, 0.755)},
}
"""Split -> arm -> mean success (hard, standard) of the invented study of the paper's size: Table 1 as
printed, and a smaller gain on the 128 tasks than the README's, so that more than one verdict is seen."""


def make_paper_study(
    out: Path,
    *,
    seeds: int = 5,
    trials: int = 3,
    spread: float = 0.01,
    rates: dict[str, dict[str, tuple[float, float]]] = RATES,
) -> SyntheticStudy:
    """An invented study whose config is `configs/paper.yaml` with its recipe, for a page with verdicts.

    Task files, a table of episodes without their folders, metrics, gates, manifests, and all that is made of
    them. ``spread``: standard deviation between trainings, as a fraction. The same arguments give the same
    table.
    """
    raw: dict[str, Any] = {}
    for name in ("paper", "recipes/paper"):
        raw = merge(raw, yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text()))
    pins = {"vm": "Ubuntu.qcow2", "vm_sha256": "a" * 64, "image_digest": f"sha256:{'b' * 64}"}
    splits = {name: str(ROOT / path) for name, path in raw["tasks"]["splits"].items()}
    raw = merge(
        raw,
        {
            "study": "synthetic",
            "variant": None,
            "seeds": list(range(seeds)),
            "desktop": {"osworld": pins},
            "tasks": {"root": str(out / "data/tasks"), "leave_out": [], "splits": splits},
            "evaluation": {"trials": trials},
        },
    )
    config_file = out / "synthetic.yaml"
    write_text(config_file, "# Invented: no number of this study was measured.\n" + yaml.safe_dump(raw))
    config = parse_config(raw, str(config_file))
    results, stage = out / "results" / config.study, config.training.stages[-1]
    metrics, manifests, reports = [], [], []
    for arm, seed in [("base", 0), *((arm, s) for arm in ("grpo", "arpo") for s in config.seeds)]:
        name = "base" if arm == "base" else stage.name
        manifests.append(write_invented_manifest(results, arm, name, stage.steps, seed, config.size))
        if arm != "base":
            metrics.append(write_metrics(results, config, arm, name, stage.steps, seed))
            reports.append(write_gates(metrics[-1].parent, arm, seed, name, stage.steps))
    scores = results / "scores.parquet"
    scores.parent.mkdir(parents=True, exist_ok=True)
    as_table(_rows(out, config, rates, spread)).to_parquet(scores, index=False)
    (results / "episodes").mkdir(exist_ok=True)
    study = SyntheticStudy(config, config_file, results, tuple(metrics), tuple(manifests), tuple(reports))
    with mock.patch.object(statistics, "RESAMPLES", 199):  # of intervals that no verdict uses
        summarise_study(config, scores, metrics, manifests, results / "summary.json", reports=reports)
    paper = ROOT / "data/paper"
    compare_claims(config, results / "summary.json", paper / "claims.yaml", results / "claims.json")
    resolved = [resolve(config, split) for split in config.tasks.splits]
    write_provenance(config, results / "provenance.json", manifests=manifests, splits=resolved)
    return study


def _rows(
    out: Path, config: StudyConfig, rates: dict[str, dict[str, tuple[float, float]]], spread: float
) -> Iterator[dict[str, Any]]:
    """One row of the table of scores per invented episode."""
    dice = np.random.default_rng(1)
    for split, means in rates.items():
        listed = json.loads(config.tasks.splits[split].read_text())["tasks"]
        names = [(domain, task_id) for domain, ids in listed.items() for task_id in ids]
        infeasible = np.array([_unit("infeasible", task_id) < 30 / 369 for _, task_id in names])
        for (domain, task_id), wont in zip(names, infeasible, strict=True):
            func = "infeasible" if wont else "synthetic"
            raw = {
                "id": task_id,
                "instruction": _instruction(domain, task_id),
                "config": [],
                "evaluator": {"func": func},
            }
            write_text(out / "data/tasks" / domain / f"{task_id}.json", json.dumps(raw))
        for arm, (hard, standard) in means.items():
            level = hard * len(names) / (~infeasible).sum()
            # The same difficulty for every arm: most tasks are nearly always or nearly never solved.
            rank = np.random.default_rng(7).random(len(names))
            chance = np.where(infeasible, 0.0, stats.beta.ppf(rank, 0.85 * level, 0.85 * (1 - level)))
            for seed in [0] if arm == "base" else config.seeds:
                here = (
                    chance if arm == "base" else np.clip(chance + dice.normal(0, spread) * ~infeasible, 0, 1)
                )
                for trial in range(config.evaluation.trials):
                    solved = dice.random(len(names)) < here
                    cut = dice.random(len(names)) < np.where(
                        infeasible, min(1.0, (standard - hard) * len(names) / infeasible.sum()), 0.3
                    )
                    part = dice.random(len(names)) < 0.04  # OSWorld scores some tasks in fractions
                    for i, (domain, task_id) in enumerate(names):
                        outcome = "success" if solved[i] else "truncated" if cut[i] else "failure"
                        score = 1.0 if solved[i] else 0.4 if part[i] and not infeasible[i] else 0.0
                        free = outcome == "truncated" and infeasible[i]
                        yield {
                            "study": config.name,
                            "size": config.size,
                            "desktop": config.desktop.kind,
                            "desktop_mark": desktop_mark(config.desktop.kind),
                            "arm": arm,
                            "stage": "base" if arm == "base" else config.training.stages[-1].name,
                            "seed": seed,
                            "split": split,
                            "trial": trial,
                            "domain": domain,
                            "task_id": task_id,
                            "task_sha256": digest(task_id),
                            "instruction": _instruction(domain, task_id),
                            "infeasible": bool(infeasible[i]),
                            "checkpoint_sha256": digest(f"{arm} {seed}"),
                            "sampling": '{"temperature": 0.6}',
                            "outcome": outcome,
                            "valid": True,
                            "hard_score": score,
                            "standard_score": 1.0 if free else 0.0 if outcome == "truncated" else score,
                            "success_hard": bool(solved[i]),
                            "success_standard": bool(solved[i] or free),
                            "format_errors": 0,
                            "n_steps": 15 if outcome == "truncated" else 7,
                            "attempts": 1,
                            "failed_attempts": 0,
                            "started_at": 1_700_000_000.0 + 100 * trial,
                            "duration_s": 90.0,
                            "directory": f"{arm}/seed_{seed}/{split}/trial_{trial}/{domain}.{task_id}",
                            "synthetic": True,
                            "errors": "[]",
                            "index": "",
                            "index_sha256": "",
                        }


def _instruction(domain: str, task_id: str) -> str:
    dice = random.Random(task_id)
    return (
        f"(Invented task) In {domain.replace('_', ' ')}, open the {dice.choice(ADJECTIVES)} "
        f"{dice.choice(NOUNS)} and rename it to “{dice.choice(NOUNS)} {dice.randint(2, 99)}”."
    )


def _write_episodes(results: Path, config: StudyConfig, arm: str, stage: str, trial: int) -> None:
    for split, path in config.tasks.splits.items():
        root = results / "episodes" / arm / "seed_0" / f"stage_{stage}" / split / f"trial_{trial}"
        listed = json.loads(path.read_text())["tasks"]
        for domain, ids in listed.items():
            for task_id in ids:
                task_file = config.tasks.root / domain / f"{task_id}.json"
                _write_episode(root, config, (arm, stage, split, trial), task_file)
        write_index(root)


def _write_episode(
    root: Path, config: StudyConfig, place: tuple[str, str, str, int], task_file: Path
) -> None:
    arm, stage, split, trial = place
    raw = json.loads(task_file.read_text())
    domain, task_id = task_file.parent.name, str(raw["id"])
    infeasible = raw["evaluator"]["func"] == "infeasible"
    dice = random.Random(f"{arm} {trial} {task_id}")
    outcome = _outcome(dice, arm, split, task_id, infeasible)
    steps = _steps(dice, task_id, outcome, config.desktop.screen)
    scored = outcome != "env_error"
    record = EpisodeRecord(
        task_id=task_id,
        domain=domain,
        task_sha256=hashlib.sha256(task_file.read_bytes()).hexdigest(),
        instruction=raw["instruction"],
        infeasible=infeasible,
        arm=arm,
        seed=0,
        stage=stage,
        split=split,
        trial=trial,
        size=config.size,
        desktop=config.desktop.kind,
        checkpoint_sha256=digest(f"{arm} {stage}"),
        sampling={"temperature": 0.6, "top_p": 1.0},
        **outcome_fields(outcome, infeasible, steps),
        started_at=1_700_000_000.0 + dice.randint(0, 6000),
        duration_s=round(sum(step.model_s + step.env_s for step in steps) + 8 + dice.random(), 3),
        reset_s=6.0,
        evaluate_s=1.5,
        synthetic=True,
    )
    folder = root / f"{domain}.{task_id}"
    folder.mkdir(parents=True, exist_ok=True)
    # Written without the flushes of a real episode: thousands of them would take minutes.
    for index in range(len(steps) + 1 if scored else 0):
        done = index == len(steps) and outcome == "success"
        data = _screenshot(task_id, index, done, tuple(config.desktop.screen))
        (folder / f"step_{index:03d}.webp").write_bytes(data)
    write_text(folder / "steps.jsonl", "".join(step.model_dump_json() + "\n" for step in steps))
    write_text(folder / "episode.json", record.model_dump_json(indent=1) + "\n")


def outcome_fields(outcome: Outcome, infeasible: bool, steps: list[StepRecord]) -> dict[str, Any]:
    """What an episode's record says of its end, as the rollouts write it."""
    scored = outcome != "env_error"
    fail_is_right = outcome == "truncated" and infeasible
    return {
        "outcome": outcome,
        "hard_score": float(outcome == "success") if scored else None,
        "standard_score": float(outcome == "success" or fail_is_right) if scored else None,
        "format_errors": sum(step.format_error is not None for step in steps),
        "n_steps": sum(step.taken for step in steps),
        "attempts": 1 if scored else 3,
        "errors": [] if scored else ["desktop: the guest server did not answer within 15 s"] * 3,
        "final_screenshot": f"step_{len(steps):03d}.webp" if scored else None,
    }


def _outcome(dice: random.Random, arm: str, split: str, task_id: str, infeasible: bool) -> Outcome:
    if dice.random() < 0.01:
        return "env_error"
    if infeasible:
        return dice.choices(("success", "failure", "truncated"), (1, 4, 15))[0]
    # Most tasks are always or never solved, as benchmarks of agents have it: a logistic curve over a
    # difficulty per task, moved by the arm.
    difficulty = _unit("difficulty", task_id)
    skill = SKILL.get(arm, 0.26) * (2.2 if split == "synthetic_in" else 0.75)
    if dice.random() < 1 / (1 + math.exp(14 * (difficulty - skill))):
        return "success"
    return dice.choices(("failure", "truncated"), (2, 1))[0]


def _steps(dice: random.Random, task_id: str, outcome: str, screen: tuple[int, int]) -> list[StepRecord]:
    if outcome == "env_error":
        return []
    count = MAX_STEPS if outcome == "truncated" else dice.randint(2, 9)
    steps = []
    for index in range(count):
        x, y = dice.randrange(screen[0]), dice.randrange(screen[1])
        action = _action(dice, x, y, index == count - 1 and outcome != "truncated")
        problem = None
        text = (
            f"Thought: The {dice.choice(ADJECTIVES)} {dice.choice(NOUNS)} is at the place where I expected "
            f"it, so I go on with step {index + 1}.\nAction: {action['type']}(start_box='({x},{y})')"
        )
        if dice.random() < 0.02:
            problem, text = "no Action: line", "Thought: I look at the screen. I look at the screen. I look"
        steps.append(
            StepRecord(
                index=index,
                text=text,
                action=None if problem else action,
                action_id=f"{task_id}-{index}",
                format_error=problem,
                screenshot=f"step_{index:03d}.webp",
                model_s=round(2 + 3 * dice.random(), 3),
                env_s=round(1 + dice.random(), 3),
                prompt_tokens=2800 + 2700 * index,
                completion_tokens=dice.randint(40, 130),
            )
        )
    return steps


def _action(dice: random.Random, x: int, y: int, last: bool) -> dict[str, Any]:
    if last:
        return {"type": "finished", "content": "done"}
    kinds: list[dict[str, Any]] = [
        {"type": "click", "x": x, "y": y},
        {"type": "double_click", "x": x, "y": y},
        {"type": "drag", "x": x, "y": y, "to_x": x // 2, "to_y": y // 2},
        {"type": "scroll", "direction": "down", "x": x, "y": y},
        {"type": "type_text", "text": dice.choice(NOUNS)},
        {"type": "hotkey", "keys": ["ctrl", "s"]},
    ]
    return dice.choices(kinds, (12, 2, 1, 2, 3, 1))[0]


@lru_cache(maxsize=20000)
def _screenshot(task_id: str, index: int, done: bool, screen: tuple[int, int]) -> bytes:
    """A made-up desktop with the word "synthetic" on it, as WebP; each task and step has its own."""
    dice = random.Random(f"{task_id} {index}")
    width, height = screen
    image = Image.new("RGB", screen, (46, 52 + dice.randrange(40), 64 + dice.randrange(60)))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width, height // 16), fill="#1d1f21")
    draw.text((6, 2), f"synthetic - {task_id} - step {index}", fill="#dddddd")
    for _ in range(3):
        left, top = dice.randrange(width // 2), height // 12 + dice.randrange(height // 2)
        right, bottom = left + width // 3 + dice.randrange(width // 6), top + height // 3
        draw.rectangle((left, top, right, bottom), fill="#f4f4f2", outline="#888888")
        draw.rectangle(
            (left, top, right, top + height // 18), fill=dice.choice(("#3465a4", "#75507b", "#4e9a06"))
        )
        for line in range(4):
            y = top + height // 14 + line * height // 18
            draw.text((left + 6, y), f"{dice.choice(ADJECTIVES)} {dice.choice(NOUNS)}", fill="#222222")
    if done:
        draw.rectangle((0, height - height // 30, width, height), fill="#1b998b")
    out = io.BytesIO()
    image.save(out, "WEBP", quality=60, method=0)
    return out.getvalue()


def _unit(kind: str, name: str) -> float:
    """A number in [0, 1) that belongs to a name."""
    return random.Random(f"{kind} {name}").random()


# --- trainings ---


def write_metrics(
    results: Path, config: StudyConfig, arm: str, stage: str, updates: int, seed: int = 0
) -> Path:
    """``metrics.jsonl`` of one training: rewards that rise, replay that fires in arm ``arpo``."""
    dice = random.Random(f"metrics {arm} {seed}" if seed else f"metrics {arm}")
    names = [
        f"{domain}/{task}"
        for domain, ids in json.loads(config.tasks.splits[config.training.stages[-1].split].read_text())[
            "tasks"
        ].items()
        for task in ids
    ]
    lines, stored = [], 0
    for step in range(1, updates + 1):
        mean = 0.45 + (0.22 if arm == "arpo" else 0.14) * (1 - math.exp(-step / 60)) + dice.gauss(0, 0.03)
        groups = [dice.choice(names) for _ in range(config.training.tasks_per_step)]
        failed = [g for g, _ in enumerate(groups) if dice.random() < 0.2]
        swapped = [g for g in failed if arm == "arpo" and dice.random() < min(0.6, step / 40)]
        stored += dice.randint(0, 3) if arm == "arpo" else 0
        row = {
            "step": step,
            "reward_before": mean - 0.02,
            "reward_after": mean - 0.02 + len(swapped) / 8 / len(groups),
            "success": mean,
            "groups": len(groups),
            "rollouts": 8 * len(groups),
            "all_fail_groups": len(failed),
            "swapped_groups": len(swapped),
            "buffer_size": stored,
            "entropy": 0.9 - 0.002 * step,
            "clip_fraction": 0.01,
            "unparsable": 0.02,
            "env_errors": int(dice.random() < 0.1),
            "lost_rollouts": 0,
            "probability_difference_mean": 0.003,
            "seconds": {
                "rollout": 800 + 60 * dice.random(),
                "update": 210.0,
                "weight_sync": 9.0,
                "total": 1050.0,
            },
            "tasks": [
                {"task": name, "scores": [0.0 if g in failed else 1.0] * 8} for g, name in enumerate(groups)
            ],
            "swaps": [
                {
                    "group": g,
                    "rollout": 0,
                    "name": f"synthetic-{step}-{g}",
                    "step": max(0, step - dice.randint(1, 30)),
                }
                for g in swapped
            ],
        }
        lines.append(json.dumps(row) + "\n")
    return write_text(results / f"models/{arm}/seed_{seed}/stage_{stage}/metrics.jsonl", "".join(lines))


def write_gates(folder: Path, arm: str, seed: int, stage: str, steps: int) -> Path:
    """The report of a stage that passed, in the folder of the stage; ``metrics.jsonl`` lies there."""
    last = json.loads((folder / "metrics.jsonl").read_text().rstrip().split("\n")[-1])
    gates = [
        Gate(
            name="steps", key="training.stages", state="passed", says=f"{steps} of {steps} steps are logged"
        ),
        Gate(
            name="buffer",
            key="training.gates.buffer_min",
            state="passed" if arm == "arpo" else "off",
            says=f"the replay buffer holds {last['buffer_size']} successes"
            if arm == "arpo"
            else "replay is off",
        ),
    ]
    report = StageReport(arm=arm, seed=seed, stage=stage, passed=True, reason=None, gates=gates)
    return write_text(folder / "stage_report.json", report.model_dump_json(indent=1) + "\n")


def write_invented_manifest(
    results: Path, arm: str, stage: str, updates: int, seed: int = 0, size: str = "nano"
) -> Path:
    """``manifest.json`` of one stage, without weights behind it."""
    path = results / f"models/{arm}/seed_{seed}/stage_{stage}/manifest.json"
    manifest = Manifest(
        arm=arm,
        seed=seed,
        stage=stage,
        step=0 if arm == "base" else updates,
        size=size,
        model="model",
        weights={"model.safetensors": digest(f"weights {arm}")},
        sha256=digest(f"{arm} {stage}"),
        parent=None if arm == "base" else digest("base base"),
        recipe={"synthetic": True},
        versions={},
    )
    write_manifest(manifest, path)
    return path


def digest(text: str) -> str:
    """A sha256 that belongs to no file."""
    return hashlib.sha256(f"synthetic {text}".encode()).hexdigest()


def write_text(path: Path, text: str) -> Path:
    """Without the flushes of a real result: thousands of them would take minutes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
