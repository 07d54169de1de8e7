"""What a finished stage must show before the next one starts: ``stage_report.json``.

A gate that is not met does not take the stage back: its weights, metrics and evaluation stay, and the page
says what was missed. It only keeps the next stage from building on it.
"""

import json
import logging
import math
import zipfile
from pathlib import Path
from typing import Any, Literal

from arpo_replica.base.errors import UserError
from arpo_replica.base.files import read_rows, read_tensor_header, write_document
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.section import Section
from arpo_replica.config.training import TrainingConfig
from arpo_replica.policy.manifest import read_manifest
from arpo_replica.training.job import COMPLETE_FILE, REPLAY_FILE
from arpo_replica.training.metrics import unbroken

logger = logging.getLogger(__name__)

CHECKED = ("loss", "grad_norm", "reward_before", "reward_after")


class Gate(Section):
    name: str
    key: str
    """Its key in the config."""
    state: Literal["passed", "failed", "off"]
    says: str
    """What was found, one clause."""


class StageReport(Section):
    """``stage_report.json``."""

    schema_version: int = 1
    arm: str
    seed: int
    stage: str
    passed: bool
    reason: str | None
    """One sentence; None if it passed."""
    gates: list[Gate]


def check_stage(config: StudyConfig, arm: str, stage: str, manifest: Path, out: Path) -> StageReport:
    """Judge the stage beside ``manifest`` and write ``out``. A failed gate is a result, not an error."""
    report = judge_stage(config, arm, stage, manifest)
    write_document(report, out)
    found = report.reason or "all gates passed"
    logger.info(f"{arm} seed {report.seed} stage {stage}: {found}")
    return report


def judge_stage(config: StudyConfig, arm: str, stage: str, manifest: Path) -> StageReport:
    """What the stage beside ``manifest`` shows of what it must show."""
    facts = read_manifest(manifest)
    recipe, steps = config.recipe(arm), config.stage(stage).steps
    rows = read_rows(manifest.with_name("metrics.jsonl"))
    work = manifest.parent / "checkpoints"
    gates = [
        _gate("steps", "stages", unbroken(rows) >= steps, f"{unbroken(rows)} of {steps} steps are logged"),
        _finite(rows, recipe),
        _checkpoint(work, steps, recipe),
        _buffer(rows, recipe),
        _varying(rows, recipe),
    ]
    failed = "; ".join(f"{gate.says} ({gate.key})" for gate in gates if gate.state == "failed")
    name = f"{arm} seed {facts.seed} stage {stage}"
    reason = f"The stage '{name}' does not meet its gates: {failed}." if failed else None
    return StageReport(arm=arm, seed=facts.seed, stage=stage, passed=not failed, reason=reason, gates=gates)


def require_passed(config: StudyConfig, arm: str, manifest: Path) -> None:
    """Refuse, with the reason, to build on a stage that does not pass. Raises ``UserError``.

    Judged anew, so that a relaxed threshold counts at once.
    """
    report = judge_stage(config, arm, read_manifest(manifest).stage, manifest)
    if not report.passed:
        raise UserError(
            f"{report.reason} The next stage is not started; look at its metrics and episodes, then correct "
            "the recipe, or relax training.gates."
        )


def _gate(name: str, key: str, found: bool | None, says: str) -> Gate:
    state: Literal["passed", "failed", "off"] = "off" if found is None else "passed" if found else "failed"
    return Gate(name=name, key=f"training.{key}", state=state, says=says)


def _finite(rows: list[dict[str, Any]], recipe: TrainingConfig) -> Gate:
    bad = [
        f"{key} of step {row.get('step')} is {row.get(key)}"
        for row in rows
        for key in CHECKED
        if not isinstance(row.get(key), int | float) or not math.isfinite(row[key])
    ]
    says = bad[0] if bad else f"loss, gradient norm and rewards of {len(rows)} steps are finite"
    return _gate("finite", "gates.loss_finite", not bad if recipe.gates.loss_finite else None, says)


def _checkpoint(work: Path, steps: int, recipe: TrainingConfig) -> Gate:
    key = "gates.checkpoint_loads"
    if not recipe.gates.checkpoint_loads:
        return _gate("checkpoint", key, None, "not looked at")
    problem = checkpoint_problem(work / f"global_step_{steps}", work / "replay_items")
    says = problem or f"the checkpoint of step {steps} is whole and readable"
    return _gate("checkpoint", key, problem is None, says)


def _buffer(rows: list[dict[str, Any]], recipe: TrainingConfig) -> Gate:
    key = "gates.buffer_min"
    succeeded = any((row.get("success") or 0) > 0 for row in rows)
    if not recipe.replay.enabled:
        return _gate("buffer", key, None, "replay is off")
    if not succeeded:
        return _gate("buffer", key, None, "no rollout succeeded, so nothing could be stored")
    size = int(rows[-1].get("buffer_size") or 0)
    return _gate("buffer", key, size >= recipe.gates.buffer_min, f"the replay buffer holds {size} successes")


def _varying(rows: list[dict[str, Any]], recipe: TrainingConfig) -> Gate:
    count = sum(int(row.get("varying_groups") or 0) for row in rows)
    least = recipe.gates.varying_groups_min
    says = f"in {count} groups rewards differ, {least} are asked for"
    return _gate("variance", "gates.varying_groups_min", count >= least if least else None, says)


def checkpoint_problem(folder: Path, items: Path) -> str | None:
    """What keeps a training from resuming here, in one clause; None if nothing was found.

    Cheap, without loading tensors: sizes, the directory of each PyTorch file, the header of each
    safetensors file, the replay buffer and its items.
    """
    marker = folder / COMPLETE_FILE
    if not marker.is_file():
        return f"there is no complete checkpoint {folder.name}"
    sizes: dict[str, int] = json.loads(marker.read_bytes())
    problems = [_file_problem(folder / name, size) for name, size in sizes.items()]
    if not any(name.endswith(".pt") for name in sizes):
        problems.append(f"{folder.name} holds no state to resume from")
    problems.append(_buffer_problem(folder / REPLAY_FILE, items))
    return next((problem for problem in problems if problem), None)


def _file_problem(path: Path, size: int) -> str | None:
    if not path.is_file():
        return f"{path.name} of the checkpoint is missing"
    if path.stat().st_size != size:
        return f"{path.name} of the checkpoint has {path.stat().st_size} bytes, not {size}"
    unreadable = _unreadable(path)
    return f"{path.name} of the checkpoint {unreadable}" if unreadable else None


def _buffer_problem(path: Path, items: Path) -> str | None:
    try:
        state = json.loads(path.read_bytes())
        names = [entry["name"] for queue in state["tasks"].values() for entry in queue]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{path.name} of the checkpoint cannot be read"
    lost = [name for name in names if not (items / f"{name}.pt").is_file()]
    return f"the replay buffer names {lost[0]}, which is not stored" if lost else None


def _unreadable(path: Path) -> str | None:
    """What is wrong with a file of tensors, or None."""
    if path.suffix in {".pt", ".pth"}:
        try:
            with zipfile.ZipFile(path) as archive:
                return None if archive.namelist() else "is empty"
        except (OSError, zipfile.BadZipFile):
            return "is no file that torch.load can read"
    if path.suffix == ".safetensors":
        try:
            read_tensor_header(path)
        except ValueError as error:
            return str(error)
    return None
