"""Noisy tasks in a container: our steps run in the image, and the noise is where it should be."""

import asyncio

import pytest
from docker_helpers import inside, provider, task

from arpo_replica.config.tasks import NoisyTasksConfig
from arpo_replica.suites.noise import make_noisy

pytestmark = pytest.mark.docker

LAUNCH = {"type": "launch", "parameters": {"command": ["google-chrome", "--remote-debugging-port=1337"]}}
KINDS = ["notification", "background_window", "distractor_file", "extra_tab"]


async def run_steps(desktop, steps):
    """Apply set-up steps as OSWorld's client does: execute waits, launch does not."""
    for step in steps:
        command = step["parameters"]["command"]
        if step["type"] == "launch":
            await desktop.guest.launch(command)
        else:
            result = await desktop.guest.execute(command)
            assert result["returncode"] == 0, (command[-1], result["error"][-500:])


async def test_osworld_style_noise_runs_in_the_image():
    clean = task([LAUNCH], {"func": "exact_match", "result": {"type": "enable_do_not_track"}})
    noisy = make_noisy(clean, NoisyTasksConfig(source="x", kinds=KINDS, per_task=4))
    made = provider()
    made.check()
    desktop = await made.start("noisy")
    try:
        await desktop.reset(task())
        await run_steps(desktop, noisy.config)
        titles = await inside(desktop, "wmctrl -l")
        background = next(
            step["parameters"]["command"][4]
            for step in noisy.config
            if step["parameters"]["command"][3:4] == ["background_window"]
        )
        assert background in titles
        stacked = await inside(desktop, 'xwininfo -root -tree | grep -c \'"notes" "Notes"\'')
        assert int(stacked) == 2
        assert await inside(desktop, "find ~/Desktop ~/Documents ~/Downloads -type f | wc -l") == "1"
        pages = await inside(
            desktop,
            "python3 -c \"import json, urllib.request as u; print(*[p['url'][:5] for p in "
            "json.load(u.urlopen('http://localhost:1337/json/list')) if p['type'] == 'page'])\"",
        )
        assert sorted(pages.split()) == ["chrom", "data:"]
    finally:
        await asyncio.wait_for(desktop.close(), 30)
