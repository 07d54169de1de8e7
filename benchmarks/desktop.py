"""How fast a desktop is: `python benchmarks/desktop.py` prints JSON.

- latency of click + screenshot on one desktop, small and 1920x1080 (goals: 30 and 90 ms), and the CPU time
  of a step by program, which says where to look and depends little on what else the machine does;
- steps per second of four desktops at once, and of the same desktops driven as OSWorld's own server
  drives them: a Python process per action, a screenshot program per picture (goal: 7 times as many);
- wall and CPU time of a reset with a MiniWoB++ task; eight desktops at once.

The rival's picture is scrot's (Debian package scrot). Its Python process runs pyautogui if --pyautogui
names a folder made with `pip install --target FOLDER pyautogui` (Debian package python3-tk); otherwise a
stand-in that imports less and pauses 0.1 s as pyautogui does. Runs on two processors; rounds of both
take turns, so that other load on the machine meets both. --against CHECKOUT: the guest of another commit
takes turns as well. --real-time (as root): what is measured runs before everything else, as on an idle
machine, in bursts of --steps steps; 10 are half a second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil

from arpo_replica.actions.types import Click
from arpo_replica.base.errors import UserError
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.desktop import sandbox
from arpo_replica.providers.guest_desktop import GuestDesktop
from arpo_replica.providers.process import ProcessDesktop, ProcessProvider
from arpo_replica.tasks.model import Task, load_task
from guest.processes import descendants, private_memory_mb

ROOT = Path(__file__).parents[1]
SMALL, LARGE = (168, 224), (1920, 1080)
ROUNDS, RIVAL_STEPS = 8, 2
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
GUESTS: dict[str, Path | None] = {"ours": None}
"""Name -> checkout with its guest; None: this one."""
HOW = {"real_time": False}
ROOTS: dict[ProcessDesktop, int] = {}
"""Desktop -> the process that all its others descend from."""
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
    archive = sandbox.pack_folder(pyautogui)
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


def children() -> set[int]:
    """The processes that this one has started and that still run."""
    return {child.pid for child in psutil.Process().children()}


@contextlib.contextmanager
def undisturbed(desktops: list[ProcessDesktop]) -> Iterator[None]:
    """This process and the desktops' run before all others of the machine, if asked for."""

    def schedule(policy: int, priority: int) -> None:
        roots = [ROOTS[desktop] for desktop in desktops]
        pids = [os.getpid(), *roots, *(pid for root in roots for pid in descendants(root))]
        for thread in (task for pid in pids for task in Path(f"/proc/{pid}/task").glob("*")):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(int(thread.name), policy, os.sched_param(priority))

    if HOW["real_time"]:
        schedule(os.SCHED_RR, 1)
    try:
        yield
    finally:
        if HOW["real_time"]:
            schedule(os.SCHED_OTHER, 0)


def provider_of(screen: tuple[int, int], checkout: Path | None = None) -> ProcessProvider:
    """Makes desktops with the guest of a checkout; None: of this one."""
    provider = ProcessProvider(DesktopConfig(screen=screen))
    archive = (
        sandbox.pack_guest() if checkout is None else sandbox.pack_folder(checkout / "src/guest", "guest/")
    )
    with patch.object(sandbox, "pack_guest", lambda: archive):
        provider.check()
    return provider


async def started(screen: tuple[int, int], count: int, checkout: Path | None = None) -> list[ProcessDesktop]:
    """Desktops that show the page. One after another: so it is known which process is whose."""
    provider, desktops = provider_of(screen, checkout), []
    for number in range(count):
        before = children()
        desktop = await provider.start(f"benchmark {number}")
        (ROOTS[desktop],) = children() - before
        await desktop.reset(page_task())
        desktops.append(desktop)
    return desktops


async def close(desktops: list[ProcessDesktop]) -> None:
    """End them all."""
    await asyncio.gather(*(desktop.close() for desktop in desktops))


