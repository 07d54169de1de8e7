"""The config's section ``tasks``: which task files exist, and the lists of them."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from arpo_replica.config.section import PATH_NAME, Positive, ReadPath, Section

NoiseKind = Literal[
    "notification", "extra_tab", "background_window", "distractor_file", "browser_history"
]  # fmt: skip


class OsworldTasksConfig(Section):
    """Where OSWorld's task files come from (rule `fetch_osworld_tasks`)."""

    source: str = "https://github.com/ljxpython/OSWorldUse.git"
    """A git repository, or a local folder that holds `examples` or `evaluation_examples/examples`. Wherever
    they come from, the files must be those of `data/osworld/manifest.json`, byte for byte."""
    commit: str = Field(default="f6cee715783b2b2c6f38d460a6dbab90495d238a", pattern=r"^[0-9a-f]{40}$")
    """Commit to fetch from a git repository; without meaning for a folder."""


class NoisyTasksConfig(Section):
    """Noisy variants of the tasks of a split (rule `make_noisy_tasks`)."""

    source: str
    """Split whose tasks get noise."""
    seed: int = 0
    """The same seed gives the same noise, byte for byte."""
    kinds: list[NoiseKind] = Field(
        default=["notification", "extra_tab", "background_window", "distractor_file"], min_length=1
    )
    """What may be added; for each task only what its evaluator does not look at."""
    per_task: Positive = 1
    """Kinds added to each task."""
    choice: Literal["random", "first"] = "random"
    """Which of the kinds that a task bears it gets: drawn by the seed, or the first ones of the list."""


class SelectedTasksConfig(Section):
    """Tasks of a split that the untrained policy can do sometimes (rule `select_tasks`)."""

    source: str
    """Split whose tasks the untrained policy tries, at `training.temperature`."""
    rollouts: Positive = 16
    """Episodes per task (ARPO: 16)."""
    successes_min: Annotated[int, Field(ge=0)] = 1
    """A task with fewer successes is dropped (ARPO: 1): nothing is learnt from what never succeeds."""
    successes_max: Positive | None = None
    """A task with more successes is dropped; none: no bound (ARPO). A bound keeps what is still to learn."""

    @model_validator(mode="after")
    def _bounds_can_be_met(self) -> Self:
        most = self.rollouts if self.successes_max is None else self.successes_max
        if not self.successes_min <= most <= self.rollouts:
            raise ValueError(
                f"successes_min ({self.successes_min}) and successes_max ({most}) must be in this order and "
                f"at most rollouts ({self.rollouts})"
            )
        return self


class TasksConfig(Section):
    """Which tasks exist and which are used where."""

    root: ReadPath = Path("data/tasks")
    """Folder of task files, `{domain}/{id}.json`, in OSWorld's schema. `results/osworld/tasks` is the one
    that rule `fetch_osworld_tasks` makes."""
    splits: dict[str, ReadPath] = Field(min_length=1)
    """Name of a split -> its list under `data/splits`."""
    leave_out: list[ReadPath] = Field(default_factory=list)
    """Lists of tasks that are neither trained nor measured on, whatever split names them, with the reason
    (`data/osworld/left_out`). The page names them, and counts them where it says "of all"."""
    osworld: OsworldTasksConfig = OsworldTasksConfig()
    """OSWorld's task files."""
    noisy: dict[str, NoisyTasksConfig] = Field(default_factory=dict)
    """Name of a further split -> how it is made from another one by adding noise."""
    selected: dict[str, SelectedTasksConfig] = Field(default_factory=dict)
    """Name of a further split -> how its tasks are chosen from another one by what the untrained policy can
    do. Its list, with every task's successes, is `results/{study}/selected/{name}.json`."""

    @field_validator("splits")
    @classmethod
    def _names_fit_into_paths(cls, splits: dict[str, Path]) -> dict[str, Path]:
        for name in splits:
            if re.fullmatch(PATH_NAME, name) is None:
                raise ValueError(f"the split '{name}' must be named by lower-case letters, digits and '_'")
        return splits

    def add_made(self, study: str, used: Collection[str]) -> None:
        """Enter the noisy and selected splits among the others: rules make their lists. Raises ValueError."""
        for name, noisy in self.noisy.items():
            self._add("noisy", name, noisy.source, study, used)
            if len(noisy.kinds) != len(set(noisy.kinds)) or noisy.per_task > len(noisy.kinds):
                raise ValueError(f"tasks.noisy.{name}.per_task exceeds the number of different kinds")
        for name, selected in self.selected.items():
            self._add("selected", name, selected.source, study, used)

    def _add(self, kind: str, name: str, source: str, study: str, used: Collection[str]) -> None:
        """A list that a rule makes, among the study's results; a noisy one has its task files beside it."""
        made = Path("results", study, kind, f"{name}.json")
        if re.fullmatch(PATH_NAME, name) is None:
            raise ValueError(f"tasks.{kind}: '{name}' must be lower-case letters, digits and '_'")
        if source not in self.splits or source in {*self.noisy, *self.selected}:
            raise ValueError(
                f"tasks.{kind}.{name}.source names '{source}', which is no split of tasks.splits"
            )
        if Path(*self.splits.get(name, made).parts[-len(made.parts) :]) != made:
            raise ValueError(f"'{name}' is in tasks.splits and in tasks.{kind}; rename one of them")
        if name not in used:
            raise ValueError(f"nothing uses the split of tasks.{kind}.{name}; drop it or evaluate on it")
        self.splits.setdefault(name, made)
