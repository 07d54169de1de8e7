"""How many OSWorld desktops one host carries, by bubblewrap, without Docker: prints and writes JSON.

    envs/controller/.venv/bin/python benchmarks/desktop_scale.py --out FILE [--image SQUASHFS_OR_FOLDER]

For each number of desktops (``--desktops``, default 8 32 64 128 256), 1920x1080 with Chromium on a page:

- seconds until all are there, and of one start, each driving process starting ``--starting`` at a time;
- click + screenshot on one of them while the others are idle;
- steps per second of all at once for ``--seconds``, with the CPU time of a step by program;
- memory of one: what the machine has less, and what no file backs (shared memory not counted);
- first of all, with one desktop: seconds of a hard reset while spares are started ahead;
- episodes per hour of OSWorld's tasks that scripts solve (benchmarks/osworld.py; every one must score 1), or
  why not: it needs envs/evaluator and the task files (``make evaluator osworld-tasks``).

Desktops are driven by processes of at most ``--per-process`` of them, as pools on one host do. A row is
written as soon as it is there; one that fails says why. Without ``--image`` the image is the one that
``make rootless`` builds. It runs as root (then each desktop is another user) or as anyone. ``--figure FILE``
draws desktops against steps per second instead, from ``--out``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import threading
import time
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import psutil

from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.base.files import write_atomically
from arpo_replica.config import load_config
from arpo_replica.config.models import StudyConfig
from arpo_replica.providers.container import ContainerDesktop, ContainerProvider
from arpo_replica.tasks.splits import load_split
from arpo_replica.validation.scripted import find_oracles
from desktop import cpu_ms, our_step, page_task, steps
from guest.processes import descendants, private_memory_mb
from osworld import measure

SPARES, RESETS = 2, 8
ALONE, AT_A_TIME = 40, 8
"""Steps of the one desktop; steps of each between two looks at the clock."""
PATIENCE_S = 600.0
"""Longest wait for the slowest of the driving processes."""


def study(options: argparse.Namespace, count: int) -> StudyConfig:
    """The smoke study on ``count`` desktops of that image, with neither spares nor OSWorld's pauses."""
    config = load_config(Path("configs/smoke.yaml"), Path("configs/desktops/bubblewrap.yaml"))
    desktop = config.desktop
    desktop.count, desktop.wait_seconds, desktop.pause_seconds = count, 0.0, 0.0
    desktop.start_timeout_s, desktop.container.spares = 300, 0
    if options.image:
        desktop.container.image = str(options.image)
    return config


async def drive(options: argparse.Namespace, count: int, first: bool, met: Barrier) -> dict[str, Any]:
    """One process's desktops through all phases, which ``met`` keeps together; what it measured."""
    provider, turn = ContainerProvider(study(options, count).desktop), asyncio.Semaphore(options.starting)
    provider.check()

    async def start(number: int) -> tuple[ContainerDesktop, float]:
        async with turn:
            began = time.monotonic()
            desktop = await provider.start(f"scale {number}")
            seconds = time.monotonic() - began
            await desktop.reset(page_task(func="miniwob_reward"))
            return desktop, seconds

    found = await asyncio.gather(*map(start, range(count)))
    desktops, alone = [desktop for desktop, _ in found], []
    await asyncio.to_thread(met.wait, PATIENCE_S)
    if first:
        alone = await steps(desktops[0], our_step, ALONE)
    await asyncio.to_thread(met.wait, PATIENCE_S)
    until, taken = time.monotonic() + options.seconds, []

    async def step(desktop: Any) -> None:
        while time.monotonic() < until:
            taken.extend(await steps(desktop, our_step, AT_A_TIME))

    await asyncio.gather(*map(step, desktops))
    await asyncio.to_thread(met.wait, PATIENCE_S)
    await asyncio.to_thread(met.wait, PATIENCE_S)  # the CPU time of processes that are gone cannot be read
    await asyncio.gather(*(desktop.close() for desktop in desktops))
    return {"start_s": [seconds for _, seconds in found], "alone": alone, "steps": taken}


def child(options: argparse.Namespace, count: int, first: bool, met: Barrier, said: Any) -> None:
    """Body of a driving process."""
    try:
        said.put(asyncio.run(drive(options, count, first, met)))
    except BaseException as error:
        met.abort()
        said.put(error if isinstance(error, UserError | DesktopError) else RuntimeError(repr(error)))