async def at_size(screen: tuple[int, int], count: int, pyautogui: Path | None) -> dict[str, Any]:
    """Latency on one desktop, then rates of four and how many times the rival's they are."""
    guests = {name: await started(screen, 4, checkout) for name, checkout in GUESTS.items()}
    taken: dict[str, list[float]] = {name: [] for name in guests}
    cpu = {name: Counter[str]() for name in guests}
    spent = dict.fromkeys([*guests, "process_per_action"], 0.0)
    try:
        rival = await prepare_rival(guests["ours"], pyautogui)
        works: list[tuple[str, list[ProcessDesktop], Step, int]]
        works = [(name, desktops, our_step, count) for name, desktops in guests.items()]
        works.append(("process_per_action", guests["ours"], rival, RIVAL_STEPS))
        for desktops in guests.values():
            await seconds(desktops, our_step, 10)
        for name, desktops in list(guests.items()) * ROUNDS:
            before = cpu_ms(ROOTS[desktops[0]])
            with undisturbed(desktops[:1]):
                taken[name] += [1000 * second for second in await steps(desktops[0], our_step, count)]
            cpu[name] += cpu_ms(ROOTS[desktops[0]]) - before
        for name, desktops, step, number in works * ROUNDS:
            with undisturbed(desktops):
                spent[name] += await seconds(desktops, step, number)
    finally:
        await asyncio.gather(*map(close, guests.values()))
    rates = {name: 4 * ROUNDS * number / spent[name] for name, _, _, number in works}
    return {
        "click_and_screenshot_ms": {
            name: {
                "best": round(min(times), 1),
                "median": round(statistics.median(times), 1),
                "p90": round(sorted(times)[int(0.9 * len(times))], 1),
            }
            for name, times in taken.items()
        },
        "cpu_ms_per_step": {
            name: {program: round(used / len(taken[name]), 1) for program, used in cpu[name].most_common()}
            for name in guests
        },
        "four_desktops_steps_per_s": {name: round(rate, 2) for name, rate in rates.items()},
        "ratio": {name: round(rates[name] / rates["process_per_action"], 1) for name in guests},
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
            before, at = cpu_ms(ROOTS[desktop]), time.perf_counter()
            await desktop.reset(tasks[index % len(tasks)])
            wall.append(1000 * (time.perf_counter() - at))
            cpu.append((cpu_ms(ROOTS[desktop]) - before).total())
    finally:
        await close(desktops)
    return {"wall_ms": round(statistics.median(wall)), "cpu_ms": round(statistics.mean(cpu))}


async def eight(count: int) -> dict[str, Any]:
    """Eight small desktops at once: start, steps, memory."""
    provider, at = provider_of(SMALL), time.perf_counter()
    desktops = await asyncio.gather(*(provider.start(f"benchmark {number}") for number in range(8)))
    try:
        await asyncio.gather(*(desktop.reset(page_task()) for desktop in desktops))
        start_s = time.perf_counter() - at
        speed = 8 * count / await seconds(desktops, our_step, count)
        memory = private_memory_mb(list(descendants(os.getpid()))) / len(desktops)
    finally:
        await close(desktops)
    return {"start_s": round(start_s, 1), "steps_per_s": round(speed, 1), "private_mib_each": round(memory)}


async def measure(count: int, pyautogui: Path | None, screens_only: bool) -> dict[str, Any]:
    """Everything."""
    result: dict[str, Any] = {
        "processors": len(os.sched_getaffinity(0)),
        "rival": "stand-in" if pyautogui is None else "pyautogui",
        "real_time": HOW["real_time"],
        "load_before": round(os.getloadavg()[0], 1),
    }
    for screen in (SMALL, LARGE):
        result[f"{screen[0]}x{screen[1]}"] = await at_size(screen, count, pyautogui)
    if not screens_only:
        result["reset"] = await resets(count)
        result["eight_desktops"] = await eight(count)
    result["load_after"] = round(os.getloadavg()[0], 1)
    return result


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="steps per desktop and measurement")
    parser.add_argument("--processors", type=int, default=2, help="processors to use")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="whose guest takes turns")
    parser.add_argument("--real-time", action="store_true", help="measured processes run before all others")
    parser.add_argument("--screens-only", action="store_true", help="neither resets nor eight desktops")
    parser.add_argument("--pyautogui", type=Path, help="folder with the package pyautogui, for the rival")
    arguments = parser.parse_args()
    HOW["real_time"] = arguments.real_time
    if arguments.against is not None:
        GUESTS["before"] = arguments.against
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.processors])
    try:
        print(
            json.dumps(
                asyncio.run(measure(arguments.steps, arguments.pyautogui, arguments.screens_only)), indent=1
            )
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
