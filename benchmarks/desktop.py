"""How fast a desktop is: `python benchmarks/desktop.py` prints JSON.

- latency of click + screenshot on one desktop, small and 1920x1080 (goals: 30 and 90 ms), and the CPU time
  of a step by program, which says where to look and depends little on what else the machine does;
- steps per second of four desktops at once, and of the same desktops driven as OSWorld's own server
  drives them: a Python process per action, a screenshot program per picture (goal: 7 times as many);
- wall and CPU time of a reset with a MiniWoB++ task; eight desktops at once.

The rival's picture is scrot's (Debian package scrot). Its Python process runs pyautogui if --pyautogui
names a folder made with `pip install --target FOLDER pyautogui` (Debian package python3-tk); otherwise a
stand-in that imports less and pauses 0.1 s as pyautogui does. Runs on two processors; rounds of both
take turns, so that other load on the machine meets both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from arpo_replica.actions.types import Click
from arpo_replica.base.errors import UserError
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.desktop.sandbox import pack_folder
from arpo_replica.providers.guest_desktop import GuestDesktop
from arpo_replica.providers.process import ProcessDesktop, ProcessProvider
from arpo_replica.tasks.model import Task, load_task
from guest.processes import descendants, private_memory_mb

ROOT = Path(__file__).parents[1]
SMALL, LARGE = (168, 224), (1920, 1080)
ROUNDS, RIVAL_STEPS = 4, 4
PAGE = """data:text/html,<body style="margin:0"><button style="width:160px;height:200px"
onclick="this.style.background = this.style.background ? '' : 'red'">press</button>"""
PYAUTOGUI_ACTION = """
import sys; sys.path.insert(0, "/home/user/pyautogui")
import pyautogui; import time; pyautogui.FAILSAFE = False
pyautogui.click({x}, {y})
"""
STAND_IN_ACTION = """
import subprocess, time, PIL.Image, PIL.ImageOps, Xlib.display, Xlib.X, Xlib.XK
from Xlib.ext import xtest
display = Xlib.display.Display()
xtest.fake_input(display, Xlib.X.MotionNotify, x={x}, y={y})
xtest.fake_input(display, Xlib.X.ButtonPress, 1)
xtest.fake_input(display, Xlib.X.ButtonRelease, 1)
display.sync()
time.sleep(0.1)
"""
Step = Callable[[GuestDesktop, int, int], Awaitable[bytes]]


def page_task(page: str = PAGE, func: str = "infeasible") -> Task:
    """A task that shows one page. ``func``: its evaluator's; OSWorld's own would set it up by desktop-env."""
    launch = {"type": "launch", "parameters": {"command": ["google-chrome", "--remote-debugging-port=1337"]}}
    tabs = {"type": "chrome_open_tabs", "parameters": {"urls_to_open": [page]}}
    return Task("page", "benchmark", "", [launch, tabs], {"func": func}, {}, "")


async def our_step(desktop: GuestDesktop, x: int, y: int) -> bytes:
    """One step as the episode loop takes it."""
    await desktop.act(Click(x, y), uuid.uuid4().hex)
    return await desktop.screenshot()


def rival_step(action: str) -> Step:
    """One step as OSWorld's server takes it; ``action``: the Python code."""

    async def step(desktop: GuestDesktop, x: int, y: int) -> bytes:
        code = action.format(x=x, y=y)
        for command in (["python3", "-c", code], ["scrot", "-p", "-o", "/tmp/shot.png"]):
            result = await desktop.guest.execute(command)
            if result["returncode"] != 0:
                raise UserError(f"{command[0]} failed in the desktop: {result['error'].strip()[-300:]}")
        return await desktop.guest.file("/tmp/shot.png")

    return step


async def prepare_rival(desktops: list[ProcessDesktop], pyautogui: Path | None) -> Step:
    """Put pyautogui into the desktops, if there is one."""
    if pyautogui is None:
        return rival_step(STAND_IN_ACTION)
    archive = pack_folder(pyautogui)
    for desktop in desktops:
        await desktop.guest.upload("/tmp/pyautogui.zip", archive)
        await desktop.guest.execute(
            ["python3", "-m", "zipfile", "-e", "/tmp/pyautogui.zip", "/home/user/pyautogui"]
        )
        await desktop.guest.execute("touch ~/.Xauthority", shell=True)
    return rival_step(PYAUTOGUI_ACTION)


