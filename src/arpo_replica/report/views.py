"""Words and rows for the templates: everything that is more than markup."""

import csv
import io
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arpo_replica.base.tables import filled, grouped, load_yaml
from arpo_replica.cluster.costs import rollout_gpus, train_gpus
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation import records as r
from arpo_replica.evaluation.claims import lookup
from arpo_replica.evaluation.records import PROTOCOLS, Summary
from arpo_replica.evaluation.replay_effect import exact_share
from arpo_replica.evaluation.scores import FAILURES
from arpo_replica.evaluation.targets import TARGETS
from arpo_replica.report.figures import (
    TOTALS,
    adjusted_success,
    arm_colour,
    phase_totals,
    phases_by_weight,
)
from arpo_replica.report.gallery import EpisodeView
from arpo_replica.report.words import WORDS, counted, duration, short_hash
from arpo_replica.training.parity import Fact, Hyperparameters, actual

VERDICTS = tuple(WORDS["verdicts"])
"""Strongest first."""


def banner(config: StudyConfig, synthetic: bool = False) -> dict[str, str]:
    """The size mark in words that cannot be misread; ``tag`` stands beside every number of this study."""
    kind, (width, height) = config.desktop.kind, config.desktop.screen
    papers = config.size == "7b" and kind == "osworld"
    words = "invented" if synthetic else "nano" if config.size == "nano" else "papers" if papers else "other"
    shown = {"size": config.size, "SIZE": config.size.upper(), "kind": kind, "screen": f"{width} × {height}"}
    shown["desktop"] = "small" if width * height < 1280 * 720 else shown["screen"]
    found = filled(WORDS["banners"][words], **shown)
    desktop = WORDS["desktops"].get(kind, kind)
    return {**found, "desktop": desktop, "tag": f"{found['mark']} · {desktop}"}


