"""Noisy tasks in the real desktop: the noise is there, the task can be solved, doing nothing is nothing."""

import io
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from arpo_replica.actions.coordinates import Frame
from arpo_replica.actions.parse import UITarsParser
from arpo_replica.actions.types import Click, Finished
from arpo_replica.base.errors import DesktopError
from arpo_replica.config import load_config
from arpo_replica.config.tasks import NoisyTasksConfig
from arpo_replica.providers.process import ProcessProvider
from arpo_replica.rollout.episode import EpisodeLimits, run_episode
from arpo_replica.suites.miniwob.expert import Expert
from arpo_replica.suites.noise import make_noisy
from arpo_replica.tasks.splits import load_split

pytestmark = pytest.mark.desktop
ROOT = Path(__file__).parents[2]
LIMITS = EpisodeLimits(max_steps=6, success_above=0.5, timeout_s=60)
TASKS = {task.id: task for task in load_split(ROOT / "data/splits/miniwob_test_in.json", ROOT / "data/tasks")}
PAGES = (
    "click-tab-s500",
    "click-dialog-2-s500",
    "focus-text-2-s500",
    "enter-text-s500",
    "click-button-sequence-s500",
)


@pytest.fixture
def config():
    return load_config(ROOT / "configs/demo.yaml")


@pytest.fixture
async def desktop(config):
    desktop = await ProcessProvider(config.desktop).start("noisy")
    yield desktop
    await desktop.close()


def noisy(task_id, *kinds):
    return make_noisy(TASKS[task_id], NoisyTasksConfig(source="x", kinds=list(kinds), per_task=len(kinds)))


async def windows(desktop):
    """Titles of all windows on the screen."""
    code = (
        "from Xlib.display import Display\n"
        "def walk(w):\n"
        "    for c in w.query_tree().children:\n"
        "        if c.get_attributes().map_state == 2: print(c.get_wm_name())\n"
        "        walk(c)\n"
        "walk(Display().screen().root)"
    )
    return (await desktop.guest.execute(["python3", "-c", code]))["output"].splitlines()


def difference(left, right):
    """Box that holds all pixels in which two screenshots differ; None if they are equal."""
    images = [Image.open(io.BytesIO(png)).convert("RGB") for png in (left, right)]
    return ImageChops.difference(*images).getbbox()


async def test_a_notification_is_on_top_until_it_is_clicked(desktop):
    task = noisy("click-tab-s500", "notification")
    await desktop.reset(TASKS["click-tab-s500"])
    clean = await desktop.screenshot()
    await desktop.reset(task)
    seen = await desktop.screenshot()
    box = difference(clean, seen)
    assert box is not None
    assert (box[2] - box[0], box[3] - box[1]) == (84, 24)
    point = Click((box[0] + box[2]) // 2, (box[1] + box[3]) // 2)
    await desktop.act(point, "n-0")
    gone = await desktop.screenshot()
    await desktop.reset(task)
    assert difference(seen, await desktop.screenshot()) is None, "the same noise each time"
    await desktop.reset(TASKS["click-tab-s500"])
    assert difference(clean, await desktop.screenshot()) is None, "and nothing of it stays"
    await desktop.act(point, "n-1")
    assert difference(gone, await desktop.screenshot()) is None


async def test_the_other_kinds_are_there_and_do_not_cover_the_task(desktop):
    await desktop.reset(TASKS["click-tab-s500"])
    clean, before = await desktop.screenshot(), await windows(desktop)
    task = noisy("click-tab-s500", "background_window", "extra_tab", "distractor_file")
    await desktop.reset(task)
    assert await desktop.screenshot() == clean
    new = set(await windows(desktop)) - set(before)
    title = next(
        step["parameters"]["command"][4]
        for step in task.config
        if step["parameters"].get("command", [])[3:4] == ["background_window"]
    )
    assert new == {title}
    pages = await desktop.devtools.pages()
    assert sorted(page.url.partition(":")[0] for page in pages) == ["data", "http"]
    tree = await desktop.guest.execute("find /home/user/D* /home/user/P* -type f", shell=True)
    assert len(tree["output"].splitlines()) == 1
    await desktop.reset(TASKS["click-tab-s500"])
    assert len(await desktop.devtools.pages()) == 1
    assert await windows(desktop) == before


@pytest.mark.parametrize(
    "kinds",
    [("notification",), ("background_window", "extra_tab"), ("distractor_file", "notification", "extra_tab")],
)
async def test_the_oracle_solves_noisy_tasks_and_doing_nothing_does_not(desktop, config, kinds):
    parser = UITarsParser.of(config.policy, config.desktop.screen)
    expert = Expert(desktop.devtools, Frame.of(config.policy, config.desktop.screen))
    for page in PAGES:
        task = noisy(page, *kinds)
        try:
            result = await run_episode(task, desktop, expert, parser, LIMITS)
        except DesktopError as late:  # a busy machine; who records demonstrations tries again as well
            assert "older than the page" in str(late)
            result = await run_episode(task, desktop, expert, parser, LIMITS)
        assert (result.outcome, result.hard_score) == ("success", 1.0), (page, result.steps)
        await desktop.reset(task)
        assert await desktop.evaluate(task, Finished()) == 0.0, page


async def test_noise_that_cannot_be_shown_is_a_broken_desktop(desktop):
    task = noisy("click-tab-s500", "notification")
    task.config[0]["parameters"]["command"] = ["python3", "-c", "raise SystemExit(1)"]
    with pytest.raises(DesktopError, match="step 0"):
        await desktop.reset(task)
