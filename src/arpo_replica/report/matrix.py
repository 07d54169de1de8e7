"""Task by task: outcome of every trial of every arm, and which tasks flipped between arms."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from arpo_replica.base.tables import grouped
from arpo_replica.evaluation.summary import change_of
from arpo_replica.report.gallery import EpisodeView, natural

Flip = Literal["gained", "lost", "same", "mixed", "none"]
FLIPS: dict[str, Flip] = {
    "gained": "gained", "lost": "lost", "kept_solved": "same", "kept_failed": "same", "mixed": "mixed",
    "not_comparable": "none",
}  # fmt: skip
"""What became of a task -> the page's word."""
FOLDED_ABOVE = 60
"""A split with more tasks than this shows its domains folded."""
Column = tuple[str, str]
"""Arm and stage."""


@dataclass(slots=True)
class Cell:
    """One task under one arm and stage."""

    episodes: list[EpisodeView]
    flip: Flip
    film: str = ""
    """Where a flip can be seen side by side (``film.build_films``)."""

    @property
    def by_seed(self) -> list[list[EpisodeView]]:
        """The episodes of each training seed apart."""
        return list(grouped(self.episodes, lambda episode: episode.row["seed"]).values())


@dataclass(slots=True)
class TaskRow:
    """One task under every arm and stage."""

    domain: str
    task_id: str
    instruction: str
    infeasible: bool
    cells: list[Cell]

    @property
    def flips(self) -> str:
        """The kinds of flip in the row, for the filter."""
        return " ".join(sorted({cell.flip for cell in self.cells} & {"gained", "lost"}))


@dataclass(slots=True)
class DomainPart:
    """The tasks of one domain; per column: (episodes that succeeded, valid ones, gained, lost)."""

    domain: str
    rows: list[TaskRow]
    totals: list[tuple[int, int, int, int]]


@dataclass(slots=True)
class SplitPart:
    """The tasks of one split."""

    split: str
    columns: list[Column]
    reference: Column | None
    domains: list[DomainPart] = field(default_factory=list)

    @property
    def tasks(self) -> int:
        """How many have an episode."""
        return sum(len(part.rows) for part in self.domains)

    @property
    def folded(self) -> bool:
        """Too long to be shown at once."""
        return self.tasks > FOLDED_ABOVE


def build_matrix(
    episodes: Sequence[EpisodeView], arms: Sequence[str], splits: Sequence[str] = ()
) -> list[SplitPart]:
    """Splits -> domains -> tasks -> cells. Sets each episode's ``flip`` on the way.

    What became of a task (``summary.change_of``, hard protocol) is against the untrained policy or else
    the first arm. ``splits``: their order.
    """
    parts = []
    by_split = grouped(episodes, lambda episode: str(episode.row["split"]))
    for split in sorted(by_split, key=lambda name: splits.index(name) if name in splits else len(splits)):
        here = by_split[split]
        columns = sorted(
            {(str(e.row["arm"]), str(e.row["stage"])) for e in here},
            key=lambda c: (c[0] != "base", arms.index(c[0]), c[1]),
        )
        reference = columns[0] if len(columns) > 1 else None
        part = SplitPart(split, columns, reference)
        tasks = grouped(here, lambda episode: (str(episode.row["domain"]), str(episode.row["task_id"])))
        rows = [
            _row(*name, columns, reference, tasks[name]) for name in sorted(tasks, key=lambda n: natural(*n))
        ]
        part.domains = [
            DomainPart(domain, own, [_total(own, i) for i in range(len(columns))])
            for domain, own in grouped(rows, lambda row: row.domain).items()
        ]
        parts.append(part)
    return parts


def _row(
    domain: str,
    task_id: str,
    columns: list[Column],
    reference: Column | None,
    here: list[EpisodeView],
) -> TaskRow:
    found = grouped(here, lambda episode: (str(episode.row["arm"]), str(episode.row["stage"])))
    before = _runs(found.get(reference, [])) if reference else []
    cells = []
    for column in columns:
        episodes = found.get(column, [])
        flip: Flip = "none" if column == reference else FLIPS[change_of(before, _runs(episodes))]
        for episode in episodes:
            episode.flip = flip
        cells.append(Cell(episodes, flip))
    row = here[0].row
    return TaskRow(domain, task_id, str(row["instruction"]), bool(row["infeasible"]), cells)


def _runs(episodes: Sequence[EpisodeView]) -> list[bool]:
    """Success of each valid episode."""
    return [bool(episode.row["success_hard"]) for episode in episodes if episode.row["valid"]]


def _total(rows: Sequence[TaskRow], column: int) -> tuple[int, int, int, int]:
    cells = [row.cells[column] for row in rows]
    valid = [episode for cell in cells for episode in cell.episodes if episode.row["valid"]]
    return (
        sum(bool(episode.row["success_hard"]) for episode in valid),
        len(valid),
        sum(cell.flip == "gained" for cell in cells),
        sum(cell.flip == "lost" for cell in cells),
    )
