"""The first screen: what was asked, what was found and how sure it is, by fixed rules over the records.

No rule says more than a test shows. A difference is *higher* or *lower* if its interval leaves out 0 and its
p-value, adjusted by Holm over every difference that the first screen shows, is below 5 %. From five trainings
on both are about new trainings; with fewer they are about new tasks for the trainings at hand, and the page
says so. Everything else is *open*: that nothing is shown is never told as "no effect".
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from scipy import special

from arpo_replica.base.tables import grouped
from arpo_replica.config.models import GIVEN_STAGES, StudyConfig
from arpo_replica.evaluation import records as r
from arpo_replica.evaluation import statistics as st
from arpo_replica.evaluation.records import Summary
from arpo_replica.evaluation.replay_effect import no_test
from arpo_replica.report.views import VERDICTS
from arpo_replica.report.words import WORDS, counted, listed, percent, points

Row = TypeVar("Row", r.RateRow, r.DifferenceRow)
Direction = Literal["higher", "lower", "open"]
LEVEL = 0.05
GAIN = "table1_gain_over_grpo"
"""The claim that the study is about: what replay adds."""
MOST = 2
"""Changes that one sentence names."""


@dataclass(frozen=True, slots=True)
class Change:
    """A difference that the first screen shows."""

    place: int
    """In the summary's list."""
    row: r.DifferenceRow
    shown: r.Interval
    """Over trainings where there are enough of them, else over tasks."""
    p_holm: float
    direction: Direction


@dataclass(frozen=True, slots=True)
class Card:
    """One question with its answer."""

    question: str
    changes: list[Change]
    empty: str
    """Why there is no change to show."""
    gate: str = ""
    """Why the changes answer the question not at all."""

    @property
    def answer(self) -> str:
        """``yes`` and ``it fell`` only where a test says so, for every row or for some."""
        directions = [change.direction for change in self.changes]
        if self.gate or not directions:
            return "not tested" if self.gate else "not measured"
        up, down = directions.count("higher"), directions.count("lower")
        if up and down:
            return "up and down"
        word = "yes" if up else "it fell" if down else "not settled"
        return word if up + down in (0, len(directions)) else f"{word}, in {up + down} of {len(directions)}"

    @property
    def note(self) -> str:
        """A sentence under the numbers."""
        return self.gate or ("" if self.changes else self.empty)

    @property
    def by_split(self) -> list[tuple[str, list[Change]]]:
        """List of tasks -> its changes."""
        return list(grouped(self.changes, lambda change: change.row.split).items())


@dataclass(frozen=True, slots=True)
class FirstScreen:
    """What the first screen says."""

    sentences: list[str]
    scope: str
    """What the sentences are about, and what they are not."""
    cards: list[Card]
    steps: list[tuple[str, str]]
    """(command or anchor, what it is for)."""


def title(config: StudyConfig, summary: Summary, split: str) -> str:
    """A list of tasks in words: the config's own, or else what is known of it."""
    facts = summary.splits[split]
    if split in config.report.titles:
        return config.report.titles[split]
    return "training tasks" if trained_on(facts) else split


def trained_on(facts: r.SplitFacts) -> bool:
    """Whether training used every task of the list that is run."""
    return facts.tasks_trained_on >= facts.tasks - facts.left_out


def changes(config: StudyConfig, summary: Summary) -> list[Change]:
    """Every difference (hard protocol, all seeds together, after the last stage), with its direction."""
    rows = [(place, row) for place, row in _last(config, summary.differences) if summary.all_seeds(row)]
    adjusted = st.holm([_p_value(row) for _, row in rows])
    found = []
    for (place, row), p_holm in zip(rows, adjusted, strict=True):
        shown = row.over_trainings or row.difference
        away = p_holm < LEVEL and (shown.low > 0 or shown.high < 0)
        direction: Direction = "open" if not away else "higher" if shown.value > 0 else "lower"
        found.append(Change(place, row, shown, p_holm, direction))
    return found


def _last(config: StudyConfig, rows: Sequence[Row]) -> list[tuple[int, Row]]:
    """(place, row) of the hard protocol, without those of a stage before the last."""
    earlier = {stage.name for stage in config.training.stages[:-1]}
    hard = [(place, row) for place, row in enumerate(rows) if row.protocol == "hard"]
    return [(place, row) for place, row in hard if row.stage not in earlier]


def _p_value(row: r.DifferenceRow) -> float:
    """Of the t test over trainings, or else of the exact test over tasks."""
    over = row.over_trainings
    if over is None or not row.training_error or row.training_degrees is None:
        return row.p_value
    return 2 * float(special.stdtr(row.training_degrees, -abs(over.value) / row.training_error))


