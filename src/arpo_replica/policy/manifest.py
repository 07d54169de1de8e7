"""What a finished model *is*: ``manifest.json`` beside its weights.

The manifest is what the workflow tracks; weights are gigabytes and stay out of its sight. Whoever loads
weights checks them against the manifest, so a damaged or foreign file is refused.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from arpo_replica.base.errors import UserError
from arpo_replica.base.files import file_sha256, write_document
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.section import Section

WEIGHTS = ("*.safetensors",)
UNSEEN = "served, weights not seen"
"""How the source of a model begins that only a server elsewhere has."""


class Manifest(Section):
    schema_version: int = 1
    arm: str
    seed: int
    stage: str
    step: int
    """Updates since the stage began; 0 for an untrained policy."""
    size: str
    """Size mark of the study."""
    model: str
    """Folder in Hugging Face format, relative to the manifest."""
    weights: dict[str, str]
    """File in that folder -> sha256."""
    sha256: str
    """Identity of the checkpoint: hash over ``weights``."""
    parent: str | None
    """``sha256`` of the model that training began from."""
    recipe: dict[str, Any]
    """Everything that decided the result."""
    versions: dict[str, str]
    """Package -> version."""

    def model_path(self, manifest: Path) -> Path:
        """The model's folder, given where the manifest lies."""
        return (manifest.parent / self.model).resolve()


def hash_weights(folder: Path) -> tuple[dict[str, str], str]:
    """(file -> sha256, hash over all of them). Raises ``UserError`` if there are no weights."""
    files = sorted(path for pattern in WEIGHTS for path in folder.glob(pattern))
    if not files or not (folder / "config.json").is_file():
        raise UserError(
            f"Model folder {folder} holds no config.json with *.safetensors; give a folder in Hugging Face "
            "format as policy.model."
        )
    weights = {path.name: file_sha256(path) for path in files}
    lines = "".join(f"{digest}  {name}\n" for name, digest in weights.items())
    return weights, hashlib.sha256(lines.encode()).hexdigest()


def read_manifest(path: Path, *, verify: bool = False) -> Manifest:
    """Read a manifest; with ``verify`` also hash the weights again. Raises ``UserError``."""
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"Manifest {path} cannot be read: {error.strerror}; build that model first."
        ) from error
    except ValidationError as error:
        raise UserError(
            f"Manifest {path} is no manifest of this version; delete it and build anew."
        ) from error
    served = str(manifest.recipe.get("source", "")).startswith(UNSEEN)
    if verify and not (served and not manifest.weights):
        weights, _ = hash_weights(manifest.model_path(path))
        if weights != manifest.weights:
            raise UserError(f"The weights beside {path} are not those it names; delete both and build anew.")
    return manifest


def write_manifest(path: Path, folder: Path, **facts: Any) -> Manifest:
    """Hash the weights in ``folder`` and write the manifest of which ``facts`` are the rest."""
    weights, identity = hash_weights(folder)
    model = os.path.relpath(folder, path.parent)
    manifest = Manifest(model=model, weights=weights, sha256=identity, **facts)
    write_document(manifest, path)
    return manifest


def write_base(
    config: StudyConfig,
    folder: Path | None,
    out: Path,
    *,
    stage: str,
    recipe: dict[str, Any],
    versions: dict[str, str],
    arm: str = "base",
) -> Manifest:
    """Write the manifest of given weights. ``folder`` holds them; None: nobody here can hash them."""
    facts: dict[str, Any] = {"arm": arm, "seed": 0, "stage": stage, "step": 0, "size": config.size}
    facts |= {"parent": None, "recipe": recipe, "versions": versions}
    if folder is not None:
        return write_manifest(out, folder, **facts)
    identity = hashlib.sha256(recipe["source"].encode()).hexdigest()
    manifest = Manifest(model=".", weights={}, sha256=identity, **facts)
    write_document(manifest, out)
    return manifest


def register_model(config: StudyConfig, folder: Path | None, out: Path, arm: str = "base") -> Manifest:
    """Write the manifest of the base policy or of an arm with given weights. ``folder`` holds them; None:
    only an endpoint has them, and the manifest says so."""
    config = config.of_arm(arm)
    recipe, versions = {"source": config.policy.model}, {}
    if folder is None:
        recipe = {"source": f"{UNSEEN}: {config.policy.served_model} at {config.policy.endpoint}"}
    elif (folder / "manifest.json").is_file():
        source = read_manifest(folder / "manifest.json", verify=True)
        folder = source.model_path(folder / "manifest.json")
        recipe, versions = source.recipe, source.versions
    stage = config.measured(arm)[1]
    return write_base(config, folder, out, stage=stage, recipe=recipe, versions=versions, arm=arm)
