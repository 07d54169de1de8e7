"""What each key of the config decides: the one table behind everything that must know it.

From it are made Snakemake's ``params`` (a rule runs again when one of its keys changes), the identity of
unfinished work (a training or a set of episodes goes on only if every key that decides it is the same), the
page ``docs/what_reruns.md`` and the command ``explain``. A test flips every key of the schema.

A key is in one class, that of the earliest result it decides: whatever decides a training also decides all
that follows from it, through the files in between.
"""

from collections.abc import Callable, Iterator
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, NamedTuple, get_origin

from pydantic import BaseModel

from arpo_replica.config.models import StudyConfig
from arpo_replica.config.section import nested_model


class Class(StrEnum):
    """What a key decides. The order is that of the pipeline."""

    TRAINING = "decides training"
    EPISODES = "decides episodes"
    SCORES = "decides scores"
    PAGE = "decides the page"
    SPEED = "only where and how fast"
    PLACE = "only where it runs"


TRAINING, EPISODES, SCORES, PAGE, SPEED, PLACE = Class
KEPT = (SPEED, PLACE)
"""No work, finished or not, is done again because of a key of these classes."""


class Row(NamedTuple):
    """Some keys of one section and what they decide."""

    section: str
    keys: str
    """Names or patterns; where several rows fit a key, the longest pattern wins."""
    kind: Class
    rules: str
    """Rules whose result the keys decide. ``+rule``: not by their value but by the files or jobs that the
    rule then has (more seeds are more trainings, another list is another input)."""
    why: str
    """One word."""

    def decides(self, rule: str) -> bool:
        """True if the value of the key is part of what a job of the rule is."""
        return rule in self.rules.split()


EPISODE = "train_stage collect_offline_episodes select_tasks collect_rollouts"
"""Rules that let the policy act."""
ACTING = f"record_demonstrations {EPISODE} validate_tasks measure_throughput"
"""Rules that use desktops."""
ASKING = f"build_nano_model {EPISODE} train_offline measure_throughput"
"""Rules that make or answer the conversation with the policy."""
MARKED = f"fetch_model register_model {EPISODE} build_nano_model train_offline measure_throughput"
SERVED_ELSEWHERE = "collect_offline_episodes select_tasks collect_rollouts measure_throughput"
JOBS = "+train_stage +train_offline +collect_rollouts"

