"""A study as the rules see it: paths, what follows from what, and what a change touches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arpo_replica.config import StudyConfig, parse_config
from arpo_replica.desktop.providers import make_provider
from arpo_replica.environments import heavy_environment, python_of
from arpo_replica.errors import UserError
from arpo_replica.policy.endpoint import check_endpoint
from arpo_replica.tasks.evaluate import check_evaluator
from arpo_replica.tasks.setup import check_setup
from arpo_replica.tasks.splits import load_split

BASE_STAGE = "base"
"""Stage name of the untrained policy."""
TEMPLATES = Path("src/arpo_replica/report")
"""Relative to the repository, where Snakemake runs, so that a moved checkout renders nothing again."""


class Study:
    """The checked config of one run and everything that rules derive from it."""

    def __init__(self, raw: dict[str, Any], source: str) -> None:
        self.config: StudyConfig = parse_config(dict(raw), source)
        self.name = self.config.study

    # --- checks before any work ------------------------------------------------------------------

    def check(self) -> None:
        """Refuse what cannot work before anything starts. Raises ``UserError``."""
        used = {stage.split for stage in self.config.training.stages} | set(self.config.evaluation.splits)
        for split in sorted(used):
            for task in load_split(self.config.tasks.splits[split], self.config.tasks.root):
                check_setup(task)
                check_evaluator(task)
        python_of(heavy_environment(self.config.accelerator))
        self.base_source()
        make_provider(self.config.desktop).check()
        if self.config.policy.endpoint is not None:
            check_endpoint(self.config.policy.endpoint)

    # --- arms, stages, checkpoints ---------------------------------------------------------------

    @property
    def trained_arms(self) -> list[str]:
        """All arms but the untrained one."""
        return [arm for arm in self.config.arms if arm != "base"]

    @property
    def trained_arms_pattern(self) -> str:
        """The same as a regular expression for a wildcard."""
        return "|".join(self.trained_arms) or "none"

    def checkpoints(self) -> list[tuple[str, int, str]]:
        """(arm, seed, stage) of every checkpoint that is evaluated: the base and each arm's last stage."""
        last = self.config.training.stages[-1].name
        trained = [(arm, seed, last) for arm in self.trained_arms for seed in self.config.seeds]
        return [("base", 0, BASE_STAGE), *trained]

    def stages(self) -> list[tuple[str, int, str]]:
        """(arm, seed, stage) of every stage that is trained."""
        return [
            (arm, seed, stage.name)
            for arm in self.trained_arms
            for seed in self.config.seeds
            for stage in self.config.training.stages
        ]

    def base_source(self) -> str:
        """File that stands for the untrained policy: nano's manifest, or the given folder's config."""
        if self.config.policy.model == "nano":
            return "<results>/nano/model/manifest.json"
        folder = Path(self.config.policy.model)
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise UserError(
                f"policy.model '{folder}' is no model folder with config.json and *.safetensors; give 'nano' "
                "or a folder in Hugging Face format."
            )
        return str(folder / "config.json")

    def previous_manifest(self, arm: str, seed: str, stage: str) -> str:
        """Manifest that a stage starts from."""
        names = [entry.name for entry in self.config.training.stages]
        if stage not in names:
            raise UserError(f"training.stages has no stage '{stage}'; it has {', '.join(names)}.")
        index = names.index(stage)
        if index == 0:
            return f"<results>/models/base/seed_0/stage_{BASE_STAGE}/manifest.json"
        return f"<results>/models/{arm}/seed_{seed}/stage_{names[index - 1]}/manifest.json"

    def task_files(self, split: str) -> list[str]:
        """The task files of a split."""
        root = self.config.tasks.root
        tasks = load_split(self.config.tasks.splits[split], root)
        return [str(root / task.domain / f"{task.id}.json") for task in tasks]

    # --- files of the whole study ------------------------------------------------------------------

    def episode_indexes(self, root: str) -> list[str]:
        """Indexes of all evaluated splits and trials under ``root``."""
        return [
            f"{root}/{split}/trial_{trial}/episodes.jsonl"
            for split in self.config.evaluation.splits
            for trial in range(self.config.evaluation.trials)
        ]

    def all_indexes(self) -> list[str]:
        """Indexes of every evaluated checkpoint."""
        return [
            index
            for arm, seed, stage in self.checkpoints()
            for index in self.episode_indexes(f"<results>/episodes/{arm}/seed_{seed}/stage_{stage}")
        ]

    def all_metrics(self) -> list[str]:
        """``metrics.jsonl`` of every trained stage."""
        return [
            f"<results>/models/{arm}/seed_{seed}/stage_{stage}/metrics.jsonl"
            for arm, seed, stage in self.stages()
        ]

    def all_manifests(self) -> list[str]:
        """Manifests of the base and of every trained stage."""
        models = [("base", 0, BASE_STAGE), *self.stages()]
        return [
            f"<results>/models/{arm}/seed_{seed}/stage_{stage}/manifest.json" for arm, seed, stage in models
        ]

    def report_templates(self) -> list[str]:
        """Everything that decides how the page looks."""
        return sorted(
            str(path)
            for path in TEMPLATES.rglob("*")
            if path.suffix in {".py", ".j2", ".css", ".js", ".html"}
        )

    # --- what decides a result: Snakemake runs a job again when its part changes ------------------------

    def resolved(self) -> dict[str, Any]:
        """The whole config with every default."""
        return self.config.model_dump(mode="json")

    def _part(self, *names: str) -> dict[str, Any]:
        resolved = self.resolved()
        part: dict[str, Any] = {}
        for name in names:
            value: Any = resolved
            for key in name.split("."):
                value = value[key]
            part[name] = value
        return part

    def demonstration_params(self) -> dict[str, Any]:
        """What decides the demonstrations."""
        return self._part(
            "nano.demonstrations", "nano.seed", "desktop.screen", "desktop.provider", "policy.max_steps"
        )

    def nano_params(self) -> dict[str, Any]:
        """What decides the nano policy."""
        return self._part("nano", "policy", "desktop.screen")

    def training_params(self, arm: str, stage: str) -> dict[str, Any]:
        """What decides a stage of an arm; other stages, arms and the evaluation do not."""
        recipe = self.config.recipe(arm).model_dump(mode="json", exclude={"stages"})
        return {
            **self._part("policy", "desktop.screen", "desktop.provider", "rollout", "accelerator"),
            **self._part("evaluation.success_above"),
            "recipe": recipe,
            "stage": self.config.stage(stage).model_dump(mode="json"),
        }

    def rollout_params(self) -> dict[str, Any]:
        """What decides the episodes of a checkpoint."""
        return self._part(
            "policy", "desktop.screen", "desktop.provider", "rollout", "evaluation", "accelerator"
        )

    def score_params(self) -> dict[str, Any]:
        """What decides the scores, given the episodes."""
        return self._part("evaluation", "size")
