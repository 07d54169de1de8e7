"""``docs/parity.md``: every hyper-parameter in the paper, in the released code and in each recipe.

Written from ``data/paper/hyperparameters.yaml`` (facts, with their places) and the configs (what runs), so
that neither can drift from the other unseen.
"""

from pathlib import Path
from typing import Any

from pydantic import Field

from arpo_replica.base.tables import load_yaml
from arpo_replica.config import StudyConfig, load_config
from arpo_replica.config.docs import render_text
from arpo_replica.config.section import Section
from arpo_replica.tasks.splits import split_size
from arpo_replica.training.job import outline
from arpo_replica.training.recipe import Speed

FACTS = Path("data/paper/hyperparameters.yaml")
SOURCES = {
    "paper": ("paper", "code"),
    "grpo": ("paper", "code"),
    "released_code": ("code", "paper"),
    "seed_2b": ("seed", "code", "paper"),
}
"""Recipe -> whose value it takes, the first that is stated."""
Value = Any


class Fact(Section):
    """A value and where it stands."""

    value: Value
    place: str


class Departure(Section):
    """A recipe's value that is not its source's."""

    value: Value
    why: str


class Hyperparameter(Section):
    """One hyper-parameter."""

    name: str
    key: str | None
    verl: str | None
    fixed: Value = None
    arm: str | None = None
    """Arm whose value is meant; without it the study's ``training``."""
    paper: Fact | None
    code: Fact | None
    seed: Fact | None = None
    exceptions: dict[str, Departure] = Field(default_factory=dict)
    claims: bool = True
    """False: no claim asks for it, because it changes time or memory, not the result."""

    def expected(self, recipe: str) -> Value:
        """What the recipe's source says, or what it has instead for a reason."""
        if recipe in self.exceptions:
            return self.exceptions[recipe].value
        facts = [getattr(self, source) for source in SOURCES[recipe]]
        return next(fact.value for fact in facts if fact is not None)


class Hyperparameters(Section):
    """``hyperparameters.yaml``."""

    sources: dict[str, str]
    recipes: dict[str, list[Path]]
    rows: list[Hyperparameter]


def read_facts(root: Path = Path()) -> Hyperparameters:
    """The committed facts. ``root``: the repository."""
    return Hyperparameters.model_validate(load_yaml((root / FACTS).read_text()))


def compose(paths: list[Path], root: Path = Path()) -> StudyConfig:
    """The config of several files laid over each other. ``root``: the repository."""
    return load_config(*(root / path for path in paths))


def actual(row: Hyperparameter, config: StudyConfig, arm: str | None = None) -> Value:
    """The config's value of a row, for one arm if it is named."""
    if row.key is None:
        return row.fixed
    first, *rest = row.key.split(".")
    trained = config.online_arms
    arm = arm or (row.arm if row.arm in trained else trained[0])
    if row.key.startswith("training.speed."):  # with what holds where a key is left open
        return getattr(Speed.of(outline(config, arm, config.training.stages[-1].name)), rest[-1])
    value: Any = config.recipe(arm) if first == "training" else getattr(config, first)
    for part in rest:
        value = value[int(part)] if part.lstrip("-").isdigit() else getattr(value, part)
    return list(value) if isinstance(value, tuple) else value


def render_parity(root: Path = Path()) -> str:
    """The page as Markdown; its words are ``parity.md.j2``."""
    facts = read_facts(root)
    configs = {name: compose(paths, root) for name, paths in facts.recipes.items()}
    rows, notes = [], []
    for row in facts.rows:
        cells = [row.name, f"`{row.key}`" if row.key else "fixed", _fact(row.paper), _fact(row.code)]
        for name, config in configs.items():
            shown = _shown(actual(row, config))
            if name in row.exceptions:
                why = f"{row.name}: {row.exceptions[name].why}"
                if why not in notes:
                    notes.append(why)
                shown = f"**{shown}** ({notes.index(why) + 1})"
            cells.append(shown)
        rows.append([*cells, f"`{row.verl}`" if row.verl else "ours"])
    # Draws per task in the last stage, from the real lists (``launch.draws``).
    last = {name: (config, config.training.stages[-1]) for name, config in configs.items()}
    return render_text(
        Path(__file__).with_name("parity.md.j2"),
        recipes=facts.recipes,
        rows=rows,
        notes=notes,
        visits=[
            (name, split_size(config, stage.split), config.training.tasks_per_step, stage.steps)
            for name, (config, stage) in last.items()
        ],
        source=facts.sources["seed"],
        seeds=[(row.name, _fact(row.seed)) for row in facts.rows if row.seed is not None],
    )


def _fact(fact: Fact | None) -> str:
    return "-" if fact is None else f"{_shown(fact.value)} ({fact.place})"


def _shown(value: Value) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
