"""Strangers' model folders: what is refused, and what is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.config import load_config, parse_config
from arpo_replica.config.models import StudyConfig
from arpo_replica.models import weights
from arpo_replica.models.weights import check_folder, check_named_model, fetch_model, read_description
from arpo_replica.policy.manifest import read_manifest, register_model
from arpo_replica.workflow.study import Study

REVISION = "0123456789abcdef0123456789abcdef01234567"
NAMES = ("UI-TARS-2B-SFT", "UI-TARS-1.5-7B")


def make_folder(folder: Path, **files: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "qwen2_vl"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def test_a_plain_folder_is_accepted(tmp_path: Path) -> None:
    check_folder(make_folder(tmp_path, tokenizer__json=b"{}", README__md=b"auto_map"))


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("pytorch_model__bin", b"x", "pickle"),
        ("optimizer__pt", b"x", "pickle"),
        ("modeling_evil__py", b"import os", "program code"),
        ("tokenizer_config__json", b'{"auto_map": {"AutoTokenizer": "evil.Evil"}}', "auto_map"),
        ("processor_config__json", b'{"a": [{"auto_map": ["x"]}]}', "auto_map"),
        ("generation_config__json", b"{", "no JSON"),
    ],
)
def test_what_could_run_code_is_refused(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    folder = make_folder(tmp_path, **{name: data})
    with pytest.raises(UserError, match=said) as caught:
        check_folder(folder)
    assert name.replace("__", ".") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="safetensors"):
        check_folder(tmp_path)


def test_recorded_hashes_are_enforced(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    hashes = weights.record_hashes(folder, tmp_path / "record.json")
    check_folder(folder, hashes)
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="has not the recorded sha256"):
        check_folder(folder, hashes)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "more.safetensors").write_bytes(b"more")
    with pytest.raises(UserError, match=r"more\.safetensors has no recorded sha256"):
        check_folder(folder, hashes)
    (folder / "more.safetensors").unlink()
    (folder / "config.json").rename(folder / "config_old.json")
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="config"):
        check_folder(folder, hashes)


def named_config(name: str = NAMES[0], **model: Any) -> StudyConfig:
    raw = load_config(ROOT / "configs" / "demo.yaml").model_dump()
    raw["policy"]["model"] = name
    raw["size"] = "2b_random" if model.get("shape_only") else "2b"
    raw["model"] = model
    return StudyConfig.model_validate(raw)


@pytest.mark.parametrize("name", NAMES)
def test_descriptions_are_sound(name: str) -> None:
    description = read_description(name, ROOT)
    assert description is not None
    assert description.hub.endswith(name)
    assert description.config["hidden_size"] % description.config["num_attention_heads"] == 0


def test_a_model_must_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = named_config()
    study = Study(config)
    assert study.base_source() == "<results>/model/manifest.json"
    with pytest.raises(UserError, match=r"set model\.revision to the 40 hex digits"):
        study.check_base()
    config.model.revision = REVISION
    Study(config).check_base()


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("policy", "max_model_len", 65_536, r"window ends at 32768 tokens"),
        ("training", "tensor_parallel", 8, r"must divide the model's 12 attention heads"),
    ],
)
def test_what_a_named_model_does_not_allow_is_refused_before_it_is_fetched(
    monkeypatch: pytest.MonkeyPatch, section: str, key: str, value: int, said: str
) -> None:
    monkeypatch.chdir(ROOT)
    raw = load_config(ROOT / "configs" / "seed_2b.yaml").model_dump(mode="json")
    raw["model"]["revision"], raw["training"]["gpus"], raw["training"]["micro_batch"] = REVISION, 8, 1
    raw["training"]["tasks_per_step"] = raw["training"]["minibatch_tasks"] = 4
    Study(parse_config(raw, "test")).check_training()
    raw[section][key] = value
    with pytest.raises(UserError, match=said) as caught:
        Study(parse_config(raw, "test")).check_training()
    assert "\n" not in str(caught.value)


def test_a_branch_is_no_revision() -> None:
    with pytest.raises(ValueError, match="revision"):
        named_config(revision="main")


def test_random_weights_carry_their_mark() -> None:
    with pytest.raises(ValueError, match="random weights need a size that ends in '_random'"):
        StudyConfig.model_validate({**named_config().model_dump(), "model": {"shape_only": True}})
    with pytest.raises(ValueError, match="_random"):
        StudyConfig.model_validate({**named_config().model_dump(), "size": "2b_random"})
    config = named_config(shape_only=True)
    assert config.size == "2b_random"
    description = read_description(NAMES[1], ROOT)
    assert description is not None
    with pytest.raises(UserError, match="is of size '7b'"):
        check_named_model(config, description)


def test_shape_only_needs_a_known_shape() -> None:
    config = named_config("nano", shape_only=True)
    with pytest.raises(UserError, match=r"model\.shape_only needs a name"):
        Study(config).base_source()


def go_where_nothing_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder of one's own, which has the description of one model."""
    described = Path("data/models", f"{NAMES[0]}.json")
    (tmp_path / described.parent).mkdir(parents=True)
    (tmp_path / described).write_bytes((ROOT / described).read_bytes())
    monkeypatch.chdir(tmp_path)


def test_another_tokenizer_or_image_size_makes_another_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is shared by all studies; a folder that is there is not made again."""
    go_where_nothing_was_fetched(tmp_path, monkeypatch)
    made: list[Path] = []

    def run_module(environment: str, module: str, *arguments: object, **options: object) -> None:
        made.append(make_folder(Path(str(arguments[-1]))))

    monkeypatch.setattr(weights, "run_module", run_module)
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer_config.json").write_text("{}")
    plain, other = named_config(shape_only=True), named_config(shape_only=True, tokenizer=tokenizer)
    small = named_config(shape_only=True)
    small.policy.max_pixels = 100_000
    for config in (plain, plain, other, small):
        fetch_model(config, tmp_path / "results/x/model/manifest.json")
    (tokenizer / "tokenizer_config.json").write_text('{"a": 1}')
    fetch_model(other, tmp_path / "results/x/model/manifest.json")
    assert made[0] == made[1]
    assert len(set(made)) == 4


def test_a_first_fetch_records_and_a_second_one_enforces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The download itself is another process; a stand-in leaves what the hub would."""
    go_where_nothing_was_fetched(tmp_path, monkeypatch)
    calls: list[tuple[object, ...]] = []

    def run_module(environment: str, module: str, *arguments: object, **options: object) -> None:
        calls.append((module, *arguments))
        make_folder(Path(str(arguments[-1])))

    monkeypatch.setattr(weights, "run_module", run_module)
    config = named_config(revision=REVISION)
    out = tmp_path / "results/x/model/manifest.json"
    manifest = fetch_model(config, out)
    folder = Path("results/_models") / f"{NAMES[0]}-{REVISION[:12]}"
    assert calls == [("arpo_replica.models.weights", "ByteDance-Seed/UI-TARS-2B-SFT", REVISION, folder)]
    assert manifest.recipe["revision"] == REVISION
    assert read_manifest(out, verify=True).model_path(out) == folder.resolve()
    base = register_model(
        config, out.parent, tmp_path / "results/x/models/base/seed_0/stage_base/manifest.json"
    )
    assert base.sha256 == manifest.sha256 and base.recipe["source"] == "hub"
    fetch_model(config, out)
    assert len(calls) == 1, "what is here is not fetched again"
    (folder / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(UserError, match="recorded sha256"):
        fetch_model(config, out)
