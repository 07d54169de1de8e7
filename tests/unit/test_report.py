"""The page as bytes: self-contained, escaped, complete, the same for the same inputs."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import escape
from PIL import Image

from arpo_replica.actions.types import Click, Drag, Scroll, TypeText, Wait
from arpo_replica.base.errors import UserError
from arpo_replica.evaluation.published import EFFORT, load_claims
from arpo_replica.evaluation.records import CurvePoint
from arpo_replica.evaluation.scores import read_scores
from arpo_replica.report.figures import embed
from arpo_replica.report.gallery import build_gallery, drawing, mark_of, natural
from arpo_replica.report.render import render_report
from arpo_replica.report.views import first_and_last, job_rows
from arpo_replica.report.words import duration, percent, points
from arpo_replica.workflow.console import ending
from synthetic_study import PAPER_FILES, SCREEN, Study, evaluate, make_study, page_files, render

HOSTILE = [
    "<script>window.hacked=1</script>",
    "</pre></details><img src=x onerror=window.hacked=1>",
    '"><svg onload=window.hacked=1>',
    "{{ config.__class__ }} {% raw %}",
    "</script><script>window.hacked=1</script>",
    "<style>*{display:none}</style>",
    "javascript:window.hacked=1",
    "\u202egnp.exe \x00 \ufeff",
]
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Checker(HTMLParser):
    """Collects what tests ask of the page and checks that elements nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[int] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.note(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.note(tag, attrs)

    def note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.attributes.append((tag, found))
        if found.get("id"):
            self.ids[str(found["id"])] += 1
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]} at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text.append(data)


def check(page: Path) -> Checker:
    checker = Checker()
    checker.feed(page.read_text(encoding="utf-8"))
    checker.close()
    assert checker.open == []
    return checker


def words(page: Path) -> str:
    return " ".join(" ".join(check(page).text).split())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = make_study(tmp_path_factory.mktemp("study"), tasks=5, trials=2, steps=3)
    evaluate(study)
    return study


@pytest.fixture(scope="module")
def page(study: Study) -> Path:
    return render(study)


def test_same_inputs_same_bytes(study: Study, page: Path) -> None:
    before = page.read_bytes()
    assert render(study).read_bytes() == before


def test_a_run_ends_with_what_the_page_says_first(page: Path) -> None:
    came_out, where, then = ending(page).splitlines()
    assert came_out.removeprefix("What came out: ") in words(page)
    assert where.split()[-1] == str(page)
    assert then.split()[1] == "snakemake"
    assert ending(page.with_name("none.html")) == ""  # as after `snakemake table1`


def test_provenance_counts_episodes_by_the_pool_that_lent_their_desktops(study: Study, page: Path) -> None:
    table = re.search(r'<table class="dense" id="table-ran-on">.*?</table>', page.read_text(), re.DOTALL)
    assert table is not None
    found = re.findall(r'row">http://node(\d):8700</th>.*?num">(\d+)</td>', table[0], re.DOTALL)
    expected = Counter(read_scores(study.results / "scores.parquet")["seed"].astype(str))
    assert {seed: int(count) for seed, count in found} == dict(expected)


