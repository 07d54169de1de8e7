"""``make pictures``: the pictures of README and docs, into ``docs/pictures``, from results alone.

Of the demo, or of the study that is named (``python benchmarks/make_pictures.py ci``).

- ``architecture.svg``: drawn here;
- ``nano.svg``, ``replay.svg``: success rates of these studies, from ``reports/{study}/summary.json``;
- ``page-light.webp``, ``page-dark.webp``: the first screen of that study's page in Chromium, and
  ``page-numbered.webp``, the same with the numbers of ``docs/report.md``;
- ``episode.webp``: one of its tasks under three arms, that on which they ended most differently, the first by
  name among equals.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from PIL import Image, ImageDraw
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
STUDY = sys.argv[1] if len(sys.argv) > 1 else "demo"
PARTS = [".answer", "#size", ".state", ".forest-box", ".strips", ".chips"]
"""Of the first screen, as docs/report.md numbers them."""
SCREEN = {"width": 1366, "height": 900}
ARMS = ["base", "grpo", "arpo"]
SPLITS = {"train_32": "training tasks", "test_in": "same pages, other seeds", "test_out": "other pages"}
COLOURS = {"base": "#666666", "grpo": "#0072b2", "arpo": "#d55e00"}
BLUE, ORANGE, GREY = "#dbe9f6", "#fde3c8", "#eeeeee"
BOXES = {
    # name: (text, column, row, colour)
    "config": ("study.yaml\none file,\none study", 0, 1, GREY),
    "tasks": ("lists of tasks\nOSWorld's format", 1, 1.9, GREY),
    "policy": ("base policy\nnano, built here,\nor UI-TARS", 1, 0.1, GREY),
    "train": ("training of each arm\ngrpo: no replay\narpo: with replay\n(verl, Ray)", 2, 1, ORANGE),
    "roll": ("rollouts of\nevery arm\n(vLLM)", 3.1, 1, ORANGE),
    "desk": ("desktops: X, real mouse events\nprocess · container · VM · remote", 2.55, 2.2, BLUE),
    "score": ("scores,\nintervals", 4, 1, GREY),
    "claims": ("verdicts on\nthe paper's claims", 5, 1.75, GREY),
    "page": ("one page\nepisodes, sources, hashes", 5, 0.25, BLUE),
}
ARROWS = """config-tasks config-policy tasks-train policy-train train-roll train-desk roll-desk roll-score
score-claims score-page claims-page"""


def main() -> None:
    """Make all of them."""
    PICTURES.mkdir(exist_ok=True)
    plt.rcParams.update({"svg.hashsalt": "arpo", "svg.fonttype": "path"})
    draw_architecture(PICTURES / "architecture.svg")
    for study in ("nano", "replay"):
        summary = json.loads((ROOT / "reports" / study / "summary.json").read_text())
        draw_rates(study, summary, PICTURES / f"{study}.svg")
    page = ROOT / "reports" / STUDY / "index.html"
    if page.is_file():
        photograph(page)
        film(ROOT / "results" / STUDY)
    else:
        print(f"{page} is not there (make demo): the pictures of the page and the film stay as they are")
    sizes = {path.name: path.stat().st_size // 1000 for path in sorted(PICTURES.iterdir())}
    print(f"{sizes} kB; together {sum(sizes.values())} kB")


def draw_architecture(out: Path) -> None:
    """Boxes and arrows, left to right."""
    figure, axes = plt.subplots(figsize=(11, 3.2))
    axes.set(xlim=(-0.4, 5.5), ylim=(-0.3, 2.5))
    axes.axis("off")
    drawn = {}
    for name, (text, column, row, colour) in BOXES.items():
        box = {"boxstyle": "round,pad=0.6", "fc": colour, "ec": "#777777"}
        drawn[name] = axes.text(column, row, text, ha="center", va="center", fontsize=8, bbox=box)
    for arrow in ARROWS.split():
        start, end = arrow.split("-")
        look = {
            "arrowstyle": "<|-|>" if end == "desk" else "-|>",
            "color": "#777777",
            "shrinkA": 0,
            "shrinkB": 0,
        }
        patches = {"patchA": drawn[start].get_bbox_patch(), "patchB": drawn[end].get_bbox_patch()}
        axes.annotate("", BOXES[end][1:3], BOXES[start][1:3], arrowprops={**look, **patches})
    figure.savefig(out, bbox_inches="tight", metadata={"Date": None}, facecolor="white")


def draw_rates(study: str, summary: dict[str, Any], out: Path) -> None:
    """Success of each arm after its last stage: all trainings with a 95 % interval, each as a faint dot."""
    found = {row["split"] for row in summary["rates"]}
    splits = [split for split in SPLITS if split in found]
    names = [f"{SPLITS[split]} ({summary['splits'][split]['tasks']})" for split in splits]
    figure, axes = plt.subplots(figsize=(8, 0.4 + 0.83 * len(splits)))
    last = max(row["stage"] for row in summary["rates"] if row["stage"] != "base")
    for row in summary["rates"]:
        if row["protocol"] != "hard" or row["stage"] not in ("base", last):
            continue
        at = splits.index(row["split"]) + 0.24 * (ARMS.index(row["arm"]) - 1)
        rate, colour = row["of_valid"], COLOURS[row["arm"]]
        if row["seed"] is None or row["arm"] == "base":
            axes.plot([100 * rate["low"], 100 * rate["high"]], [at, at], color=colour, linewidth=2)
            label = row["arm"] if row["split"] == splits[0] else None
            axes.plot(100 * rate["value"], at, "o", color=colour, markersize=7, label=label)
        else:
            axes.plot(100 * rate["value"], at, "o", color=colour, markersize=4, alpha=0.35)
    axes.set(xlim=(0, 100), ylim=(len(splits) - 0.5, -0.5), yticks=range(len(splits)), yticklabels=names)
    axes.set_xlabel("success, % of scored episodes, 95 % interval over tasks (faint: one training each)")
    axes.set_title(
        f"{study} study, {summary['size']} · {summary['desktop']}: tests the pipeline, not the paper",
        fontsize=9,
    )
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(out, bbox_inches="tight", metadata={"Date": None}, facecolor="white")


def photograph(page: Path) -> None:
    """The first screen of a page: light, dark, and light with a number at each part."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for scheme in ("dark", "light"):
            view = browser.new_page(viewport=SCREEN, color_scheme=scheme)  # type: ignore[arg-type]
            view.goto(page.as_uri())
            picture = Image.open(io.BytesIO(view.screenshot())).convert("RGB")
            save(picture, f"page-{scheme}")
        for number, selector in enumerate(PARTS, start=1):
            place = view.locator(selector).first.bounding_box()
            assert place is not None, selector
            corner = place["x"] - 36, max(place["y"], 2)
            draw = ImageDraw.Draw(picture)
            draw.ellipse((*corner, corner[0] + 30, corner[1] + 30), fill="#d55e00")
            draw.text((corner[0] + 15, corner[1] + 15), str(number), "white", anchor="mm", font_size=20)
        save(picture, "page-numbered")
        browser.close()


