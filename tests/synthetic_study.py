"""Invented studies in the exact layout on disk, for tests of scores, statistics, verdicts and the report.

Nothing here was measured. ``make_study``: a small one, in any shape that a test asks for.
``make_full_study``: as many episodes as the paper's tasks make, for the page's speed.
``make_paper_study``: the paper's config and recipe without folders of episodes, for verdicts. The latter two
say ``synthetic: true`` in every record, their summary and claims take it over, and publishing refuses them.
"""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml
from PIL import Image, ImageDraw
from scipy import stats

from arpo_replica.base.files import write_document
from arpo_replica.config.desktop import desktop_mark
from arpo_replica.config.load import parse_config
from arpo_replica.config.models import StudyConfig, merge
from arpo_replica.evaluation import statistics
from arpo_replica.evaluation.claims import compare_claims
from arpo_replica.evaluation.provenance import write_provenance
from arpo_replica.evaluation.published import PaperFiles
from arpo_replica.evaluation.records import Summary
from arpo_replica.evaluation.scores import as_table, score_episodes
from arpo_replica.evaluation.summary import summarise_study
from arpo_replica.evaluation.tables import table_files, write_tables
from arpo_replica.policy.manifest import Manifest
from arpo_replica.report.publish import PublishedFiles
from arpo_replica.report.render import render_report
from arpo_replica.report.sources import PageFiles
from arpo_replica.rollout.records import EpisodeRecord, StepRecord, to_webp, write_episode, write_index
from arpo_replica.tasks.splits import resolve
from arpo_replica.training.gates import Gate, StageReport

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / "data" / "paper"
PAPER_FILES = PaperFiles(
    PAPER / "claims.yaml",
    PAPER / "results.yaml",
    PAPER / "contradictions.yaml",
    PAPER / "hyperparameters.yaml",
    sorted((ROOT / "data/splits").glob("*.json")),
)
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

DOMAINS = {
    "chrome": 46, "gimp": 26, "libreoffice_calc": 47, "libreoffice_impress": 47, "libreoffice_writer": 23,
    "multi_apps": 101, "os": 24, "thunderbird": 15, "vlc": 17, "vs_code": 23,
}  # fmt: skip
"""Shape of OSWorld's 369 tasks; the tasks themselves are invented."""
RATES = {
    "osworld_369": {"base": (0.182, 0.235), "grpo": (0.209, 0.260), "arpo": (0.238, 0.299)},
    "arpo_128": {"base": (0.523, 0.687), "grpo": (0.560, 0.725), "arpo": (0.590, 0.755)},
}
"""Split -> arm -> mean success (hard, standard) of the invented study of the paper's size: Table 1 as
printed, and a smaller gain on the 128 tasks than the README's, so that more than one verdict is seen."""

Names = list[tuple[str, str]]
"""(domain, id) of tasks."""
Chooser = Callable[[str, str, int], Any]
"""(arm, task id, trial) -> outcome; empty: no episode."""


@dataclass
class Study:
    """Where the pieces of an invented study lie."""

    root: Path
    config: StudyConfig
    episodes: Path
    synthetic: bool = False
    metrics: list[Path] = field(default_factory=list)
    manifests: list[Path] = field(default_factory=list)
    reports: list[Path] = field(default_factory=list)
    learning: list[Path] = field(default_factory=list)

    @property
    def results(self) -> Path:
        return self.root / "results" / self.config.study

    def tasks(self, split: str) -> Names:
        """Of a split, in its order."""
        listed = json.loads(self.config.tasks.splits[split].read_text())["tasks"]
        return [(domain, task_id) for domain, ids in listed.items() for task_id in ids]


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
    lists: Mapping[str, Names] | None = None,
    synthetic: bool = False,
) -> Study:
    """Write task files, splits, episodes, metrics and manifests of a study; ``trials=0``: no episode.

    ``overrides``: whole sections of the config; ``lists``: other splits, the last with infeasible tasks;
    ``synthetic``: every record, and every screenshot, says that it is invented.
    """
    sizes = {"train_4": 4, "train_32": 8, "test_in": tasks, "test_out": max(2, tasks - 4)}
    splits: Mapping[str, Names] = lists or {
        split: [("miniwob", f"{PAGES[i % len(PAGES)]}_{split}_{i}") for i in range(count)]
        for split, count in sizes.items()
    }
    for split, names in splits.items():
        for i, (domain, task_id) in enumerate(names):
            infeasible = split == list(splits)[-1] and (i == len(names) - 1 or i % 12 == 11)
            words = instruction or f'Click on the "{WORDS[i % len(WORDS)]}" button.'
            _write_task(root, domain, task_id, words, "infeasible" if infeasible else "miniwob")
        grouped: dict[str, list[str]] = {}
        for domain, task_id in names:
            grouped.setdefault(domain, []).append(task_id)
        listing = {"name": split, "source": "synthetic", "tasks": grouped}
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
    study = Study(root, config, root / "results" / name / "episodes", synthetic)
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
    return judge(study)


