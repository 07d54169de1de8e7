"""The committed lists of OSWorld's tasks: what they promise, and what the loader refuses."""

import json
from pathlib import Path

import pytest

from arpo_replica.base.errors import UserError
from arpo_replica.tasks.osworld_files import MANIFEST, read_task_manifest
from arpo_replica.tasks.osworld_files import ROOT as FETCHED
from arpo_replica.tasks.splits import load_split, read_split, refuse_unknown
from real_tasks import EXAMPLES, at_hand

ROOT = Path(__file__).parents[2]
SIZES = {
    "osworld_369": 369,
    "osworld_361": 361,
    "arpo_128": 128,
    "arpo_32_candidate": 32,
    "seed_32": 32,
    "chrome_18": 18,
    "chrome_10": 10,
    "smoke_4": 4,
    "offline": 55,
    "offline_desktop": 40,
    "cached_229": 229,
}
INFEASIBLE = {
    "osworld_369": 29,
    "osworld_361": 29,
    "arpo_128": 25,
    "arpo_32_candidate": 0,
    "seed_32": 5,
    "chrome_18": 2,
    "chrome_10": 1,
    "smoke_4": 0,
    "offline": 17,
    "offline_desktop": 14,
}
SEED_SMOKE_4 = {
    "chrome": ["06fe7178-4491-4589-810f-2e2bc9502122"],
    "gimp": ["3fb3efba-eb56-427b-b16e-a07c8e6cb969"],
    "os": ["c64f5fe6-7b76-4c0a-acc7-f3ab50cdce49"],
    "vs_code": ["0a291cc3-74bb-46c4-8309-d2c0f2b05138"],
}


def path(name):
    return ROOT / f"data/splits/{name}.json"


def ids(name):
    return {f"{domain}/{task}" for domain, tasks in read_split(path(name)).tasks.items() for task in tasks}


@pytest.fixture(scope="module")
def known():
    return read_task_manifest(ROOT / MANIFEST).files


@pytest.mark.parametrize("name", SIZES)
def test_every_list_names_existing_tasks_its_source_and_its_grade(name, known):
    split = read_split(path(name))
    assert split.name == name
    assert split.source
    assert split.grade
    assert split.notes
    assert len(ids(name)) == SIZES[name]
    refuse_unknown(path(name), split, known.__contains__, "OSWorld")


def test_how_the_lists_lie_in_each_other(known):
    assert {f"{name}.json" for name in ids("osworld_369")} == set(known)
    left_out = ids("osworld_369") - ids("osworld_361")
    assert len(left_out) == 8
    assert {name.partition("/")[0] for name in left_out} == {"multi_apps"}
    for name in ("arpo_32_candidate", "seed_32", "chrome_18", "smoke_4"):
        assert ids(name) < ids("arpo_128")
    assert ids("chrome_10") < ids("chrome_18")
    assert {name for name in ids("arpo_128") if name.startswith("chrome/")} == ids("chrome_18")
    assert len(ids("seed_32") & ids("arpo_32_candidate")) == 10
    assert ids("smoke_4") < ids("offline_desktop") < ids("offline")
    assert not ids("offline") & ids("cached_229")
    assert len(ids("offline") & ids("arpo_128")) == 36
    assert len(ids("cached_229") & ids("arpo_128")) == 75
    assert len({name.partition("/")[0] for name in ids("smoke_4")}) == 4


def test_the_candidate_is_called_unconfirmed():
    assert read_split(path("arpo_32_candidate")).grade == "unconfirmed"


def test_offline_lists_say_what_is_left_out_and_why():
    split = read_split(path("offline_desktop"))
    assert set(split.excluded) == ids("offline") - ids("offline_desktop")
    assert set(split.scores_1_for_no_action) < ids("offline_desktop")
    assert not set(split.scores_1_for_no_action) & ids("smoke_4")


@at_hand
@pytest.mark.parametrize("name", INFEASIBLE)
def test_infeasible_tasks_are_read_from_the_task_files(name):
    tasks = load_split(path(name), EXAMPLES)
    assert len(tasks) == SIZES[name]
    assert sum(task.infeasible for task in tasks) == INFEASIBLE[name]


@at_hand
def test_which_tasks_of_the_128_were_infeasible_in_the_papers_time():
    split = read_split(path("arpo_128"))
    then = {
        f"{domain}/{task}" for domain, tasks in split.infeasible_in_the_papers_time.items() for task in tasks
    }
    now = {f"{t.domain}/{t.id}" for t in load_split(path("arpo_128"), EXAMPLES) if t.infeasible}
    changed = split.infeasible_today_differs["no longer infeasible"]
    assert (len(then), len(now)) == (26, 25)
    assert then < ids("arpo_128")
    assert then - now == {f"{domain}/{task}" for domain, tasks in changed.items() for task in tasks}
    assert now < then


def test_task_files_that_were_not_fetched_are_told_how(tmp_path, monkeypatch):
    """As for who runs validate-tasks or lends desktops before any study."""
    listed = path("smoke_4")
    monkeypatch.chdir(tmp_path)
    for root in (FETCHED, tmp_path / FETCHED):
        with pytest.raises(UserError, match=r"'snakemake --configfile CONFIG -- \S+/manifest\.json' fetches"):
            load_split(listed, root)
    with pytest.raises(UserError, match=r"no folder of task files no/where; correct tasks\.root"):
        load_split(listed, Path("no/where"))


def test_the_seeds_smoke_list_is_refused_naming_all_three_ids_that_do_not_exist(tmp_path, known):
    listed = tmp_path / "train_smoke_4.json"
    listed.write_text(json.dumps({"name": "seed_smoke_4", "source": "the seed", "tasks": SEED_SMOKE_4}))
    root = tmp_path / "tasks"
    (root / "chrome").mkdir(parents=True)
    (root / f"chrome/{SEED_SMOKE_4['chrome'][0]}.json").write_text("{}")
    invented = [f"{domain}/{names[0]}" for domain, names in SEED_SMOKE_4.items() if domain != "chrome"]

    with pytest.raises(UserError) as from_files:
        load_split(listed, root)
    with pytest.raises(UserError) as from_manifest:
        refuse_unknown(listed, read_split(listed), known.__contains__, "OSWorld")
    for error in (from_files, from_manifest):
        assert all(name in str(error.value) for name in invented)
        assert SEED_SMOKE_4["chrome"][0] not in str(error.value)
