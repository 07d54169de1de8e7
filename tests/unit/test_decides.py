"""What each key of the config decides: every key of the schema is flipped, and the table must hold."""

from __future__ import annotations

import copy
import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from test_training_recipe import make_job

from arpo_replica.base.environments import ROOT
from arpo_replica.base.unfinished import claim_folder
from arpo_replica.cli import main
from arpo_replica.config import load_config, parse_config
from arpo_replica.config.decides import DECIDES, KEPT, Class, decided, leaves, row_of, rules, table
from arpo_replica.config.desktop import PoolJobsConfig
from arpo_replica.config.docs import render_reruns
from arpo_replica.config.models import StudyConfig, merge
from arpo_replica.config.section import nested_model
from arpo_replica.policy.manifest import Manifest
from arpo_replica.rollout.run import identity_of
from arpo_replica.training.job import Job, OfflineJob
from arpo_replica.training.offline import run as offline
from arpo_replica.training.run import prepare_work

JOBS: dict[str, dict[str, str]] = {
    "train_stage": {"arm": "arpo", "stage": "train_4"},
    "check_stage": {"arm": "arpo", "stage": "train_4"},
    "train_offline": {"arm": "dpo", "stage": "train_32"},
    "make_noisy_tasks": {"split": "noisy"},
    "select_tasks": {"split": "rare"},
}
"""Rule -> a job of it; the others have no wildcards that matter."""
VALUES: dict[str, Any] = {
    "arms": {"base": {}, "arpo": {}, "dpo": {"offline": {"method": "dpo"}}, "more": {}},
    "training.weights.model": "elsewhere",
    "training.weights.served_model": "other",
    "training.weights.epochs": 2,
    "training.weights.endpoint": "http://127.0.0.1:8",
    "training.weights.revision": "1" * 40,
    "desktop.provider": "osworld",
    "nano.pages": {"click-tab": None},
    "tasks.leave_out": [Path("x.yaml")],
    "training.tasks_per_step": 8,
    "training.loggers": ["wandb"],
    "training.minibatch_tasks": 2,
    "training.lora.targets": ["q_proj"],
    "training.offline.batch_size": 32,
    "training.offline.micro_batch": 2,
}
"""Where another value must fit to others."""


def flipped(annotation: Any, value: Any) -> Any:
    """Another value of the same type."""
    if get_origin(annotation) is Literal:
        return next(other for other in get_args(annotation) if other != value)
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return (
            None
            if value is not None and len(kinds) < len(get_args(annotation))
            else flipped(kinds[-1], value)
        )
    if hasattr(annotation, "__metadata__"):
        return flipped(annotation.__origin__, value)
    if annotation is bool:
        return not value
    if annotation in (int, float):
        return annotation((value or 0) * 2 + (annotation is int or not value))
    if annotation is Path:
        return Path("elsewhere")
    if annotation is str:
        return f"{value}_other"
    if get_origin(annotation) is dict:
        return {**value, "other": Path("x")}
    return (
        [*value, value[0]]
        if isinstance(value, list) and value
        else ((value[0] + 28, value[1]) if isinstance(value, tuple) else ["other"])
    )


def base_of(key: str) -> StudyConfig:
    """The demo with all that the schema can hold, and the desktops that the key is about."""
    overlay = {
        "tasks": {"noisy": {"noisy": {"source": "test_in"}}, "selected": {"rare": {"source": "train_32"}}},
        "evaluation": {"splits": ["test_in", "test_out", "noisy", "rare"]},
        "training": {"lora": {"rank": 4, "alpha": 8}},
        "report": {
            "elsewhere": [{"arm": "arpo", "split": "test_in", "successes": 1, "episodes": 5, "source": "x"}]
        },
    }
    raw = load_config(ROOT / "configs/demo.yaml").model_dump(mode="json")
    config = parse_config(merge(raw, overlay), "of the test")
    given: dict[str, Any] = {"endpoint": "http://127.0.0.1:9", "served_model": "lab", "revision": "0" * 40}
    if key == "training.weights.epochs":
        given = {"model": "nano", "epochs": 1}
    config.arms = {
        "base": {}, "arpo": {}, "dpo": {"offline": {"method": "dpo"}}, "released": {"weights": given}
    }  # fmt: skip
    parts = key.split(".")
    if parts[0] == "desktop" and len(parts) > 2:
        config.desktop.provider = parts[1]  # type: ignore[assignment]
    if "slurm" in parts:
        config.desktop.remote.slurm = PoolJobsConfig(nodes=2, per_node=4)
    return config


