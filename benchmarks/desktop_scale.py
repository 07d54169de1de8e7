"""How many desktops one host carries, by bubblewrap, without Docker: prints and writes JSON.

    envs/controller/.venv/bin/python benchmarks/desktop_scale.py --out FILE [--image SQUASHFS_OR_FOLDER]

For each number of desktops (``--desktops``, default 8 32 64 128 256), 1920x1080 with Chromium on a page:

- seconds until all are there, and of one start, each driving process starting ``--starting`` at a time;
- memory, threads and, at rest, processor time of one: memory is what the machine has less, and what no file
  backs (shared memory not counted);
- click + screenshot on one of them while the others are idle;
- steps per second of all at once for ``--seconds``, with the CPU time of a step by program;
- scripted episodes per hour, ``--episodes`` of each desktop.

``--provider container`` (the default) has OSWorld's desktops with all its programs; without ``--image`` the
one that ``make rootless`` builds. Their episodes are OSWorld's tasks that scripts solve
(benchmarks/osworld.py), which needs envs/evaluator and the task files (``make evaluator osworld-tasks``); and
first of all, with one desktop, seconds of a hard reset while spares are started ahead. ``--provider process``
has Chromium alone, of this machine or of ``--image``; its episodes are MiniWoB++'s, by the expert.

Desktops are driven by processes of at most ``--per-process`` of them, as pools on one host do. A row is
written as soon as it is there; one that fails says why. The run stops by itself, and says so in its rows,
after ``--limit`` seconds, or before more than nine tenths of the machine's memory or threads are taken. It
runs as root (then each desktop is another user) or as anyone. ``--figure FILE`` draws desktops against steps
per second instead, from ``--out``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import psutil

from arpo_replica.actions.coordinates import Frame
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.base.files import write_atomically
from arpo_replica.config import load_config
from arpo_replica.config.models import StudyConfig
from arpo_replica.desktop.interface import Desktop, DesktopProvider
from arpo_replica.doctor.checks import cgroup_value
from arpo_replica.doctor.machine import Machine
from arpo_replica.providers.container import ContainerProvider
from arpo_replica.providers.guest_desktop import GuestDesktop
from arpo_replica.providers.pool import make_provider
from arpo_replica.suites.miniwob.expert import Expert
from arpo_replica.tasks.splits import load_split
from arpo_replica.validation.scripted import ScriptedOracle, find_oracles
from arpo_replica.validation.validate import make_labels
from desktop import cpu_ms, our_step, page_task, steps
from guest.processes import descendants, private_memory_mb
from osworld import collect, summary

SPARES, RESETS = 2, 8
ALONE, AT_A_TIME = 60, 8
"""Steps of the one desktop; steps of each between two looks at the clock."""
REST_S = 2.0
"""How long all do nothing, so that it is known what that takes."""
PATIENCE_S = 600.0
"""Longest wait for the slowest of the driving processes."""
FULL = 0.9
"""Share of the machine's memory, threads and process ids from which on no more desktops are added."""
LOOK_S = 0.5
GONE_S = 5.0
"""Longest wait until desktops have ended whose driving process has."""


class Lent:
    """Hands out desktops that run already; a broken one is replaced."""

    def __init__(self, provider: DesktopProvider, desktops: list[Any]) -> None:
        self._provider, self._desktops = provider, list(desktops)
        self.check, self.describe = provider.check, provider.describe

    async def start(self, name: str) -> Desktop:
        """See ``DesktopProvider``."""
        desktop: Desktop = self._desktops.pop() if self._desktops else await self._provider.start(name)
        return desktop


def study(options: argparse.Namespace, count: int) -> StudyConfig:
    """The smoke study on ``count`` desktops of that image, with neither spares nor OSWorld's pauses."""
    config = load_config(Path("configs/smoke.yaml"), Path("configs/desktops/bubblewrap.yaml"))
    desktop = config.desktop
    desktop.provider, desktop.count = options.provider, count
    desktop.wait_seconds, desktop.pause_seconds = 0.0, 0.0
    desktop.start_timeout_s, desktop.container.spares = 300, 0
    if options.image:
        desktop.container.image, desktop.process.image = str(options.image), options.image
    return config


