"""Strangers' model folders: what is refused, and what is recorded."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.config import load_config, parse_config
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.scores import read_model
from arpo_replica.models import weights
from arpo_replica.models.weights import (
    check_beside,
    check_folder,
    check_named_model,
    fetch_model,
    names_of_others,
    read_description,
)
from arpo_replica.policy.manifest import read_manifest, register_model
from arpo_replica.workflow.study import Study

REVISION = "0123456789abcdef0123456789abcdef01234567"
NAMES = ("UI-TARS-2B-SFT", "UI-TARS-1.5-7B", "UI-TARS-7B-DPO", "ARPO_UITARS1.5_7B")


def tensor_file(data: bytes) -> bytes:
    """A safetensors file of one tensor."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    return len(header).to_bytes(8, "little") + header + data


def make_folder(folder: Path, **files: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "qwen2_vl"}')
    for name in ("tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(tensor_file(b"weights"))
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


FIRST, SECOND = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1", "is no safetensors file; fetch"),
        ("model.safetensors", b"", "is no safetensors file"),
        ("model.safetensors", tensor_file(b"weights")[:-1], "is shorter or longer than its header says"),
        ("model.safetensors", (9).to_bytes(8, "little") + b"[1, 2, 3]", "has a broken header"),
        (FIRST, tensor_file(b"weights"), f"lacks {SECOND}"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"w": "other.safetensors"}}',
            "lacks other.safeten",
        ),
        ("model.safetensors.index.json", b'{"weight_map": {"w": []}}', "is no index of weights"),
        ("model.safetensors.index.json", b"[]", "is no index of weights"),
        ("config.json", b"[]", "config.json describes no model"),
        ("config.json", b'{"text_config": 3}', "config.json describes no model"),
    ],
)
def test_half_a_model_is_refused(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    folder = make_folder(tmp_path)
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=said) as caught:
        check_folder(folder)
    assert "\n" not in str(caught.value)
    if name == FIRST:
        (folder / SECOND).write_bytes(tensor_file(b"more"))
        check_folder(folder)
        (folder / "preprocessor_config.json").unlink()
        with pytest.raises(UserError, match=r"lacks preprocessor_config\.json, a part of the model"):
            check_folder(folder)


def test_recorded_hashes_are_enforced(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    hashes = weights.record_hashes(folder, tmp_path / "record.json")
    check_folder(folder, hashes)
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="has not the recorded sha256"):
        check_folder(folder, hashes)
    (folder / "model.safetensors").write_bytes(tensor_file(b"weights"))
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


class Hub(BaseHTTPRequestHandler):
    """A hub on loopback with one repository: commits by name."""

    commits: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        found = self.commits.get(self.path.rpartition("/")[2])
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(json.dumps({"sha": found}).encode())

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Name of a commit (or itself) -> the commit that the hub gives."""
    monkeypatch.setattr(Hub, "commits", {REVISION: REVISION})
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield Hub.commits
        server.shutdown()


def test_a_revision_that_the_hub_does_not_have_is_refused_before_work(
    hub: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    go_where_nothing_was_fetched(tmp_path, monkeypatch)
    assert Study(named_config()).source_of() == "<results>/model/manifest.json"
    Study(named_config(revision=REVISION)).check_weights("base")
    with pytest.raises(
        UserError, match=r"^policy\.model 'UI-TARS-2B-SFT': The hub has no commit 1{12} of Byte"
    ):
        Study(named_config(revision="1" * 40)).check_weights("base")
    hub["1" * 40] = "../../elsewhere"
    with pytest.raises(UserError, match="the hub does not answer"):
        Study(named_config(revision="1" * 40)).check_weights("base")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"the hub does not answer .*; fetch it on a machine"):
        Study(named_config()).check_weights("base")


def test_the_first_commit_of_an_unpinned_model_is_held(
    hub: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    go_where_nothing_was_fetched(tmp_path, monkeypatch)
    described = Path("data/models", f"{NAMES[0]}.json")
    content = json.loads(described.read_bytes())
    described.write_text(json.dumps(content | {"revision": None, "grade": "unpinned"}))
    asked: list[object] = []

    def run_module(environment: str, module: str, *arguments: object, **options: object) -> None:
        asked.append(arguments[1])
        make_folder(Path(str(arguments[-1])))

    monkeypatch.setattr(weights, "run_module", run_module)
    hub["main"] = REVISION
    first = fetch_model(named_config(), tmp_path / "results/x/model/manifest.json")
    hub["main"] = "2" * 40
    again = fetch_model(named_config(), tmp_path / "results/y/model/manifest.json")
    assert asked == [REVISION], "the hub's newer commit is not looked at"
    assert first.recipe["revision"] == again.recipe["revision"] == REVISION
    assert first.recipe["grade"] == "unpinned"
    assert (
        read_model(out_of(tmp_path, "y")).origin
        == f"ByteDance-Seed/UI-TARS-2B-SFT at {REVISION[:12]}: unpinned"
    )


def out_of(folder: Path, study: str) -> Path:
    """A copy of a fetched model's manifest where the registered one would lie."""
    fetched = folder / f"results/{study}/model/manifest.json"
    out = folder / f"results/{study}/models/base/seed_0/stage_base/manifest.json"
    register_model(named_config(), fetched.parent, out)
    return out