def flip(config: StudyConfig, key: str) -> StudyConfig:
    """A copy in which this key alone has another value."""
    config = config.model_copy(deep=True)
    for arm, section in (("dpo", "offline"), ("released", "weights")):
        if key.startswith(f"training.{section}."):
            name = key.rpartition(".")[2]
            found = getattr(config.recipe(arm), section)
            annotation = type(found).model_fields[name].annotation
            given = VALUES.get(key, flipped(annotation, getattr(found, name)))
            config.arms[arm] = {section: {**config.arms[arm][section], name: given}}
            return config
    place: Any = config
    *path, name = key.split(".")
    for part in path:
        place = getattr(place, part.removesuffix("[]"))
        place = (
            place[0]
            if isinstance(place, list)
            else next(iter(place.values()))
            if isinstance(place, dict)
            else place
        )
    annotation = type(place).model_fields[name].annotation
    metadata = type(place).model_fields[name]
    assert nested_model(metadata.annotation) is None
    value = VALUES.get(key, flipped(annotation, getattr(place, name)))
    assert value != getattr(place, name), key
    setattr(place, name, copy.deepcopy(value))
    return config


def decided_by(config: StudyConfig, rule: str) -> dict[str, Any]:
    """What decides the job of a rule; the stage that was renamed is the first one."""
    job = dict(JOBS.get(rule, {}))
    if job.get("stage") == "train_4":
        job["stage"] = config.training.stages[0].name
    return decided(config, rule, **job)


@pytest.mark.parametrize("key", list(leaves()))
def test_jobs_run_again_as_the_table_says(key: str) -> None:
    """Snakemake's ``params`` are what ``decided`` returns, so these are the jobs whose params changed."""
    base = base_of(key)
    other = flip(base, key)
    again = {rule for rule in rules() if decided_by(base, rule) != decided_by(other, rule)}
    assert again == {rule for rule in table()[key].rules.split() if not rule.startswith("+")}


@pytest.mark.parametrize(
    ("key", "seen_as", "rule"),
    [
        ("training.weights.model", "policy.model", "fetch_model"),
        ("training.weights.revision", "model.revision", "fetch_model"),
        ("training.weights.epochs", "nano.epochs", "build_nano_model"),
        ("training.weights.served_model", "policy.served_model", "collect_rollouts"),
    ],
)
def test_weights_of_an_arm_decide_its_own_jobs_alone(key: str, seen_as: str, rule: str) -> None:
    base = base_of(key)
    other = flip(base, key)
    changed = {
        arm: {name for name, value in decided(base, rule, arm=arm).items()
              if value != decided(other, rule, arm=arm)[name]}
        for arm in ("", "arpo", "released")
    }  # fmt: skip
    assert changed == {"": set(), "arpo": set(), "released": {seen_as}}