def save(picture: Image.Image, name: str) -> None:
    """Write a picture small."""
    small = picture.resize((1000, 1000 * SCREEN["height"] // SCREEN["width"]))
    small.save(PICTURES / f"{name}.webp", quality=75, method=6)


def film(results: Path) -> None:
    """The episode that arms ended most differently, side by side."""
    rows = [row for row in csv.DictReader((results / "scores.csv").open()) if row["outcome"] != "env_error"]
    last = max(row["stage"] for row in rows if row["stage"] != "base")
    by_task: defaultdict[tuple[str, ...], dict[str, Any]] = defaultdict(dict)
    for row in rows:
        if row["stage"] in ("base", last) and row["arm"] in ARMS:
            by_task[row["task_id"], row["split"], row["trial"]][row["arm"]] = row
    whole = {key: arms for key, arms in by_task.items() if len(arms) == len(ARMS)}
    chosen = min(whole, key=lambda key: (-_unlike(whole[key]), key))
    folders = [results / "episodes" / whole[chosen][arm]["directory"] for arm in ARMS]
    command = [sys.executable, "-m", "arpo_replica", "export-episode", *map(str, folders)]
    subprocess.run([*command, "--out", str(PICTURES / "episode.webp"), "--width", "220"], check=True)


def _unlike(arms: dict[str, dict[str, str]]) -> int:
    """2 if ARPO solved what base did not, and 1 more if GRPO did not: by scores, never by looks."""
    base, grpo, arpo = (arms[arm]["success_hard"].lower() == "true" for arm in ARMS)
    return 2 * (arpo and not base) + (arpo and not grpo)


if __name__ == "__main__":
    main()
