"""Model folders as strangers leave them: what is accepted, and where named models come from.

Accepted are safetensors with JSON beside them. Refused are pickles (loading one runs what it holds) and code
(``auto_map`` asks transformers to run it). A model of the hub is pinned to a commit, and its files to their
sha256: those of ``data/models``, or those recorded at the first fetch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from arpo_replica.base.environments import as_module, find, heavy_environment, run_module
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import file_sha256, write_atomically
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.section import Section
from arpo_replica.policy.manifest import Manifest, write_base

logger = logging.getLogger(__name__)

DESCRIPTIONS = Path("data/models")
STORE = Path("results/_models")
"""Fetched and made models, shared by all studies of a checkout."""
MODULE = "arpo_replica.models.weights"
HASHES = "sha256.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".joblib", ".npy", ".npz")
CODE = (".py", ".so", ".pyc", ".sh", ".ipynb")
FETCHED = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt")
"""What is asked of the hub; nothing else is downloaded."""


class ModelDescription(Section):
    """``data/models/{name}.json``."""

    about: str
    hub: str = Field(pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$")
    """Repository of the hub."""
    revision: str | None = Field(pattern=r"^[0-9a-f]{40}$")
    """Commit; None: it must be given as ``model.revision``."""
    size: Literal["2b", "7b"]
    parameters: int
    """Number of weights; shared ones count once."""
    sha256: dict[str, str]
    """File -> sha256; empty where they were never seen."""
    processor_class: str
    config: dict[str, Any]
    """``config.json`` of the architecture, without the tokens' ids."""
    preprocessor: dict[str, Any]
    """``preprocessor_config.json`` without the limits of pixels."""


def read_description(name: str, root: Path = Path()) -> ModelDescription | None:
    """The description of a named model; None if there is none. Raises ``UserError`` for a broken file."""
    path = root / find(DESCRIPTIONS) / f"{name}.json"
    if "/" in name or not path.is_file():
        return None
    try:
        return ModelDescription.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: '{key}': {first['msg']}; correct it.") from error


def check_folder(folder: Path, hashes: dict[str, str] | None = None) -> None:
    """Refuse a model folder that could run code or is not what it should be. Raises ``UserError``.

    ``hashes``: file -> sha256 that every weight file must have.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        if path.suffix in PICKLES:
            raise UserError(
                f"{path} is a pickle or the like, which can run code when it is loaded; convert the model to "
                "safetensors and delete it."
            )
        if path.suffix in CODE:
            raise UserError(f"{path} is program code, which no model here needs; delete it.")
        if path.suffix == ".json" and path.stat().st_size < 50_000_000:
            refuse_custom_code(path)
    names = {path.name for path in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise UserError(
            f"{folder} holds no config.json with *.safetensors; give a folder in Hugging Face format."
        )
    for path in files:
        name = path.relative_to(folder).as_posix()
        if hashes is None or (path.suffix != ".safetensors" and name not in hashes):
            continue
        if name not in hashes:
            raise UserError(f"{path} has no recorded sha256; delete it or fetch the model anew.")
        if file_sha256(path) != hashes[name]:
            raise UserError(f"{path} has not the recorded sha256; delete {folder} and fetch the model anew.")
    missing = sorted(set(hashes or ()) - {path.relative_to(folder).as_posix() for path in files})
    if missing:
        raise UserError(f"{folder} lacks {missing[0]}; delete it and fetch the model anew.")


def refuse_custom_code(path: Path) -> None:
    """Refuse a JSON file that names code to be loaded. Raises ``UserError``."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is no JSON; fetch the model anew.") from error
    queue = [content]
    while queue:
        value = queue.pop()
        if isinstance(value, dict):
            if value.get("auto_map") or value.get("trust_remote_code"):
                raise UserError(
                    f"{path} asks for code of its own (auto_map), which is never run here; use a model that "
                    "transformers knows."
                )
            queue += value.values()
        elif isinstance(value, list):
            queue += value


def revision_of(config: StudyConfig, description: ModelDescription) -> str:
    """The pinned commit. Raises ``UserError`` if there is none."""
    revision = config.model.revision or description.revision
    if revision is None:
        raise UserError(
            f"policy.model '{config.policy.model}' has no pinned revision; set model.revision to the 40 hex "
            f"digits of a commit of {description.hub}, or policy.model to a local folder."
        )
    return revision