async def play(
    options: argparse.Namespace, config: StudyConfig, provider: DesktopProvider, desktops: list[GuestDesktop]
) -> list[dict[str, Any]] | str:
    """Records of scripted episodes on those desktops, which are closed then; or why there are none."""
    lent = Lent(provider, desktops)
    try:
        if options.provider == "process":
            tasks, scripts = load_split(Path("data/splits/miniwob_train_4.json"), Path("data/tasks")), {}
            frame = Frame("absolute", config.desktop.screen, config.desktop.screen)  # screen_parser's
            policy: Any = lambda _, desktop: Expert(desktop.devtools, frame)  # noqa: E731
        else:
            tasks = load_split(config.tasks.splits["smoke_4"], config.tasks.root)
            scripts = find_oracles(tasks, config.desktop.screen)
            tasks = [task for task in tasks if task.id in scripts]
            policy = lambda *_: ScriptedOracle(scripts)  # noqa: E731
        trials = max(1, round(options.episodes * len(desktops) / len(tasks)))
        labels = make_labels(config, "oracle", scripts)
        return await collect(config, lent, tasks, trials, policy=policy, labels=labels)
    except (UserError, DesktopError) as error:
        return f"not run: {error}"


async def drive(options: argparse.Namespace, count: int, first: bool, met: Barrier) -> dict[str, Any]:
    """One process's desktops through all phases, which ``met`` keeps together; what it measured."""
    config = study(options, count)
    provider, turn = make_provider(config.desktop), asyncio.Semaphore(options.starting)
    provider.check()

    async def together() -> None:
        await asyncio.to_thread(met.wait, PATIENCE_S)

    async def start(number: int) -> tuple[GuestDesktop, float]:
        async with turn:
            began = time.monotonic()
            desktop: Any = await provider.start(f"scale {number}")
            seconds = time.monotonic() - began
            await desktop.reset(page_task(func="miniwob_reward"))
            return desktop, seconds

    await together()
    found = await asyncio.gather(*map(start, range(count)))
    desktops = [desktop for desktop, _ in found]
    for _ in range(2):  # all are there; they have rested
        await together()
    alone = await steps(desktops[0], our_step, ALONE) if first else []
    await together()
    until, every = time.monotonic() + options.seconds, list[float]()

    async def step(desktop: GuestDesktop) -> None:
        while time.monotonic() < until:
            every.extend(await steps(desktop, our_step, AT_A_TIME))

    await asyncio.gather(*map(step, desktops))
    for _ in range(2):  # the CPU time of processes that are gone cannot be read
        await together()
    played = await play(options, config, provider, desktops) if options.episodes else "not run: --episodes 0"
    await together()
    await asyncio.gather(*(desktop.close() for desktop in desktops))
    return {
        "start_s": [seconds for _, seconds in found],
        "alone": alone,
        "steps": every,
        "played": played,
        "ran_on": desktops[0].ran_on,
    }