def judge(study: Study) -> Summary:
    """The same from the table of scores on."""
    results = study.results
    summary = summarise_study(
        study.config,
        results / "scores.parquet",
        study.metrics,
        study.manifests,
        results / "summary.json",
        reports=study.reports,
        learning=study.learning,
    )
    compare_claims(study.config, results / "summary.json", PAPER_FILES, results / "claims.json")
    names = ("summary.json", "claims.json", "scores.parquet")
    write_tables(*(results / name for name in names), results / "tables")
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
        repository=ROOT,
    )


def page_files(results: Path) -> PageFiles:
    """What the rule hands over, by the layout of a study."""
    documents = {name: results / f"{name}.json" for name in ("summary", "claims", "provenance")}
    return PageFiles(
        **documents,
        scores=results / "scores.parquet",
        tables=[Path(path) for path in table_files(results / "tables")],
        episodes=results / "episodes",
        benchmarks=results / "benchmarks",
        deviations=PAPER / "deviations.yaml",
        hyperparameters=PAPER / "hyperparameters.yaml",
    )


def render(study: Study) -> Path:
    """The page of an evaluated study."""
    out = study.root / "reports" / study.config.study / "index.html"
    render_report(study.config, page_files(study.results), out)
    return out


def published_files(results: Path, page: Path) -> PublishedFiles:
    """What the rule hands over, by the layout of a study."""
    data = {name: results / f"{name}.json" for name in ("summary", "claims", "provenance")}
    resolved = results / "config.resolved.yaml"
    resolved.touch()
    names = ("metrics.jsonl", "learning.jsonl", "stage_report.json", "manifest.json")
    return PublishedFiles(
        page=page,
        screenshots=page.parent / "screenshots",
        **data,
        config=resolved,
        scores=results / "scores.parquet",
        rows=results / "scores.csv",
        tables=list(results.glob("tables/*")),
        training=[path for name in names for path in results.glob(f"models/*/*/*/{name}")],
        indexes=list((results / "episodes").rglob("episodes.jsonl")),
        taught=list((results / "offline").rglob("episodes.jsonl")),
        results=results,
    )