def answer(config: StudyConfig, summary: Summary, claims: r.Claims) -> FirstScreen:
    """The sentences, cards and next steps of a study."""
    found = changes(config, summary)
    given = [change for change in found if change.row.stage in GIVEN_STAGES]
    own = [change for change in found if change not in given and change.row.reference == "base"]
    learnt = [change for change in own if trained_on(summary.splits[change.row.split])]
    carried = [change for change in own if change not in learnt]
    pairs = {(effect.arm, effect.reference): effect for effect in summary.replay_effects}
    added = [change for change in found if (change.row.arm, change.row.reference) in pairs]
    gates = [words for effect in summary.replay_effects if (words := no_test(effect))]
    judged = [claim for claim in claims.claims if claim.verdict != "not run"]
    say = _Sentences(config, summary)
    sentences = list(say.of_claims(judged) if judged else say.of_own(learnt, carried, added, gates))
    if given and not judged:
        sentences = [*say.of_given(given), *(sentences if config.trained_arms else [])]
    gate = f"{gates[0][:1].upper()}{gates[0][1:]}." if gates else ""
    cards = [
        Card("Did it learn?", learnt, "No list that was evaluated holds the training tasks."),
        Card("Did replay add to it?", added, "No two arms that differ in replay alone were compared.", gate),
        Card("Does it carry over?", carried, "No list with other tasks was evaluated."),
    ]
    if config.released_arms:
        asked = Card(
            "Are the released weights better?", given, "They were not compared with the base policy."
        )
        cards = [asked, *(cards if config.trained_arms else [])]
    return FirstScreen(sentences, say.scope(found), cards, list(_steps(config, summary)))


@dataclass(frozen=True, slots=True)
class _Sentences:
    """Words for findings."""

    config: StudyConfig
    summary: Summary

    def of_own(
        self,
        learnt: Sequence[Change],
        carried: Sequence[Change],
        added: Sequence[Change],
        gates: Sequence[str],
    ) -> Iterator[str]:
        """What a study says that no claim of the paper may be judged by."""
        found = [*learnt, *carried, *added]
        if not found:
            yield "No two arms have been compared yet."
            return
        if all(change.direction == "open" for change in found):
            yield f"{self._state()} {self._nothing(found)}"
            return
        if added:
            untested = "Replay was not tested: it hardly ever fired."
            yield from (
                [untested]
                if gates
                else self._moved(added, "Replay raised success", "Replay lowered success")
                or ["Replay’s effect is not settled."]
            )
        for direction, verb in (("higher", "learnt"), ("lower", "got worse on")):
            arms = [change for change in learnt if change.direction == direction]
            if arms:
                yield f"{listed([self._from_to(change) for change in arms])} {verb} the {self._tasks(arms)}."
        unknown = [change for change in learnt if change.direction == "open"]
        if unknown:
            yield f"That {listed([self._from_to(change) for change in unknown])} learnt them is not shown."
        if carried:
            moved = self._moved(carried, "Success rose", "Success fell")
            yield from moved or ["No change on other tasks is shown."]

    def of_given(self, given: Sequence[Change]) -> Iterator[str]:
        """What released weights do better or worse than the base policy."""
        moved = self._moved(given, "Success is higher", "Success is lower")
        yield from moved or ["No difference between the released weights and the base policy is shown."]

    def of_claims(self, judged: Sequence[r.ClaimResult]) -> Iterator[str]:
        """What a study says whose numbers may stand beside the paper's."""
        verdicts = Counter(claim.verdict for claim in judged)
        counts = listed([f"{verdicts[word]} {word}" for word in VERDICTS if verdicts[word]])
        yield f"Of {counted(len(judged), 'claim')} that this study may judge: {counts}."
        gain = next((claim for claim in judged if claim.id == GAIN and claim.measured), None)
        if gain is not None and gain.measured is not None:
            ours = gain.measured
            first, second = (number["value"] / 100 for number in gain.published)
            yield (
                f"ARPO’s gain over GRPO: ours {points(ours.value)} ({points(ours.low)} to "
                f"{points(ours.high)}) percentage points, published {points(first - second)}: {gain.verdict}."
            )

    def scope(self, found: Sequence[Change]) -> str:
        """Whether the words are about training or about the trainings at hand."""
        counts = {change.row.trainings for change in found if change.row.trainings}
        if not counts:
            return ""
        least = min(counts)
        if least >= st.FEWEST_TRAININGS:
            return f"About new trainings: {least} of each arm were run."
        return (
            f"About {'one training' if least == 1 else f'{least} trainings'} of each arm: what another "
            f"training would do takes {st.FEWEST_TRAININGS} of them."
        )

    def _state(self) -> str:
        missing = len(self.summary.not_run)
        return f"{counted(missing, 'planned part')} did not run." if missing else "Everything ran."

    def _nothing(self, found: Sequence[Change]) -> str:
        trainings = max(change.row.trainings for change in found)
        if trainings >= st.FEWEST_TRAININGS:
            return "Neither learning nor an effect of replay is shown."
        trained = grouped(self.summary.curves, lambda curve: (curve.arm, curve.seed)).values()
        updates = max((sum(len(curve.points) for curve in stages) for stages in trained), default=0)
        of = "one training" if trainings == 1 else f"each of {trainings} trainings"
        return f"{counted(updates, 'update').capitalize()} of {of} are too few to show learning."

    def _moved(self, found: Sequence[Change], up: str, down: str) -> list[str]:
        """One sentence for each direction that some change has; the cards have the intervals."""
        sentences = []
        for direction, verb in (("higher", up), ("lower", down)):
            moved = [change for change in found if change.direction == direction]
            parts = [
                f"{points(change.shown.value)} percentage points on {self._title(change)}, "
                f"{change.row.arm} against {change.row.reference}"
                for change in moved[:MOST]
            ]
            more = f"; {len(moved) - MOST} more below" if len(moved) > MOST else ""
            sentences += [f"{verb}: {'; '.join(parts)}{more}."] if moved else []
        return sentences

    def _title(self, change: Change) -> str:
        return title(self.config, self.summary, change.row.split)

    def _tasks(self, found: Sequence[Change]) -> str:
        return listed(list(dict.fromkeys(f"{change.row.tasks} {self._title(change)}" for change in found)))

    def _from_to(self, change: Change) -> str:
        row = change.row
        rates = [
            self._rate(row.reference, row.reference_stage, row.split),
            self._rate(row.arm, row.stage, row.split),
        ]
        return f"{row.arm} ({' → '.join(percent(rate, 0) for rate in rates)} %)"

    def _rate(self, arm: str, stage: str, split: str) -> float | None:
        rates = (row for row in self.summary.rates if row.of_valid and self.summary.all_seeds(row))
        place = (arm, stage, split, "hard")
        found = (row for row in rates if (row.arm, row.stage, row.split, row.protocol) == place)
        return next((row.of_valid.value for row in found if row.of_valid), None)