DECIDES = (
    Row("", "study variant", PLACE, "", "folder"),
    Row("", "size", TRAINING, f"{MARKED} score_episodes summarise_study make_target", "mark"),
    Row("", "seeds", TRAINING, f"{JOBS} summarise_study", "which"),
    Row("", "arms", TRAINING, f"{JOBS} score_episodes summarise_study make_target", "which"),
    Row("", "accelerator", TRAINING, ASKING, "arithmetic"),
    Row("", "threads", SPEED, "measure_throughput", "cores"),
    # --- desktops; the section of a provider counts only while that provider is chosen
    Row("desktop", "provider screen", TRAINING, f"{ACTING} build_nano_model", "screenshots"),
    Row("desktop", "settle_ms osworld.settle_ms wait_seconds pause_seconds", TRAINING, ACTING, "screenshots"),
    Row("desktop", "container.image* container.network container.sudo", TRAINING, ACTING, "programs"),
    Row("desktop", "process.image*", TRAINING, ACTING, "programs"),
    Row("desktop", "container.engine container.scratch process.scratch", PLACE, "", "launcher"),
    Row("desktop", "container.apps", TRAINING, f"{ACTING} build_desktop_image", "programs"),
    Row("desktop", "osworld.*", TRAINING, ACTING, "machine"),
    Row("desktop", "osworld.vm", PLACE, "", "path"),
    Row("desktop", "remote.lends", TRAINING, ACTING, "machine"),
    Row("desktop", "remote.pools remote.token_variable", PLACE, "", "address"),
    Row("desktop", "remote.slurm.*", PLACE, "", "address"),
    Row("desktop", "count", SPEED, "compare_claims", "number"),  # the page shows it beside the paper's two
    Row("desktop", "isolation memory_mb disk_mb", SPEED, "", "limit"),
    Row("desktop", "container.cpus container.processes", SPEED, "", "limit"),
    Row("desktop", "container.spares container.reset", SPEED, "", "reset"),
    Row("desktop", "*_timeout_s", SPEED, "", "patience"),
    # --- tasks, by the lists and files that are read
    Row("tasks", "root splits", TRAINING, "+resolve_split", "list"),
    Row("tasks", "leave_out", TRAINING, "+resolve_split +summarise_study", "list"),
    Row("tasks", "noisy.*", TRAINING, "make_noisy_tasks", "noise"),
    Row("tasks", "selected.*", TRAINING, "select_tasks", "selection"),
    Row("tasks", "osworld.*", PLACE, "", "source"),  # the bytes are compared, wherever they come from
    # --- the policy
    Row("nano", "*", TRAINING, "build_nano_model", "recipe"),
    Row("nano", "demonstrations pages seed", TRAINING, "record_demonstrations build_nano_model", "lessons"),
    Row("model", "*", TRAINING, "fetch_model", "weights"),
    Row("policy", "*", TRAINING, ASKING, "conversation"),
    Row("policy", "max_steps coordinates", TRAINING, f"record_demonstrations {ASKING}", "conversation"),
    Row("policy", "m??_pixels", TRAINING, f"record_demonstrations fetch_model {ASKING}", "conversation"),
    Row("policy", "language", TRAINING, f"fetch_model {ASKING}", "conversation"),
    Row("policy", "model", TRAINING, "+build_nano_model fetch_model register_model", "weights"),
    Row("policy", "recipe", TRAINING, "+train_stage +collect_rollouts", "preset"),  # by the keys it fills
    Row("policy", "served_model", EPISODES, f"register_model {SERVED_ELSEWHERE}", "weights"),
    Row("policy", "endpoint api_key_variable", PLACE, "", "address"),
    Row("serving", "*", SPEED, "measure_throughput", "server"),
    Row("serving", "dtype", TRAINING, f"{EPISODE} measure_throughput", "arithmetic"),
    Row("serving", "quantization", EPISODES, SERVED_ELSEWHERE, "arithmetic"),
    # An attempt that is given up is an env_error: not scored, not trained on.
    Row("rollout", "*", SPEED, "", "patience"),
    # --- training; an arm's overrides are these keys
    Row("training", "* asynchrony.* replay.* lora.* speed.freeze_vision", TRAINING, "train_stage", "recipe"),
    Row("training", "stages[].*", TRAINING, "train_stage", "stage"),
    Row("training", "stages[].name", TRAINING, f"{JOBS} train_stage", "which"),
    Row("training", "learning_rate lr_warmup_ratio", TRAINING, "train_stage train_offline", "recipe"),
    Row("training", "weight_decay max_grad_norm", TRAINING, "train_stage train_offline", "recipe"),
    Row(
        "training",
        "temperature",
        TRAINING,
        "train_stage collect_offline_episodes select_tasks measure_throughput",
        "sampling",
    ),
    Row("training", "replay.enabled", TRAINING, "train_stage check_stage", "replay"),
    Row("training", "replay.preload", TRAINING, "+collect_offline_episodes train_stage", "lessons"),
    Row("training", "offline.*", TRAINING, "train_offline", "recipe"),
    # An arm's weights take the place of the policy's: its jobs see them as keys of `policy` and `model`.
    Row("training", "weights.*", EPISODES, "+fetch_model +register_model +collect_rollouts", "weights"),
    Row("training", "weights.epochs", EPISODES, "+build_nano_model +collect_rollouts", "weights"),
    Row("training", "weights.endpoint", PLACE, "", "address"),
    Row("training", "gates.*", SCORES, "check_stage", "judgement"),
    Row("training", "speed.* micro_batch offload", SPEED, "", "memory"),
    Row("training", "gpus nodes tensor_parallel sequence_parallel", SPEED, "", "devices"),
    Row("training", "save_every keep_checkpoints", SPEED, "", "checkpoints"),
    Row("training", "lost_rollout_refills env_error_share_max", SPEED, "", "patience"),
    Row("training", "stall_timeout_s dead_after_s", SPEED, "", "patience"),
    Row("training", "loggers wandb.*", SPEED, "", "logs"),
    Row(
        "offline",
        "split rollouts_per_task",
        TRAINING,
        "+collect_offline_episodes +train_stage train_offline",
        "lessons",
    ),
    # --- evaluation, claims, page
    Row("evaluation", "splits trials", EPISODES, "+collect_rollouts score_episodes summarise_study", "which"),
    Row("evaluation", "temperature top_p reasks call_user_waits", EPISODES, "collect_rollouts", "sampling"),
    Row("evaluation", "success_above", TRAINING, f"{EPISODE} validate_tasks score_episodes", "success"),
    Row("targets", "*", SCORES, "summarise_study compare_claims make_target", "roles"),
    Row("targets", "environments", SCORES, "measure_throughput compare_claims make_target", "roles"),
    Row("report", "*", PAGE, "render_report", "pictures"),
    Row("report", "full_trajectories published", PAGE, "publish_report", "package"),
)