def at(options: argparse.Namespace, count: int) -> dict[str, Any]:
    """One row, but for the episodes. Raises what the first driving process died of."""
    parts = -(-count // options.per_process)
    sizes = [len(range(part, count, parts)) for part in range(parts)]
    context = multiprocessing.get_context("fork")
    met, said = context.Barrier(len(sizes) + 1), context.Queue()
    before, began = psutil.virtual_memory().available, time.monotonic()
    children = [
        context.Process(target=child, args=(options, size, number == 0, met, said))
        for number, size in enumerate(sizes)
    ]
    for process in children:
        process.start()
    row: dict[str, Any] = {"desktops": count, "processes": len(sizes)}
    try:
        met.wait(PATIENCE_S)
        row["all_started_s"] = round(time.monotonic() - began, 1)
        row["memory_mib_each"] = round((before - psutil.virtual_memory().available) / count / 2**20)
        row["private_mib_each"] = round(private_memory_mb(list(descendants(os.getpid()))) / count)
        met.wait(PATIENCE_S)
        used, began = cpu_ms(os.getpid()), time.monotonic()
        met.wait(PATIENCE_S)
        seconds, used = time.monotonic() - began, cpu_ms(os.getpid()) - used
        met.wait(PATIENCE_S)
    except threading.BrokenBarrierError:
        pass
    answers = [said.get(timeout=PATIENCE_S) for _ in children]
    for process in children:
        process.join()
    for answer in answers:
        if isinstance(answer, Exception) and "BrokenBarrier" not in str(answer):
            raise answer
    taken = sorted(1000 * second for answer in answers for second in answer["steps"])
    starts, alone = ([value for answer in answers for value in answer[key]] for key in ("start_s", "alone"))
    row["start_s"] = round(statistics.median(starts), 2)
    row["click_and_screenshot_ms"] = round(1000 * statistics.median(alone), 1)
    row["steps_per_s"] = round(len(taken) / seconds, 1)
    row["step_ms"] = {
        "median": round(statistics.median(taken), 1),
        "p90": round(taken[int(0.9 * len(taken))], 1),
    }
    row["cores_used"] = round(used.total() / 1000 / seconds, 1)
    row["cpu_ms_per_step"] = {name: round(value / len(taken), 1) for name, value in used.most_common(5)}
    return row


def episodes(options: argparse.Namespace, count: int) -> dict[str, Any] | str:
    """Episodes per hour of OSWorld's tasks, each desktop running ``--episodes``; or why this was not run."""
    config = study(options, count)
    try:
        tasks = load_split(config.tasks.splits["smoke_4"], config.tasks.root)
        scripts = find_oracles(tasks, config.desktop.screen)
        tasks = [task for task in tasks if task.id in scripts]
        trials = max(1, round(options.episodes * count / len(tasks)))
        return measure(config, ContainerProvider(config.desktop), tasks, scripts, trials)
    except (UserError, DesktopError, SystemExit) as error:
        return f"not run: {error}"


async def hard_resets(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of resets to a new desktop while spares are started ahead, each some time after the last."""
    config = study(options, 1).desktop
    config.container.spares, config.container.reset = SPARES, "hard"
    provider, task, taken = ContainerProvider(config), page_task(func="miniwob_reward"), []
    desktop = await provider.start("resets")
    try:
        for _ in range(RESETS):
            await asyncio.sleep(options.apart)
            began = time.monotonic()
            await desktop.reset(replace(task, config=[]))
            taken.append(round(time.monotonic() - began, 2))
    finally:
        await desktop.close()
    return {
        "spares": SPARES,
        "seconds_apart": options.apart,
        "median": statistics.median(taken),
        "all": taken,
    }


def draw(document: dict[str, Any], picture: Path) -> None:
    """Desktops against steps per second."""
    import matplotlib.pyplot as plt

    rows = [row for row in document["rows"] if "steps_per_s" in row]
    plt.rcParams.update({"svg.hashsalt": "arpo", "svg.fonttype": "path"})
    figure, axes = plt.subplots(figsize=(5.5, 3))
    axes.plot([row["desktops"] for row in rows], [row["steps_per_s"] for row in rows], "o-", color="#0072b2")
    axes.set(xlabel="OSWorld desktops on one host, by bubblewrap", ylabel="steps per second, all together")
    axes.set_ylim(0)
    axes.set_xscale("log", base=2)
    axes.set_xticks([row["desktops"] for row in rows], [str(row["desktops"]) for row in rows])
    axes.set_title(f"{document['cores']} cores, {document['memory_gib']} GiB", fontsize=9)
    figure.savefig(picture, bbox_inches="tight", metadata={"Date": None})


def main() -> None:
    """Measure row by row, or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--desktops", type=int, nargs="+", default=[8, 32, 64, 128, 256])
    parser.add_argument("--image", type=Path, help="squashfs, or a folder that holds what it would")
    parser.add_argument("--per-process", type=int, default=16)
    parser.add_argument("--starting", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--apart", type=float, default=5.0, help="seconds between two hard resets")
    parser.add_argument("--episodes", type=int, default=2, help="of each desktop; 0: none")
    parser.add_argument("--conditions", default="", help="a few words on the machine")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    if options.figure:
        draw(json.loads(options.out.read_text()), options.figure)
        return
    document: dict[str, Any] = {
        "conditions": options.conditions,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "user": "root" if os.geteuid() == 0 else "an ordinary user",
        "load_before": round(os.getloadavg()[0], 1),
        "hard_reset_s": asyncio.run(hard_resets(options)),
        "rows": [],
    }
    for count in options.desktops:
        load = round(os.getloadavg()[0], 1)
        try:
            row = at(options, count)
            row["episodes"] = episodes(options, count) if options.episodes else "not run: --episodes 0"
        except Exception as error:
            row = {"desktops": count, "failed": str(error)[:500]}
        document["rows"].append({**row, "load_before": load})
        write_atomically(options.out, (json.dumps(document, indent=1) + "\n").encode())
        print(json.dumps(document["rows"][-1]), flush=True)


if __name__ == "__main__":
    main()