def _steps(config: StudyConfig, summary: Summary) -> Iterator[tuple[str, str]]:
    """What to do next, as commands."""
    if config.study in WORDS["next"]:
        command, asks = WORDS["next"][config.study]
        yield command, asks
    if config.online_arms and len(summary.seeds) < st.FEWEST_TRAININGS:
        seeds = ",".join(map(str, range(st.FEWEST_TRAININGS)))
        yield f'snakemake --config "seeds=[{seeds}]"', "five trainings of each arm, for words about training"
    yield "snakemake publish", "a folder and a zip with all that is behind this page"


# --- what is drawn ---


def forest(config: StudyConfig, summary: Summary) -> list[dict[str, Any]]:
    """Each list of tasks with one line per arm (hard protocol): its rate, and those of the seeds as dots."""
    parts: dict[str, dict[str, dict[str, Any]]] = {}
    for place, row in _last(config, summary.rates):
        line = parts.setdefault(row.split, {}).setdefault(row.arm, {"arm": row.arm, "dots": []})
        if summary.all_seeds(row):
            line |= {"row": row, "place": place}
        elif row.of_valid is not None:
            line["dots"].append(row.of_valid.value)
    return [
        {
            "split": split,
            "title": title(config, summary, split),
            "size": summary.splits[split].size,
            "lines": [line for line in lines.values() if "row" in line],
        }
        for split, lines in parts.items()
    ]


def main_claims(claims: Sequence[r.ClaimResult]) -> list[dict[str, Any]]:
    """Claims that the first screen draws, each with its marks on an axis of 200; empty if none was judged.

    Rates share one axis from 0, differences one with 0 in its middle, each as long as its numbers need.
    """
    places = {claim.id: (place, claim) for place, claim in enumerate(claims)}
    shown = [places[name] for name in WORDS["main_claims"] if name in places]
    if not any(claim.measured for _, claim in shown):
        return []
    ends: dict[bool, list[float]] = {True: [], False: []}
    for _, claim in shown:
        ends[_is_gap(claim)] += [abs(value) for value in _marks(claim).values()]
    longest = {gap: 10 * math.ceil(max(values, default=10) / 10) for gap, values in ends.items()}
    rows = []
    for place, claim in shown:
        gap = _is_gap(claim)
        low, width = (-longest[gap], 2 * longest[gap]) if gap else (0, longest[gap])
        at = {name: round(2 + 200 * (value - low) / width, 1) for name, value in _marks(claim).items()}
        rows.append(
            {"place": place, "claim": claim, "at": at, "zero": 102 if gap else 2, "ends": (low, low + width)}
        )
    return rows


def _is_gap(claim: r.ClaimResult) -> bool:
    return len(claim.published) == 2


def _marks(claim: r.ClaimResult) -> dict[str, float]:
    """Published number with its margin, ours with its interval; in percent or percentage points."""
    numbers = [float(number["value"]) for number in claim.published]
    value = numbers[0] - numbers[1] if _is_gap(claim) else numbers[0]
    found = {"published": value, "band_low": max(value - claim.margin, 0) if not _is_gap(claim)
             else value - claim.margin, "band_high": value + claim.margin}  # fmt: skip
    if claim.measured is not None:
        ours = claim.measured
        found |= {"ours": 100 * ours.value, "low": 100 * ours.low, "high": 100 * ours.high}
    return found
