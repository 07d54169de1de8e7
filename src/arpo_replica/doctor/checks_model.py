"""The policy: its folder, the way it is asked, or the server that has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from arpo_replica.base.errors import UserError
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.policy import SERVED
from arpo_replica.doctor.machine import Machine
from arpo_replica.doctor.registry import Finding, check, fail, ok, warn
from arpo_replica.models.weights import check_named_model, read_description, revision_of
from arpo_replica.policy.prompt import conversation_length

KINDS = {"qwen2_5_vl": "absolute", "qwen2_vl": "relative_1000"}
"""``model_type`` of a model of UI-TARS -> the coordinates it was trained with."""


def has_folder(config: StudyConfig) -> bool:
    """True if the policy is a folder of the user's."""
    return config.policy.model not in ("nano", SERVED) and "/" in config.policy.model


def is_named(config: StudyConfig) -> bool:
    """True if the policy is a model that a file of ``data/models`` describes."""
    return config.policy.model not in ("nano", SERVED) and "/" not in config.policy.model


def model_config(config: StudyConfig, machine: Machine) -> dict[str, Any]:
    """``config.json`` of the folder or of the model of ``data/models``, or nothing."""
    folder = has_folder(config)
    described = machine.root / "data" / "models" / f"{config.policy.model}.json"
    path = Path(config.policy.model) / "config.json" if folder else described
    try:
        found = json.loads(machine.read(path) or "{}")
        found = found if folder else found.get("config", {})
    except (ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


@check("the model's folder", has_folder)
def model_folder(config: StudyConfig, machine: Machine) -> Finding:
    """A download that broke off lacks shards, or has pointers of a few bytes in their place."""
    folder = Path(config.policy.model)
    if not model_config(config, machine):
        return fail(f"{folder} has no readable config.json", "correct policy.model or fetch the model again")
    wanted = {path.name for path in machine.files(folder, "*.safetensors")}
    try:
        index = json.loads(machine.read(folder / "model.safetensors.index.json") or "{}")
        wanted |= set((index.get("weight_map") or {}).values())
    except (ValueError, AttributeError, TypeError):
        return fail("model.safetensors.index.json is no JSON", "fetch the model again")
    if not wanted:
        return fail(f"{folder} has no *.safetensors", "fetch the model again, or convert it")
    sizes = {name: machine.size(folder / name) or 0 for name in wanted}
    broken = sorted(name for name, size in sizes.items() if size < 1_000)
    if broken:
        return fail(f"missing or broken off: {', '.join(broken[:3])}", "fetch the model again (git lfs pull)")
    others = ("tokenizer_config.json", "preprocessor_config.json")
    missing = [name for name in others if not machine.exists(folder / name)]
    if missing:
        return fail(f"{folder} lacks {', '.join(missing)}", "fetch the model again")
    return ok(f"{len(sizes)} files of weights, {sum(sizes.values()) / 2**30:.1f} GiB")


@check("a named model's commit and size", is_named)
def named_model(config: StudyConfig, machine: Machine) -> Finding:
    """A name without a commit could mean other weights tomorrow; the study refuses it."""
    name = config.policy.model
    try:
        description = read_description(name)
        if description is None:
            return fail(f"data/models has no '{name}'", "correct policy.model; a folder's name has a slash")
        check_named_model(config, description)
        if not config.model.shape_only:
            revision_of(config, description)
    except UserError as error:
        return fail(str(error), "as the sentence says")
    if config.model.shape_only:
        return ok(f"the shape of {description.hub}, random weights")
    return ok(f"{description.hub} at {config.model.revision or description.revision}")


@check("prompt and coordinates of that model")
def recipe(config: StudyConfig, machine: Machine) -> Finding:
    """With the wrong kind every click lands elsewhere, without any error. All that is used is printed."""
    policy = config.policy
    used = (
        f"prompt {policy.prompt}, {policy.coordinates} points, {policy.language}, {policy.max_images} images,"
        f" {policy.max_turns or 'all'} turns, {policy.max_steps} steps, "
        f"temperature {config.evaluation.temperature:g}"
    )
    kind = model_config(config, machine).get("model_type")
    fits = KINDS.get(str(kind))
    if fits is not None and fits != policy.coordinates:
        name = "uitars_15" if fits == "absolute" else "uitars_dpo"
        return fail(f"{used}; but {kind} models answer in {fits} points", f"set policy.recipe: {name}")
    if config.size != "nano" and policy.recipe is None and policy.prompt == "uitars":
        return warn(used, "set policy.recipe: uitars_15 or uitars_dpo, unless you mean these values")
    return ok(used)


@check("the conversation fits into the context")
def context(config: StudyConfig, machine: Machine) -> Finding:
    """A conversation that outgrows the context cuts its episode short."""
    length, longest = conversation_length(config), config.policy.max_model_len
    words = (
        f"{length.images} images of {length.image} tokens and {length.turns} replies: up to {length.most} of "
        f"{longest}"
    )
    if length.most > longest:
        fix = "raise policy.max_model_len, or lower policy.max_images"
        fits = length.least + config.policy.max_new_tokens <= longest
        return warn(words, fix) if fits else fail(words, fix)
    return ok(words)


@check("the policy's server", lambda config: config.policy.endpoint is not None)
def endpoint(config: StudyConfig, machine: Machine) -> Finding:
    """It answers, takes the key, and serves the model."""
    policy = config.policy
    try:
        served = machine.check_endpoint(policy)
    except UserError as error:
        return fail(str(error), "docs/policy.md, 'A server elsewhere'")
    url = str(policy.endpoint)
    words = f"{url} serves {served}"
    plain = url.startswith("http://") and not url.startswith(
        ("http://127.", "http://localhost", "http://[::1]")
    )
    if plain and machine.env.get(policy.api_key_variable):
        return warn(f"{words}; the key travels unencrypted", "use https or an SSH tunnel")
    if policy.served_model is None:
        return warn(f"{words} (the first it lists)", f"set policy.served_model: {served}")
    if set(config.arms) != {"base"}:
        return ok(f"{words}, for the base arm; trained arms are served here")
    return ok(words)
