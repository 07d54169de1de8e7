"""Cards of episodes and films: some stand in the page as they are, the others compressed beside them.

A study of the full size has tens of thousands of steps; as plain HTML they would be forty megabytes. So a
share of the cards, arms, splits and outcomes in turn, is plain HTML for every reader, and the rest is the
same HTML, gzipped in chunks, which the page's script unpacks when a reader asks for it.
"""

import base64
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from arpo_replica.base.tables import grouped
from arpo_replica.config.models import GIVEN_STAGES, StudyConfig
from arpo_replica.evaluation.scores import FAILURES
from arpo_replica.report.film import Film, first_films
from arpo_replica.report.gallery import PLAIN_BYTES, EpisodeView, Gallery
from arpo_replica.report.words import WORDS

CHUNK = 64
"""Cards per compressed chunk."""
FILMS = 12
"""Films that stand in the page as plain HTML."""


@dataclass(slots=True)
class CardGroup:
    """The cards of one split, arm and stage, or the films of a split."""

    split: str
    arm: str
    """Empty: films."""
    stage: str
    views: Sequence[EpisodeView | Film]
    cards: list[Markup] = field(default_factory=list)
    """The plain ones."""

    @property
    def successes(self) -> int:
        """Episodes that ended in success."""
        return sum(view.row["outcome"] == "success" for view in self.views)


@dataclass(slots=True)
class Packed:
    """All cards, and what the script needs to find and filter them."""

    groups: list[CardGroup]
    chunks: list[str]
    """gzip, base64: a JSON list of cards as HTML."""
    index: Markup
    """JSON that may stand in a script element of a data type."""
    plain: int
    """How many cards are plain HTML."""


def group_episodes(episodes: Sequence[EpisodeView], config: StudyConfig) -> list[CardGroup]:
    """One group per split, arm and stage, in the config's order."""
    arms, splits = list(config.arms), list(config.evaluation.splits)
    found = grouped(episodes, lambda one: (one.row["split"], one.row["arm"], one.row["stage"]))

    def order(key: tuple[str, str, str]) -> tuple[int, str, int, str]:
        split, arm, stage = key
        return splits.index(split) if split in splits else len(splits), split, arms.index(arm), stage

    return [CardGroup(*key, views=found[key]) for key in sorted(found, key=order)]


def pack(
    gallery: Gallery,
    films: Sequence[Film],
    config: StudyConfig,
    card: Callable[[EpisodeView | Film], Markup],
    plain_bytes: int = PLAIN_BYTES,
) -> Packed:
    """Render everything with ``card`` and decide where it stands.

    Plain are ``FILMS`` of the films, tasks that flipped first, and of the rest, episodes before films, what
    ``plain_bytes`` take.
    """
    everything: list[EpisodeView | Film] = [*films, *gallery.episodes]
    html = {view.id: card(view) for view in everything}
    plain = {film.id for film in first_films(films, FILMS)}
    room = plain_bytes
    for name in [*(gallery.episodes[at].id for at in gallery.order), *(film.id for film in films)]:
        if name not in plain and len(html[name]) <= room:
            room -= len(html[name])
            plain.add(name)
    splits = dict.fromkeys(str(film.row["split"]) for film in films)
    ordered = sorted(films, key=lambda film: not film.flipped)
    groups = [
        CardGroup(split, "", "", [film for film in ordered if film.row["split"] == split]) for split in splits
    ]
    groups += group_episodes(gallery.episodes, config)
    chunks: list[str] = []
    places: dict[str, tuple[int, int]] = {}
    for group in groups:
        names = [view.id for view in group.views]
        group.cards = [html[name] for name in names if name in plain]
        others = [name for name in names if name not in plain]
        for start in range(0, len(others), CHUNK):
            packed = others[start : start + CHUNK]
            places.update({name: (len(chunks), at) for at, name in enumerate(packed)})
            chunks.append(_squeeze([html[name] for name in packed]))
    return Packed(
        groups, chunks, _index(groups, places), sum(episode.id in plain for episode in gallery.episodes)
    )


def _squeeze(cards: list[Markup]) -> str:
    data = json.dumps([str(card) for card in cards], ensure_ascii=False).encode()
    return base64.b64encode(gzip.compress(data, compresslevel=9, mtime=0)).decode()


def _index(groups: list[CardGroup], places: dict[str, tuple[int, int]]) -> Markup:
    """Per group: per view [id, outcome, domain, flip, task, chunk, place in it, seed, failure].

    -1 as chunk: it is plain; as outcome or failure: it has none.
    """
    views = [view for group in groups for view in group.views]
    domains = sorted({str(view.row["domain"]) for view in views})
    tasks = sorted({_words(view) for view in views})
    flips = sorted({view.flip for view in views})
    domain_at, task_at, flip_at = ({name: at for at, name in enumerate(x)} for x in (domains, tasks, flips))
    outcomes, failures = list(WORDS["outcomes"]), ["", *FAILURES]
    content: dict[str, Any] = {
        "outcomes": {name: words for name, (_, words) in WORDS["outcomes"].items()},
        "failures": failures,
        "flips": flips,
        "domains": domains,
        "tasks": tasks,
        "groups": [
            {
                "split": group.split,
                "arm": group.arm,
                "episodes": [
                    [
                        view.id,
                        outcomes.index(view.row["outcome"]) if group.arm else -1,
                        domain_at[str(view.row["domain"])],
                        flip_at[view.flip],
                        task_at[_words(view)],
                        *places.get(view.id, (-1, -1)),
                        _seed(view),
                        failures.index(view.row["failure"] or "") if group.arm else -1,
                    ]
                    for view in group.views
                ],
            }
            for group in groups
        ],
    }
    return json_block(content)


def _seed(view: EpisodeView | Film) -> str:
    """Of the training; empty for weights that were given, which belong to all of them."""
    row = [*view.reels.values()][-1][0].row if isinstance(view, Film) else view.row
    return "" if row["stage"] in GIVEN_STAGES else str(row["seed"])


def _words(view: EpisodeView | Film) -> str:
    return f"{view.row['task_id']} {view.row['instruction']}"


def json_block(content: Any) -> Markup:
    """JSON in which no character can end or begin an element."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - no markup character is left in it
