"""The scripted expert's replies, and which recorded episodes a recording keeps; without a desktop."""

import io

import pytest
from PIL import Image

from arpo_replica.actions.coordinates import Frame
from arpo_replica.actions.parse import UITarsParser
from arpo_replica.actions.types import Click, Finished, TypeText
from arpo_replica.base.errors import DesktopError
from arpo_replica.config.models import NanoConfig
from arpo_replica.desktop.devtools import Page as DevToolsPage
from arpo_replica.models.nano.demonstrations import _keep_valid, draw_tasks
from arpo_replica.rollout.records import finished_episodes, write_episode
from arpo_replica.suites.miniwob.expert import Expert
from arpo_replica.suites.miniwob.pages import (
    END_COLOR,
    TRAINED_PAGES,
    make_task,
    page_url,
    script,
)
from fakes import episode_record

TASK = make_task("click-tab", 1_000_001, "Click on Tab #1.")
FRAME = Frame("absolute", (1920, 1080), (1932, 1092))
PARSER = UITarsParser(Frame("absolute", (1920, 1080), (1932, 1092)))


class Page:
    """DevTools that answer with what they were given, and remember the questions."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    async def evaluate(self, expression, page=None, timeout_s=None):
        assert page in (None, "task")
        self.asked.append(expression)
        return self.answer(expression) if callable(self.answer) else self.answer

    async def navigate(self, url):
        self.shown = url

    async def pages(self):
        noise = DevToolsPage("noise", "data:text/html,x", "")
        return [noise, DevToolsPage("task", page_url("click-tab"), "")]


def png(color):
    file = io.BytesIO()
    Image.new("RGB", (168, 224), color).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("step", "text", "action"),
    [
        (
            {"kind": "click", "thought": "Click Tab #1.", "x": 960, "y": 540},
            "Thought: Click Tab #1.\nAction: click(point='<point>966 546</point>')",
            Click(960, 540),
        ),
        (
            {"kind": "type", "thought": "Type it's.", "text": "it's"},
            "Thought: Type it's.\nAction: type(content='it\\'s')",
            TypeText("it's"),
        ),
        (
            {"kind": "finished", "thought": "The task is done.", "x": 2, "y": 2},
            "Thought: The task is done.\nAction: finished(content='')",
            Finished(),
        ),
    ],
)
async def test_replies_are_what_the_parser_reads(step, text, action):
    reply = await Expert(Page(step), FRAME).start(TASK).reply(png(END_COLOR))
    assert reply.text == text
    assert PARSER.parse(reply.text) == action


async def test_the_end_must_be_on_the_screenshot():
    page = Page({"kind": "finished", "thought": "The task is done.", "x": 2, "y": 2})
    with pytest.raises(DesktopError, match="older than the page"):
        await Expert(page, FRAME).start(TASK).reply(png("white"))


@pytest.mark.parametrize("answer", [None, {"kind": "drag"}, {"kind": "click", "x": "1", "y": 2}])
async def test_an_unknown_answer_of_the_page_is_an_error(answer):
    with pytest.raises(DesktopError, match="script answered"):
        await Expert(Page(answer), FRAME).start(TASK).reply(b"")


async def test_where_it_clicks_follows_from_the_task_alone():
    async def asked(task):
        page = Page({"kind": "type", "thought": "Type a.", "text": "a"})
        conversation = Expert(page, FRAME).start(task)
        await conversation.reply(b"")
        await conversation.reply(b"")
        return page.asked

    first = await asked(TASK)
    assert first == await asked(TASK)
    assert first[0] != first[1]
    assert first != await asked(make_task("click-tab", 1_000_002, "Click on Tab #1."))


def test_the_end_sheet_has_the_colour_that_the_expert_looks_for():
    assert "background: #{:02x}{:02x}{:02x}".format(*END_COLOR) in script("miniwob_start.js")


async def test_fewer_demonstrations_are_the_first_of_more_and_unusable_seeds_are_replaced():
    refused = set()

    def answer(expression):
        seeds = [int(seed) for seed in expression[1 : expression.index("]")].split(",")]
        refused.update(seed for seed in seeds if seed % 5 == 0)
        return [None if seed % 5 == 0 else f"say {seed}" for seed in seeds]

    many = await draw_tasks(Page(answer), NanoConfig(demonstrations=40, seed=3))
    few = await draw_tasks(Page(answer), NanoConfig(demonstrations=15, seed=3))
    assert refused
    assert len({task.id for task in many}) == 40
    assert [task.id.rpartition("-s")[0] for task in many[:12]] == list(TRAINED_PAGES)
    assert not any(int(task.id.rpartition("-s")[2]) % 5 == 0 for task in many)
    assert [task.id for task in few] == [task.id for task in many[:15]]


def test_only_episodes_of_this_very_recording_are_kept(tmp_path):
    tasks = [make_task("click-tab", 2_000_000 + index, "Click on Tab #1.") for index in range(4)]
    other = make_task("click-tab", 2_000_002, "Click on Tab #3.")
    made_with = {"seed": 0}
    assert _keep_valid(tmp_path, tasks, made_with) == {}
    for task, outcome in [
        (tasks[0], "success"),
        (tasks[1], "env_error"),
        (other, "success"),
        (tasks[3], "success"),
    ]:
        write_episode(tmp_path, episode_record(task, outcome=outcome), [], {})
    kept = _keep_valid(tmp_path, tasks[:3], made_with)
    assert list(kept) == [("miniwob", tasks[0].id)], "no failure, no other text, no surplus task"
    assert finished_episodes(tmp_path) == kept
    assert _keep_valid(tmp_path, tasks[:3], made_with) == kept
    assert _keep_valid(tmp_path, tasks[:3], {"seed": 1}) == {}
    assert finished_episodes(tmp_path) == {}