def test_each_claim_says_what_its_check_takes(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    claims, _ = load_claims(PAPER_FILES.claims, PAPER_FILES.published)
    for claim in claims:
        row = text.partition(f'id="claim-{claim.id}"')[2].partition("</tr>")[0]
        told = re.findall(r"Takes (.*?)</span>", row)
        words = [escape(words) for effort, (words, _) in EFFORT.items() if effort == claim.effort()]
        assert told == words, claim.id


def test_page_is_whole_and_accessible(page: Path) -> None:
    found = check(page)
    assert [name for name, count in found.ids.items() if count > 1] == []
    assert found.headings[0] == 1
    assert all(b - a <= 1 for a, b in zip(found.headings, found.headings[1:], strict=False))
    tags = Counter(tag for tag, _ in found.attributes)
    assert tags["h1"] == 1
    assert tags["table"] == tags["caption"] > 5
    assert all("scope" in attributes for tag, attributes in found.attributes if tag == "th")
    assert ("html", {"lang": "en"}) in found.attributes
    images = [attributes for tag, attributes in found.attributes if tag == "svg"]
    assert all("aria-hidden" in a or "aria-label" in a or "aria-labelledby" in a for a in images)
    links = {a["href"] for tag, a in found.attributes if tag == "a" and "download" not in a}
    index = re.search(r'id="episode-index">(.*?)</script>', page.read_text(), re.DOTALL)
    assert index is not None
    # A compressed card has no element yet; the page's script unpacks it when a link names it.
    packed = {card[0] for group in json.loads(index[1])["groups"] for card in group["episodes"]}
    assert {str(link)[1:] for link in links} <= set(found.ids) | packed


def test_nothing_comes_from_elsewhere_and_the_policy_holds(page: Path) -> None:
    text = page.read_text()
    found = check(page)
    for tag, attributes in found.attributes:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            value = attributes.get(name)
            if value is not None:
                assert value.startswith(("#", "data:")), value
    policy = next(a["content"] for _, a in found.attributes if a.get("http-equiv"))
    assert policy is not None
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_banner_and_size_mark_stand_in_every_section(page: Path) -> None:
    text = words(page)
    assert "Nano model, small desktop" in text
    assert "Shows that the pipeline works, says nothing about the paper's numbers." in text
    sections = re.findall(r"<section.*?</section>", page.read_text(), re.DOTALL)
    assert len(sections) > 8
    marked = [section.count('class="size-tag"') >= 1 for section in sections]
    assert marked == [True] * (len(sections) - 1) + [False]  # the glossary has no number
    assert text.count("not run") >= 15


def test_numbers_of_the_summary_are_on_the_page(study: Study, page: Path) -> None:
    summary = json.loads((study.results / "summary.json").read_bytes())
    html = page.read_text()
    for row in summary["rates"]:
        assert f"{row['successes']} of {row['valid']}" in html
    assert summary["inputs"][0]["sha256"] in html
    for curve in summary["curves"]:
        assert f"{curve['points'][-1]['reward_before']:.3f}" in html


def test_hostile_text_is_only_text(tmp_path: Path) -> None:
    study = make_study(
        tmp_path,
        tasks=4,
        trials=1,
        steps=1,
        text=lambda i: "\n".join(HOSTILE),
        instruction=HOSTILE[1] + HOSTILE[0],
    )
    study.config.report.notes = [HOSTILE[0], "Registered before it was run."]
    evaluate(study)
    page = render(study)
    assert "<li>Registered before it was run.</li>" in page.read_text()
    found = check(page)
    scripts = [a.get("type") for tag, a in found.attributes if tag == "script"]
    assert scripts.count(None) == 1
    assert set(scripts) <= {None, "application/json", "text/plain"}
    assert not [a for _, a in found.attributes if any(name.startswith("on") for name in a)]
    text = "".join(found.text)
    for line in HOSTILE[:7]:
        assert line in text


def test_actions_are_drawn_where_they_were(study: Study, page: Path) -> None:
    html = page.read_text()
    row = read_scores(study.results / "scores.parquet").query("outcome == 'success'").iloc[0]
    steps = (study.episodes / row["directory"] / "steps.jsonl").read_text().splitlines()
    action = json.loads(steps[-1])["action"]
    assert action["type"] == "click"
    shape = drawing(mark_of(Click(action["x"], action["y"])), *SCREEN).path  # type: ignore[arg-type]
    assert html.count(f'd="{shape}"') >= 2  # halo and line
    assert f"click at ({action['x']}, {action['y']})" in html


def test_drawings() -> None:
    mark = mark_of(Click(40, 60))
    assert mark is not None
    ring = drawing(mark, 100, 100)
    assert ring.path.startswith("M36.8 60.0a3.2 3.2 0 1 0 6.4 0")
    assert ring.halo > ring.line > 0
    drag = mark_of(Drag(10, 10, 60, 10))
    assert drag is not None
    assert "M10.0 10.0L60.0 10.0" in drawing(drag, 100, 100).path
    scroll = mark_of(Scroll("down", 50, 50))
    assert scroll is not None
    assert "M50.0 50.0L50.0 59.6" in drawing(scroll, 100, 100).path
    for action in (None, Wait(), TypeText("x"), Scroll("up"), Click("40", 60), Click(10**9, 0)):  # type: ignore[arg-type]
        assert mark_of(action) is None


def test_budget_leaves_out_whole_episodes_and_says_so(study: Study, tmp_path: Path) -> None:
    scores = read_scores(study.results / "scores.parquet")
    full = build_gallery(scores, study.episodes, budget_mb=12, width=960)
    assert full.over_budget == 0
    assert full.used_bytes == sum(len(image["uri"]) for image in full.images)
    some = build_gallery(scores, study.episodes, budget_mb=full.used_bytes / 2e6, width=960)
    assert 0 < some.used_bytes <= full.used_bytes / 2
    assert 0 < some.with_shots < full.with_shots
    assert some.with_shots + some.over_budget + some.without_files == len(some.episodes)
    # Every arm and split still has something to look at.
    shown = {(e.row["arm"], e.row["split"]) for e in some.episodes if e.has_shots}
    assert len(shown) >= 4
    none = build_gallery(scores, study.episodes, budget_mb=0, width=960)
    assert none.with_shots == 0 < none.over_budget
    assert all(e.steps for e in none.episodes if e.row["n_steps"])
    small = build_gallery(scores, study.episodes, budget_mb=12, width=80)
    assert small.used_bytes < full.used_bytes
    assert (small.images[0]["width"], small.images[0]["height"]) == SCREEN


def test_broken_and_foreign_screenshots_are_left_out(tmp_path: Path) -> None:
    study = make_study(tmp_path, tasks=3, trials=1, arms=("base",), steps=1, choose=lambda *_: "success")
    evaluate(study)
    first, second, *_ = sorted(study.episodes.rglob("step_000.webp"))
    first.write_bytes(b"RIFF\x00\x00\x00\x00WEBPVP8 no image")
    Image.new("RGB", (4, 4)).save(second, "PNG")
    gallery = build_gallery(
        read_scores(study.results / "scores.parquet"), study.episodes, budget_mb=12, width=960
    )
    without = [step for e in gallery.episodes for step in e.steps if step.shot is None]
    assert len(without) == 2
    assert "screenshot not in this page" in words(render(study))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"trials": 0, "steps": 0},
            ["There is no episode in this study yet", "0 valid", "no learning", "No metrics of any stage"],
        ),
        (
            {"trials": 1, "choose": lambda *_: "env_error"},
            ["no screenshot: environment failure", "every episode ended in an environment", "no score"],
        ),
        (
            {
                "trials": 1,
                "steps": 0,
                "choose": lambda arm, task, _: "success" * (arm == "base" and task.endswith("_test_in_0")),
            },
            ["Screenshots of 1 of 1 episode are", "A difference needs scored episodes", "were not run"],
        ),
        ({"trials": 1, "screenshots": False}, ["have no screenshot on disk", "screenshot not in this page"]),
        ({"trials": 1, "arms": ("base",)}, ["What was found Success rates Differences Task by task"]),
        (
            {"trials": 1, "seeds": (0, 1)},
            ["2 training seeds", "all", "trials of one training seed stand together", "seed 1, trial 0"],
        ),
    ],
)  # fmt: skip
def test_thin_studies_say_what_is_missing(options: dict, expected: list[str], tmp_path: Path) -> None:
    study = make_study(tmp_path, tasks=3, **{"steps": 2, **options})
    evaluate(study)
    text = words(render(study))
    for line in expected:
        assert line in text
    assert "nan" not in text.lower().split()
    assert "None" not in text.split()


