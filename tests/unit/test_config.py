"""The config model: what it refuses and how it says so, and that its documentation is up to date."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from arpo_replica.base.errors import UserError
from arpo_replica.base.tables import load_yaml
from arpo_replica.cli import main
from arpo_replica.config import load_config, parse_config
from arpo_replica.config.decides import leaves
from arpo_replica.config.models import StudyConfig, merge
from arpo_replica.config.section import nested_model

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "configs" / "demo.yaml"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_committed_config_is_valid_and_named_after_its_file(path):
    assert load_config(path).study == path.stem


def test_every_key_has_a_meaning():
    for key in leaves():
        model = StudyConfig
        for name in key.replace("[]", "").split("."):
            field = model.model_fields[name]
            assert len(field.description or "") > 3, key
            model = nested_model(field.annotation) or model


def test_the_arms_differ_in_the_replay_switch_alone():
    config = load_config(DEMO)
    grpo, arpo = config.recipe("grpo").model_dump(), config.recipe("arpo").model_dump()
    assert grpo["replay"].pop("enabled") is False
    assert arpo["replay"].pop("enabled") is True
    assert grpo == arpo


@pytest.mark.parametrize("name", ["smoke", "subset32", "seed_2b", "paper"])
def test_where_scores_are_compared_with_osworlds_the_desktop_waits_and_acts_as_there(name):
    config = load_config(ROOT / f"configs/{name}.yaml")
    assert (config.desktop.wait_seconds, config.desktop.pause_seconds) == (5, 2)
    assert config.policy.actions_per_reply == "all"


def test_merge_replaces_scalars_and_lists_and_descends_into_mappings():
    assert merge({"a": {"b": 1, "c": [1, 2]}, "d": 3}, {"a": {"c": [9]}}) == {"a": {"b": 1, "c": [9]}, "d": 3}


def changed(**changes):
    return merge(yaml.safe_load(DEMO.read_text()), changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"desktop": {"screen": [0, 224]}}, "'desktop.screen.0' is 0"),
        ({"arms": {"grpo": {"learning_rat": 1}}}, "unknown key 'arms.grpo.learning_rat'"),
        ({"arms": {"base": {"learning_rate": 1}}}, "arms.base must be empty"),
        ({"serving": {"tensor_parallel": 2}}, "serving.tensor_parallel is about GPUs"),
        ({"seeds": [1, 1]}, "a seed is listed twice"),
        ({"evaluation": {"trials": 0}}, "'evaluation.trials' is 0"),
        (
            {"evaluation": {"success_above": 1}},
            "'evaluation.success_above' is 1: input should be less than 1",
        ),
        ({"evaluation": {"top_p": 0}}, "'evaluation.top_p' is 0: input should be greater than 0"),
        ({"serving": {"gpu_memory_utilization": 0}}, "'serving.gpu_memory_utilization' is 0"),
        ({"training": {"replay": {"success_above": 1}}}, "'training.replay.success_above' is 1"),
        ({"study": "My study"}, "'study' is 'My study': use lower-case letters, digits and '_'."),
        (
            {"desktop": "container"},
            "'desktop' is 'container': it has keys of its own, write them below it: prov",
        ),
        ({"evaluation": {"splits": ["test_in", "test_in"]}}, "evaluation.splits names 'test_in' twice"),
        ({"evaluation": {"temperature": float("inf")}}, "'evaluation.temperature' is inf"),
        (
            {"training": {"stages": [{"name": "a", "split": "train_4", "steps": 1}] * 2}},
            "training.stages names 'a' twice",
        ),
        ({"desktop": {"screen": [4, 2000]}}, "'desktop.screen' is [4, 2000]: the longer side may be at most"),
        ({"policy": {"min_pixels": 5_000_000}}, "'policy': policy.min_pixels (5000000) exceeds"),
        ({"policy": {"model": "served"}}, "'policy': policy.model is 'served', which needs"),
        ({"arms": {"A/../b": {}}}, "'arms': the arm 'A/../b' must be named by lower-case letters"),
        ({"tasks": {"splits": {"a b": "x.json"}}}, "'tasks.splits': the split 'a b' must be named by"),
        ({"training": {"stages": [{"name": "a", "split": "nope", "steps": 1}]}}, "names the split 'nope'"),
    ],
)
def test_mistakes_name_the_key(changes, sentence):
    with pytest.raises(UserError) as refused:
        parse_config(changed(**changes), "x.yaml")
    assert sentence in str(refused.value)
    assert str(refused.value).startswith("Config x.yaml:")
    assert "\n" not in str(refused.value)


def test_a_missing_section_is_named():
    raw = changed()
    del raw["evaluation"]
    with pytest.raises(UserError, match="the key 'evaluation' is missing"):
        parse_config(raw, "x.yaml")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a: [1,", "is no valid YAML"),
        (b"a: 1\0", "is no valid YAML"),
        (b"a: 2026-13-45", "is no valid YAML"),
        (b"[" * 5_000, "is no valid YAML"),
        (b"study: \xff\xfe", "is no text in UTF-8 (byte 7); save it as UTF-8"),
        (b"", "must be a mapping of keys"),
        (b"- a", "must be a mapping of keys"),
        (b"study: a\nseeds: [0]\nstudy: b", "'study' stands twice, in lines 1 and 3; keep one"),
        (b"desktop:\n  count: 1\n  count: 2\n", "'count' stands twice, in lines 2 and 3; keep one"),
        (None, "cannot be read: Is a directory; give an existing file"),
    ],
    ids=range(10),
)
def test_a_file_that_is_no_config(tmp_path, content, sentence):
    path = tmp_path / "bad.yaml"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        load_config(DEMO, path)
    assert str(refused.value).startswith(f"Config {path}")
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_later_files_lie_over_earlier_ones(tmp_path, capsys, monkeypatch):
    over = tmp_path / "over.yaml"
    over.write_text("study: over\ndesktop: {count: 3}\n")
    config = load_config(DEMO, over)
    assert (config.study, config.desktop.count) == ("over", 3)
    assert config.desktop.screen == load_config(DEMO).desktop.screen
    monkeypatch.chdir(ROOT)
    assert main(["check", "--config", str(DEMO), str(over)]) == 0
    assert "study 'over'" in capsys.readouterr().out


def test_yaml_loses_nothing_in_silence():
    """YAML 1.1 would count the first to the base of 60 and the second to that of 8."""
    assert load_yaml("[24:00:00, 012345, 12, 0, 0.5, 1_000]") == ["24:00:00", "012345", 12, 0, 0.5, 1000]
    assert load_yaml("a: &a {x: 1}\nb: {<<: *a, x: 2}") == {"a": {"x": 1}, "b": {"x": 2}}
    assert load_yaml("a: {x: 1}\nb: {x: 1}\n1: c\n") == {"a": {"x": 1}, "b": {"x": 1}, 1: "c"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"serving": {"quantization": "fp8"}}, "serving.quantization is fp8 and size is '7b'"),
        ({"size": "7b_4bit"}, "serving.quantization is null and size is '7b_4bit'"),
        ({"size": "7b_4bit", "serving": {"quantization": "fp8"}}, "in bitsandbytes '_4bit'"),
        (
            {"size": "7b_fp8", "serving": {"quantization": "fp8"}, "accelerator": "cpu"},
            "serving.quantization is about GPUs",
        ),
        ({"arms": {"mine": {}}}, "training.stages is empty, but the arm 'mine' is trained"),
        ({"training": {"weights": "mine"}}, "arms: {NAME: {weights: ...}}"),
        ({"arms": {"arpo_released": {"replay": {"enabled": True}}}}, "has weights, so nothing trains it"),
        ({"training": {"stages": [{"name": "released", "split": "chrome_10", "steps": 1}]}}, "rename it"),
    ],
)
def test_reduced_weights_and_arms_with_weights_say_what_they_are(more, words):
    raw = load_yaml((ROOT / "configs/chrome_10.yaml").read_text())
    if "arpo_released" in more.get("arms", {}):
        raw["arms"]["arpo_released"] = {"weights": {"model": "ARPO_UITARS1.5_7B"}}
    with pytest.raises(UserError) as caught:
        parse_config(merge(raw, more), "of the test")
    assert words in str(caught.value)


def test_reduced_weights_have_a_size_of_their_own():
    raw = load_yaml((ROOT / "configs/chrome_10.yaml").read_text())
    here = parse_config(merge(raw, {"size": "7b_fp8", "serving": {"quantization": "fp8"}}), "of the test")
    assert here.plain_size == "7b" and not here.served_elsewhere
    overlay = load_yaml((ROOT / "configs/arms/served.yaml").read_text())
    elsewhere = parse_config(merge(merge(raw, overlay), {"size": "7b_4bit"}), "a GGUF file, for example")
    assert elsewhere.served_elsewhere and elsewhere.serving.quantization is None


TWINS = {"chrome_18_noisy": ["noisy"]}


@pytest.mark.parametrize("name", ["chrome_10", "chrome_18_noisy", "released", "offline_container"])
def test_a_study_of_released_weights_has_a_nano_twin(name):
    """The same study but for what is small: the arms and the protocol are its own."""
    overlays = [f"twins/{part}" for part in ["nano", *TWINS.get(name, [])]]
    whole = load_config(ROOT / f"configs/{name}.yaml")
    twin = load_config(*(ROOT / f"configs/{part}.yaml" for part in (name, *overlays)))
    assert whole.released_arms == twin.released_arms == ["arpo_released"]
    assert not whole.trained_arms and not whole.training.stages
    assert (twin.size, twin.accelerator, twin.desktop.kind, twin.policy.recipe) == (
        "nano",
        "cpu",
        "process",
        None,
    )
    assert twin.of_arm("arpo_released").nano.epochs > twin.nano.epochs
    served = load_config(ROOT / f"configs/{name}.yaml", ROOT / "configs/arms/served.yaml")
    assert served.served_elsewhere and served.accelerator == "cpu"


def test_the_adapters_of_the_2b_have_a_nano_twin():
    names = ("seed_2b_small", "twins/nano", "twins/lora")
    whole = load_config(ROOT / f"configs/{names[0]}.yaml")
    twin = load_config(*(ROOT / f"configs/{name}.yaml" for name in names))
    assert twin.training.lora == whole.training.lora is not None
    assert twin.training.speed.freeze_vision and whole.training.speed.freeze_vision
    assert twin.trained_arms == whole.trained_arms == ["grpo", "arpo"]
    assert (twin.size, twin.accelerator, twin.desktop.kind) == ("nano", "cpu", "process")
    assert [stage.steps for stage in twin.training.stages] == [2, 2]
