"""MiniWoB++ in the real desktop: task files, evaluator, expert and demonstrations."""

import asyncio
from pathlib import Path

import pytest

from arpo_replica.actions.coordinates import Frame
from arpo_replica.actions.parse import UITarsParser
from arpo_replica.actions.types import Click, Finished, Hotkey, TypeText
from arpo_replica.base.errors import DesktopError
from arpo_replica.config.load import load_config
from arpo_replica.models.nano.demonstrations import SteadyDesktop, record_demonstrations
from arpo_replica.providers.process import ProcessProvider
from arpo_replica.rollout.episode import EpisodeLimits, run_episode
from arpo_replica.rollout.records import finished_episodes, read_episode
from arpo_replica.suites.miniwob.expert import Expert
from arpo_replica.suites.miniwob.make_tasks import PLAN, drift, make_files, read_plan
from arpo_replica.suites.miniwob.pages import (
    HELD_OUT_PAGES,
    MORE_PAGES,
    TRAINED_PAGES,
    blank_task,
    make_task,
    page_url,
    read_instructions,
    start_page,
)
from arpo_replica.tasks.splits import load_split

pytestmark = pytest.mark.desktop
ROOT = Path(__file__).parents[2]
DATA = ROOT / "data"
LIMITS = EpisodeLimits(max_steps=6, success_above=0.5, timeout_s=60)


@pytest.fixture
def config():
    return load_config(ROOT / "configs/demo.yaml")


@pytest.fixture
def provider(config):
    return ProcessProvider(config.desktop)


@pytest.fixture
async def desktop(provider):
    desktop = await provider.start("test")
    yield desktop
    await desktop.close()


def teacher(desktop, config):
    """The expert on a desktop and the parser of its replies."""
    frame = Frame.of(config.policy, config.desktop.screen)
    return Expert(desktop.devtools, frame), UITarsParser.of(config.policy, config.desktop.screen)


async def expert_action(desktop, config, task):
    """What the expert would do on a desktop that is reset."""
    expert, parser = teacher(desktop, config)
    return parser.parse((await expert.start(task).reply(b"")).text)


async def test_committed_files_are_what_the_pages_say(desktop):
    await desktop.reset(blank_task())
    assert drift(await make_files(desktop.devtools, read_plan(DATA / PLAN)), DATA) == []


async def test_the_expert_solves_the_pages_that_a_plan_may_name_too(desktop, config):
    for page in MORE_PAGES:
        await desktop.reset(blank_task())
        texts = await read_instructions(desktop.devtools, page, [600, 601, 602, 603])
        assert texts, page
        for seed, text in list(texts.items())[:2]:
            expert, parser = teacher(desktop, config)
            result = await run_episode(
                make_task(page, seed, text), SteadyDesktop(desktop), expert, parser, LIMITS
            )
            assert (result.outcome, result.format_errors) == ("success", 0), (page, seed, result.steps)


async def test_the_expert_solves_every_task_file(provider, config):
    tasks = {
        task.id: task
        for name in read_plan(DATA / PLAN).splits
        for task in load_split(DATA / f"splits/miniwob_{name}.json", DATA / "tasks")
    }
    assert {task_id.rpartition("-s")[0] for task_id in tasks} == {*TRAINED_PAGES, *HELD_OUT_PAGES}
    queue = list(tasks.values())
    failures = []

    async def work(name):
        desktop = await provider.start(name)
        try:
            expert, parser = teacher(desktop, config)
            while queue:
                task = queue.pop()
                result = await run_episode(task, SteadyDesktop(desktop), expert, parser, LIMITS)
                if result.outcome != "success" or result.format_errors:
                    failures.append((task.id, result.outcome, [step.text for step in result.steps]))
        finally:
            await desktop.close()

    await asyncio.gather(*(work(f"solver-{index}") for index in range(3)))
    assert failures == []


async def test_a_task_is_worth_nothing_before_it_is_done(desktop):
    task = make_task("click-tab", 0, "Click on Tab #2.")
    await desktop.reset(task)
    assert await desktop.evaluate(task, Finished()) == 0.0


