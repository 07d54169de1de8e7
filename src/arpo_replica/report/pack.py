"""Cards of episodes: some stand in the page as they are, the others compressed beside them.

A study of the full size has tens of thousands of steps; as plain HTML they would be forty megabytes. So a
share of the cards, arms, splits and outcomes in turn, is plain HTML for every reader, and the rest is the
same HTML, gzipped in chunks, which the page's script unpacks when a reader asks for it.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from arpo_replica.config.models import StudyConfig
from arpo_replica.report.gallery import PLAIN_BYTES, EpisodeView, Gallery
from arpo_replica.report.views import OUTCOMES

CHUNK = 64
"""Cards per compressed chunk."""


@dataclass(slots=True)
class Group:
    """The cards of one split, arm and stage."""

    split: str
    arm: str
    stage: str
    episodes: list[EpisodeView]
    cards: list[Markup] = field(default_factory=list)
    """The plain ones."""

    @property
    def successes(self) -> int:
        """Episodes that ended in success."""
        return sum(episode.row["outcome"] == "success" for episode in self.episodes)


@dataclass(slots=True)
class Packed:
    """All cards, and what the script needs to find and filter them."""

    groups: list[Group]
    chunks: list[str]
    """gzip, base64: a JSON list of cards as HTML."""
    index: Markup
    """JSON that may stand in a script element of a data type."""
    plain: int
    """How many cards are plain HTML."""


def group_episodes(episodes: Sequence[EpisodeView], config: StudyConfig) -> list[Group]:
    """One group per split, arm and stage, in the config's order."""
    arms, splits = list(config.arms), list(config.evaluation.splits)
    found: dict[tuple[str, str, str], list[EpisodeView]] = {}
    for episode in episodes:
        found.setdefault((episode.row["split"], episode.row["arm"], episode.row["stage"]), []).append(episode)

    def order(key: tuple[str, str, str]) -> tuple[int, str, int, str]:
        split, arm, stage = key
        return splits.index(split) if split in splits else len(splits), split, arms.index(arm), stage

    return [Group(*key, episodes=found[key]) for key in sorted(found, key=order)]


def pack(
    gallery: Gallery,
    config: StudyConfig,
    card: Callable[[EpisodeView], Markup],
    plain_bytes: int = PLAIN_BYTES,
) -> Packed:
    """Render every card with ``card`` and decide where it stands."""
    html = {episode.id: card(episode) for episode in gallery.episodes}
    plain: set[str] = set()
    room = plain_bytes
    for position in gallery.order:
        name = gallery.episodes[position].id
        if len(html[name]) <= room:
            room -= len(html[name])
            plain.add(name)
    groups = group_episodes(gallery.episodes, config)
    chunks: list[str] = []
    places: dict[str, tuple[int, int]] = {}
    for group in groups:
        group.cards = [html[episode.id] for episode in group.episodes if episode.id in plain]
        others = [episode.id for episode in group.episodes if episode.id not in plain]
        for start in range(0, len(others), CHUNK):
            names = others[start : start + CHUNK]
            places.update({name: (len(chunks), at) for at, name in enumerate(names)})
            chunks.append(_squeeze([html[name] for name in names]))
    return Packed(groups, chunks, _index(groups, places), len(plain))


def _squeeze(cards: list[Markup]) -> str:
    data = json.dumps([str(card) for card in cards], ensure_ascii=False).encode()
    return base64.b64encode(gzip.compress(data, compresslevel=9, mtime=0)).decode()


def _index(groups: list[Group], places: dict[str, tuple[int, int]]) -> Markup:
    """Per group: per episode [id, outcome, domain, flip, task, chunk, place in it]; -1: plain."""
    domains = sorted({str(e.row["domain"]) for group in groups for e in group.episodes})
    tasks = sorted({f"{e.row['task_id']} {e.row['instruction']}" for group in groups for e in group.episodes})
    domain_at = {name: at for at, name in enumerate(domains)}
    task_at = {name: at for at, name in enumerate(tasks)}
    outcomes, flips = list(OUTCOMES), ["gained", "lost", "same", "mixed", "none"]
    content: dict[str, Any] = {
        "outcomes": {name: words for name, (_, words) in OUTCOMES.items()},
        "flips": flips,
        "domains": domains,
        "tasks": tasks,
        "groups": [
            {
                "split": group.split,
                "arm": group.arm,
                "episodes": [
                    [
                        e.id,
                        outcomes.index(e.row["outcome"]),
                        domain_at[str(e.row["domain"])],
                        flips.index(e.flip),
                        task_at[f"{e.row['task_id']} {e.row['instruction']}"],
                        *places.get(e.id, (-1, -1)),
                    ]
                    for e in group.episodes
                ],
            }
            for group in groups
        ],
    }
    return json_block(content)


def json_block(content: Any) -> Markup:
    """JSON in which no character can end or begin an element."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - no markup character is left in it
