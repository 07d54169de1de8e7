"""The paper's study planned before anything runs: 2 models, 3 arms, 3 seeds, 3 stages, 369 tasks x 3."""

from __future__ import annotations

import re
import resource
import subprocess
import sys

OVERLAY = """
seeds: [0, 1, 2]
model: {revision: "0123456789abcdef0123456789abcdef01234567"}
tasks:
  splits: {smoke_4: data/splits/smoke_4.json, seed_32: data/splits/seed_32.json}
training:
  tasks_per_step: 4
  minibatch_tasks: 4
  stages:
    - {name: train_4, split: smoke_4, steps: 4}
    - {name: train_32, split: seed_32, steps: 16}
    - {name: train_128, split: arpo_128, steps: 60}
evaluation: {splits: [osworld_369], trials: 3}
"""
OTHER_MODEL = """
study: paper_2b
size: 2b
policy: {recipe: null, model: UI-TARS-2B-SFT, max_model_len: 32768, max_images: 5}
"""


def test_the_papers_study_is_planned_in_seconds(checkout):
    (checkout.root / "large.yaml").write_text(OVERLAY)
    (checkout.root / "other.yaml").write_text(OTHER_MODEL)
    study = ["--config", "configs/paper.yaml", "large.yaml"]
    command = [sys.executable, "-m", "arpo_replica", "plan", *study, *study, "other.yaml"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, cwd=checkout.root, capture_output=True, text=True, check=False, timeout=300
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(\w+) +(\d+) .* ([\d.]+) +([\d.]+)$", done.stdout, flags=re.MULTILINE)
    # Of each model 2 trained arms x 3 seeds x 3 stages; the base and each last stage.
    assert [count for rule, count, *_ in found if rule == "train_stage"] == ["18", "18"]
    assert [count for rule, count, *_ in found if rule == "collect_rollouts"] == ["7", "7"]
    assert "published (paper" in done.stdout
    sums = {name: (int(jobs), float(hours), float(disk)) for name, jobs, hours, disk in found[-3:]}
    assert list(sums) == ["paper", "paper_2b", "total"]
    for both, *each in zip(sums["total"], sums["paper"], sums["paper_2b"], strict=True):
        assert abs(both - sum(each)) <= 0.11, "rounded to one digit"
        assert min(each) > 0
    # Processor time: the clock also measures what else the machine does.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20


def test_two_studies_of_one_name_are_one_sentence(checkout):
    command = [sys.executable, "-m", "arpo_replica", "plan", *("--config", "configs/demo.yaml") * 2]
    done = subprocess.run(
        command, cwd=checkout.root, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 2
    assert "would share results/demo" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_config_that_cannot_be_planned_is_one_sentence(checkout):
    (checkout.root / "wrong.yaml").write_text("training: {tasks_per_step: 6}\n")
    command = [sys.executable, "-m", "arpo_replica", "plan", "--config", "configs/demo.yaml", "wrong.yaml"]
    done = subprocess.run(
        command, cwd=checkout.root, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 2
    assert "training.tasks_per_step (6)" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
