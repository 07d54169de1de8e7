"""Numbers in words, for the templates and the terminal: units, signs, digits, and what is not run."""

import math
from typing import Any

from arpo_replica.base.tables import table_of
from arpo_replica.evaluation.records import ClaimResult
from arpo_replica.evaluation.statistics import FEWEST_TRAININGS

WORDS: Any = table_of(__file__)
"""Section of ``words.yaml`` -> its entries."""
MINUS = "\N{MINUS SIGN}"


def percent(value: float | None, digits: int = 1) -> str:
    """``0.325`` -> ``32.5`` (no sign: the column says %)."""
    return "not run" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def signed(value: float, digits: int) -> str:
    """``+0.10``, ``−3.1``, ``0.0``."""
    rounded = round(value, digits)
    sign = "" if rounded == 0 else "+" if rounded > 0 else MINUS
    return f"{sign}{abs(rounded):.{digits}f}"


def points(value: float) -> str:
    """A difference of rates in points, with its sign."""
    return signed(100 * value, 1)


def counted(number: int, thing: str) -> str:
    """``1 job``, ``2 jobs``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def listed(parts: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def duration(seconds: float | None) -> str:
    """Seconds in words of at most two units."""
    if seconds is None or (isinstance(seconds, float) and math.isnan(seconds)):
        return "not recorded"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def short_hash(sha256: str | None) -> str:
    """The first twelve digits."""
    return (sha256 or "none")[:12]


def megabytes(size: float) -> str:
    """Bytes as MB."""
    return f"{size / 1e6:.1f} MB"


# --- claims ---


def published(value: float, unit: str) -> str:
    """A published number with the digits it has: ``26`` percent was printed as 26.0."""
    return f"{value:.1f}" if unit == "percent" and round(value, 1) == value else f"{value:g}"


def published_gap(claim: ClaimResult) -> str:
    """First minus second published number, as ours is shown."""
    first, second = (number["value"] / (100 if _percent(claim) else 1) for number in claim.published)
    return f"{_shown(claim, first - second)}{_unit(claim)}"


def published_value(claim: ClaimResult) -> str:
    """The published number of a rate, or the published difference."""
    if len(claim.published) == 2:
        return published_gap(claim)
    return f"{published(claim.published[0]['value'], claim.published[0]['unit'])}{_unit(claim)}"


def amount(claim: ClaimResult) -> str:
    """The measured value in the published unit: a difference with its sign, of rates in points."""
    assert claim.measured is not None
    return f"{_shown(claim, claim.measured.value)}{_unit(claim)}"


def bounds(claim: ClaimResult) -> str:
    """Its 95 % interval and what it is about, or that there is none: a number twice passes for certainty."""
    found = claim.measured
    assert found is not None
    if found.low == found.high:
        return "no interval"
    return f"{_shown(claim, found.low)} to {_shown(claim, found.high)} ({found.about})"


def p_shown(claim: ClaimResult) -> str:
    """The p-value that the verdict rests on; empty for a word that no test gave."""
    questions = {
        "equivalent": ("equal",),
        "same direction": ("same",),
        "contradicted": ("outside", "opposite"),
    }.get(claim.verdict, ())
    found = min((claim.p_values[name] for name in questions if name in claim.p_values), default=None)
    return "" if found is None else f"p {p_value(found)} by Holm"


def p_value(value: float) -> str:
    """``= 0.021``, ``< 0.001``."""
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def chances(claim: ClaimResult) -> str:
    """Power of the planned study, for each spread between trainings."""
    found = claim.reach
    assert found is not None
    if not found.trainings:
        return f"power {_share(found.power['0'])} with {counted(found.trials, 'trial')} × {found.tasks} tasks"
    planned = (
        f"{counted(found.trainings, 'training')} × {counted(found.trials, 'trial')} × {found.tasks} tasks"
    )
    if not found.answers:
        return f"nothing with {planned}: it takes {FEWEST_TRAININGS} trainings"
    shares = ", ".join(f"{_share(power)} at {points}" for points, power in found.power.items())
    return f"power with {planned}: {shares} points between trainings"


def needed(claim: ClaimResult) -> str:
    """How many trainings (trials) give 80 % power."""
    found = claim.reach
    assert found is not None
    what = "trainings" if found.trainings else "trials"
    counts = [("over 100" if count is None else str(count)) for count in found.needed.values()]
    if set(counts) == {"over 100"}:
        return f"no number of {what} up to 100"
    if not found.trainings:
        return f"{counts[0]} trials"
    return f"{', '.join(counts)} trainings at {', '.join(found.needed)} points"


def _share(power: float) -> str:
    return "over 99 %" if power > 0.99 else f"{100 * power:.0f} %"


def _percent(claim: ClaimResult) -> bool:
    return str(claim.published[0]["unit"]) == "percent"


def _unit(claim: ClaimResult) -> str:
    if not _percent(claim):
        return ""
    return " points" if len(claim.published) == 2 else " %"


def _shown(claim: ClaimResult, value: float) -> str:
    value, digits = (100 * value, 1) if _percent(claim) else (value, 2)
    return signed(value, digits) if len(claim.published) == 2 else f"{value:.{digits}f}"
