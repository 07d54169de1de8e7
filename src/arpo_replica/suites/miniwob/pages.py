"""MiniWoB++ pages (package ``miniwob``, MIT) as tasks in OSWorld's schema.

The desktop serves the package's ``html`` folder at ``http://localhost:8000/miniwob/``. A task opens a
page and starts one episode of it with a seed (set-up step ``miniwob_start``); the evaluator reads the
page's own reward of that episode. The package itself is never imported: it pulls gymnasium.
"""

import difflib
import importlib.util
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.base.tables import table_of
from arpo_replica.desktop.devtools import DevTools
from arpo_replica.tasks.model import Task

DOMAIN = "miniwob"
BASE_URL = "http://localhost:8000/miniwob/miniwob"
AREA = (160, 210)
"""Width and height of a MiniWoB++ page in pixels: the smallest screen that shows it whole."""

END_COLOR = (0xDF, 0xEE, 0xE0)
"""Background of the sheet that covers a page when its episode has ended (``miniwob_start.js``)."""

TRAINED_PAGES, HELD_OUT_PAGES, MORE_PAGES = map(tuple[str, ...], table_of(__file__).values())
KNOWN_PAGES = (*TRAINED_PAGES, *HELD_OUT_PAGES, *MORE_PAGES)
"""Page types that the expert can solve (``miniwob_expert.js``); only these become tasks or demonstrations."""


def check_pages(pages: Iterable[str], where: str) -> None:
    """Raises ``UserError`` for a page type that the expert does not know. ``where``: the key with them."""
    for page in pages:
        if page not in KNOWN_PAGES:
            close = difflib.get_close_matches(page, KNOWN_PAGES, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"it knows {', '.join(KNOWN_PAGES)}."
            raise UserError(
                f"{where} has the page type '{page}', which the scripted expert does not know; {hint}"
            )


_LAUNCH = {"type": "launch", "parameters": {"command": ["google-chrome", "--remote-debugging-port=1337"]}}

SPLIT_SEEDS = range(0, 1_000)
"""Page seeds that task files may use."""
DEMONSTRATION_SEEDS = range(1_000_000, 1_000_000_000)
"""Page seeds that demonstrations may use: never those of a task file."""
SCRIPTS = ("miniwob_preload.js", "miniwob_start.js", "miniwob_expert.js")
"""JavaScript functions beside this file."""


@cache
def html_root() -> Path:
    """Folder of the package's pages. Raises ``UserError`` if the package is not installed."""
    spec = importlib.util.find_spec("miniwob")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("The package 'miniwob' is not installed; run `make setup`.")
    root = Path(next(iter(spec.submodule_search_locations))) / "html"
    if not (root / "core" / "core.js").is_file():
        raise UserError(f"The package 'miniwob' has no pages under {root}; install miniwob again.")
    return root


@cache
def script(name: str) -> str:
    """Source of one of the JavaScript functions beside this file, for use as ``({source})(arguments)``."""
    source = (Path(__file__).parent / name).read_text()
    return "\n".join(line for line in source.splitlines() if not line.startswith("//"))


def task_id(page: str, seed: int) -> str:
    """Id of the task of a page and a seed, e.g. ``click-test-2-s017``."""
    return f"{page}-s{seed:03d}"


def page_url(page: str) -> str:
    """Where a page is inside the desktop."""
    return f"{BASE_URL}/{page}.html"


def task_json(page: str, seed: int, instruction: str) -> dict[str, Any]:
    """The task of a page and a seed, in OSWorld's schema. ``instruction`` is the page's own text."""
    return {
        "id": task_id(page, seed),
        "snapshot": "chrome",
        "instruction": instruction,
        "source": f"MiniWoB++ (package miniwob, MIT), page {page}, seed {seed}",
        "config": [
            _LAUNCH,
            {"type": "chrome_open_tabs", "parameters": {"urls_to_open": [page_url(page)]}},
            {"type": "miniwob_start", "parameters": {"seed": seed}},
        ],
        "trajectory": "",
        "related_apps": ["chrome"],
        "evaluator": {"func": "miniwob_reward", "result": {"type": "miniwob_episode"}},
        "proxy": False,
        "fixed_ip": False,
        "possibility_of_env_change": "low",
    }


def to_bytes(document: dict[str, Any]) -> bytes:
    """A document as it is written to ``data/``: the same bytes for the same content."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def make_task(page: str, seed: int, instruction: str) -> Task:
    """The same task as an object that was never a file; its hash is that of the file it would be."""
    raw = task_json(page, seed, instruction)
    return Task.of(raw, DOMAIN, to_bytes(raw))


def blank_task() -> Task:
    """A task that opens a blank page and has no evaluator: for reading pages by DevTools."""
    config = [_LAUNCH, {"type": "chrome_open_tabs", "parameters": {"urls_to_open": ["about:blank"]}}]
    return Task("blank", DOMAIN, "", config, {}, {}, "")


async def start_page(devtools: DevTools, seed: int, page: str | None = None) -> str:
    """Start an episode on the MiniWoB++ page that is open in a tab; returns the page's own instruction.

    The icons that its style sheets name have been loaded by then: it is drawn whole at once.
    """
    preload, start = script("miniwob_preload.js"), script("miniwob_start.js")
    text = await devtools.evaluate(f"({preload})().then(() => ({start})({seed:d}))", page)
    if not isinstance(text, str) or not text:
        raise DesktopError("the MiniWoB++ page gave no instruction")
    return text


async def read_instructions(devtools: DevTools, page: str, seeds: list[int]) -> dict[int, str]:
    """Seed -> the page's own instruction, for the seeds whose first target can be clicked.

    Pages place some elements at random, so a target may lie below another one: such seeds are left
    out. Loads the page once, so it costs about 1 ms a seed.
    """
    await devtools.navigate(page_url(page))
    start, expert = script("miniwob_start.js"), script("miniwob_expert.js")
    tries = f"""{json.dumps(seeds)}.map((seed) => {{
        const text = ({start})(seed);
        try {{ ({expert})(0.5, 0.5); return text; }} catch (error) {{ return null; }}
    }})"""
    texts = await devtools.evaluate(tries, timeout_s=60)
    return {seed: text for seed, text in zip(seeds, texts, strict=True) if text}


async def task_page(devtools: DevTools) -> str:
    """The tab that shows a MiniWoB++ page: a noisy task has other tabs too. Raises ``DesktopError``."""
    for page in await devtools.pages():
        if page.url.startswith(BASE_URL):
            return page.id
    raise DesktopError("no tab shows a MiniWoB++ page")


async def read_reward(devtools: DevTools) -> float | None:
    """Raw reward (no time penalty) of the first end of the page's episode; None while it goes on.

    A policy may have left or closed the page: the episode did not end then.
    """
    expression = "typeof arpoEpisode === 'undefined' ? null : (arpoEpisode.done ? arpoEpisode.raw : null)"
    for page in await devtools.pages():
        if page.url.startswith(BASE_URL):
            value = await devtools.evaluate(expression, page.id)
            if value is not None:
                return float(value)
    return None
