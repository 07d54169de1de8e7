"""The gates of a stage: each fails for its own reason and says so in one sentence."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import write_document
from arpo_replica.config import load_config
from arpo_replica.config.models import StudyConfig
from arpo_replica.policy.manifest import Manifest
from arpo_replica.training.gates import StageReport, check_stage, checkpoint_problem, require_passed

STEPS = 3


class Finished:
    """A stage's folder as training leaves it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "arpo" / "seed_0" / "stage_train_4"
        self.folder.mkdir(parents=True)
        self.config: StudyConfig = load_config(ROOT / "configs" / "demo.yaml")
        self.rows: list[dict[str, Any]] = [
            {
                "step": step,
                "loss": -0.1,
                "grad_norm": 0.5,
                "reward_before": 0.25,
                "reward_after": 0.5,
                "success": 0.25,
                "buffer_size": step,
                "varying_groups": 2,
            }
            for step in range(1, STEPS + 1)
        ]
        self.checkpoint = self.folder / "checkpoints" / f"global_step_{STEPS}"
        (self.checkpoint / "actor" / "huggingface").mkdir(parents=True)
        with zipfile.ZipFile(self.checkpoint / "actor" / "model_world_size_1_rank_0.pt", "w") as archive:
            archive.writestr("data.pkl", b"tensors")
        header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
        data = struct.pack("<Q", len(header)) + header + bytes(8)
        (self.checkpoint / "actor" / "huggingface" / "model.safetensors").write_bytes(data)
        state = {"tasks": {"d/t": [{"name": "item", "step": 1}]}}
        (self.checkpoint / "replay.json").write_text(json.dumps(state))
        items = self.folder / "checkpoints" / "replay_items"
        items.mkdir()
        (items / "item.pt").touch()
        self.mark()
        fields: dict[str, Any] = {"weights": {}, "recipe": {}, "versions": {}}
        write_document(
            Manifest(
                **{"arm": "arpo", "seed": 0, "stage": "train_4", "step": STEPS, "size": "nano"},
                **{"model": "model", "sha256": "0" * 64, "parent": None, **fields},
            ),
            self.folder / "manifest.json",
        )

    def mark(self) -> None:
        """Write ``complete.json`` for what is there."""
        sizes = {
            str(path.relative_to(self.checkpoint)): path.stat().st_size
            for path in self.checkpoint.rglob("*")
            if path.is_file() and path.name != "complete.json"
        }
        (self.checkpoint / "complete.json").write_text(json.dumps(sizes))

    def report(self) -> StageReport:
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        (self.folder / "metrics.jsonl").write_text(lines)
        out = self.folder / "stage_report.json"
        report = check_stage(self.config, "arpo", "train_4", self.folder / "manifest.json", out)
        assert StageReport.model_validate_json(out.read_bytes()) == report
        return report


@pytest.fixture
def stage(tmp_path: Path) -> Finished:
    return Finished(tmp_path)


def test_a_sound_stage_passes_all(stage: Finished) -> None:
    report = stage.report()
    assert report.passed and report.reason is None
    assert {gate.name: gate.state for gate in report.gates} == dict.fromkeys(
        ["steps", "finite", "checkpoint", "buffer", "variance"], "passed"
    )
    require_passed(stage.config, "arpo", stage.folder / "manifest.json")


def last(key: str, value: Any) -> Callable[[Finished], None]:
    """A change of the last row."""
    return lambda stage: stage.rows[-1].__setitem__(key, value)


def every(key: str, value: Any) -> Callable[[Finished], None]:
    """A change of all rows."""
    return lambda stage: [row.__setitem__(key, value) for row in stage.rows] and None


def damage(name: str, data: bytes, *, marked: bool) -> Callable[[Finished], None]:
    """Other bytes in a file of the checkpoint, before or after it was marked complete."""

    def change(stage: Finished) -> None:
        (stage.checkpoint / name).write_bytes(data)
        if marked:
            stage.mark()

    return change


@pytest.mark.parametrize(
    ("change", "gate", "said"),
    [
        (last("loss", float("nan")), "finite", r"loss of step 3 is nan \(training\.gates\.loss_finite\)"),
        (last("grad_norm", None), "finite", "grad_norm of step 3 is None"),
        (every("varying_groups", 0), "variance", "in 0 groups rewards differ, 1 are asked for"),
        (every("buffer_size", 0), "buffer", "the replay buffer holds 0 successes"),
        (lambda stage: stage.rows.pop(), "steps", "2 of 3 steps are logged"),
        (damage("replay.json", b"{}", marked=True), "checkpoint", r"replay\.json .* cannot be read"),
        (damage("replay.json", b"{}", marked=False), "checkpoint", r"replay\.json .* has 2 bytes"),
        (
            damage("actor/model_world_size_1_rank_0.pt", b"torn", marked=True),
            "checkpoint",
            r"no file that torch\.load can read",
        ),
        (
            damage("actor/huggingface/model.safetensors", b"torn", marked=True),
            "checkpoint",
            "no safetensors file",
        ),
        (
            lambda stage: (stage.folder / "checkpoints/replay_items/item.pt").unlink(),
            "checkpoint",
            "names item, which is not stored",
        ),
    ],
)
def test_each_gate_fails_for_its_own_reason(
    stage: Finished, change: Callable[[Finished], None], gate: str, said: str
) -> None:
    change(stage)
    report = stage.report()
    assert not report.passed
    assert [found.name for found in report.gates if found.state == "failed"] == [gate]
    with pytest.raises(UserError, match=said) as caught:
        require_passed(stage.config, "arpo", stage.folder / "manifest.json")
    assert "arpo seed 0 stage train_4" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_buffer_is_asked_for_only_if_something_could_fill_it(stage: Finished) -> None:
    every("buffer_size", 0)(stage)
    every("success", 0.0)(stage)
    states = {gate.name: gate.state for gate in stage.report().gates}
    assert states["buffer"] == "off"
    every("success", 1.0)(stage)
    stage.config.arms["arpo"] = {"replay": {"enabled": False}}
    assert {gate.name: gate.state for gate in stage.report().gates}["buffer"] == "off"


def test_thresholds_are_keys(stage: Finished) -> None:
    every("varying_groups", 0)(stage)
    last("loss", float("inf"))(stage)
    stage.config.training.gates.varying_groups_min = 0
    stage.config.training.gates.loss_finite = False
    assert stage.report().passed


def test_a_checkpoint_without_state_cannot_be_resumed_from(stage: Finished) -> None:
    (stage.checkpoint / "actor" / "model_world_size_1_rank_0.pt").unlink()
    stage.mark()
    problem = checkpoint_problem(stage.checkpoint, stage.folder / "checkpoints" / "replay_items")
    assert problem == "global_step_3 holds no state to resume from"