def test_a_fetched_model_of_another_architecture_is_refused(
    hub: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    go_where_nothing_was_fetched(tmp_path, monkeypatch)
    other = b'{"model_type": "qwen2_vl", "hidden_size": 8192}'
    monkeypatch.setattr(
        weights, "run_module", lambda *a, **_: make_folder(Path(str(a[-1])), config__json=other)
    )
    with pytest.raises(UserError, match=r"of another architecture .*hidden_size is 8192, not 1536"):
        fetch_model(named_config(revision=REVISION), tmp_path / "results/x/model/manifest.json")


def make_arms(base: Path, other: Path) -> StudyConfig:
    """A study without training that compares two folders."""
    raw = load_config(ROOT / "configs" / "demo.yaml").model_dump(mode="json")
    del raw["training"], raw["targets"]
    raw["policy"]["model"] = str(base)
    raw["arms"] = {"base": {}, "arpo_released": {"weights": str(other)}}
    return parse_config(raw, "test")


VOCABULARY = b'{"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"content": "<|im_end|>", "id": 2}]}'


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"config__json": b'{"model_type": "qwen3_vl"}'},
            "another architecture .*model_type is qwen3_vl, not qwen2",
        ),
        (
            {"tokenizer__json": VOCABULARY.replace(b"2}", b"3}")},
            "another tokenizer .*'<|im_end|>' is 3, not 2",
        ),
        (
            {"vocab__json": b'{"a": 0, "b": 1}', "added_tokens__json": b"{}"},
            "another tokenizer .*is None, not 2",
        ),
    ],
)
def test_an_arm_that_does_not_match_the_base_is_refused(
    tmp_path: Path, files: dict[str, bytes], said: str
) -> None:
    base = make_folder(tmp_path / "base", tokenizer__json=VOCABULARY)
    same = make_folder(
        tmp_path / "same", vocab__json=b'{"a": 0, "b": 1}', added_tokens__json=b'{"<|im_end|>": 2}'
    )
    other = make_folder(tmp_path / "other", **files)
    study = Study(make_arms(base, same))
    study.check()
    study.check_weights("arpo_released")
    with pytest.raises(
        UserError, match=rf"^arms\.arpo_released\.weights .*{said}".replace("|", r"\|")
    ) as caught:
        Study(make_arms(base, other)).check_weights("arpo_released")
    assert "\n" not in str(caught.value)
    # What was fetched or built is looked at when it is registered, before anything is served.
    manifest = tmp_path / "results/x/models/base/seed_0/stage_base/manifest.json"
    register_model(make_arms(base, other), base, manifest)
    with pytest.raises(UserError, match=said.replace("|", r"\|")):
        check_beside(manifest, other, "arms.arpo_released.weights")
    mine = register_model(make_arms(base, same), same, tmp_path / "x.json", "arpo_released")
    assert (mine.arm, mine.stage, mine.seed, mine.recipe["source"]) == (
        "arpo_released",
        "released",
        0,
        str(same),
    )


@pytest.mark.parametrize("form", [b"[]", b'{"model": 1}', b'{"model": {"vocab": {}}, "added_tokens": [1]}'])
def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path: Path, form: bytes) -> None:
    base = make_folder(tmp_path / "base", tokenizer__json=VOCABULARY)
    other = make_folder(tmp_path / "other", tokenizer__json=form)
    with pytest.raises(UserError, match="other has a tokenizer that cannot be read; fetch the model anew"):
        Study(make_arms(base, other)).check_weights("arpo_released")


def test_names_of_other_models_are_known() -> None:
    others = names_of_others("ARPO_UITARS1.5_7B")
    assert "ui-tars-1.5-7b" in others and "arpo_uitars1.5_7b" not in others
    assert names_of_others("/somewhere/UI-TARS-1.5-7B/") == names_of_others("UI-TARS-1.5-7B")
    assert names_of_others("served") == [], "only the user knows what that is"


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
        Study(config).source_of()


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
