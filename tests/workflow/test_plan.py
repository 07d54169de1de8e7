"""The paper's study planned before anything runs: 3 arms, 3 seeds, 3 stages, 369 tasks x 3 trials."""

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


def test_the_papers_study_is_planned_in_seconds(checkout):
    (checkout.root / "large.yaml").write_text(OVERLAY)
    command = [sys.executable, "-m", "arpo_replica", "plan", "--config", "configs/paper.yaml", "large.yaml"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, cwd=checkout.root, capture_output=True, text=True, check=False, timeout=300
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    rows = {
        line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if re.match(r"\w+ +\d+ ", line)
    }
    # 2 trained arms x 3 seeds x 3 stages; the base and each last stage.
    assert (rows["train_stage"], rows["collect_rollouts"]) == ("18", "7")
    assert "published (paper" in done.stdout
    # Processor time: the clock also measures what else the machine does.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20


def test_a_config_that_cannot_be_planned_is_one_sentence(checkout):
    command = [sys.executable, "-m", "arpo_replica", "plan", "--config", "configs/paper.yaml"]
    done = subprocess.run(
        command, cwd=checkout.root, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 2
    assert "model.revision" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