def check_named_model(config: StudyConfig, description: ModelDescription) -> None:
    """Refuse a config that does not fit the model. Raises ``UserError``."""
    if config.size.removesuffix("_random") != description.size:
        raise UserError(
            f"size is '{config.size}', but policy.model '{config.policy.model}' is of size "
            f"'{description.size}'; correct size."
        )
    if config.model.shape_only:
        tokenizer = config.model.tokenizer
        if tokenizer is not None and not (tokenizer / "tokenizer_config.json").is_file():
            raise UserError(f"model.tokenizer '{tokenizer}' holds no tokenizer_config.json; correct it.")


def fetch_model(config: StudyConfig, out: Path) -> Manifest:
    """Bring the named model here, or make its shape, and write its manifest. Raises ``UserError``."""
    name = config.policy.model
    description = read_description(name)
    if description is None:
        raise UserError(
            f"policy.model '{name}' is neither a folder nor a name in {DESCRIPTIONS}; correct it."
        )
    check_named_model(config, description)
    environment = heavy_environment(config.accelerator)
    recipe: dict[str, Any]
    if config.model.shape_only:
        folder = STORE / f"{name}-random-{shape_digest(config, description)}"
        run_module(environment, "arpo_replica.models.shape", config.model_dump_json(), folder)
        check_folder(folder)
        recipe = {"source": "random weights", "shape": name, "random": True}
    else:
        revision = revision_of(config, description)
        folder = STORE / f"{name}-{revision[:12]}"
        record = folder.with_name(f"{folder.name}.{HASHES}")
        hashes = description.sha256 or (json.loads(record.read_bytes()) if record.is_file() else None)
        if not (folder / "config.json").is_file():
            run_module(environment, MODULE, description.hub, revision, folder)
        check_folder(folder, hashes)
        if hashes is None:
            hashes = record_hashes(folder, record)
        recipe = {"source": "hub", "hub": description.hub, "revision": revision, "sha256": hashes}
    return write_base(config, folder, out, stage="fetched", recipe=recipe, versions={})


def fetch(hub: str, revision: str, folder: Path) -> None:
    """Download a pinned model into ``folder``, whole or not at all. Raises ``UserError`` if the hub cannot be
    reached. Runs in the heavy environment: ``python -m`` this module."""
    os.environ["HF_HUB_OFFLINE"] = "0"  # this one process may ask; all others stay offline
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download

    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        snapshot_download(hub, revision=revision, local_dir=partial, allow_patterns=list(FETCHED))
    except Exception as error:
        # The library has a dozen errors for "no network", "no such commit" and "not allowed".
        brief = " ".join(str(error).split())[:200]
        raise UserError(
            f"{hub} at {revision[:12]} cannot be fetched ({type(error).__name__}: {brief}); fetch it on a "
            "machine that reaches the hub and set policy.model to the folder."
        ) from None
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # only ever called for one that lacks its config.json
    partial.rename(folder)


def shape_digest(config: StudyConfig, description: ModelDescription) -> str:
    """What decides a folder of random weights, 12 hex digits: studies that differ share none."""
    tokenizer = config.model.tokenizer
    files = [] if tokenizer is None else sorted(path for path in tokenizer.iterdir() if path.is_file())
    decides = {
        "shape": description.model_dump(mode="json"),
        "policy": config.policy.model_dump(mode="json", include={"min_pixels", "max_pixels", "language"}),
        "tokenizer": {path.name: file_sha256(path) for path in files},
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]


def record_hashes(folder: Path, record: Path) -> dict[str, str]:
    """Hash every file of a folder that was fetched for the first time; later fetches must equal it."""
    hashes = {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_atomically(record, (json.dumps(hashes, indent=1) + "\n").encode())
    logger.info(f"recorded the sha256 of {len(hashes)} files in {record}; they are enforced from now on")
    return hashes


if __name__ == "__main__":
    as_module(lambda hub, revision, folder: fetch(hub, revision, Path(folder)))