def make_full_study(
    root: Path,
    *,
    tasks: int = 369,
    trials: int = 3,
    arms: tuple[str, ...] = ("base", "grpo", "arpo", "kto"),
    screen: tuple[int, int] = (480, 270),
    steps: int = 120,
) -> Study:
    """A study of the paper's number of tasks and domains, evaluated, with its config file ``synthetic.yaml``.

    ``screen``: size of the screenshots in pixels. The same arguments give the same episodes.
    """
    names = [(domain, f"synthetic-{domain}-{i:03d}") for domain, n in DOMAINS.items() for i in range(n)]
    chosen = names[:: max(1, len(names) // tasks)][:tasks]
    trained = [name for name in chosen if random.Random(name[1]).random() < 128 / 369]
    study = make_study(
        root,
        trials=trials,
        arms=arms,
        steps=steps,
        lists={"in": trained, "out": [name for name in chosen if name not in set(trained)]},
        synthetic=True,
        overrides={
            "desktop": {"screen": list(screen)},
            "policy": {"max_steps": 15},
            "training": {"tasks_per_step": 16, "stages": [{"name": "full", "split": "in", "steps": steps}]},
            "evaluation": {"splits": ["in", "out"], "trials": trials},
            "targets": {"benchmark": "out", "selected": "in", "in_domain": "in", "out_of_domain": "out"},
        },
    )
    raw = study.config.model_dump(mode="json")
    _write(root / "synthetic.yaml", "# Invented: nothing of this study was measured.\n" + yaml.safe_dump(raw))
    evaluate(study)
    return study


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
    skill = {"base": 0.3, "grpo": 0.45, "arpo": 0.6}.get(arm, 0.4) * (
        1 if split == study.config.evaluation.splits[0] else 0.7
    )
    for i, (domain, task_id) in enumerate(study.tasks(split)):
        raw = json.loads((study.root / f"data/tasks/{domain}/{task_id}.json").read_text())
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
        mark = f"invented - {task_id}" if study.synthetic else ""
        steps, images = _steps(study.config, dice, i, outcome, text, mark)
        record = EpisodeRecord(
            task_id=task_id,
            domain=domain,
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
            ran_on={"pool": f"http://node{seed}:8700", "engine": "bwrap", "image": "c" * 64},
            checkpoint_sha256="b" * 64,
            sampling={"temperature": 0.6, "top_p": 1.0},
            **_outcome_fields(outcome, infeasible, steps),
            started_at=1_700_000_000.0 + i,
            duration_s=round(1.3 + dice.random(), 3),
            synthetic=study.synthetic,
        )
        write_episode(folder, record, steps, images if screenshots else {})
    folder.mkdir(parents=True, exist_ok=True)
    write_index(folder)


def _outcome_fields(outcome: Any, infeasible: bool, steps: list[StepRecord]) -> dict[str, Any]:
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


def _steps(
    config: StudyConfig,
    dice: random.Random,
    i: int,
    outcome: str,
    text: Callable[[int], str] | None,
    mark: str,
) -> tuple[list[StepRecord], dict[str, bytes]]:
    if outcome == "env_error":
        return [], {}
    most, (width, height) = config.policy.max_steps, config.desktop.screen
    count = {"success": dice.randint(1, most // 2), "failure": dice.randint(1, most - 1), "truncated": most}[
        outcome
    ]
    buttons = tuple(
        (
            (20 + 60 * (k % 2)) * width // 168,
            (80 + 40 * (k // 2)) * height // 224,
            WORDS[(i + k * 3) % len(WORDS)],
        )
        for k in range(4)
    )
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
    for index in range(count + 1):
        done = "#1b998b" if outcome == "success" and index == count else None
        words = f"{mark} - step {index}" if mark else ""
        images[f"step_{index:03d}.webp"] = screen(i, buttons, done, (width, height), words)
    return steps, images


@lru_cache(maxsize=20000)
def screen(
    i: int,
    buttons: tuple[tuple[int, int, str], ...],
    done: str | None,
    size: tuple[int, int] = SCREEN,
    mark: str = "",
) -> bytes:
    """A page that looks a little like MiniWoB++, as WebP; ``mark``: a last line."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, size[0], 50), fill="#ffff99")
    draw.text((4, 8), f'Click on the "{buttons[0][2]}"\nbutton.', fill="black")
    draw.text((4, size[1] - 14), mark, fill="black")
    for k, (x, y, word) in enumerate(buttons):
        draw.rectangle((x, y, x + 50, y + 24), fill="#efefef", outline="#767676")
        draw.text((x + 6, y + 6), word, fill="black")
        draw.ellipse((x + 52, y + 2, x + 60, y + 10), fill=COLOURS[(i + k) % len(COLOURS)])
    if done:
        draw.rectangle((0, 51, size[0], 58), fill=done)
    out = io.BytesIO()
    image.save(out, "PNG")
    return to_webp(out.getvalue())


def _training(study: Study, arm: str, seed: int) -> None:
    """Metrics, gates and manifest of each stage: success that rises, replay that fires in arm ``arpo``."""
    dice = random.Random(f"{arm} {seed}")
    config = study.config
    groups, rollouts = config.training.tasks_per_step, config.training.rollouts_per_task
    for number, stage in enumerate(config.training.stages):
        folder = study.results / "models" / arm / f"seed_{seed}" / f"stage_{stage.name}"
        names = ["/".join(name) for name in study.tasks(stage.split)]
        lines, first = [], 0.4 + 0.1 * number + dice.gauss(0, 0.01)
        for step in range(1, stage.steps + 1):
            rise = (0.42 if arm == "arpo" else 0.32) * (1 - math.exp(-3 * step / stage.steps))
            success = min(0.95, max(0.05, first + rise + dice.gauss(0, 0.025)))
            failed = dice.randint(0, groups // 2)
            swapped = min(failed, dice.randint(0, groups // 2)) if arm == "arpo" else 0
            draw, chance = random.Random(f"{arm} {seed} {step}"), success * groups / max(1, groups - failed)
            line = {
                "step": step,
                "groups": groups,
                "rollouts": groups * rollouts,
                "reward_before": success - 0.05,
                "reward_after": success - 0.05 + swapped / groups / rollouts,
                "success": success,
                "swapped_groups": swapped,
                "all_fail_groups": failed,
                "buffer_size": step if arm == "arpo" else 0,
                "entropy": 1.1 / (1 + step / stage.steps),
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
                "tasks": [
                    {
                        "task": names[(step * groups + g) % len(names)],
                        "scores": [float(g >= failed and draw.random() < chance) for _ in range(rollouts)],
                    }
                    for g in range(groups)
                ],
                "swaps": [
                    {"group": g, "rollout": 0, "name": "x", "step": max(1, step - 2)} for g in range(swapped)
                ],
            }
            lines.append(json.dumps(line) + "\n")
        _write(folder / "metrics.jsonl", "".join(lines))
        study.metrics.append(folder / "metrics.jsonl")
        study.reports.append(_gates(folder, arm, seed, stage.name, stage.steps))
        _manifest(study, arm, seed, stage.name, stage.steps)


def _gates(folder: Path, arm: str, seed: int, stage: str, steps: int) -> Path:
    """The report of a stage that passed."""
    says = f"the replay buffer holds {steps} successes" if arm == "arpo" else "replay is off"
    gates = [
        Gate(
            name="steps", key="training.stages", state="passed", says=f"{steps} of {steps} steps are logged"
        ),
        Gate(
            name="buffer",
            key="training.gates.buffer_min",
            state="passed" if arm == "arpo" else "off",
            says=says,
        ),
    ]
    report = StageReport(arm=arm, seed=seed, stage=stage, passed=True, reason=None, gates=gates)
    _write(folder / "stage_report.json", report.model_dump_json(indent=1) + "\n")
    return folder / "stage_report.json"


def _manifest(study: Study, arm: str, seed: int, stage: str, step: int) -> None:
    path = study.results / "models" / arm / f"seed_{seed}" / f"stage_{stage}" / "manifest.json"
    manifest = Manifest(
        arm=arm,
        seed=seed,
        stage=stage,
        step=step,
        size=study.config.size,
        model="model",
        weights={"model.safetensors": "c" * 64},
        sha256="b" * 64,
        parent=None if arm == "base" else "a" * 64,
        recipe={"data": {"samples": 12, "inexact_replies": 0}, "synthetic": study.synthetic},
        versions={},
    )
    write_document(manifest, path)
    study.manifests.append(path)


def _learning(path: Path, steps: int) -> Path:
    rows = [
        {"step": step, "loss": 1 / step, "grad_norm": 2.0, "epoch": step / steps}
        for step in range(1, steps + 1)
    ]
    _write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def _write_task(root: Path, domain: str, task_id: str, words: str, func: str) -> None:
    raw = {"id": task_id, "instruction": words, "config": [], "evaluator": {"func": func}}
    _write(root / "data/tasks" / domain / f"{task_id}.json", json.dumps(raw))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# --- a study of the paper's own config, for verdicts ---


def make_paper_study(
    root: Path,
    *,
    seeds: int = 5,
    trials: int = 3,
    spread: float = 0.01,
    rates: dict[str, dict[str, tuple[float, float]]] = RATES,
) -> Study:
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
            "tasks": {"root": str(root / "data/tasks"), "leave_out": [], "splits": splits},
            "evaluation": {"trials": trials},
        },
    )
    _write(root / "synthetic.yaml", "# Invented: nothing of this study was measured.\n" + yaml.safe_dump(raw))
    config = parse_config(raw, "synthetic")
    study = Study(root, config, root / "results" / config.name / "episodes", synthetic=True)
    study.episodes.mkdir(parents=True)
    _manifest(study, "base", 0, "base", 0)
    for arm in ("grpo", "arpo"):
        for seed in config.seeds:
            _training(study, arm, seed)
    table = as_table(_rows(study, rates, spread))
    table.to_parquet(study.results / "scores.parquet", index=False)
    with mock.patch.object(statistics, "RESAMPLES", 199):  # of intervals that no verdict uses
        judge(study)
    return study


def _rows(
    study: Study, rates: dict[str, dict[str, tuple[float, float]]], spread: float
) -> Iterator[dict[str, Any]]:
    """One row of the table of scores per invented episode."""
    config, dice = study.config, np.random.default_rng(1)
    for split, means in rates.items():
        names = study.tasks(split)
        infeasible = np.array([random.Random(f"infeasible {name}").random() < 30 / 369 for _, name in names])
        for (domain, task_id), wont in zip(names, infeasible, strict=True):
            words = f"(Invented task) Click in {domain}."
            _write_task(study.root, domain, task_id, words, "infeasible" if wont else "synthetic")
        for arm, (hard, standard) in means.items():
            level = hard * len(names) / (~infeasible).sum()
            # The same difficulty for every arm: most tasks are nearly always or nearly never solved.
            rank = np.random.default_rng(7).random(len(names))
            chance = np.where(infeasible, 0.0, stats.beta.ppf(rank, 0.85 * level, 0.85 * (1 - level)))
            cut_share = np.where(infeasible, min(1.0, (standard - hard) * len(names) / infeasible.sum()), 0.3)
            for seed in [0] if arm == "base" else config.seeds:
                moved = 0.0 if arm == "base" else dice.normal(0, spread) * ~infeasible
                for trial in range(config.evaluation.trials):
                    solved = dice.random(len(names)) < np.clip(chance + moved, 0, 1)
                    cut = dice.random(len(names)) < cut_share
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
                            "task_sha256": "a" * 64,
                            "instruction": f"(Invented task) Click in {domain}.",
                            "infeasible": bool(infeasible[i]),
                            "checkpoint_sha256": "b" * 64,
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