def facts(summary: Summary, provenance: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(label, value, note) for the strip at the top."""
    rows = [row for row in summary.rates if row.protocol == "hard" and row.seed is not None]
    episodes = sum(row.valid + row.env_errors for row in rows)
    expected = sum(row.expected - row.left_out for row in rows)
    errors = sum(row.env_errors for row in rows)
    updates = sum(len(curve.points) for curve in summary.curves)
    training = sum(stage["seconds"] for stage in stage_rows(summary))
    commit = provenance["git"]["commit"]
    dirty = {True: "with uncommitted changes", False: "clean checkout", None: "no git checkout"}
    trials = "1 trial" if summary.trials == 1 else f"{summary.trials} trials"
    trained = bool(summary.trainings or summary.offline)
    seeds = f"seed {summary.seeds[0]}" if len(summary.seeds) == 1 else f"{len(summary.seeds)} training seeds"
    tasks = sum(split.tasks - split.left_out for split in summary.splits.values())
    out = sum(split.left_out for split in summary.splits.values())
    distinct = tasks if summary.distinct_tasks is None else summary.distinct_tasks
    notes = [
        f"of {tasks + out}, {out} left out" if out else "",
        f"{tasks} places in {len(summary.splits)} lists that share tasks" if distinct < tasks else "",
        f"{trials} each" + (f", {seeds}" if trained else ""),
    ]
    planned = "all that were planned" if episodes == expected else f"of {expected} planned"
    known = [
        ("training seed" + "s" * (len(summary.seeds) > 1), str(len(summary.seeds)), ""),
        ("tasks", str(distinct), "; ".join(filter(None, notes))),
        ("episodes", str(episodes), planned),
        ("environment failures", str(errors), "counted apart, never as 0"),
        ("training updates", str(updates), duration(training) if updates else "no metrics found"),
        ("commit", short_hash(commit)[:9] if commit else "unknown", dirty[provenance["git"]["dirty"]]),
    ]
    return [fact for fact in known if trained or not fact[0].startswith("training")]


def question(config: StudyConfig) -> str:
    """What a study asks, by the kinds of its arms."""
    if config.trained_arms:
        return "Does replay of stored successes help an agent learn to use a desktop?"
    if config.released_arms:
        return "Do released weights use a desktop better than the policy that they began from?"
    return "How often does a policy do what it is asked on a desktop?"


def arm_words(config: StudyConfig) -> list[tuple[str, str]]:
    """Each arm besides the base policy, and what it was taught by."""
    replay = {name: config.recipe(name).replay.enabled for name in config.online_arms}
    return [
        (name, "trained with replay" if on else "trained without replay") for name, on in replay.items()
    ] + [
        *((name, "taught from records") for name in config.offline_arms),
        *((name, "as released") for name in config.released_arms),
    ]


def failure_parts(summary: Summary, episodes: Sequence[EpisodeView]) -> list[dict[str, Any]]:
    """Per list of tasks: arms as columns, classes of failure as rows, cells with links to their examples."""
    ids = {episode.row["directory"]: (episode.id, str(episode.row["task_id"])) for episode in episodes}
    parts = []
    for split, here in grouped(enumerate(summary.failures), lambda entry: entry[1].split).items():
        columns = list(dict.fromkeys((row.arm, row.stage) for _, row in here))
        cells = {
            (row.failure, (row.arm, row.stage)): {
                "place": place,
                "row": row,
                "examples": [ids[name] for name in row.examples if name in ids],
            }
            for place, row in here
        }
        rows = [(kind, [cells.get((kind, column)) for column in columns]) for kind in FAILURES]
        rows = [(kind, found) for kind, found in rows if any(found)]
        parts.append({"split": split, "columns": columns, "rows": rows})
    return parts


def chips(summary: Summary) -> list[tuple[str, str, int, int]]:
    """(arm, reference, tasks gained, tasks lost) over all lists, hard protocol."""
    hard = [row for row in summary.flips if row.protocol == "hard"]
    return [
        (*pair, sum(len(row.gained) for row in rows), sum(len(row.lost) for row in rows))
        for pair, rows in grouped(hard, lambda row: (row.arm, row.reference)).items()
    ]


def reach(summary: Summary) -> float:
    """Half the width of the axis on which all differences and their intervals fit."""
    ends = [abs(end) for row in summary.differences for end in (row.difference.low, row.difference.high)]
    return next(width for width in (0.1, 0.2, 0.3, 0.5, 1.0) if width >= min(1.0, max(ends, default=1.0)))


def elsewhere_rows(config: StudyConfig, summary: Summary) -> list[dict[str, Any]]:
    """What others report, each with this study's own rates by protocol and minutes per episode."""
    found = []
    for entry in config.report.elsewhere:
        place = entry.arm, entry.split
        rates = {row.protocol: row for row in summary.rates if (row.arm, row.split) == place and row.of_valid}
        effort = [row for row in summary.effort if (row.arm, row.split) == place]
        episodes = sum(row.episodes for row in effort)
        solved = [number < entry.successes for number in range(entry.episodes)]
        found.append(
            {
                "entry": entry,
                "theirs": exact_share(solved),
                "rates": [rates[protocol] for protocol in PROTOCOLS if protocol in rates],
                "minutes": sum(row.episode_seconds for row in effort) / episodes / 60 if episodes else None,
            }
        )
    return found


def left_out_parts(summary: Summary) -> list[dict[str, Any]]:
    """Each split with tasks that are not run: how many are, and why not, most frequent reason first."""
    return [
        {
            "split": split,
            "tasks": rows[0].tasks,
            "run": rows[0].tasks - len(rows),
            "evaluated": split in summary.splits,
            "reasons": Counter(row.because for row in rows).most_common(),
        }
        for split, rows in grouped(summary.left_out, lambda row: row.split).items()
    ]


def subset_parts(summary: Summary) -> list[tuple[int, r.SubsetRow, str]]:
    """(place in the summary, row, protocol) of parts that are less than their split."""
    return [
        (place, row, protocol)
        for place, row, protocol in told_once(summary.subsets)
        if row.tasks < summary.splits[row.split].tasks - summary.splits[row.split].left_out
    ]


def verdict_counts(claims: Sequence[r.ClaimResult]) -> list[tuple[str, int]]:
    """r.Verdict -> number of claims, in a fixed order, without those that no claim has."""
    counts = [(verdict, sum(claim.verdict == verdict for claim in claims)) for verdict in VERDICTS]
    return [(verdict, count) for verdict, count in counts if count]


def claim_groups(claims: Sequence[r.ClaimResult]) -> list[dict[str, Any]]:
    """Claims by the paper's tables and figures, each with its place in ``claims.json``."""
    labels = [TARGETS[claim.target].label if claim.target else "Claims" for claim in claims]
    found = grouped(enumerate(claims), lambda entry: labels[entry[0]])
    return [
        {
            "title": title,
            "claims": rows,
            "verdicts": verdict_counts([claim for _, claim in rows]),
            "judged": any(claim.verdict != "not run" for _, claim in rows),
        }
        for title, rows in found.items()
    ]


def reasons(claims: Sequence[r.ClaimResult]) -> list[tuple[str, int]]:
    """Why claims were not run, the most frequent reason first."""
    counts = Counter(claim.reason for claim in claims if claim.verdict == "not run")
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def domain_parts(summary: Summary) -> list[tuple[str, list[dict[str, Any]]]]:
    """Words for the protocol -> splits -> domains -> per arm (place, row); none with one domain."""
    if len({row.domain for row in summary.domains}) < 2:
        return []
    parts = []
    for label, protocol in protocols(summary.domains):
        tables = []
        for split, rows in by_split(summary.domains, protocol):
            arms = list(dict.fromkeys(row.arm for _, row in rows))
            cells = {(row.domain, row.arm): (place, row) for place, row in rows}
            tasks = {row.domain: row.tasks for _, row in rows}
            full = [
                {"domain": name, "tasks": count, "cells": [cells.get((name, arm)) for arm in arms]}
                for name, count in tasks.items()
            ]
            tables.append({"split": split, "arms": arms, "rows": full})
        parts.append((label, tables))
    return parts


def told_once(
    rows: Sequence[Any], told: Callable[[Any], Any] = lambda row: row.model_dump_json(exclude={"protocol"})
) -> list[tuple[int, Any, str]]:
    """(place, row, protocol) with rows that the two protocols share told once, as "both".

    ``told``: what a row says but for its protocol.
    """
    texts = [told(row) for row in rows]
    shared = {text for text, count in Counter(texts).items() if count == len(PROTOCOLS)}
    return [
        (place, row, "both" if text in shared else row.protocol)
        for place, (row, text) in enumerate(zip(rows, texts, strict=True))
        if text not in shared or row.protocol == "hard"
    ]


def protocols(rows: Sequence[Any]) -> list[tuple[str, str]]:
    """(words, protocol) of the tables to show: one where the protocols agree in every row."""
    if all(protocol == "both" for _, _, protocol in told_once(rows)):
        return [("Hard and standard protocol, which agree here", "hard")]
    return [(f"{protocol.capitalize()} protocol", protocol) for protocol in PROTOCOLS]


def by_split(rows: Sequence[Any], protocol: str) -> list[tuple[str, list[tuple[int, Any]]]]:
    """Split -> (place in the summary, row) of one protocol, in the summary's order."""
    here = [(place, row) for place, row in enumerate(rows) if row.protocol == protocol]
    return list(grouped(here, lambda entry: str(entry[1].split)).items())


def deviation(entry: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A line of the table of deviations with this study's value looked up in the resolved config."""
    keys = entry["ours"] if isinstance(entry["ours"], list) else [entry["ours"]]
    return {**entry, "keys": keys, "value": ", ".join(_words(lookup(config, key)) for key in keys)}


def _words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items())
    if isinstance(value, list):
        if not value:
            return "none"
        if isinstance(value[0], dict):
            return " → ".join(f"{entry['name']} ({counted(entry['steps'], 'update')})" for entry in value)
        return (", " if any(isinstance(part, str) for part in value) else " × ").join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def stage_rows(summary: Summary) -> list[dict[str, Any]]:
    """Training of each arm, stage and seed in numbers."""
    rows = []
    for curve in summary.curves:
        updates = curve.points
        totals = sum(value for p in updates for phase, value in p.seconds.items() if phase in TOTALS)
        seconds = totals or sum(phase_totals(curve).values())
        rows.append(
            {
                "curve": curve,
                "steps": len(updates),
                "seconds": seconds,
                "per_step": seconds / len(updates) if updates else None,
                "reward": first_and_last(updates, "reward_before"),
                "success": first_and_last(updates, "success"),
                "swapped": _sum(updates, "swapped_groups"),
                "all_fail": _sum(updates, "all_fail_groups"),
                "buffer": updates[-1].buffer_size if updates else None,
                "entropy": updates[-1].entropy if updates else None,
                "unparsable": _mean(updates, "unparsable"),
                "env_errors": _sum(updates, "env_errors"),
                "lost": _sum(updates, "lost_rollouts"),
                "stale": staleness(updates),
            }
        )
    return rows


def chart_data(summary: Summary, arms: Sequence[str], stages: Sequence[str]) -> dict[str, Any] | None:
    """What the page's script draws: every metric of every training, to four digits. None without a curve."""
    curves = [curve for curve in summary.curves if curve.points]
    if not curves:
        return None
    adjusted = adjusted_success(curves)
    phases = list(phases_by_weight(phase_totals(curve) for curve in curves))
    labels = WORDS["metrics"] | {f"s {phase}": (f"seconds of an update: {phase}", None) for phase in phases}
    found, used = [], set()
    for curve in curves:
        rows = [_chart_row(point) for point in curve.points]
        whole = {step: (value, error) for step, value, error in adjusted[curve.arm, curve.seed, curve.stage]}
        for row, point in zip(rows, curve.points, strict=True):
            row["adjusted"], row["adjusted error"] = whole.get(point.step, (None, None))
        names = [key for key in (*labels, "adjusted error") if any(row.get(key) is not None for row in rows)]
        used |= set(names)
        values = {
            key: [None if row.get(key) is None else float(f"{row[key]:.4g}") for row in rows] for key in names
        }
        found.append({**curve.place, "steps": [point.step for point in curve.points], "values": values})
    ends, at = [], 0
    for name in [*stages, *sorted({curve.stage for curve in curves} - set(stages))]:
        steps = max((curve.points[-1].step for curve in curves if curve.stage == name), default=0)
        if steps:
            ends.append({"name": name, "from": at, "steps": steps})
            at += steps
    trained = dict.fromkeys(curve.arm for curve in curves)
    return {
        "metrics": [{"key": k, "label": w, "top": top} for k, (w, top) in labels.items() if k in used],
        "arms": [{"name": name, "colour": arm_colour(name, arms)} for name in trained],
        "stages": ends,
        "curves": found,
    }


def _chart_row(point: r.CurvePoint) -> dict[str, float | None]:
    known = {name: getattr(point, name, None) for name in WORDS["metrics"]} | point.other
    total = sum(point.seconds.get(phase, 0.0) for phase in TOTALS)
    if point.success is not None:
        known["success"] = 100 * point.success
    if total and "rollouts" in point.other:
        known["rollouts_per_hour"] = 3600 * point.other["rollouts"] / total
    return known | {f"s {phase}": seconds for phase, seconds in point.seconds.items()}


def first_and_last(updates: Sequence[Any], name: str) -> list[float | None]:
    """Means of the first and of the last three updates, of fewer where these would be the same updates."""
    ends = max(1, min(3, len(updates) // 2))
    return [_mean(updates[:ends], name), _mean(updates[-ends:], name)]


def staleness(updates: Sequence[r.CurvePoint]) -> float | None:
    """Mean number of updates that rollouts lagged behind; None for a training that records none."""
    found = [update.other["staleness_mean"] for update in updates if "staleness_mean" in update.other]
    return sum(found) / len(found) if found else None


def phase_rows(summary: Summary) -> dict[str, Any]:
    """Seconds by phase, largest first: ``phases`` and one row of values per curve."""
    totals = [(curve, phases) for curve in summary.curves if (phases := phase_totals(curve))]
    names = list(phases_by_weight(phases for _, phases in totals))
    return {"phases": names, "rows": [(curve, [phases.get(n) for n in names]) for curve, phases in totals]}


def _known(updates: Sequence[Any], name: str) -> list[float]:
    return [value for update in updates if (value := getattr(update, name)) is not None]


def _mean(updates: Sequence[Any], name: str) -> float | None:
    known = _known(updates, name)
    return sum(known) / len(known) if known else None


def _sum(updates: Sequence[Any], name: str) -> float | None:
    known = _known(updates, name)
    return sum(known) if known else None


def offline_rows(summary: Summary) -> list[dict[str, Any]]:
    """Training of each offline arm and seed, with its loss at both ends."""
    known = [[point for point in training.points if point.loss is not None] for training in summary.offline]
    losses = [first_and_last(points, "loss") for points in known]
    return [{"training": one, "loss": loss} for one, loss in zip(summary.offline, losses, strict=True)]


def swap_rows(summary: Summary) -> list[dict[str, Any]]:
    """Every time that replay fired: curve, update, task, age of the replayed trajectory."""
    return [
        {"curve": curve, "step": point.step, "task": swap.task, "age": swap.age}
        for curve in summary.curves
        for point in curve.points
        for swap in point.swaps
    ]


def swaps_by_task(swaps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Arm and task -> how often replay fired there, when, and how old the injected success was (updates)."""
    rows = []
    for (arm, task), fired in grouped(swaps, lambda row: (row["curve"].arm, row["task"])).items():
        steps, ages = [row["step"] for row in fired], [row["age"] for row in fired]
        counts = {"arm": arm, "task": task, "times": len(fired), "first": min(steps), "last": max(steps)}
        rows.append(counts | {"median_age": statistics.median(ages), "oldest": max(ages)})
    return sorted(rows, key=lambda row: (-row["times"], row["arm"], row["task"]))


# --- what it cost ---

SERVING_RULES = ("collect_rollouts", "collect_offline_episodes", "select_tasks", "measure_throughput")
"""Rules whose jobs serve a policy."""


def job_rows(benchmarks: Path) -> list[dict[str, Any]]:
    """Wall-clock seconds and peak memory of each job, as Snakemake measured them (may be none)."""
    columns = {"seconds": "s", "peak_mb": "max_rss", "cpu_seconds": "cpu_time"}
    rows: list[dict[str, Any]] = []
    for path in sorted(benchmarks.rglob("*.tsv")):
        job = path.relative_to(benchmarks).with_suffix("").as_posix()
        for run in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")), delimiter="\t"):
            rows.append({"job": job, **{name: _number(run.get(key)) for name, key in columns.items()}})
    return rows


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def gpu_hours(config: StudyConfig, jobs: Sequence[dict[str, Any]]) -> float:
    """Jobs' times by the GPUs that each kept, by the config of its arm; 0 on a CPU."""
    kept = 0.0
    for job in jobs:
        rule, _, place = job["job"].partition("/")
        arm = place.partition(".")[0]
        arm = arm if arm in config.arms else "base"
        nodes, gpus = 1, 0
        if rule == "train_stage":
            nodes, gpus = train_gpus(config, arm)
        elif rule == "train_offline":
            gpus = int(config.accelerator == "cuda")
        elif rule in SERVING_RULES:
            gpus = rollout_gpus(config, arm)
        kept += nodes * gpus * (job["seconds"] or 0)
    return kept / 3600


def cost_rows(
    summary: Summary, jobs: Sequence[dict[str, Any]], config: StudyConfig
) -> list[tuple[str, str, str]]:
    """(label, value, how it was counted): what the study took. Only what some file says."""
    rows: list[tuple[str, str, str]] = []
    seconds = sum(job["seconds"] or 0 for job in jobs)
    cpu = sum(job["cpu_seconds"] or 0 for job in jobs)
    if jobs:
        timed = f"{counted(len(jobs), 'job')}, added up as Snakemake timed them"
        rows.append(("Job time", f"{seconds / 3600:.2f} h", timed))
        rows.append(("Processor time", f"{cpu / 3600:.2f} core-hours", "of all processes of these jobs"))
    if hours := gpu_hours(config, jobs):
        kept = "job times × the GPUs that each job kept, busy or not"
        rows.append(("Accelerator time", f"{hours:.2f} GPU-hours", kept))
        if price := config.report.usd_per_gpu_hour:
            rows.append(("Cost", f"{hours * price:,.2f} USD", f"at {price:g} USD a GPU-hour (the config's)"))
    episodes = sum(row.episodes for row in summary.effort)
    spent = sum(row.episode_seconds for row in summary.effort)
    if episodes and spent:
        steps = sum(row.steps for row in summary.effort)
        tokens = f"{sum(row.completion_tokens for row in summary.effort):,}".replace(",", "\u202f")
        mean = f"mean with all attempts; {steps / episodes:.1f} steps"
        ran = f"{counted(episodes, 'evaluation episode')}, added up; desktops that waited do not count"
        rows.append(("Time in episodes", f"{spent / 3600:.2f} h", ran))
        rows.append(("Episode", f"{spent / episodes:.1f} s", mean))
        rows.append(("Tokens written", tokens, "by the policy in these episodes"))
    return rows


# --- beside the paper and the released code ---


def parity_rows(config: StudyConfig, facts: Path) -> list[dict[str, Any]]:
    """Rows of plain text; empty without a trained arm.

    ``same_as``: what this study agrees with: paper, code, both, neither, or nothing stated.
    """
    if not config.online_arms:
        return []
    rows = []
    for row in Hyperparameters.model_validate(load_yaml(facts.read_text(encoding="utf-8"))).rows:
        value = actual(row, config)
        rows.append(
            {
                "hyper_parameter": row.name,
                "paper": _stated(row.paper),
                "released_code": _stated(row.code),
                "this_study": _setting(value),
                "key": row.key or "fixed in the code",
                "same_as": _agrees(value, row.paper, row.code),
            }
        )
    return rows


def _agrees(value: Any, paper: Fact | None, code: Fact | None) -> str:
    same = {name for name, fact in (("paper", paper), ("code", code)) if fact and fact.value == value}
    if paper is None and code is None:
        return "nothing stated"
    return {0: "neither", 1: next(iter(same), ""), 2: "both"}[len(same)]


def _stated(fact: Fact | None) -> str:
    return "not stated" if fact is None else f"{_setting(fact.value)} ({fact.place})"


def _setting(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