class Work:
    """An unfinished training, offline arm and set of episodes in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job: Job = make_job(folder / "stage")
        self.episodes = folder / "trial_0"

    def claim(self, config: StudyConfig) -> set[str]:
        """Begin each again with this config; what lost its work."""
        stage = config.training.stages[0].name
        job = self.job.model_copy(update={"config": config, "stage_name": stage})
        vars(job).pop("recipe", None)
        taught = OfflineJob.model_construct(
            config=config,
            arm="dpo",
            seed=0,
            parent_model=self.folder,
            parent_sha256="0" * 64,
            indexes=[],
            out=self.folder / "offline",
        )
        model = Manifest(
            arm="base", seed=0, stage="base", step=0, size=config.size, model=".", weights={}, sha256="0",
            parent=None, recipe={}, versions={},
        )  # fmt: skip
        prepare_work(job)
        offline.prepare_work(taught, offline.recipe_of(taught, "0"))
        claim_folder(self.episodes, identity_of(config, model), adopt=True)
        places = {"train_stage": job.work, "train_offline": taught.work, "collect_rollouts": self.episodes}
        lost = {rule for rule, place in places.items() if not (place / "precious").exists()}
        for place in places.values():
            (place / "precious").touch()
        return lost


@pytest.mark.parametrize("key", list(leaves()))
def test_unfinished_work_is_kept_or_begun_anew_as_the_table_says(key: str, tmp_path: Path) -> None:
    base, row, work = base_of(key), table()[key], Work(tmp_path)
    work.claim(base)
    assert work.claim(base) == set()
    lost = work.claim(flip(base, key))
    names = {"train_stage": "checkpoints", "train_offline": "checkpoints", "collect_rollouts": "trial_0"}
    if row.kind in KEPT:
        assert lost == set()
    assert lost == {rule for rule in names if row.decides(rule)}
    kept = [path.parent.name for path in tmp_path.rglob("precious") if path.parent.suffix == ".before"]
    assert sorted(kept) == sorted(f"{names[rule]}.before" for rule in lost)


def test_another_name_of_the_keys_variable_loses_no_checkpoint(tmp_path: Path) -> None:
    """It once deleted the checkpoints of an unfinished training."""
    base, work = base_of("policy.api_key_variable"), Work(tmp_path)
    work.claim(base)
    base.policy.api_key_variable = "OTHER_KEY"
    assert work.claim(base) == set()


def test_every_row_is_used_and_every_class() -> None:
    used = list(table().values())
    assert [row for row in DECIDES if row not in used] == []
    assert {row.kind for row in DECIDES} == set(Class)
    for row in DECIDES:
        assert len(row.why.split()) == 1
        assert row.kind not in KEPT or set(row.rules.split()) <= {"measure_throughput", "compare_claims"}, (
            "what is only fast decides measured times and what the page shows of it, nothing else"
        )


def test_a_key_without_a_row_is_noticed() -> None:
    assert row_of("training.not_there") is not None, "a pattern of the section takes new recipe keys"
    for key in ("new_key", "desktop.new_key", "evaluation.new_key", "tasks.new_key", "offline.new_key"):
        assert row_of(key) is None


def test_the_most_specific_row_wins() -> None:
    found = [row_of(f"training.speed.{name}") for name in ("freeze_vision", "pack")]
    assert [row and row.kind for row in found] == [Class.TRAINING, Class.SPEED]


def test_every_rule_of_the_table_asks_it_for_its_params() -> None:
    """A rule without keys of its own has none to ask for."""
    text = "".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
    parts = re.split(r"^rule (\w+):", text, flags=re.MULTILINE)
    named = zip(parts[1::2], parts[2::2], strict=True)
    asking = {name for name, body in named if f'decides(study.config, "{name}")' in body}
    with_keys = {rule for rule in rules() if any(row.decides(rule) for row in DECIDES)}
    assert asking == with_keys
    assert set(rules()) <= set(parts[1::2])


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs/what_reruns.md").read_text()
    assert page == render_reruns(), "run: python -m arpo_replica docs"


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (
            "policy.api_key_variable",
            "(address). Runs again: nothing. Unfinished work: goes on.",
        ),
        (
            "arms.arpo.replay.enabled",
            "training.replay.enabled: decides training (replay). Runs again: train_",
        ),
        ("training.stages.steps", "training.stages[].steps: decides training"),
        ("report", "report.published: decides the page"),
    ],
)
def test_explain_prints_the_row(key: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", key]) == 0
    assert says in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "says"),
    [("desktop.setle_ms", "did you mean 'desktop.settle_ms'?"), ("q", "'arpo explain' lists the keys.")],
)
def test_a_typo_is_told_the_nearest_key(key: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", key]) == 2
    assert capsys.readouterr().err == f"There is no key '{key}'; {says}\n"
