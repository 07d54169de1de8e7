"""Task files, set-up steps and evaluators, without a desktop."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arpo_replica.actions.types import Click, Fail, Finished
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.suites.evaluate import check_task, evaluate_task, run_setup
from arpo_replica.suites.miniwob.make_tasks import drift, refuse_drift, write_files
from arpo_replica.suites.miniwob.pages import html_root, make_task, page_url, task_json, to_bytes
from arpo_replica.tasks.model import Task, load_task


def make(config=(), evaluator=None):
    raw = {"id": "t", "instruction": "Do it.", "config": list(config), "evaluator": evaluator or {}}
    return Task("t", "test", "Do it.", raw["config"], raw["evaluator"], raw, "0")


def step(kind, **parameters):
    return {"type": kind, "parameters": parameters}


class FakeGuest:
    """Remembers what it was asked; commands end with ``code``."""

    screen = (168, 224)

    def __init__(self, code=0):
        self.calls = []
        self.code = code

    async def execute(self, command, shell=False):
        self.calls.append(("execute", command, shell))
        return {"output": "", "error": "it broke", "returncode": self.code}

    async def launch(self, command, shell=False):
        self.calls.append(("launch", command, shell))


class FakePage:
    def __init__(self, page_id, url):
        self.id = page_id
        self.url = url


class FakeDevTools:
    """Tabs without a browser; the first calls of ``connect`` fail ``starting`` times."""

    context = None
    starting = 0

    async def connect(self):
        if self.starting:
            self.starting -= 1
            raise DesktopError("not yet")

    def __init__(self, urls=("about:blank",), value=None):
        self.tabs = {f"tab{index}": url for index, url in enumerate(urls)}
        self.value = value

    async def pages(self):
        return [FakePage(key, url) for key, url in reversed(self.tabs.items())]

    async def open(self, url):
        key = f"new{len(self.tabs)}"
        self.tabs[key] = url
        return key

    async def navigate(self, url, page=None):
        self.tabs[page] = url

    async def evaluate(self, expression, page=None):
        return self.value


# -- task files -----------------------------------------------------------------------------------


def test_a_task_file_and_the_task_made_without_it_are_the_same(tmp_path):
    path = tmp_path / "miniwob" / "click-tab-s003.json"
    path.parent.mkdir()
    path.write_bytes(to_bytes(task_json("click-tab", 3, "Click on Tab #2.")))
    task = load_task(path)
    assert task == make_task("click-tab", 3, "Click on Tab #2.")
    assert task.id.rpartition("-s")[0] == "click-tab"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "lacks the key 'id'"),
        ('{"id": "a", "config": [], "evaluator": {}}', "lacks the key 'instruction'"),
        ('{"id": "b", "instruction": "", "config": [], "evaluator": {}}', "file name and id"),
        ('{"id": "a", "instruction": "", "config": [], "evaluator": "x"}', "'evaluator' must be a mapping"),
        ('{"id": "a", "instruction": 5, "config": [], "evaluator": {}}', "'instruction' must be a text"),
        ('{"id": ["a"], "instruction": "", "config": [], "evaluator": {}}', "'id' must be a text"),
        ('{"id": "a", "instruction": "", "config": {}, "evaluator": {}}', "'config' must be a list"),
        (
            '{"id": "a", "instruction": "", "config": ["x"], "evaluator": {}}',
            "'config' must be a list of steps",
        ),
        ('{"id": "a", "instruction": "", "evaluator": {"postconfig": [1]}}', "'postconfig' must be a list"),
        ("[" * 100_000, "cannot be read"),
        (b"\xff\xfe{}", "cannot be read"),
        (None, "cannot be read"),
    ],
    ids=range(13),
)
def test_a_broken_task_file_is_refused(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as refused:
        load_task(path)
    assert "\n" not in str(refused.value)


def test_infeasible_is_read_from_the_evaluator():
    assert make(evaluator={"func": "infeasible"}).infeasible
    assert not make(evaluator={"func": "miniwob_reward"}).infeasible


def test_pages_are_found_without_importing_the_package():
    import sys

    assert (html_root() / "miniwob" / "click-test.html").is_file()
    assert "miniwob" not in sys.modules


# -- set-up steps ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (step("googledrive"), "'googledrive' does not exist here"),
        ({"parameters": {}}, "None does not exist here"),
    ],
)
def test_steps_that_cannot_run_are_refused_before_work(bad, message):
    with pytest.raises(UserError, match=message):
        check_task(make([step("execute", command="true"), bad]))


async def test_steps_reach_the_guest_in_order():
    guest = FakeGuest()
    steps = [step("launch", command=["xterm", "-ls"]), step("execute", command=["/bin/bash", "-c", "true"])]
    await run_setup(make(steps), guest, FakeDevTools())
    assert guest.calls == [
        ("launch", ["xterm", "-ls"], False),
        ("execute", ["/bin/bash", "-c", "true"], False),
    ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (step("execute", command=["false"]), "ended with 1: it broke"),
        (step("launch"), "command"),
        (step("nonsense"), "no set-up step"),
    ],
)
async def test_a_step_that_fails_raises_and_says_which(bad, message):
    with pytest.raises(DesktopError, match="step 1.*" + message):
        await run_setup(make([step("launch", command="true"), bad]), FakeGuest(code=1), FakeDevTools())


async def test_tabs_open():
    devtools = FakeDevTools()
    urls = ["http://www.a.org/x/", "http://b.org/?q=1"]
    await run_setup(make([step("chrome_open_tabs", urls_to_open=urls)]), FakeGuest(), devtools)
    assert list(devtools.tabs.values()) == urls, "the first one takes the blank tab's place"


async def test_a_browser_is_launched_once_and_waited_for():
    for context, calls in (
        (None, [("launch", ["google-chrome", "--remote-debugging-port=1337"], False)]),
        ("the desktop's own", []),
    ):
        guest, devtools = FakeGuest(), FakeDevTools(value="Click on Tab #1.")
        devtools.context, devtools.starting = context, 2
        await run_setup(FEASIBLE, guest, devtools)
        assert guest.calls == calls
        assert list(devtools.tabs.values()) == [page_url("click-tab")]
    guest = FakeGuest()
    devtools.context = "the desktop's own"
    await run_setup(make([step("launch", command="xterm -e chrome")]), guest, devtools)
    assert guest.calls == [("launch", "xterm -e chrome", False)]


async def test_a_page_that_says_something_else_is_a_broken_desktop():
    task = make_task("click-tab", 1, "Click on Tab #1.")
    with pytest.raises(DesktopError, match="Tab #2"):
        await run_setup(task, FakeGuest(), FakeDevTools(value="Click on Tab #2."))
    await run_setup(task, FakeGuest(), FakeDevTools(value="Click on Tab #1."))


# -- evaluators -----------------------------------------------------------------------------------

INFEASIBLE = make(evaluator={"func": "infeasible"})
FEASIBLE = make_task("click-tab", 1, "Click on Tab #1.")


@pytest.mark.parametrize(
    ("task", "last", "score"),
    [
        (INFEASIBLE, Fail(), 1.0),
        (INFEASIBLE, Finished(), 0.0),
        (INFEASIBLE, None, 0.0),
        (FEASIBLE, Fail(), 0.0),
    ],
)
async def test_fail_is_scored_as_osworld_does_without_looking(task, last, score):
    assert await evaluate_task(task, last, devtools=None) == score


@pytest.mark.parametrize(("raw", "score"), [(1, 1.0), (0.25, 0.25), (-1, 0.0), (0, 0.0), (None, 0.0)])
async def test_the_pages_reward_is_the_score(raw, score):
    devtools = FakeDevTools(urls=[page_url("click-tab")], value=raw)
    found = await evaluate_task(FEASIBLE, Click(1, 2), devtools)
    assert found == score
    assert found.found == ("the page did not end" if raw is None else f"the page ended with reward {raw:g}")


async def test_a_policy_that_left_the_page_gets_nothing():
    devtools = FakeDevTools(urls=["about:blank"], value=1)
    assert await evaluate_task(FEASIBLE, Finished(), devtools) == 0.0


@given(st.one_of(st.none(), st.floats(allow_nan=False)))
async def test_scores_stay_in_range(raw):
    devtools = FakeDevTools(urls=[page_url("click-tab")], value=raw)
    assert 0.0 <= await evaluate_task(FEASIBLE, Click(1, 2), devtools) <= 1.0


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        ({"func": "compare_chart", "result": {"type": "vm_file"}}, "'compare_chart' does not exist"),
        ({"func": ["miniwob_reward"], "result": [{"type": "miniwob_episode"}]}, "does not exist"),
        ({"func": "miniwob_reward", "result": {"type": "vm_file"}}, "'vm_file' does not exist"),
        ({"func": "miniwob_reward"}, "None does not exist"),
        ({}, "None does not exist"),
    ],
)
async def test_an_evaluator_that_is_not_here_is_refused(evaluator, message):
    task = make(evaluator=evaluator)
    with pytest.raises(UserError, match=message):
        check_task(task)
    with pytest.raises(DesktopError):
        await evaluate_task(task, Finished(), FakeDevTools())


def test_an_infeasible_task_needs_no_getter():
    check_task(INFEASIBLE)


# -- generated files ------------------------------------------------------------------------------


def test_drift_names_what_differs(tmp_path):
    files = {
        f"tasks/miniwob/click-tab-s00{seed}.json": to_bytes(task_json("click-tab", seed, "Click."))
        for seed in (1, 2, 3)
    }
    files["splits/miniwob_x.json"] = b"{}\n"
    write_files(files, tmp_path)
    assert drift(files, tmp_path) == []
    refuse_drift(files, tmp_path)
    (tmp_path / "tasks/miniwob/click-tab-s001.json").write_text(json.dumps({}))
    (tmp_path / "tasks/miniwob/click-tab-s002.json").unlink()
    (tmp_path / "tasks/miniwob/click-tab-s004.json").write_text("{}")
    assert drift(files, tmp_path) == [
        "tasks/miniwob/click-tab-s001.json: differs",
        "tasks/miniwob/click-tab-s002.json: missing",
        "tasks/miniwob/click-tab-s004.json: not made any more",
    ]
    with pytest.raises(UserError, match="3 in all"):
        refuse_drift(files, tmp_path)
    write_files(files, tmp_path)
    assert drift(files, tmp_path) == []