def test_missing_inputs_are_one_sentence(study: Study, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"summary\.json cannot be read"):
        render_report(study.config, page_files(tmp_path), tmp_path / "index.html")


def test_figures_lose_styles_and_gain_prefixes() -> None:
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="9pt">'
        "<style>*{color:red}</style><defs><path id='a'/></defs>"
        "<g clip-path='url(#b)'><use xlink:href='#a' style='fill: #0072B2; stroke: #123456; font: x'/></g>"
        "</svg>"
    )
    found = embed(svg, "p", "A <title>", "text")
    assert "style" not in found
    assert 'href="#p-a"' in found
    assert "url(#p-b)" in found
    assert 'class="f-grpo"' in found
    assert 'stroke="#123456"' in found
    assert "A &lt;title&gt;" in found


def test_words_for_numbers(tmp_path: Path) -> None:
    assert [percent(v) for v in (0.325, 0, 1, None)] == ["32.5", "0.0", "100.0", "not run"]
    assert [points(v) for v in (0.123, -0.2, 0.0004)] == ["+12.3", "\N{MINUS SIGN}20.0", "0.0"]
    assert [duration(v) for v in (3.21, 61, 3720, None)] == [
        "3.2 s",
        "1 min 1 s",
        "1 h 2 min",
        "not recorded",
    ]
    assert sorted(["t_10", "t_9", "a²"], key=lambda t: natural("d", t)) == ["a²", "t_9", "t_10"]
    assert job_rows(tmp_path) == []
    (tmp_path / "a.tsv").write_text("s\tmax_rss\n1.5\t-\n")
    assert job_rows(tmp_path) == [{"job": "a", "seconds": 1.5, "peak_mb": None, "cpu_seconds": None}]