async def steps(desktop: GuestDesktop, step: Step, count: int) -> list[float]:
    """Seconds of each step; clicks at alternating places, so that none waits to be no double click."""
    left, top = await desktop.devtools.evaluate("[screenX, screenY + outerHeight - innerHeight]")
    top = max(top, 0)
    taken: list[float] = []
    seen = set[bytes]()
    for index in range(count):
        started = time.perf_counter()
        seen.add(await step(desktop, left + 40 + 60 * (index % 2), top + 60 + 60 * (index % 4 // 2)))
        taken.append(time.perf_counter() - started)
    if len(seen) < 2:
        raise RuntimeError("the screen never changed: the clicks do not arrive")
    return taken


async def seconds(desktops: list[ProcessDesktop], step: Step, count: int) -> float:
    """Time that all desktops together take for ``count`` steps each."""
    started = time.perf_counter()
    await asyncio.gather(*(steps(desktop, step, count) for desktop in desktops))
    return time.perf_counter() - started


def cpu_ms(root: int) -> Counter[str]:
    """CPU time in ms of a process and those below it, the ended ones too, by program."""
    taken = Counter[str]()
    for pid in (root, *descendants(root)):
        try:
            head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        except OSError:
            continue
        ticks = sum(int(value) for value in tail.split()[11:15])
        taken[head.partition("(")[2]] += 1000 * ticks // os.sysconf("SC_CLK_TCK")
    return taken


def process_of(desktop: ProcessDesktop) -> int:
    """The process that all others of a desktop descend from."""
    assert desktop._running is not None
    return desktop._running.process.pid


async def started(screen: tuple[int, int], count: int) -> list[ProcessDesktop]:
    """Desktops that show the page."""
    provider = ProcessProvider(DesktopConfig(screen=screen))
    provider.check()
    desktops = await asyncio.gather(*(provider.start(f"benchmark {n}") for n in range(count)))
    await asyncio.gather(*(desktop.reset(page_task()) for desktop in desktops))
    return list(desktops)


async def close(desktops: list[ProcessDesktop]) -> None:
    """End them all."""
    await asyncio.gather(*(desktop.close() for desktop in desktops))


async def at_size(screen: tuple[int, int], count: int, pyautogui: Path | None) -> dict[str, Any]:
    """Latency on one desktop, then rates and their ratio on four."""
    desktops = await started(screen, 1)
    try:
        await steps(desktops[0], our_step, 10)
        before = cpu_ms(process_of(desktops[0]))
        taken = sorted(1000 * second for second in await steps(desktops[0], our_step, 3 * count))
        cpu = cpu_ms(process_of(desktops[0])) - before
    finally:
        await close(desktops)
    desktops = await started(screen, 4)
    try:
        rival = await prepare_rival(desktops, pyautogui)
        await seconds(desktops, our_step, 5)
        ours_s, rival_s = 0.0, 0.0
        for _ in range(ROUNDS):
            ours_s += await seconds(desktops, our_step, count)
            rival_s += await seconds(desktops, rival, RIVAL_STEPS)
    finally:
        await close(desktops)
    ours_rate, rival_rate = 4 * ROUNDS * count / ours_s, 4 * ROUNDS * RIVAL_STEPS / rival_s
    return {
        "click_and_screenshot_ms": {
            "median": round(statistics.median(taken), 1),
            "p90": round(taken[int(0.9 * len(taken))], 1),
        },
        "cpu_ms_per_step": {name: round(used / len(taken), 1) for name, used in cpu.most_common()},
        "four_desktops_steps_per_s": {
            "ours": round(ours_rate, 1),
            "process_per_action": round(rival_rate, 2),
            "ratio": round(ours_rate / rival_rate, 1),
        },
    }


async def resets(count: int) -> dict[str, Any]:
    """Cost of a reset to a MiniWoB++ task on one desktop."""
    tasks = [load_task(path) for path in sorted((ROOT / "data/tasks/miniwob").glob("*.json"))[:8]]
    desktops = await started(SMALL, 1)
    desktop = desktops[0]
    try:
        await desktop.reset(tasks[0])
        wall, cpu = [], []
        for index in range(count):
            before, at = cpu_ms(process_of(desktop)), time.perf_counter()
            await desktop.reset(tasks[index % len(tasks)])
            wall.append(1000 * (time.perf_counter() - at))
            cpu.append((cpu_ms(process_of(desktop)) - before).total())
    finally:
        await close(desktops)
    return {"wall_ms": round(statistics.median(wall)), "cpu_ms": round(statistics.mean(cpu))}


async def eight(count: int) -> dict[str, Any]:
    """Eight small desktops at once: start, steps, memory."""
    at = time.perf_counter()
    desktops = await started(SMALL, 8)
    try:
        start_s = time.perf_counter() - at
        speed = 8 * count / await seconds(desktops, our_step, count)
        pids = [pid for desktop in desktops for pid in descendants(process_of(desktop))]
        memory = private_memory_mb(pids) / len(desktops)
    finally:
        await close(desktops)
    return {"start_s": round(start_s, 1), "steps_per_s": round(speed, 1), "private_mib_each": round(memory)}


async def measure(count: int, pyautogui: Path | None) -> dict[str, Any]:
    """Everything."""
    result: dict[str, Any] = {
        "processors": len(os.sched_getaffinity(0)),
        "rival": "stand-in" if pyautogui is None else "pyautogui",
        "load_before": round(os.getloadavg()[0], 1),
    }
    for screen in (SMALL, LARGE):
        result[f"{screen[0]}x{screen[1]}"] = await at_size(screen, count, pyautogui)
    result["reset"] = await resets(count)
    result["eight_desktops"] = await eight(count)
    result["load_after"] = round(os.getloadavg()[0], 1)
    return result


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="steps per desktop and measurement")
    parser.add_argument("--processors", type=int, default=2, help="processors to use")
    parser.add_argument("--pyautogui", type=Path, help="folder with the package pyautogui, for the rival")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.processors])
    try:
        print(json.dumps(asyncio.run(measure(arguments.steps, arguments.pyautogui)), indent=1))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