def child(options: argparse.Namespace, count: int, first: bool, met: Barrier, said: Any) -> None:
    """Body of a driving process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        said.put(asyncio.run(drive(options, count, first, met)))
    except BaseException as error:
        met.abort()
        said.put(error if isinstance(error, UserError | DesktopError) else RuntimeError(repr(error)))


def capacity(memory_gib: float | None) -> dict[str, float]:
    """What this machine has: GiB of memory, threads. ``memory_gib``: see ``--memory-gib``."""
    machine = Machine()

    def least(*limits: object) -> float:
        return min(float(str(limit)) for limit in limits if limit is not None)

    total = memory_gib * 2**30 if memory_gib else psutil.virtual_memory().total
    kernel = [machine.read(f"/proc/sys/kernel/{name}") for name in ("pid_max", "threads-max")]
    own = None if os.geteuid() == 0 else machine.limits("NPROC")[0]
    return {
        "memory_gib": least(total, cgroup_value(machine, "memory.max", "memory.limit_in_bytes")) / 2**30,
        "threads": least(*kernel, own, cgroup_value(machine, "pids.max", "pids.max")),
    }


def taken() -> dict[str, float]:
    """How much of that is taken."""
    memory = psutil.virtual_memory()
    threads = Path("/proc/loadavg").read_text().split()[3].partition("/")[2]
    return {"memory_gib": (memory.total - memory.available) / 2**30, "threads": int(threads)}


def why_full(options: argparse.Namespace, count: int = 0, each: dict[str, float] | None = None) -> str:
    """What this machine has too little of for ``count`` more that take so much ``each``; empty if nothing."""
    now = taken()
    for name, most in capacity(options.memory_gib).items():
        need = now[name] + count * (each or {}).get(name, 0)
        if need > FULL * most:
            return f"{name}: {need:.0f} of {most:.0f}, and a tenth is to stay free"
    return ""


class Watch(threading.Thread):
    """Ends a row before the machine is full, when the time is over, or when a driving process has died."""

    def __init__(self, options: argparse.Namespace, met: Barrier, children: list[Any]) -> None:
        super().__init__(daemon=True)
        self.options, self.met, self.children = options, met, children
        self.over, self.reason = threading.Event(), ""

    def run(self) -> None:
        while not self.over.wait(LOOK_S):
            dead = [one.exitcode for one in self.children if one.exitcode]
            if time.monotonic() > self.options.until:
                self.reason = f"the limit of {self.options.limit:.0f} s was reached"
            elif dead:
                self.reason = f"a driving process ended with {dead[0]}"
            else:
                self.reason = why_full(self.options)
            if self.reason:
                self.met.abort()
                for process in self.children:
                    process.terminate()
                return


def part(values: list[float], share: float) -> float:
    """The value below which that share of them lies."""
    return round(sorted(values)[int(share * len(values))], 1)


def at(options: argparse.Namespace, count: int) -> dict[str, Any]:
    """One row, ``stopped`` in it if it is not whole. Raises what the first driving process died of."""
    parts = -(-count // options.per_process)
    sizes = [len(range(number, count, parts)) for number in range(parts)]
    context = multiprocessing.get_context("fork")
    met, said = context.Barrier(len(sizes) + 1), context.Queue()
    before = taken()
    children = [
        context.Process(target=child, args=(options, size, number == 0, met, said), daemon=True)
        for number, size in enumerate(sizes)
    ]
    for process in children:
        process.start()
    watch = Watch(options, met, children)
    watch.start()
    row: dict[str, Any] = {"desktops": count, "processes": len(sizes)}
    try:
        met.wait(PATIENCE_S)
        began = time.monotonic()
        met.wait(PATIENCE_S)
        row["all_started_s"] = round(time.monotonic() - began, 1)
        row["starts_per_s"] = round(count / (time.monotonic() - began), 2)
        each = {name: (value - before[name]) / count for name, value in taken().items()}
        row["memory_mib_each"] = round(1024 * each["memory_gib"])
        row["threads_each"] = round(each["threads"])
        row["private_mib_each"] = round(private_memory_mb(list(descendants(os.getpid()))) / count)
        used, began = cpu_ms(os.getpid()), time.monotonic()
        row["cpu_s_each_start"] = round(used.total() / 1000 / count, 2)
        time.sleep(REST_S)
        used = cpu_ms(os.getpid()) - used
        row["cores_each_at_rest"] = round(used.total() / 1000 / (time.monotonic() - began) / count, 4)
        met.wait(PATIENCE_S)
        met.wait(PATIENCE_S)
        used, began = cpu_ms(os.getpid()), time.monotonic()
        met.wait(PATIENCE_S)
        seconds, used = time.monotonic() - began, cpu_ms(os.getpid()) - used
        met.wait(PATIENCE_S)
        began = time.monotonic()
        met.wait(PATIENCE_S)
        playing = time.monotonic() - began
        answers = [said.get(timeout=PATIENCE_S) for _ in children]
    except threading.BrokenBarrierError:
        if watch.reason:
            end = time.monotonic() + GONE_S
            while taken()["threads"] > before["threads"] + count and time.monotonic() < end:
                time.sleep(LOOK_S)
            return {**row, "stopped": watch.reason}
        answers = [said.get(timeout=PATIENCE_S) for _ in children]
    finally:
        watch.over.set()
        for process in children:
            process.join(GONE_S)
    for answer in answers:
        if isinstance(answer, Exception) and "BrokenBarrier" not in str(answer):
            raise answer
    return {**row, **of_steps(answers, seconds, used), "episodes": episodes(answers, playing)}


def of_steps(answers: list[dict[str, Any]], seconds: float, used: Counter[str]) -> dict[str, Any]:
    """What a row says of the steps of all, which took so long and so much CPU time, and of one's alone."""
    every, alone = ([1000 * one for answer in answers for one in answer[key]] for key in ("steps", "alone"))
    return {
        "start_s": round(statistics.median(one for answer in answers for one in answer["start_s"]), 2),
        "click_and_screenshot_ms": {"median": part(alone, 0.5), "p95": part(alone, 0.95)},
        "steps_per_s": round(len(every) / seconds, 1),
        "step_ms": {"median": part(every, 0.5), "p95": part(every, 0.95)},
        "cores_used": round(used.total() / 1000 / seconds, 1),
        "cpu_ms_per_step": {name: round(value / len(every), 1) for name, value in used.most_common(5)},
        "ran_on": answers[0]["ran_on"],
    }


