"""The config's section ``tasks``: which task files exist, and the lists of them."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from arpo_replica.config.section import PATH_NAME, Positive, ReadPath, Section

NoiseKind = Literal["notification", "extra_tab", "background_window", "distractor_file"]


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

    @field_validator("splits")
    @classmethod
    def _names_fit_into_paths(cls, splits: dict[str, Path]) -> dict[str, Path]:
        for name in splits:
            if re.fullmatch(PATH_NAME, name) is None:
                raise ValueError(f"the split '{name}' must be named by lower-case letters, digits and '_'")
        return splits

    def add_noisy(self, study: str, used: Collection[str]) -> None:
        """Enter the noisy splits among the others: their lists are made by a rule. Raises ValueError."""
        for name, noisy in self.noisy.items():
            made = noisy_list(study, name)
            if re.fullmatch(PATH_NAME, name) is None:
                raise ValueError(f"tasks.noisy: '{name}' must be lower-case letters, digits and '_'")
            if noisy.source not in self.splits or noisy.source in self.noisy:
                raise ValueError(
                    f"tasks.noisy.{name}.source names '{noisy.source}', which is no split of tasks.splits"
                )
            if Path(*self.splits.get(name, made).parts[-len(made.parts) :]) != made:
                raise ValueError(f"'{name}' is in tasks.splits and in tasks.noisy; rename one of them")
            if name not in used:
                raise ValueError(f"nothing uses the split of tasks.noisy.{name}; drop it or evaluate on it")
            if len(noisy.kinds) != len(set(noisy.kinds)) or noisy.per_task > len(noisy.kinds):
                raise ValueError(f"tasks.noisy.{name}.per_task exceeds the number of different kinds")
            self.splits.setdefault(name, made)


def noisy_list(study: str, name: str) -> Path:
    """List of a noisy split; its task files lie in the folder of the same name beside it."""
    return Path("results", study, "noisy", f"{name}.json")