def test_every_row_names_the_place_it_comes_from(study: Study, page: Path) -> None:
    documents = {
        name: json.loads((study.results / name).read_bytes()) for name in ("summary.json", "claims.json")
    }
    hashes = {name: hashlib.sha256((study.results / name).read_bytes()).hexdigest() for name in documents}
    found = 0
    for _, attributes in check(page).attributes:
        place = attributes.get("data-from") or ""
        name, _, pointer = place.partition("/")
        if name not in documents:
            continue
        value = documents[name]
        for part in pointer.split("/"):
            value = value[int(part)] if part.isdigit() else value[part]
        assert value
        hint = str(attributes["title"])
        assert hashes[name] in hint
        assert f"/{pointer}" in hint
        assert "rule " in hint
        found += 1
    assert found > 100
    html = page.read_text()
    for name, sha256 in hashes.items():
        assert f'id="file-{sha256[:12]}"' in html, name


def test_numbers_stand_in_the_row_that_names_them(study: Study, page: Path) -> None:
    html = page.read_text()
    summary = json.loads((study.results / "summary.json").read_bytes())
    for kind, value, shown in (("rates", "of_valid", percent), ("differences", "difference", points)):
        for place, row in enumerate(summary[kind]):
            found = re.findall(rf'data-from="summary.json/{kind}/{place}">(.*?)</(?:tr|li)>', html, re.DOTALL)
            assert len(found) == (1 if row["protocol"] == "standard" else 2), (kind, place)
            assert f"<strong>{shown(row[value]['value'])}</strong>" in found[-1]
            if row["protocol"] == "hard":  # on the first screen too
                first = shown(row[value]["value"], 0) if kind == "rates" else points(row[value]["value"])
                assert f'<span class="own">{first}</span>' in found[0]


def test_gates_are_shown_with_what_was_found(study: Study, page: Path, tmp_path: Path) -> None:
    assert "4 of 4 stages passed every gate" in words(page)
    (cells,) = re.findall(r'data-from="summary.json/gates/0">(.*?)</tr>', page.read_text(), re.DOTALL)
    assert "verdict-passed" in cells
    assert "3 of 3 steps are logged" in cells
    failed = make_study(tmp_path, tasks=3, trials=1, steps=1, screenshots=False)
    report = json.loads(failed.reports[0].read_text())
    report |= {"passed": False, "reason": "The stage 'grpo seed 0 stage train_4' does not meet its gates."}
    report["gates"][0] |= {"state": "failed", "says": "2 of 3 <steps> are logged"}
    failed.reports[0].write_text(json.dumps(report))
    evaluate(failed)
    text = words(render(failed))
    assert "3 of 4 stages passed every gate" in text
    assert "steps failed: 2 of 3 <steps> are logged" in text
    assert "does not meet its gates." in text


def test_beginning_and_end_of_a_short_stage_are_not_the_same_updates() -> None:
    updates = [CurvePoint(step=i, success=i / 10) for i in range(1, 9)]
    assert first_and_last(updates, "success") == pytest.approx([0.2, 0.7])
    assert first_and_last(updates[:3], "success") == pytest.approx([0.1, 0.3])
    assert first_and_last(updates[:1], "success") == pytest.approx([0.1, 0.1])
    assert first_and_last([], "success") == [None, None]


def test_another_process_writes_the_same_bytes(study: Study, page: Path, tmp_path: Path) -> None:
    """Nothing hangs on the order of sets, the time or the process."""
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(study.config.model_dump(mode="json")))
    out = tmp_path / "page.html"
    code = (
        "import sys; from pathlib import Path; from arpo_replica.config import load_config;"
        "from arpo_replica.report.render import render_report;"
        "from synthetic_study import page_files;"
        "config, results, out = map(Path, sys.argv[1:]);"
        "render_report(load_config(config), page_files(results), out)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Kathmandu", "LC_ALL": "C"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", code, str(config), str(study.results), str(out)]
    subprocess.run(command, check=True, env=environment)
    assert out.read_bytes() == page.read_bytes()
