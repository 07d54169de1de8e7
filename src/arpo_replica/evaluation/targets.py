"""The paper's tables and figures as this study has them: ``snakemake table1`` and so on.

A target needs a few arms, splits, curves or counts of desktops; which of the study's own splits and stages
play those parts is said in the config's section ``targets``. What a study lacks is named, by config key.
"""

from collections.abc import Iterator

from pydantic.dataclasses import dataclass

from arpo_replica.base.errors import UserError
from arpo_replica.base.tables import table_of
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.records import TargetName


@dataclass(frozen=True)
class Target:
    name: TargetName
    title: str
    place: str
    """Where it stands in the paper."""
    arms: tuple[str, ...] = ()
    """Arms whose episodes (or, without roles, whose training metrics) it needs."""
    roles: tuple[str, ...] = ()
    """Keys of `targets` that name a split."""
    curves: tuple[str, ...] = ()
    """Keys of `targets` that name a training."""
    throughput: bool = False
    """Whether it needs `targets.environments` measured."""
    overlay: str = ""
    """Overlay of configs that adds arms that a study may lack."""

    @property
    def label(self) -> str:
        """``Table 1``, ``README, 128 tasks``, ``Figure 1b``: its name in a heading."""
        return "README, 128 tasks" if self.name == "readme128" else self.place.partition(",")[0]


TARGETS = {name: Target(name, **facts) for name, facts in table_of(__file__).items()}


def target_of(config: StudyConfig, name: str) -> Target:
    """The target, if this study has all that it needs. Raises ``UserError`` that names every missing key."""
    target = TARGETS[name]
    missing = list(missing_keys(config, target))
    if missing:
        arms = all(key.startswith("arms.") for key in missing)
        hint = f"; {target.overlay} adds them" if target.overlay and arms else ""
        raise UserError(
            f"{name} ({target.place}) cannot be made from the study '{config.study}': its config lacks "
            f"{', '.join(missing)}{hint}."
        )
    return target


def missing_keys(config: StudyConfig, target: Target) -> Iterator[str]:
    """Config keys that the target needs and the study lacks."""
    for arm in target.arms:
        if config.in_part(arm) not in config.arms:
            yield f"arms.{arm}"
    for role in target.roles:
        split = getattr(config.targets, role)
        if split is None:
            yield f"targets.{role}"
        elif split not in config.evaluation.splits:
            yield f"'{split}' (targets.{role}) in evaluation.splits"
    for role in target.curves:
        curve = getattr(config.targets, role)
        if curve is None:
            yield f"targets.{role}"
        elif curve.arm not in config.online_arms:
            yield f"arms.{curve.arm} (targets.{role}.arm)"
        elif curve.stage not in [stage.name for stage in config.training.stages]:
            yield f"a stage '{curve.stage}' (targets.{role}.stage) in training.stages"
    if target.throughput and not config.targets.environments:
        yield "targets.environments"


def splits_of(config: StudyConfig, target: Target) -> list[str]:
    """The study's splits that play the target's parts, each once."""
    return list(dict.fromkeys(getattr(config.targets, role) for role in target.roles))


def episodes_of(config: StudyConfig, target: Target) -> list[tuple[str, int, str, str, int]]:
    """(arm, seed, stage, split, trial) of every index of episodes that the target needs."""
    return [
        (arm, seed, stage, split, trial)
        for arm in map(config.in_part, target.arms)
        for seeds, stage in [config.measured(arm)]
        for seed in seeds
        for split in splits_of(config, target)
        for trial in range(config.evaluation.trials)
    ]


def trainings_of(config: StudyConfig, target: Target) -> list[tuple[str, int, str]]:
    """(arm, seed, stage) of every training whose metrics the target needs.

    Rates of trained arms need them as well: a claim asks what the training did.
    """
    if target.curves:
        named = [getattr(config.targets, role) for role in target.curves]
        pairs = [(curve.arm, curve.stage) for curve in named]
    elif target.throughput:
        pairs = []
    elif target.roles:
        pairs = [(arm, config.measured(arm)[1]) for arm in target.arms if arm in config.online_arms]
    else:
        pairs = [(arm, stage.name) for arm in target.arms for stage in config.training.stages]
    return [(arm, seed, stage) for arm, stage in dict.fromkeys(pairs) for seed in config.seeds]