async def test_right_and_wrong_ends_look_the_same_and_the_first_one_counts(desktop, config):
    right = make_task("click-test-2", 0, "Click button ONE.")
    await desktop.reset(right)
    one = await expert_action(desktop, config, right)
    box = await desktop.devtools.evaluate(
        "(({x, y}) => ({x, y}))(document.querySelector('#subbtn2').getBoundingClientRect())"
    )
    two = Click(int(box["x"]) + 20, int(box["y"]) + 20)
    corner = Click(80, 200)
    await desktop.act(one, "a-0")
    await desktop.act(corner, "a-1")
    seen_right = await desktop.screenshot()
    assert await desktop.evaluate(right, Finished()) == 1.0

    await desktop.reset(right)
    before = await desktop.screenshot()
    await desktop.act(two, "b-0")
    assert await desktop.evaluate(right, two) == 0.0
    await desktop.act(one, "b-1")
    for index, action in enumerate([TypeText("x\n"), Hotkey(("tab",)), Hotkey(("space",)), corner]):
        await desktop.act(action, f"b-{index + 2}")
    assert await desktop.evaluate(right, Finished()) == 0.0
    assert await desktop.screenshot() == seen_right != before


async def test_partial_rewards_are_kept(desktop):
    task = make_task("click-checkboxes", 4, await _instruction(desktop, "click-checkboxes", 4))
    await desktop.reset(task)
    inputs = "[...document.querySelectorAll('#boxes input')]"
    wanted = await desktop.devtools.evaluate(
        f"{inputs}.map(e => ({{x: e.getBoundingClientRect().x, y: e.getBoundingClientRect().y,"
        " name: e.parentElement.textContent.trim()}))"
    )
    names = task.instruction.removeprefix("Select ").removesuffix(" and click Submit.").split(", ")
    chosen = [box for box in wanted if box["name"] in names]
    assert len(wanted) > 2
    for index, box in enumerate(chosen[:-1] if len(chosen) > 1 else [*chosen, wanted[0]]):
        await desktop.act(Click(int(box["x"]) + 6, int(box["y"]) + 6), f"c-{index}")
    submit = await desktop.devtools.evaluate(
        "(({x, y}) => ({x, y}))(document.querySelector('#subbtn').getBoundingClientRect())"
    )
    await desktop.act(Click(int(submit["x"]) + 10, int(submit["y"]) + 10), "c-submit")
    assert await desktop.evaluate(task, Finished()) == pytest.approx(1 - 2 / len(wanted))


async def _instruction(desktop, page, seed):
    await desktop.reset(blank_task())
    await desktop.devtools.navigate(page_url(page))
    return await start_page(desktop.devtools, seed)


async def test_a_task_file_that_lies_is_a_broken_desktop(desktop):
    with pytest.raises(DesktopError, match="Tab #2"):
        await desktop.reset(make_task("click-tab", 0, "Click on Tab #3."))


def content(root):
    """Everything about recorded episodes that must not depend on time."""
    found = {}
    for key, path in finished_episodes(root).items():
        record, steps = read_episode(path)
        assert record.outcome == "success"
        found[key] = (
            record.instruction,
            [(step.text, step.action) for step in steps],
            {image.name: image.read_bytes() for image in sorted(path.glob("*.webp"))},
        )
    return found


async def test_the_same_seed_gives_the_same_demonstrations_and_finished_ones_stay(provider, config, tmp_path):
    config.nano.demonstrations = 18
    config.desktop.count = 3
    assert await record_demonstrations(config, tmp_path / "a", provider) == {"success": 18}
    first = content(tmp_path / "a")
    assert len((tmp_path / "a/episodes.jsonl").read_text().splitlines()) == len(first) == 18

    config.desktop.count = 2
    await record_demonstrations(config, tmp_path / "b", provider)
    assert content(tmp_path / "b") == first

    config.nano.demonstrations = 20
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*/episode.json")}
    assert await record_demonstrations(config, tmp_path / "a", provider) == {"success": 20}
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
