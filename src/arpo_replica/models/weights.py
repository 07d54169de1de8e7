"""Model folders as strangers leave them: what is accepted, and where named models come from.

Accepted are safetensors with JSON beside them. Refused are pickles (loading one runs what it holds) and code
(``auto_map`` asks transformers to run it). A model of the hub is pinned to a commit, and its files to their
sha256: those of ``data/models``, or those recorded at the first fetch. So is the commit of a model that
nobody pinned: what was fetched first is held from then on.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.request import urlopen

from pydantic import Field, ValidationError

from arpo_replica.base.environments import as_module, find, heavy_environment, run_module
from arpo_replica.base.errors import UserError, brief
from arpo_replica.base.files import file_sha256, read_tensor_header, write_atomically
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.section import COMMIT, Section
from arpo_replica.policy.manifest import Manifest, read_manifest, write_base

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
    revision: str | None = Field(pattern=COMMIT)
    """Commit; None: the newest one at the first fetch, which is recorded and held."""
    grade: str
    """How far the commit can be trusted to be the paper's model, in words for the page."""
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
    files = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    for path in files.values():
        if path.suffix in PICKLES:
            raise UserError(
                f"{path} is a pickle or the like, which can run code when it is loaded; convert the model to "
                "safetensors and delete it."
            )
        if path.suffix in CODE:
            raise UserError(f"{path} is program code, which no model here needs; delete it.")
        if path.suffix == ".json" and path.stat().st_size < 50_000_000:
            refuse_custom_code(path)
    if "config.json" not in files or not any(name.endswith(".safetensors") for name in files):
        raise UserError(
            f"{folder} holds no config.json with *.safetensors; give a folder in Hugging Face format."
        )
    for name, path in files.items():
        if hashes is None or (path.suffix != ".safetensors" and name not in hashes):
            continue
        if name not in hashes:
            raise UserError(f"{path} has no recorded sha256; delete it or fetch the model anew.")
        if file_sha256(path) != hashes[name]:
            raise UserError(f"{path} has not the recorded sha256; delete {folder} and fetch the model anew.")
    if missing := sorted(set(hashes or ()) - set(files)):
        raise UserError(f"{folder} lacks {missing[0]}; delete it and fetch the model anew.")
    check_whole(folder)


def check_whole(folder: Path) -> None:
    """Refuse a model of which a download, or ``git clone`` without LFS, left a part. Raises ``UserError``."""
    config = json.loads((folder / "config.json").read_bytes())
    if not isinstance(config, dict) or not isinstance(config.get("text_config") or {}, dict):
        raise UserError(f"{folder / 'config.json'} describes no model; fetch the model anew.")
    found = {path.name for path in folder.glob("*.safetensors")}
    wanted: set[str] = set()
    for name in found:
        try:
            read_tensor_header(folder / name)
        except ValueError as error:
            raise UserError(f"{folder / name} {error}; fetch it anew (git lfs pull).") from None
        if shard := re.fullmatch(r"(.+)-\d{5}-of-(\d{5})[.]safetensors", name):
            wanted |= {f"{shard[1]}-{n:05}-of-{shard[2]}.safetensors" for n in range(1, int(shard[2]) + 1)}
    for index in folder.glob("*.safetensors.index.json"):
        try:
            wanted |= set(json.loads(index.read_bytes())["weight_map"].values())
        except (AttributeError, KeyError, TypeError):
            raise UserError(f"{index} is no index of weights; fetch it anew.") from None
    for name in [*sorted(wanted - found), "tokenizer_config.json", "preprocessor_config.json"]:
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}, a part of the model; fetch it too.")


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


def revision_of(config: StudyConfig, description: ModelDescription) -> tuple[str | None, str]:
    """The commit and its grade in words; no commit before the first fetch of a model that nobody pinned."""
    if config.model.revision is not None and config.model.revision != description.revision:
        return config.model.revision, "the commit is the config's (model.revision)"
    if description.revision is not None:
        return description.revision, description.grade
    record = record_of(config.policy.model)
    found = str(json.loads(record.read_bytes())["revision"]) if record.is_file() else None
    return found, description.grade


def record_of(name: str) -> Path:
    """Where the commit of an unpinned model is recorded at its first fetch."""
    return STORE / f"{name}.first_fetch.json"


def folder_of(name: str, revision: str) -> Path:
    """Where a named model is kept."""
    return STORE / f"{name}-{revision[:12]}"


def commit_on_hub(hub: str, revision: str = "main") -> str:
    """The hub's commit of that name. Raises ``UserError`` if it has none or does not answer.

    The hub is that of ``huggingface_hub`` (``HF_ENDPOINT``), asked without it: only the heavy environments
    have that package.
    """
    base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        with urlopen(f"{base}/api/models/{hub}/revision/{revision}", timeout=10) as answer:  # noqa: S310
            found = str(json.load(answer)["sha"])
        if re.fullmatch(COMMIT, found) is None:
            raise ValueError("its answer names no commit")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, HTTPError) and error.code in (401, 404):
            raise UserError(
                f"The hub has no commit {revision[:12]} of {hub}; correct the model's revision, or give a "
                "local folder."
            ) from None
        raise UserError(
            f"{hub} is not here and the hub does not answer ({brief(error)[:120]}); fetch it on a machine "
            "that reaches the hub and give its folder."
        ) from None


