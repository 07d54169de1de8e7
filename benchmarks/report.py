"""The page of a study of the full size: `python benchmarks/report.py [--study FOLDER]` prints JSON.

369 invented tasks x 4 arms x 3 trials: seconds to write the page (goal: 30), its megabytes (goal: 15), and
milliseconds until Debian's Chromium shows something and until everything is loaded, opened from disk in a new
browser each time (goal: first view in 1,000). The rival is the same page with every episode as plain HTML, as
pages without compression have it; both are written and opened in turn, so that other load meets both.
FOLDER: an output of `make_full_study` (tests/synthetic_study.py); without it one is made.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from playwright.sync_api import Playwright, sync_playwright

from arpo_replica.base.checkout import git_state
from arpo_replica.base.environments import ROOT
from arpo_replica.config import load_config
from arpo_replica.report import render as render_module
from arpo_replica.report.pack import pack

sys.path.insert(0, str(ROOT / "tests"))

from synthetic_study import make_full_study, page_files

ROUNDS = 3
EVERYTHING = 10**12
TIMES = """() => {
  const [navigation] = performance.getEntriesByType("navigation");
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  return [paint.startTime, navigation.loadEventEnd];
}"""


def write_page(folder: Path, out: Path, plain_bytes: int | None) -> float:
    """Seconds that it takes."""
    config = load_config(folder / "synthetic.yaml")
    used = pack if plain_bytes is None else partial(pack, plain_bytes=plain_bytes)
    with mock.patch.object(render_module, "pack", used):
        began = time.perf_counter()
        render_module.render_report(config, page_files(folder / "results" / config.name), out)
        return time.perf_counter() - began


def open_page(tools: Playwright, page: Path) -> tuple[float, float]:
    """(first view, loaded), ms."""
    browser = tools.chromium.launch(
        executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
    )
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(page.as_uri())
    tab.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
    first, loaded = tab.evaluate(TIMES)
    browser.close()
    return first, loaded


def measure(folder: Path) -> dict[str, Any]:
    """Both pages in turn."""
    pages = {"ours": None, "all plain": EVERYTHING}
    found: dict[str, dict[str, list[float]]] = {
        name: {"write_s": [], "first_view_ms": [], "loaded_ms": []} for name in pages
    }
    sizes = {}
    with sync_playwright() as tools:
        for _ in range(ROUNDS):
            for name, plain_bytes in pages.items():
                out = folder / "reports" / f"{name.replace(' ', '_')}.html"
                out.parent.mkdir(exist_ok=True)
                found[name]["write_s"].append(write_page(folder, out, plain_bytes))
                first, loaded = open_page(tools, out)
                found[name]["first_view_ms"].append(first)
                found[name]["loaded_ms"].append(loaded)
                sizes[name] = out.stat().st_size / 1e6
    result: dict[str, Any] = {
        name: {"megabytes": round(sizes[name], 2)}
        | {
            key: {"median": round(statistics.median(v), 2), "all": [round(x, 2) for x in v]}
            for key, v in rows.items()
        }
        for name, rows in found.items()
    }
    result["ratio, all plain / ours"] = {
        "megabytes": round(sizes["all plain"] / sizes["ours"], 2),
        **{
            key: round(result["all plain"][key]["median"] / result["ours"][key]["median"], 2)
            for key in ("write_s", "first_view_ms", "loaded_ms")
        },
    }
    result["goals"] = {"write_s": 30, "megabytes": 15, "first_view_ms": 1000}
    result["load_average"] = [round(value, 1) for value in os.getloadavg()]
    result["cores"] = len(os.sched_getaffinity(0))
    return result


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.study
        if folder is None:
            folder = Path(scratch) / "study"
            make_full_study(folder)
        json.dump({"code": git_state(ROOT), **measure(folder)}, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
