"""``docs/actions.md``: ways of writing an action, and what this parser and two others make of each."""

from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from arpo_replica.actions.coordinates import Frame
from arpo_replica.actions.keys import ALIASES, NAMED_KEYS
from arpo_replica.actions.parse import UITarsParser
from arpo_replica.actions.types import Action
from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import FormatError
from arpo_replica.base.tables import load_yaml
from arpo_replica.config.docs import render_text
from arpo_replica.config.section import Section

REPLIES = ROOT / "data" / "actions" / "replies.yaml"
PARSER = UITarsParser(Frame("absolute", (1008, 1008), (1008, 1008)), "all")


class Spelling(Section):
    """A way of writing an action."""

    group: str
    reply: str
    arpo: str
    osworld: str
    why: str | None = None
    """Wherever ours differs from one of the two."""


@lru_cache(maxsize=1)
def replies() -> dict[str, Any]:
    """The file: ``words``, kind of action -> how it is said there, and ``rows``."""
    found: dict[str, Any] = load_yaml(REPLIES.read_text(encoding="utf-8"))
    return found


def rows() -> list[Spelling]:
    return [Spelling.model_validate(row) for row in replies()["rows"]]


def ours(reply: str) -> str:
    """What our parser makes of a reply, in the words of the file."""
    try:
        return "; ".join(map(in_words, PARSER.actions(f"Action: {reply}")))
    except FormatError:
        return "ends"


def in_words(action: Action) -> str:
    """An action in the words of the file."""
    values = action.to_json()
    values["keys"] = " ".join(values.get("keys", ()))
    return str(replies()["words"][action.kind]).format(**values).removesuffix(" at (None, None)")


def render_actions() -> str:
    """The page as Markdown; its words are ``actions.md.j2``."""
    groups = []
    for group, members in groupby(rows(), key=lambda row: row.group):
        lines = []
        for row in members:
            found = _cell(ours(row.reply))
            shown = f"**{found}**" if row.why else found
            lines.append([_code(row.reply), shown, _cell(row.arpo), _cell(row.osworld), row.why or ""])
        groups.append((group, lines))
    return render_text(
        Path(__file__).with_name("actions.md.j2"),
        groups=groups,
        named=", ".join(f"`{key}`" for key in sorted(NAMED_KEYS)),
        aliases=", ".join(f"`{other}`" for other in sorted(ALIASES)),
    )


def _code(text: str) -> str:
    shown = text.replace("\n", "⏎").replace("|", "\\|")
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


def _cell(text: str) -> str:
    word = text.partition(" ")[0]
    return text if text in ("ends", "crash", "nothing") or word.isupper() else _code(text)