def check_obtainable(config: StudyConfig, description: ModelDescription, key: str = "policy.model") -> None:
    """Refuse a named model that is not here and that the hub does not have. Raises ``UserError``."""
    name = config.policy.model
    revision, _ = revision_of(config, description)
    if revision is None or not (folder_of(name, revision) / "config.json").is_file():
        try:
            commit_on_hub(description.hub, revision or "main")
        except UserError as error:
            raise UserError(f"{key} '{name}': {error}") from None


def names_of_others(model: str) -> list[str]:
    """Every name, in lower case, of the models of ``data/models`` that are not this one."""
    own = model.rstrip("/").rpartition("/")[2].lower()
    found = {}
    for path in sorted(find(DESCRIPTIONS).glob("*.json")):
        description = read_description(path.stem)
        assert description is not None
        found[path.stem.lower()] = description.hub.rpartition("/")[2].lower()
    if own not in {*found, *found.values()}:
        return []  # only the user knows what it is
    return sorted({other for pair in found.items() if own not in pair for other in pair})


ALIKE = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""Of ``config.json``: what two models of one architecture and size have in common."""


def check_alike(base: str, model: str, key: str) -> None:
    """Refuse a model that is no match for another one: another architecture, another tokenizer.

    ``base``, ``model``: names of ``data/models`` or folders, as far as they can be read. ``key`` says in the
    sentence where the latter is named. Raises ``UserError``.
    """
    ours, theirs = (_architecture(name) for name in (base, model))
    for part in ALIKE:
        if part in ours and part in theirs and ours[part] != theirs[part]:
            raise UserError(
                f"{key} '{model}' is of another architecture than '{base}' ({part} is {theirs[part]}, not "
                f"{ours[part]}); give a model of the same architecture."
            )
    known, other = (_tokens(Path(name)) for name in (base, model))
    if known and other and known != other:
        token = next(token for token, _ in sorted(known.items() ^ other.items()))
        raise UserError(
            f"{key} '{model}' has another tokenizer than '{base}' (the token {token!r} is "
            f"{other.get(token)}, not {known.get(token)}); give weights saved with the same tokenizer."
        )


def check_beside(base: Path, folder: Path, key: str) -> None:
    """Refuse weights in a folder, or named by its manifest, that do not match those of manifest ``base``.

    Weights that only a server has cannot be looked at. Raises ``UserError``.
    """
    known, own = read_manifest(base), folder / "manifest.json"
    if known.weights:
        model = read_manifest(own).model_path(own) if own.is_file() else folder
        check_alike(str(known.model_path(base)), str(model), key)


def _architecture(model: str) -> dict[str, Any]:
    """``config.json`` with the language model's own part laid under it; empty if it cannot be read."""
    described, file = read_description(model), Path(model) / "config.json"
    content = described.config if described else json.loads(file.read_bytes()) if file.is_file() else {}
    return {**(content.get("text_config") or {}), **content}


def _tokens(folder: Path) -> dict[str, int]:
    """Token -> id of a folder's tokenizer, special ones included; empty if there is none. Raises
    ``UserError`` for one of another form."""
    names = ("tokenizer.json", "vocab.json", "added_tokens.json")
    try:
        read = {name: json.loads((folder / name).read_bytes()) for name in names if (folder / name).is_file()}
        whole = read.get("tokenizer.json")
        if whole is None:
            return {**read.get("vocab.json", {}), **read.get("added_tokens.json", {})}
        vocabulary = whole["model"]["vocab"]
        if isinstance(vocabulary, list):  # a unigram model: the id is the place
            vocabulary = {entry[0]: place for place, entry in enumerate(vocabulary)}
        return {**vocabulary, **{entry["content"]: entry["id"] for entry in whole.get("added_tokens", [])}}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise UserError(f"{folder} has a tokenizer that cannot be read; fetch the model anew.") from None


def check_named_model(config: StudyConfig, description: ModelDescription, key: str = "policy.model") -> None:
    """Refuse a config that does not fit the model. Raises ``UserError``."""
    if config.plain_size != description.size:
        raise UserError(
            f"size is '{config.size}', but {key} '{config.policy.model}' is of size "
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
        pinned, grade = revision_of(config, description)
        revision = pinned or commit_on_hub(description.hub)
        folder = folder_of(name, revision)
        record = folder.with_name(f"{folder.name}.{HASHES}")
        hashes = description.sha256 or (json.loads(record.read_bytes()) if record.is_file() else None)
        if not (folder / "config.json").is_file():
            run_module(environment, MODULE, description.hub, revision, folder)
        check_folder(folder, hashes)
        check_alike(name, str(folder), description.hub)
        if hashes is None:
            hashes = record_hashes(folder, record)
        if pinned is None:
            write_atomically(record_of(name), json.dumps({"revision": revision}).encode())
        source = {"source": "hub", "hub": description.hub, "revision": revision}
        recipe = {**source, "grade": grade, "sha256": hashes}
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
        raise UserError(
            f"{hub} at {revision[:12]} cannot be fetched ({type(error).__name__}: {brief(error)}); fetch it "
            "on a machine that reaches the hub and set policy.model to the folder."
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
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    hashes = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    write_atomically(record, (json.dumps(hashes, indent=1) + "\n").encode())
    logger.info(f"recorded the sha256 of {len(hashes)} files in {record}; they are enforced from now on")
    return hashes


if __name__ == "__main__":
    as_module(lambda hub, revision, folder: fetch(hub, revision, Path(folder)))