def leaves(model: type[BaseModel] = StudyConfig, prefix: str = "") -> Iterator[str]:
    """Every key of the schema that holds a value, dotted; ``stages[].name`` for keys of a list's entries."""
    for name, field in model.model_fields.items():
        nested = nested_model(field.annotation)
        many = "[]." if get_origin(field.annotation) is list else "."
        yield from [prefix + name] if nested is None else leaves(nested, f"{prefix}{name}{many}")


def row_of(key: str) -> Row | None:
    """The row of the table that a key belongs to."""
    section, _, name = key.rpartition(".") if key.count(".") == 0 else key.partition(".")
    found = [
        (len(pattern.replace("*", "")), row)
        for row in DECIDES
        if row.section == section
        for pattern in row.keys.split()
        if fnmatchcase(name, pattern.replace("[]", "[[]]"))
    ]
    return max(found, key=lambda entry: entry[0])[1] if found else None


@lru_cache(maxsize=1)
def table() -> dict[str, Row]:
    """Key -> its row. Raises KeyError for a key of the schema without one."""
    found = {key: row_of(key) for key in leaves()}
    if missing := [key for key, row in found.items() if row is None]:
        raise KeyError(f"config/decides.py has no row for {', '.join(missing)}")
    return {key: row for key, row in found.items() if row is not None}


def rules() -> list[str]:
    """Every rule that some key decides, in the order of the table."""
    named = (rule.removeprefix("+") for row in DECIDES for rule in row.rules.split())
    return list(dict.fromkeys(named))


def decided(
    config: StudyConfig, rule: str, *, arm: str = "", stage: str = "", split: str = ""
) -> dict[str, Any]:
    """Key -> value of all that decides the result of one job of a rule, as plain JSON.

    With ``arm`` the keys of ``training``, or the policy's weights, are those of the arm, with ``stage`` those
    of one stage; ``split`` is a noisy or selected one.
    """
    config = config.of_arm(arm)
    whole = config.model_dump(mode="json")
    whole["arms"] = list(config.arms)  # what they override are keys of training
    if arm in config.trained_arms:
        whole["training"] = config.recipe(arm).model_dump(mode="json")
    if stage:
        of_stage = {entry["name"]: entry for entry in whole["training"]["stages"]}
        whole["training"]["stages"] = [of_stage[stage]] if stage in of_stage else []
    for kind in ("noisy", "selected"):
        if split in whole["tasks"][kind]:
            whole["tasks"][kind] = whole["tasks"][kind][split]
    return {
        key: _value(whole, key.split("."))
        for key, row in table().items()
        if row.decides(rule) and _counts(config, key)
    }


def decides(config: StudyConfig, rule: str) -> Callable[[Any], dict[str, Any]]:
    """For a rule's params: wildcards -> the keys that decide the job's result, with their values."""

    def of_job(wildcards: Any) -> dict[str, Any]:
        return decided(
            config,
            rule,
            arm=wildcards.get("arm", wildcards.get("of", "").removeprefix("_")),
            stage=wildcards.get("stage", ""),
            split=wildcards.get("split", "") if rule in ("make_noisy_tasks", "select_tasks") else "",
        )

    return of_job


def _counts(config: StudyConfig, key: str) -> bool:
    """False for a key about desktops of another provider than the chosen one."""
    section, *rest = key.split(".")
    return section != "desktop" or len(rest) == 1 or rest[0] == config.desktop.provider


def _value(part: Any, path: list[str]) -> Any:
    for index, name in enumerate(path):
        if part is None:
            return None
        if name.endswith("[]"):
            return [_value(entry, path[index + 1 :]) for entry in part[name[:-2]]]
        part = part[name]
    return part
