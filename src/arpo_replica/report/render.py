"""One self-contained HTML page per study: no network, no time of writing, the same bytes each time."""

import base64
import hashlib
import inspect
import json
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from arpo_replica.base.errors import UserError
from arpo_replica.base.files import write_atomically
from arpo_replica.base.tables import load_yaml
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.published import EFFORT
from arpo_replica.evaluation.records import Claims, Summary
from arpo_replica.evaluation.scores import read_scores
from arpo_replica.report import answer, figures, matrix, views, words
from arpo_replica.report.film import Film, build_films, first_films
from arpo_replica.report.gallery import EpisodeView, Gallery, build_gallery
from arpo_replica.report.pack import json_block, pack
from arpo_replica.report.sources import Download, PageFiles, Sources, build_twins, collect_sources, download

STATIC = Path(__file__).parent / "static"
STRIPS = 8
"""Film strips of one task under all arms: one on the first screen, all of them in print."""
FULL_SET = "screenshots"
"""Folder beside the page with the screenshots that its budget left out (``report.full_screenshots``)."""


def render_report(config: StudyConfig, files: PageFiles, out: Path) -> None:
    """Write the page to ``out`` and, if the config asks for it, every screenshot beside it.

    Raises ``UserError`` for a file that cannot be read.
    """
    numbers = read_input(files.summary, Summary.model_validate_json)
    judged = read_input(files.claims, Claims.model_validate_json)
    origin = read_input(files.provenance, json.loads)
    differing = read_input(files.deviations, lambda data: load_yaml(data)["deviations"])
    beside = out.parent / FULL_SET
    if beside.is_dir():
        shutil.rmtree(beside)
    gallery = build_gallery(
        read_scores(files.scores),
        files.episodes,
        budget_mb=config.report.screenshots_mb,
        page_mb=config.report.page_mb,
        width=config.report.screenshot_width,
        beside=beside if config.report.full_screenshots else None,
    )
    documents = [files.summary, files.claims, files.provenance]
    sources = collect_sources(
        [*documents, files.scores, files.deviations, files.hyperparameters],
        [*numbers.inputs, *judged.inputs],
        files.benchmarks,
        origin["git"]["commit"],
        {file.path: file.rule for file in numbers.files},
    )
    context = _context(config, numbers, judged, origin, gallery, sources=sources)
    context["deviations"] = [views.deviation(entry, origin["config"]) for entry in differing]
    context["parity"] = views.parity_rows(config, files.hyperparameters)
    context["jobs"] = views.job_rows(files.benchmarks)
    context["cost"] = views.cost_rows(numbers, context["jobs"], config)
    context["twins"] = build_twins(files.tables, context, sources)
    context["documents"] = [_document(path) for path in documents]
    write_atomically(out, _page(config, gallery, context).encode())


def _context(
    config: StudyConfig,
    summary: Summary,
    claims: Claims,
    origin: dict[str, Any],
    gallery: Gallery,
    *,
    sources: Sources,
) -> dict[str, Any]:
    """Everything that the templates name, apart from rows that come from further files."""
    arms, stages = list(config.arms), [stage.name for stage in config.training.stages]
    banner = views.banner(config, summary.synthetic)
    tag = banner["tag"]
    parts = matrix.build_matrix(gallery.episodes, arms, config.evaluation.splits)
    films = build_films(parts)
    drawn = {
        "curves": figures.learning_curves(summary.curves, arms, stages, tag),
        "phases": figures.phase_seconds(summary.curves, tag),
        "replay": figures.replay_figure(summary.curves, arms, tag),
        "offline": figures.offline_figure(summary.offline, arms, tag),
        "domains": figures.domain_forest(summary.domains, arms, tag),
    }
    return {
        "config": config,
        "summary": summary,
        "claims": claims,
        "provenance": origin,
        "provenance_json": json.dumps(origin, indent=1, sort_keys=True),
        "config_yaml": yaml.safe_dump(origin["config"], sort_keys=False, allow_unicode=True),
        "gallery": gallery,
        "films": films,
        "sources": sources,
        "outcomes": words.WORDS["outcomes"],
        "banner": banner,
        "answer": answer.answer(config, summary, claims),
        "forest": answer.forest(config, summary),
        "main_claims": answer.main_claims(claims.claims),
        "titles": {name: answer.title(config, summary, name) for name in summary.splits},
        "strips": first_films([film for film in films if film.pictured], STRIPS),
        "judged": any(claim.verdict != "not run" for claim in claims.claims),
        "reach": views.reach(summary),
        "matrix": parts,
        "several_seeds": len(summary.seeds) > 1,
        "stages": views.stage_rows(summary),
        "chart": json_block(views.chart_data(summary, arms, stages)),
        "contradictions": {clash.id: clash for clash in claims.contradictions},
        # Our own SVG, in which every text was escaped by the XML writer.
        "figures": {name: svg and Markup(svg) for name, svg in drawn.items()},  # noqa: S704
        "colour": lambda arm: figures.arm_colour(arm, arms),
    }


def _page(config: StudyConfig, gallery: Gallery, context: dict[str, Any]) -> str:
    environment = template_environment()
    macros: Any = environment.get_template("episode.html.j2").make_module(context)

    def card(view: EpisodeView | Film) -> Markup:
        made: Markup = macros.film(view) if isinstance(view, Film) else macros.card(view)
        return made

    style, script = static_file("report.css"), static_file("report.js") + static_file("curves.js")
    pictures = "data: 'self' file:" if gallery.beside else "data:"
    return environment.get_template("report.html.j2").render(
        **context,
        packed=pack(gallery, context["films"], config, card),
        style=Markup(style),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        policy=content_policy(pictures, style, script),
    )


@lru_cache(maxsize=1)
def template_environment() -> Environment:
    """Jinja with everything escaped and undefined names refused."""
    environment = Environment(
        loader=PackageLoader("arpo_replica.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(views=views, words=words.WORDS, efforts=EFFORT)
    own = inspect.getmembers(words, inspect.isfunction)
    short = {
        "pct": words.percent,
        "seconds": words.duration,
        "short": words.short_hash,
        "mb": words.megabytes,
    }
    environment.filters.update(own, **short)
    return environment


def _document(path: Path) -> Download:
    """A whole file of results inside the page."""
    return download(path.name, path.read_bytes(), "JSON", "application/json")


def static_file(name: str) -> str:
    """A style sheet or script as it stands between its tags; the policy's hash is over these bytes."""
    return "\n" + (STATIC / name).read_text(encoding="utf-8")


def content_policy(pictures: str, style: str, script: str | None = None) -> str:
    """The page's Content-Security-Policy: our own style and script by their hashes, no network at all."""
    scripts = _hash(script) if script is not None else "'none'"
    return (
        f"default-src 'none'; img-src {pictures}; style-src {_hash(style)}; "
        f"script-src {scripts}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def read_input(path: Path, parse: Callable[[bytes], Any]) -> Any:
    """What ``parse`` makes of the file. Raises ``UserError`` that names it if it cannot be read."""
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; run the rule that makes it.") from error
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not in order ({reason}); make it again.") from error