def episodes(answers: list[dict[str, Any]], seconds: float) -> dict[str, Any] | str:
    """Episodes per hour of all desktops, or why this was not run. Only those that scored 1 count."""
    played = [answer["played"] for answer in answers]
    for found in played:
        if isinstance(found, str):
            return found
    records = [record for found in played for record in found]
    solved = [record for record in records if record["hard_score"] == 1]
    lost = len(records) - len(solved)
    return {**summary(solved, seconds), "not_solved": lost} if solved else f"no result: {lost} not solved"


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
    axes.set(
        xlabel="desktops of 1920x1080 on one host, by bubblewrap", ylabel="steps per second, all together"
    )
    axes.set_ylim(0)
    axes.set_xscale("log", base=2)
    axes.set_xticks([row["desktops"] for row in rows], [str(row["desktops"]) for row in rows])
    axes.set_title(f"{document['cores']} cores, {document['memory_gib']} GiB", fontsize=9)
    figure.savefig(picture, bbox_inches="tight", metadata={"Date": None})


def main() -> None:
    """Measure row by row, or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--desktops", type=int, nargs="+", default=[8, 32, 64, 128, 256])
    parser.add_argument("--provider", choices=["container", "process"], default="container")
    parser.add_argument("--image", type=Path, help="squashfs, or a folder that holds what it would")
    parser.add_argument("--per-process", type=int, default=16)
    parser.add_argument("--starting", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--apart", type=float, default=5.0, help="seconds between two hard resets")
    parser.add_argument("--episodes", type=int, default=2, help="of each desktop; 0: none")
    parser.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS", help="of it all")
    parser.add_argument(
        "--memory-gib", type=float, help="of this machine, if its memory grows only as it is used"
    )
    parser.add_argument("--conditions", default="", help="a few words on the machine")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    if options.figure:
        draw(json.loads(options.out.read_text()), options.figure)
        return
    options.until = time.monotonic() + options.limit
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the driving processes as well
    containers = options.provider == "container"
    document: dict[str, Any] = {
        "conditions": options.conditions,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(capacity(options.memory_gib)["memory_gib"]),
        "threads": round(capacity(options.memory_gib)["threads"]),
        "system": f"{platform.system()} {platform.release()}",
        "user": "root" if os.geteuid() == 0 else "an ordinary user",
        "provider": options.provider,
        "screen": study(options, 1).desktop.screen,
        "load_before": round(os.getloadavg()[0], 1),
        "hard_reset_s": asyncio.run(hard_resets(options)) if containers else "not run: --provider process",
        "rows": [],
    }
    each, stopped = dict[str, float](), ""
    for count in sorted(options.desktops):
        load, began = round(os.getloadavg()[0], 1), time.monotonic()
        stopped = stopped or why_full(options, count, each)
        try:
            row = {"desktops": count, "stopped": stopped} if stopped else at(options, count)
        except Exception as error:
            row = {"desktops": count, "failed": str(error)[:500]}
        stopped = row.get("stopped", "")
        if "threads_each" in row:
            each = {"memory_gib": row["memory_mib_each"] / 1024, "threads": row["threads_each"]}
        document["rows"].append({**row, "load_before": load, "wall_s": round(time.monotonic() - began, 1)})
        write_atomically(options.out, (json.dumps(document, indent=1) + "\n").encode())
        print(json.dumps(document["rows"][-1]), flush=True)


if __name__ == "__main__":
    main()
