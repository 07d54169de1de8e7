"""Hostile replies through the parser and a real desktop: `python benchmarks/hostile_replies.py` prints JSON.

Replies are mutated: valid ones, the spellings of docs/actions.md and code that wants to run, cut, doubled,
nested, joined and filled with the characters that decide where a call ends; a few are very long.
Each must be a list of typed actions or a `FormatError`. Counted are

- crashes: any other exception, or an action that is none (a point off the screen, a control character, JSON
  that does not read back);
- executed: an audit event of Python (compile, exec, import, open, a process, a socket) while a reply is read;
- slow: more than 20 ms of CPU time for one reply, the least of three; and the slowest ones.

With --desktop N, the actions of N further replies are applied to a process desktop, which must take each of
them, still answer, and keep its processes to itself. Same seed, same replies.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import sys
import time
import unicodedata
import uuid
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from arpo_replica.actions.coordinates import Frame
from arpo_replica.actions.parse import UITarsParser
from arpo_replica.actions.types import ACTIONS, Action, Fail, Finished, Wait, from_json
from arpo_replica.base.errors import DesktopError, FormatError
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.providers.process import ProcessProvider
from arpo_replica.tasks.model import Task

ROOT = Path(__file__).parents[1]
SCREEN = (168, 224)
LIMIT_MS = 20.0
CHUNK = 10_000
CANARY = Path("/tmp/arpo_hostile_reply_was_run")
"""What the code in the replies would make, here or on the desktop."""
CODE = [
    f"__import__('os').system('touch {CANARY}')",
    f"open('{CANARY}', 'w')",
    f"'); __import__('os').system('touch {CANARY}'); ('",
    f"{{{{7*7}}}}${{IFS}}`touch {CANARY}`$(touch {CANARY})",
    "eval('1+1')",
    "lambda: 0",
    "f'{1}'",
    "<script>alert(1)</script>",
    "../../etc/passwd\x00",
]
FRAGMENTS = [
    *(
        "'",
        '"',
        "\\",
        "\\'",
        '\\"',
        "\\\\",
        "\n",
        "\n\n",
        "\r\n",
        "\\n",
        " ",
        "\t",
        "(",
        ")",
        "')",
        '")',
        "('",
    ),
    *(
        ",",
        ", ",
        "=",
        "#",
        " # ",
        "')#",
        "'\n",
        "')\n",
        "Action:",
        "\nAction: ",
        "Thought:",
        "```",
        "<|im_end|>",
    ),
    *("click", "type", "wait", "scroll", "hotkey", "drag", "finished", "call_user", "press"),
    *(
        "content=",
        "key=",
        "point=",
        "wait()",
        "finished()",
        "type(content='",
        "hotkey(key='",
        "click(start_box='",
    ),
    *(
        "<point>",
        "</point>",
        "<|box_start|>",
        "<|box_end|>",
        "(10,20)",
        "10 20",
        "1e309",
        "nan",
        "-1",
        "9" * 30,
    ),
    *(
        "0.5",
        "ctrl",
        "+",
        "-",
        "f13",
        "page down",
        "\\u12",
        "\\ud83d",
        "\\ud83d\\ude00",
        "\\U00110000",
        "\\x",
    ),
    *("\ud800", "\u2028", "\u202e", "é", "中", "😀", "\0", "\x1b[2J"),
    *CODE,
]


def corpus() -> list[str]:
    """Replies that are mutated: those of docs/actions.md, and each piece of code as a text to type."""
    rows = yaml.safe_load((ROOT / "data" / "actions" / "replies.yaml").read_text())["rows"]
    calls = [row["reply"] for row in rows] + [f"type(content='{code}')" for code in CODE]
    return [f"Thought: I act.\nAction: {call}" for call in calls] + CODE


def mutated(replies: list[str], dice: random.Random) -> str:
    """One hostile reply."""
    text = dice.choice(replies)
    for _ in range(dice.choice((0, 1, 1, 2, 3, 5, 8))):
        at, to = sorted(dice.randrange(len(text) + 1) for _ in range(2))
        kind = dice.randrange(7)
        if kind == 0:
            text = text[:at] + text[to:]
        elif kind == 1:
            text = text[:at] + dice.choice(FRAGMENTS) + text[at:]
        elif kind == 2:
            text = text[:at] + dice.choice(FRAGMENTS) + text[to:]
        elif kind == 3:
            text = text[:to] + text[at:]
        elif kind == 4:
            text = (
                text[:at] + chr(dice.choice((dice.randrange(128), dice.randrange(0x110000)))) + text[at + 1 :]
            )
        elif kind == 5:
            text += dice.choice(("\n", "\n\n", " ")) + dice.choice(replies).rpartition("Action: ")[2]
        else:
            text = text[:at] + dice.choice(replies).rpartition("Action: ")[2] + text[at:]
    if dice.random() < 0.001:
        piece = "".join(dice.choices(FRAGMENTS, k=dice.randrange(1, 4)))
        at = dice.randrange(len(text) + 1)
        text = text[:at] + piece * (dice.randrange(1, 100_000) // len(piece)) + text[at:]
    return text


class Watch:
    """Audit events of Python while it is on: nothing that reads a reply may cause one."""

    def __init__(self) -> None:
        self.on = False
        self.events: Counter[str] = Counter()
        sys.addaudithook(self._hook)  # for good: a hook cannot be removed

    def _hook(self, event: str, _: Any) -> None:
        if self.on and not event.startswith(("object.", "gc.", "sys._getframe")):
            self.events[event] += 1


@lru_cache(maxsize=1)
def the_watch() -> Watch:
    """The one of this process."""
    return Watch()


def sound(action: Action) -> bool:
    """True for an action of the closed set that a desktop can take."""
    values = action.to_json()
    sides = {"x": SCREEN[0], "y": SCREEN[1], "to_x": SCREEN[0], "to_y": SCREEN[1]}
    inside = all(0 <= values[key] < side for key, side in sides.items() if values.get(key) is not None)
    texts = [str(value) for value in values.values()]
    plain = all(unicodedata.category(c) not in ("Cc", "Cs") or c in "\n\t" for text in texts for c in text)
    known = ACTIONS.get(action.kind) is type(action)
    return known and inside and plain and from_json(json.loads(json.dumps(values))) == action


def read(parser: UITarsParser, reply: str) -> tuple[list[Action], float, str | None]:
    """Its actions, the milliseconds of CPU time that they took, and what else than a ``FormatError`` came."""
    watch, actions, error = the_watch(), [], None
    watch.on, began = True, time.thread_time()
    try:
        actions = parser.actions(reply)
    except FormatError:
        pass
    except Exception as unexpected:
        error = f"{type(unexpected).__name__}: {unexpected}"
    spent = 1000 * (time.thread_time() - began)
    watch.on = False
    return actions, spent, error


def parse_many(job: tuple[int, int]) -> dict[str, Any]:
    """Read so many replies drawn with this seed."""
    seed, count = job
    replies, dice, watch = corpus(), random.Random(seed), the_watch()
    watch.events.clear()
    # What this program itself has made is not collected on the time of a reply.
    gc.collect()
    gc.freeze()
    parser = UITarsParser(Frame("absolute", SCREEN, SCREEN), "all")
    kinds: Counter[str] = Counter()
    crashes: list[list[str]] = []
    slowest: list[tuple[float, int, str]] = []
    slow = again = 0
    for _ in range(count):
        reply = mutated(replies, dice)
        actions, spent, error = read(parser, reply)
        if spent > LIMIT_MS:
            # Interrupts of a busy machine count into a thread's time; a slow reply is slow again.
            again += 1
            spent = min(spent, *(read(parser, reply)[1] for _ in range(2)))
        if error:
            crashes.append([error[:200], ascii(reply[:500])])
        slow += spent > LIMIT_MS
        slowest = sorted([*slowest, (spent, len(reply), ascii(reply[:60]))], reverse=True)[:3]
        kinds["format error" if not actions else "+".join(sorted({a.kind for a in actions}))] += 1
        crashes += [["no sound action", ascii(reply[:500])] for action in actions if not sound(action)]
    return {
        "kinds": kinds,
        "crashes": crashes,
        "events": dict(watch.events),
        "slow": slow,
        "again": again,
        "slowest": slowest,
    }


async def drive(count: int, seed: int) -> dict[str, Any]:
    """Apply the actions of so many replies to a desktop; a fresh page after every 200 of them."""
    replies, dice = corpus(), random.Random(seed)
    parser = UITarsParser(Frame("absolute", SCREEN, SCREEN), "all")
    page = "data:text/html,<textarea style='position:fixed;inset:0' autofocus></textarea>"
    opened = {"type": "chrome_open_tabs", "parameters": {"urls_to_open": [page]}}
    launch = {"type": "launch", "parameters": {"command": ["google-chrome", "--remote-debugging-port=1337"]}}
    task = Task("page", "benchmark", "", [launch, opened], {"func": "infeasible"}, {}, "")
    desktop = await ProcessProvider(DesktopConfig(screen=SCREEN)).start("hostile")
    counts: Counter[str] = Counter()
    errors: list[str] = []
    began = time.monotonic()
    try:
        for index in range(count):
            if index % 200 == 0:
                await desktop.reset(task)
            try:
                actions = parser.actions(mutated(replies, dice))
            except FormatError:
                counts["format error"] += 1
                continue
            for action in actions:
                if isinstance(action, Finished | Fail | Wait):
                    counts["not for a desktop"] += 1
                    continue
                try:
                    await desktop.act(action, uuid.uuid4().hex)
                    counts[f"applied {action.kind}"] += 1
                except DesktopError as error:
                    errors.append(f"{action.to_json()}: {error}"[:300])
                    await desktop.close()
                    desktop = await ProcessProvider(DesktopConfig(screen=SCREEN)).start("hostile")
                    await desktop.reset(task)
        answers = (await desktop.screenshot()).startswith(b"\x89PNG")
    finally:
        await desktop.close()
    return {
        "replies": count,
        "counts": dict(sorted(counts.items())),
        "desktop_errors": errors,
        "answers_at_the_end": answers,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Run it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--replies", type=int, default=100_000, help="through the parser alone (10,000,000)")
    options.add_argument("--desktop", type=int, default=0, help="through a real desktop (10,000)")
    options.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, help="also write the JSON here")
    given = options.parse_args()
    CANARY.unlink(missing_ok=True)
    began = time.monotonic()
    jobs = [(given.seed + at, min(CHUNK, given.replies - at)) for at in range(0, given.replies, CHUNK)]
    kinds: Counter[str] = Counter()
    events: Counter[str] = Counter()
    crashes: list[list[str]] = []
    slowest: list[tuple[float, int, str]] = []
    slow = again = 0
    with ProcessPoolExecutor(given.processes) as pool:
        for found in pool.map(parse_many, jobs):
            kinds += found["kinds"]
            events.update(found["events"])
            crashes += found["crashes"]
            slow += found["slow"]
            again += found["again"]
            slowest = sorted([*slowest, *found["slowest"]], reverse=True)[:10]
    result: dict[str, Any] = {
        "seed": given.seed,
        "replies": given.replies,
        "seconds": round(time.monotonic() - began, 1),
        "crashes": len(crashes),
        "first_crashes": crashes[:10],
        "executed": dict(events),
        "slow": slow,
        "measured_again": again,
        "slowest_ms_length_reply": [[round(spent, 2), length, text] for spent, length, text in slowest],
        "kinds": dict(kinds.most_common(25)),
    }
    if given.desktop:
        result["desktop"] = asyncio.run(drive(given.desktop, given.seed - 1))
    result["canary_made"] = CANARY.exists()
    text = json.dumps(result, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")
    broken = result.get("desktop", {}).get("desktop_errors")
    sys.exit(bool(crashes or events or result["slow"] or result["canary_made"] or broken))


if __name__ == "__main__":
    main()
