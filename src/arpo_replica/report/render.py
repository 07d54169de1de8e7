"""One self-contained HTML page per study: no network, no time of writing, the same bytes each time."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from arpo_replica.config.models import StudyConfig
from arpo_replica.errors import UserError
from arpo_replica.evaluation.schema import Claims, InputFile, Summary, input_file
from arpo_replica.evaluation.scores import read_scores
from arpo_replica.report import figures, views
from arpo_replica.report.gallery import build_gallery
from arpo_replica.rollout.records import write_atomically

STATIC = Path(__file__).parent / "static"


def render_report(
    config: StudyConfig, results: Path, out: Path, *, deviations: Path = Path("data/paper/deviations.yaml")
) -> None:
    """Write the page to ``out``.

    ``results`` is the study's folder with ``summary.json``, ``scores.parquet``, ``claims.json``,
    ``provenance.json`` and ``episodes/``, which may lack screenshots or be empty. Raises ``UserError``
    for a file that cannot be read.
    """
    summary, scores, claims, provenance = (
        results / name for name in ("summary.json", "scores.parquet", "claims.json", "provenance.json")
    )
    numbers = _read(summary, Summary.model_validate_json)
    judged = _read(claims, Claims.model_validate_json)
    origin = _read(provenance, json.loads)
    differing = _read(deviations, lambda data: yaml.safe_load(data)["deviations"])
    gallery = build_gallery(
        read_scores(scores),
        results / "episodes",
        budget_mb=config.report.screenshots_mb,
        width=config.report.screenshot_width,
    )
    style, script = _static("report.css"), _static("report.js")
    arms = list(config.arms)
    page = _environment().get_template("report.html.j2").render(
        config=config,
        summary=numbers,
        claims=judged,
        provenance=origin,
        provenance_json=json.dumps(origin, indent=1, sort_keys=True),
        config_yaml=yaml.safe_dump(origin["config"], sort_keys=False, allow_unicode=True),
        deviations=[views.deviation(entry, origin["config"]) for entry in differing],
        gallery=gallery,
        outcomes=views.OUTCOMES,
        banner=views.banner(config),
        facts=views.facts(numbers, origin),
        findings=views.findings(numbers),
        matrix=views.matrix(gallery.episodes, arms),
        groups=views.groups(gallery.episodes, config),
        stages=views.stage_rows(numbers),
        swaps=views.swap_rows(numbers),
        jobs=views.job_rows(results / "benchmarks"),
        phases=views.phase_rows(numbers),
        forest=_figure(figures.forest_plot(numbers.rates, arms, config.size)),
        curves=_figure(
            figures.learning_curves(
                numbers.curves, arms, [stage.name for stage in config.training.stages], config.size
            )
        ),
        phase_figure=_figure(figures.phase_seconds(numbers.curves, config.size)),
        colour=lambda arm: figures.arm_colour(arm, arms),
        inputs=_inputs(numbers, judged, [summary, scores, claims, provenance, deviations]),
        style=Markup(style),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        policy=(
            f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
            "base-uri 'none'; form-action 'none'"
        ),
    )  # fmt: skip
    write_atomically(out, page.encode())


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("arpo_replica.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        pct=views.percent,
        points=views.points,
        seconds=views.duration,
        short=views.short_hash,
        mb=views.megabytes,
    )
    return environment


def _static(name: str) -> str:
    """A style sheet or script as it stands between its tags; the policy's hash is over these bytes."""
    return "\n" + (STATIC / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _figure(svg: str | None) -> Markup | None:
    """Our own SVG, in which every text was escaped by the XML writer."""
    return None if svg is None else Markup(svg)  # noqa: S704 - made here


def _read(path: Path, parse: Any) -> Any:
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; run the rule that makes it.") from error
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not in order ({reason}); make it again.") from error


def _inputs(summary: Summary, claims: Claims, files: list[Path]) -> list[InputFile]:
    found = [*(input_file(path) for path in files), *summary.inputs, *claims.inputs]
    return sorted({entry.path: entry for entry in found}.values(), key=lambda entry: entry.path)
