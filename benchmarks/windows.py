"""Where programs put their windows in a container desktop: ``.../python benchmarks/windows.py`` prints JSON.

Each program is started in a fresh desktop by the command that OSWorld's tasks use; its windows are read from
the window manager once the screen is at rest. (x, y, width, height) in pixels, without decoration.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from pathlib import Path
from typing import Any

from arpo_replica.config import load_config
from arpo_replica.providers.container import ContainerProvider
from arpo_replica.providers.guest_desktop import GuestDesktop
from arpo_replica.tasks.model import Task

PROGRAMS = {
    "chrome": ["google-chrome", "--remote-debugging-port=1337"],
    "gimp": ["gimp"],
    "libreoffice_calc": ["libreoffice", "--calc"],
    "libreoffice_impress": ["libreoffice", "--impress"],
    "libreoffice_writer": ["libreoffice", "--writer"],
    "nautilus": ["nautilus"],
    "thunderbird": ["thunderbird"],
    "vlc": ["vlc"],
}
SIDES = ("Absolute upper-left X", "Absolute upper-left Y", "Width", "Height")
WINDOW_S, CALM_S = 60.0, 10.0
NOTHING = Task("nothing", "benchmark", "", [], {"func": "miniwob_reward"}, {}, "")
"""A task without set-up: the bare desktop."""


async def windows(desktop: GuestDesktop, command: list[str]) -> list[dict[str, Any]]:
    """The windows of a program, as the window manager knows them."""
    await desktop.reset(NOTHING)
    await desktop.guest.launch(command)
    await desktop.guest.calm(1, WINDOW_S, CALM_S)
    listed = await desktop.guest.execute(["wmctrl", "-l"])
    found = []
    for line in listed["output"].splitlines():
        number, workspace, _ = line.split(maxsplit=2)
        if workspace != "-1":  # bar and dock are on all of them
            told = (await desktop.guest.execute(["xwininfo", "-id", number]))["output"]
            title = re.search(r'Window id: \S+ "(.*)"', told)
            facts = dict(re.findall(r"^ *(.+?): +(-?\d+)$", told, re.MULTILINE))
            box = [int(facts[key]) for key in SIDES]
            found.append({"title": title.group(1) if title else "", "box": box})
    return found


async def measure(config_file: Path) -> dict[str, Any]:
    """All programs, one after the other."""
    provider = ContainerProvider(load_config(config_file).desktop)
    provider.check()
    desktop = await provider.start("windows")
    try:
        found = {name: await windows(desktop, command) for name, command in PROGRAMS.items()}
    finally:
        await desktop.close()
    return {"desktop": provider.describe(), "windows": found}


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/smoke.yaml"))
    print(json.dumps(asyncio.run(measure(parser.parse_args().config)), indent=1))


if __name__ == "__main__":
    main()
