"""A study as the rules see it: paths, what follows from what, and what a change touches."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from arpo_replica.base.checkout import require_clean
from arpo_replica.base.environments import ROOT, find, heavy_environment, python_of
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import file_sha256
from arpo_replica.cluster.orphan_jobs import check_left
from arpo_replica.cluster.pools import lent_before
from arpo_replica.config import StudyConfig
from arpo_replica.config.desktop import BUILT_IMAGE
from arpo_replica.config.models import BASE_STAGE
from arpo_replica.config.policy import SERVED
from arpo_replica.evaluation.targets import episodes_of, target_of, trainings_of
from arpo_replica.models import weights
from arpo_replica.models.nano.model import check_nano
from arpo_replica.policy.endpoint import check_endpoint
from arpo_replica.policy.prompt import check_context
from arpo_replica.providers.pool import make_provider
from arpo_replica.suites.evaluate import check_provider
from arpo_replica.suites.planned import check_tasks, planned_tasks, split_files
from arpo_replica.tasks.splits import check_left_out, left_out_of
from arpo_replica.training.job import outline
from arpo_replica.training.preload import check_preload
from arpo_replica.training.recipe import check_recipe, check_window

TEMPLATES = "src/arpo_replica/report"


def is_model_folder(folder: Path) -> bool:
    """True if weights in Hugging Face's format lie there."""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def model_key(arm: str) -> str:
    """Key of the config that names an arm's weights."""
    return "policy.model" if arm == "base" else f"arms.{arm}.weights"


def of_model(arm: str, seed: int | str, stage: str, name: str = "manifest.json") -> str:
    """A file beside the weights of a stage."""
    return f"<results>/models/{arm}/seed_{seed}/stage_{stage}/{name}"


def of_models(models: list[tuple[str, int, str]], name: str = "manifest.json") -> list[str]:
    """A file beside the weights of each of these stages (arm, seed, stage)."""
    return [of_model(*model, name) for model in models]


def _refusal(check: Callable[[], object]) -> str:
    """The sentence with which a check refuses; empty if it does not."""
    try:
        check()
    except UserError as error:
        return str(error)
    return ""


