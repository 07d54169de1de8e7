"""Two studies side by side: mine against yours. Text for a terminal, HTML for a reader."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from markupsafe import Markup

from arpo_replica.base.errors import UserError
from arpo_replica.base.files import write_atomically
from arpo_replica.config.docs import render_text
from arpo_replica.evaluation.claims import trainings_words
from arpo_replica.evaluation.comparison import square_and_add
from arpo_replica.evaluation.records import Claims, Interval, RateRow, Summary
from arpo_replica.evaluation.statistics import FEWEST_TRAININGS
from arpo_replica.report.render import content_policy, read_input, static_file, template_environment
from arpo_replica.report.views import told_once
from arpo_replica.report.words import percent, points

Key = tuple[str, str, str]
"""Split, arm, protocol."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two studies."""

    folder: Path
    summary: Summary
    claims: Claims
    provenance: dict[str, Any]

    @property
    def mark(self) -> str:
        """Size and desktops, those of the episodes included: must be equal before numbers are compared."""
        invented = "invented, " if self.summary.synthetic else ""
        desktops = ", ".join(sorted({self.summary.desktop, *self.summary.desktops}))
        return f"{invented}{self.summary.size}, {desktops}"


@dataclass(frozen=True, slots=True)
class Pair:
    """One rate on both sides; None: that study has none."""

    split: str
    arm: str
    protocol: str
    mine: Interval | None
    yours: Interval | None
    gap: tuple[float, float, float] | None
    """Mine minus yours with its 95 % interval; None if the marks or the tasks differ or one is missing."""
    rows: tuple[RateRow, RateRow] | None = None
    """The rows that it is made of."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that is shown."""

    mine: Side
    yours: Side
    pairs: list[Pair]
    settings: list[tuple[str, str, str]]
    """Config key and value on both sides, where they differ."""
    verdicts: list[tuple[str, str, str]]
    """Claim and verdict on both sides, where either was run."""

    @property
    def comparable(self) -> bool:
        """Whether the size marks agree."""
        return self.mine.mark == self.yours.mark


def read_side(folder: Path) -> Side:
    """A folder of results, or one written by ``publish_report``. Raises ``UserError`` if it is neither."""
    place = next((p for p in (folder, folder / "data") if (p / "summary.json").is_file()), None)
    if place is None:
        raise UserError(f"{folder} holds no summary.json; name a folder of results or a published one.")
    return Side(
        folder,
        read_input(place / "summary.json", Summary.model_validate_json),
        read_input(place / "claims.json", Claims.model_validate_json),
        read_input(place / "provenance.json", json.loads),
    )


def compare_studies(mine: Path, yours: Path) -> Comparison:
    """Read both and put them side by side. A difference is computed only for equal marks and equal tasks."""
    a, b = read_side(mine), read_side(yours)
    rates_a, rates_b = _rates(a.summary), _rates(b.summary)
    keys = dict.fromkeys([*rates_a, *rates_b])
    found = [_pair(key, rates_a.get(key), rates_b.get(key), a, b) for key in keys]
    once = told_once(found, lambda pair: (pair.split, pair.arm, pair.mine, pair.yours))
    pairs = [replace(pair, protocol=protocol) for _, pair, protocol in once]
    settings = _beside([_flat(side.provenance["config"]) for side in (a, b)], "not set")
    words = [{claim.id: str(claim.verdict) for claim in side.claims.claims} for side in (a, b)]
    verdicts = _beside(words, "no such claim")
    return Comparison(
        a,
        b,
        pairs,
        settings=[row for row in settings if row[1] != row[2] and row[0] != "study"],
        verdicts=[row for row in verdicts if {*row[1:]} - {"not run", "no such claim"}],
    )


def _beside(sides: Sequence[dict[str, str]], none: str) -> list[tuple[str, str, str]]:
    """(key, mine, yours) of every key; ``none`` where a side has no value."""
    mine, yours = sides
    return [(key, mine.get(key, none), yours.get(key, none)) for key in dict.fromkeys([*mine, *yours])]


def _rates(summary: Summary) -> dict[Key, RateRow]:
    """Split, arm, protocol -> the row of the last stage, all seeds together where there are several."""
    return {(row.split, row.arm, row.protocol): row for row in summary.rates if summary.all_seeds(row)}


def _pair(key: Key, mine: RateRow | None, yours: RateRow | None, a: Side, b: Side) -> Pair:
    split, arm, protocol = key
    facts = a.summary.splits.get(split), b.summary.splits.get(split)
    same = None not in facts and facts[0].tasks_sha256 == facts[1].tasks_sha256  # type: ignore[union-attr]
    first, second = ((row.over_trainings or row.of_valid) if row else None for row in (mine, yours))
    gap = None
    if same and a.mark == b.mark and first is not None and second is not None:
        gap = difference(first, second)
    rows = None if mine is None or yours is None else (mine, yours)
    return Pair(split, arm, protocol, first, second, gap, rows)


def difference(mine: Interval, yours: Interval) -> tuple[float, float, float]:
    """Difference of two independent rates from their own intervals (Newcombe's square-and-add; Zou and
    Donner 2008 for any pair of intervals). Tasks are not paired, which is conservative."""
    low, high = square_and_add((mine.value, mine.low, mine.high), (yours.value, yours.low, yours.high))
    return mine.value - yours.value, max(-1.0, low), min(1.0, high)


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): json.dumps(value, ensure_ascii=False)}


def as_text(found: Comparison) -> str:
    """For a terminal: columns of plain text."""
    head = ["split", "arm", "protocol", "mine, %", "yours, %", "difference, points"]
    rows = [
        [p.split, p.arm, p.protocol, _rate(p.mine), _rate(p.yours), gap_words(p, found)] for p in found.pairs
    ]
    widths = [max(len(cell) for cell in column) for column in zip_longest(head, *rows, fillvalue="")]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    ]
    return render_text(Path(__file__).with_name("templates") / "compare.txt.j2", found=found, lines=lines)


def write_comparison(found: Comparison, out: Path) -> None:
    """The same as one HTML file without script; same inputs, same bytes."""
    style = static_file("report.css")
    page = (
        template_environment()
        .get_template("compare.html.j2")
        .render(
            found=found,
            rate=_rate,
            gap=gap_words,
            style=Markup(style),  # noqa: S704 - our own file
            policy=content_policy("data:", style),
        )
    )
    write_atomically(out, page.encode())


def _rate(interval: Interval | None) -> str:
    if interval is None:
        return "not run"
    return f"{percent(interval.value)} ({percent(interval.low)} to {percent(interval.high)})"


def gap_words(pair: Pair, found: Comparison) -> str:
    """The difference, or why there is none."""
    if pair.gap is not None:
        value, low, high = pair.gap
        counts = [row.trainings for row in (pair.rows or ()) if 0 < row.trainings < FEWEST_TRAININGS]
        few = f"; {', '.join(map(trainings_words, counts))}" if counts else ""
        return f"{points(value)} ({points(low)} to {points(high)}){few}"
    if pair.mine is None or pair.yours is None:
        return "one side has none"
    return "other tasks" if found.comparable else "other mark"
