"""Manifests: what a model is, and that other weights are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from arpo_replica.base.errors import UserError
from arpo_replica.base.files import file_sha256, write_document
from arpo_replica.config import load_config
from arpo_replica.policy.manifest import hash_weights, read_manifest, register_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "a.safetensors").write_bytes(b"weights")
    return model


@pytest.fixture
def config():
    return load_config(ROOT / "configs" / "demo.yaml")


def test_the_identity_follows_every_weight_file(folder):
    weights, first = hash_weights(folder)
    assert weights == {"a.safetensors": file_sha256(folder / "a.safetensors")}
    (folder / "b.safetensors").write_bytes(b"more")
    assert hash_weights(folder)[1] != first


def test_a_registered_model_can_be_read_back(folder, config, tmp_path):
    written = register_model(config, folder, tmp_path / "results" / "manifest.json")
    read = read_manifest(tmp_path / "results" / "manifest.json", verify=True)
    assert read == written
    assert read.model_path(tmp_path / "results" / "manifest.json") == folder
    assert (read.size, read.step, read.parent) == ("nano", 0, None)


def test_changed_weights_are_refused(folder, config, tmp_path):
    out = tmp_path / "manifest.json"
    register_model(config, folder, out)
    (folder / "a.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match="are not those it names"):
        read_manifest(out, verify=True)


@pytest.mark.parametrize("missing", ["config.json", "a.safetensors"])
def test_a_folder_without_weights_or_config_is_refused(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(UserError, match=r"no config\.json with \*\.safetensors"):
        hash_weights(folder)


def test_a_file_that_is_no_manifest_is_refused(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text('{"arm": 3}')
    with pytest.raises(UserError, match="is no manifest of this version"):
        read_manifest(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_manifest(tmp_path / "none.json")


def test_a_model_that_was_built_here_keeps_its_recipe(folder, config, tmp_path):
    """The nano policy's own manifest says how it was trained, and names no source."""
    built = register_model(config, folder, tmp_path / "first.json").model_copy(
        update={"model": ".", "recipe": {"nano.seed": 0}, "versions": {"torch": "1"}}
    )
    write_document(built, folder / "manifest.json")
    base = register_model(config, folder, tmp_path / "base.json")
    assert (base.recipe, base.versions) == (built.recipe, built.versions)
    assert base.sha256 == built.sha256 == hash_weights(folder)[1]
