"""What a study refuses before it starts, and what makes none of it run again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from arpo_replica.base import environments
from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.base.processes import free_port
from arpo_replica.config import parse_config
from arpo_replica.config.decides import decides, rules
from arpo_replica.config.models import merge
from arpo_replica.workflow.study import Study

DEMO = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())


JOB = {"arm": "arpo", "seed": "0", "stage": "train_32"}


def study_of(changes: dict[str, Any]) -> Study:
    """The demo with changes."""
    return Study(parse_config(merge(DEMO, changes), "x.yaml"))


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A folder with the data of the checkout and no results."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_study_without_trainings_refuses_screenshots_that_no_context_fits(checkout):
    policy = {"max_images": 6, "max_steps": 6, "max_new_tokens": 48, "max_model_len": 256}
    study = study_of({"arms": {"grpo": None, "arpo": None}, "policy": policy})
    with pytest.raises(
        UserError, match=r"^6 screenshots of 48 tokens .* policy\.max_model_len \(256\); raise"
    ):
        study.check()


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ({"policy": {"model": "served", "served_model": "x"}}, "endpoint .* does not answer"),
        ({"desktop": {"provider": "remote"}, "policy": {"model": "nano"}}, "desktop service .* answer"),
    ],
)
def test_a_server_that_is_gone_stops_no_page_of_finished_episodes(checkout, monkeypatch, gone, words):
    monkeypatch.setenv("ARPO_DESKTOP_TOKEN", "x" * 32)
    url = f"http://127.0.0.1:{free_port()}"
    where = {"policy": {"endpoint": url}, "desktop": {"remote": {"pools": [url]}}}
    study = study_of(merge(merge({"arms": {"grpo": None, "arpo": None}}, where), gone))
    indexes = [checkout / index.replace("<results>", "results/demo") for index in study.all_indexes()]
    assert len(indexes) == 4  # two splits, two trials
    for index in indexes:
        assert not study.is_collected()
        assert re.search(words, " ".join(study.lacks()))
        index.parent.mkdir(parents=True)
        index.touch()
    assert study.is_collected()
    assert study.lacks() == []


def test_a_policy_that_is_served_elsewhere_needs_no_torch_here(checkout, monkeypatch):
    monkeypatch.setattr(environments, "ROOT", checkout)
    url = f"http://127.0.0.1:{free_port()}"
    elsewhere = {"model": "served", "served_model": "x", "endpoint": url}
    lacks = study_of({"arms": {"grpo": None, "arpo": None}, "policy": elsewhere}).lacks()
    assert not any("envs/cpu" in sentence for sentence in lacks)
    assert any("does not answer" in sentence for sentence in lacks)
    assert any("envs/cpu is not installed" in sentence for sentence in study_of({}).lacks())


def test_what_a_machine_lacks_is_no_fault_of_the_config(checkout, monkeypatch):
    """A laptop with the controller's environment alone checks and plans what a cluster will run."""
    monkeypatch.setattr(environments, "ROOT", checkout)
    monkeypatch.setenv("PATH", "/nonexistent")
    study = study_of({})
    study.check()
    assert len(study.lacks()) > 1


@pytest.mark.parametrize("key", ["endpoint", "api_key_variable"])
def test_where_a_policy_is_served_makes_nothing_run_again(key):
    values = {
        "endpoint": ["http://127.0.0.1:1", "https://gpu.example.org/v1"],
        "api_key_variable": ["A", "B"],
    }
    one, other = (study_of({"policy": {key: value}}) for value in values[key])
    assert one.config != other.config
    for rule in rules():
        if rule not in {"make_noisy_tasks", "select_tasks"}:
            assert decides(one.config, rule)(JOB) == decides(other.config, rule)(JOB)


def test_another_name_of_the_served_model_is_another_policy():
    one, other = (study_of({"policy": {"served_model": name}}) for name in "ab")
    assert decides(one.config, "collect_rollouts")(JOB) != decides(other.config, "collect_rollouts")(JOB)