class Study:
    """The config of one run and everything that rules derive from it."""

    def __init__(self, config: StudyConfig) -> None:
        self.config, self.name = config, config.name

    # --- checks before any work ------------------------------------------------------------------

    def check(self) -> None:
        """Refuse a config that no machine could run. Raises ``UserError``."""
        check_left_out(self.config)
        for split in sorted(self._used):
            tasks = planned_tasks(self.config, split) or []
            check_tasks(tasks)
            check_provider(tasks, self.config.desktop.kind)
        seen: dict[tuple[object, ...], str] = {}
        for arm in self.config.given_arms:
            self.source_of(arm)
            given = self.config.of_arm(arm)
            at = (given.policy.endpoint, given.policy.served_model, given.model.revision, given.nano.epochs)
            if (other := seen.setdefault((given.policy.model, *at), arm)) != arm:
                raise UserError(
                    f"arms.{arm} has the weights of the arm '{other}'; give it others or drop it."
                )
        check_context(self.config)
        self.check_training()

    def lacks(self) -> list[str]:
        """What a run here and now would lack, a sentence each: a dry run lists it, a run refuses to start."""
        given = {arm: self.config.of_arm(arm).policy for arm in self.config.given_arms}
        needed: list[Callable[[], object]] = [partial(self.check_weights, arm) for arm in given]
        # Tables and pages need no desktops, no server and no torch: what was rented may be gone.
        if not self.is_collected():
            if any(policy.model != SERVED for policy in given.values()):
                needed.append(lambda: python_of(heavy_environment(self.config.accelerator)))
            if self.config.report.published:
                needed.append(lambda: require_clean(ROOT))  # before days of work that nobody may publish
            needed.append(lambda: make_provider(self.config.desktop).check())
            needed.append(lambda: lent_before(self.config))
            needed.append(self.check_engine)
            needed += [partial(self.check_server, arm) for arm in given]
        needed.append(lambda: check_left(Path("results") / self.name))
        return [sentence for check in needed if (sentence := _refusal(check))]

    def is_collected(self) -> bool:
        """True if every checkpoint's episodes are there. A job that collects any anew checks for itself."""
        return all(
            Path(index.replace("<results>", f"results/{self.name}")).is_file() for index in self.all_indexes()
        )

    def check_engine(self) -> None:
        """Refuse tasks that container desktops without Docker could not solve. Raises ``UserError``."""
        desktop = self.config.desktop
        if desktop.started != "container":
            return  # and needs no package docker
        from arpo_replica.providers.container import refuse_for_bubblewrap
        from arpo_replica.providers.engine import chosen_engine

        if chosen_engine(desktop.container) == "bwrap":
            for split in sorted({*self.config.training_splits, *self.config.evaluation.splits}):
                refuse_for_bubblewrap(planned_tasks(self.config, split) or [], desktop.container)

    def check_training(self) -> None:
        """Refuse stages that verl could not train. Raises ``UserError``."""
        folder, named = Path(self.config.policy.model), weights.read_description(self.config.policy.model)
        preloads = bool(self.config.preloading_arms)
        recorded = planned_tasks(self.config, self.config.offline_split) if preloads else None
        for arm in self.config.offline_arms:
            if self.config.recipe(arm).lora:
                raise UserError(
                    f"The arm '{arm}' learns offline, which trains all weights, but training.lora is "
                    "set; give the arm lora: null."
                )
        for arm in self.config.online_arms:
            for stage in self.config.training.stages:
                tasks = planned_tasks(self.config, stage.split)
                job = outline(self.config, arm, stage.name, folder)
                check_recipe(job, None if tasks is None else len(tasks))
                if self._stage_before(stage.name) is None:
                    check_preload(self.config, arm, stage, tasks, recorded)
                if named is not None:
                    check_window(job, named.config)
                elif (folder / "config.json").is_file():
                    check_window(job)
                elif self.config.policy.model == "nano":
                    nano = {"model_type": "qwen2_5_vl", "hidden_size": self.config.nano.hidden_size}
                    check_window(job, nano)

    # --- arms, stages, checkpoints ---------------------------------------------------------------

    def checkpoints(self) -> list[tuple[str, int, str]]:
        """(arm, seed, stage) of all that is evaluated: given weights, and each trained arm's last stage."""
        arms = dict.fromkeys(["base", *self.config.arms])
        return [
            (arm, seed, stage)
            for arm in arms
            for seeds, stage in [self.config.measured(arm)]
            for seed in seeds
        ]

    def stages(self) -> list[tuple[str, int, str]]:
        """(arm, seed, stage) of every stage that is trained."""
        return [
            (arm, seed, stage.name)
            for arm in self.config.online_arms
            for seed in self.config.seeds
            for stage in self.config.training.stages
        ]

    def offline_trainings(self) -> list[tuple[str, int, str]]:
        """(arm, seed, stage) of every offline arm: its training stands where others have a last stage."""
        return [
            (arm, seed, self.config.measured(arm)[1])
            for arm in self.config.offline_arms
            for seed in self.config.seeds
        ]

    @property
    def of_given(self) -> str:
        """What follows `model` in the names of folders: nothing for the base policy, else the arm."""
        names = "|".join(["", *(f"_{arm}" for arm in self.config.released_arms)])
        return f"({names})"  # with brackets: Snakemake takes an empty text for "anything"

    def source_of(self, arm: str = "base") -> str | list[str]:
        """File that stands for weights that are given: a manifest of ours, or the given folder's config.

        None at all if a server elsewhere alone has them. Raises ``UserError`` for what cannot be.
        """
        config, key = self.config.of_arm(arm), model_key(arm)
        model, of = config.policy.model, "" if arm == "base" else f"_{arm}"
        if model == SERVED:
            if self.config.trained_arms and arm == "base":
                raise UserError(
                    f"policy.model is 'served', but the arm '{self.config.trained_arms[0]}' needs weights to "
                    "train on; give a model, or keep the arm 'base' alone."
                )
            return []
        if model == "nano" and not config.model.shape_only:
            if config.size != "nano":
                raise UserError(
                    f"size is '{config.size}', but {key} is 'nano': results carry the size as "
                    "their mark; set size to 'nano'."
                )
            check_nano(config)
            return f"<results>/nano/model{of}/manifest.json"
        named = weights.read_description(model)
        if named is not None:
            weights.check_named_model(config, named, key)
            return f"<results>/model{of}/manifest.json"
        if config.model.shape_only:
            raise UserError(f"model.shape_only needs a name in data/models, but {key} is '{model}'.")
        folder = Path(model)
        if not is_model_folder(folder):
            return []  # a dry run goes on without it; ``check_weights`` ends a run
        weights.check_folder(folder)
        return str(folder / "config.json")

    def check_weights(self, arm: str) -> None:
        """Refuse weights that are not here and cannot be fetched, or are no match for the base policy's.

        Raises ``UserError``.
        """
        config, key = self.config.of_arm(arm), model_key(arm)
        model = config.policy.model
        named = weights.read_description(model)
        if named is not None and not config.model.shape_only:
            weights.check_obtainable(config, named, key)
        folder = Path(model)
        if model not in {SERVED, "nano"} and named is None and not is_model_folder(folder):
            of_a_study = folder.parts[:1] == ("results",) and len(folder.parts) > 2
            first = f"run the study '{folder.parts[1]}' first, which makes it, or " if of_a_study else ""
            raise UserError(
                f"{key} '{folder}' is no model folder with config.json and *.safetensors; {first}give "
                "'nano', a name in data/models, or a folder in Hugging Face format."
            )
        if arm != "base":
            weights.check_alike(self.config.policy.model, model, key)

    def check_server(self, arm: str) -> None:
        """Refuse an endpoint that does not answer or serves another model. Raises ``UserError``."""
        policy = self.config.of_arm(arm).policy
        if policy.endpoint is not None:
            others = weights.names_of_others(policy.model)
            section = "policy" if arm == "base" else model_key(arm)
            check_endpoint(policy.endpoint, policy.served_model, policy.api_key_variable, others, section)

    def desktop_image(self) -> list[str]:
        """Record of the image that the study's desktops need built; nothing for other desktops."""
        desktop = self.config.desktop
        built = desktop.started == "container" and desktop.container.image == BUILT_IMAGE
        return ["<results>/desktop_image.json"] if built else []

    def _stage_before(self, stage: str) -> str | None:
        """Stage that a stage goes on from; None if it starts from the base."""
        names = [entry.name for entry in self.config.training.stages]
        if stage not in names:
            raise UserError(f"training.stages has no stage '{stage}'; it has {', '.join(names)}.")
        index = names.index(stage)
        from_base = index == 0 or self.config.training.stages[index].from_base
        return None if from_base else names[index - 1]

    def previous_manifest(self, wildcards: Any) -> str:
        """Manifest that a stage starts from."""
        before = self._stage_before(wildcards.stage)
        if before is None:
            return of_model("base", 0, BASE_STAGE)
        return of_model(wildcards.arm, wildcards.seed, before)

    def previous_metrics(self, wildcards: Any) -> list[str]:
        """Metrics that the stage before is judged by, if a stage goes on from one."""
        before = self._stage_before(wildcards.stage)
        return [] if before is None else [of_model(wildcards.arm, wildcards.seed, before, "metrics.jsonl")]

    def preloaded_indexes(self, wildcards: Any) -> list[str]:
        """Indexes of the recorded episodes in the store of a stage, if it has any from its beginning."""
        carried = self._stage_before(wildcards.stage) is not None
        if wildcards.arm not in self.config.preloading_arms:
            return []
        wanted = not carried or self.config.recipe(wildcards.arm).replay.carry
        return self.offline_indexes() if wanted else []

    def left_out(self, wildcards: Any) -> list[str]:
        """The tasks of a split, or of the one that a noisy split is made from, that are not run.

        Another list that leaves out tasks of other splits resolves nothing again.
        """
        if wildcards.split in self.config.tasks.selected:
            return []  # it is chosen from tasks that are run
        noisy = self.config.tasks.noisy.get(wildcards.split)
        return [entry.task for entry in left_out_of(self.config, noisy.source if noisy else wildcards.split)]

    @property
    def _used(self) -> list[str]:
        """Splits that something is trained or measured on."""
        return list(dict.fromkeys([*self.config.training_splits, *self.config.evaluation.splits]))

    def used_splits(self) -> list[str]:
        return [f"<results>/splits/{split}.json" for split in self._used]

    def lists(self) -> list[str]:
        """The lists of the study's splits: what they name beyond what is run counts in "of all"."""
        return [str(self.config.tasks.splits[split]) for split in self._used]

    def all_task_files(self) -> list[str]:
        """The task files of the study's splits."""
        return sorted({path for split in self._used for path in split_files(self.config, split)})

    def committed_lists(self) -> list[str]:
        """The lists that claims of the paper are about."""
        return sorted(map(str, find("data/splits").glob("*.json")))

    # --- files of the whole study ------------------------------------------------------------------

    def episode_indexes(self, root: str) -> list[str]:
        """Indexes of all evaluated splits and trials under ``root``."""
        return [
            f"{root}/{split}/trial_{trial}/episodes.jsonl"
            for split in self.config.evaluation.splits
            for trial in range(self.config.evaluation.trials)
        ]

    def all_indexes(self) -> list[str]:
        return [
            index
            for arm, seed, stage in self.checkpoints()
            for index in self.episode_indexes(f"<results>/episodes/{arm}/seed_{seed}/stage_{stage}")
        ]

    def all_manifests(self) -> list[str]:
        """Manifests of all weights that are given, of every trained stage and of every offline arm."""
        given = [(arm, 0, self.config.measured(arm)[1]) for arm in self.config.given_arms]
        return of_models([*given, *self.stages(), *self.offline_trainings()])

    def offline_indexes(self) -> list[str]:
        """Indexes of the episodes that offline arms learn from."""
        return [
            f"<results>/offline/{self.config.offline_split}/trial_{trial}/episodes.jsonl"
            for trial in range(self.config.offline.rollouts_per_task)
        ]

    # --- the paper's tables and figures ---------------------------------------------------------------

    def target_files(self, name: str) -> dict[str, list[str]]:
        """What a table or figure rests on. Raises ``UserError`` naming the config keys that are missing."""
        target = target_of(self.config, name)
        trained = trainings_of(self.config, target)
        files = {
            "indexes": [
                f"<results>/episodes/{arm}/seed_{seed}/stage_{stage}/{split}/trial_{trial}/episodes.jsonl"
                for arm, seed, stage, split, trial in episodes_of(self.config, target)
            ],
            "metrics": of_models(trained, "metrics.jsonl"),
            "reports": of_models(trained, "stage_report.json"),
            "throughput": ["<results>/throughput.json"] if target.throughput else [],
        }
        return {kind: paths for kind, paths in files.items() if paths}

    def report_templates(self) -> list[str]:
        """Everything that decides how the page looks."""
        return sorted(
            str(path)
            for path in find(TEMPLATES).rglob("*")
            if path.suffix in {".py", ".j2", ".css", ".js", ".html", ".yaml"}
        )

    def measured_throughput(self) -> dict[str, str] | None:
        """What ``measure_throughput`` wrote, if somebody asked for it, and its sha256.

        Not an input of the claims: a study does not wait for that measurement, nor measure it again.
        """
        path = Path(f"results/{self.name}/throughput.json")
        return {"path": str(path), "sha256": file_sha256(path)} if path.is_file() else None
