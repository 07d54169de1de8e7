"""Commands in the docs parse, and the files that they name exist; a class name has one meaning."""

from __future__ import annotations

import ast
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from snakemake.cli import get_argument_parser

from arpo_replica import cli
from arpo_replica.base.environments import ROOT
from arpo_replica.config import load_config, parse_config
from arpo_replica.config.models import merge
from arpo_replica.evaluation.targets import TARGETS
from arpo_replica.suites.miniwob.make_tasks import read_plan

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "configs/README.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "configs").rglob("*.yaml")),
]
BLOCK = re.compile(r"^```(?:sh)?\n(.*?)^```|`([^`\n]+)`", re.MULTILINE | re.DOTALL)
RULES = {
    *re.findall(r"^rule (\w+):", "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk")), re.M),
    *TARGETS,
}
YOURS = {"mine.yaml", "X.yaml", "second_model.yaml"}
"""Files that the reader writes."""


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every command in a block or between backticks that names one of our programs."""
    for page in PAGES:
        for block, span in BLOCK.findall(page.read_text()):
            for line in (block or span).replace("\\\n", " ").splitlines():
                for word, before in (("snakemake", "[ '&]"), ("arpo", "['&]")):  # arpo: an arm, too
                    found = re.search(rf"(?:^|{before}){word} (?!\.)([^'&]*)", line.split("  #")[0])
                    if found:
                        yield page.name, [word, *shlex.split(found[1].replace("…", ""))]


SNAKEMAKE = [(page, words) for page, words in commands() if words[0] == "snakemake"]
OURS = [(page, words) for page, words in commands() if words[0] != "snakemake"]


def name(value: object) -> str | None:
    return " ".join(value) if isinstance(value, list) else None


def test_there_are_commands():
    assert len(SNAKEMAKE) > 20
    assert len(OURS) > 15


@pytest.mark.parametrize(("page", "words"), SNAKEMAKE, ids=name)
def test_commands_of_snakemake_parse_and_their_configs_are_a_study(page, words):
    """``--configfile`` takes every word up to the next option: a target stands before it or after ``--``."""
    options = get_argument_parser().parse_args([word for word in words[1:] if word != "..."])
    configs = list(map(str, options.configfile or []))
    for config in configs:
        assert config.endswith(".yaml"), f"{page}: '{config}' is taken for a config"
    if configs and not any(Path(config).name in YOURS for config in configs):
        load_config(*(ROOT / config for config in configs))
    for target in options.targets:
        assert target in RULES or "/" in target or target == "NAME", f"{page}: {target} is no rule"


def test_programs_that_the_docs_run_are_there():
    found = {
        (page.name, program)
        for page in PAGES
        for program in re.findall(r"(?:python3?|sh) ([a-z]\w*/[\w/]+\.(?:py|sh))", page.read_text())
    }
    assert len(found) > 10
    assert [entry for entry in found if not (ROOT / entry[1]).is_file()] == []


@pytest.mark.parametrize(("page", "words"), OURS, ids=name)
def test_our_own_commands_have_these_options(page, words, capsys):
    arguments = [word for word in words[1:] if word != "..."]
    if len(arguments) == 1:
        arguments.append("--help")  # its name alone
    try:
        cli.make_parser().parse_args(arguments)
    except SystemExit as end:
        assert end.code == 0, f"{page}: {capsys.readouterr().err}"


def test_targets_of_make_are_in_the_makefile():
    """In documents, and in what runs for contributors: the hosted checks are the Makefile's, one by one."""
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = [
        (page.name, target)
        for page in [*PAGES, ROOT / ".devcontainer/devcontainer.json"]
        for targets in re.findall(r"[`\"\n]make ([a-z -]+)[`\"\n]", page.read_text())
        for target in targets.split()
    ]
    assert len(named) > 15
    assert [entry for entry in named if entry[1] not in known] == []
    hosted = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["make"]
    assert hosted["steps"][-1]["run"] == "make ${{ matrix.target }}"
    # Other targets that `make test` is made of would not be checked there.
    (checks,) = re.findall(r"^CHECKS := (.+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert hosted["strategy"]["matrix"]["target"] == checks.split()


def test_every_page_begins_with_what_to_want_to_type_and_to_expect():
    for page in sorted((ROOT / "docs").rglob("*.md")):
        title, _, first = page.read_text().partition("\n\n")
        assert title.startswith("# ") or "<!--" in title, page
        for words in ("You want", "Type", "Expect"):
            assert words in first.split("\n\n## ")[0], f"{page.name}: {words}"


def test_every_page_has_its_place_in_the_site_and_every_picture_is_there():
    nav = re.findall(r"([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    docs = ROOT / "docs"
    assert sorted(nav) == sorted(str(page.relative_to(docs)) for page in docs.rglob("*.md"))
    for page in (ROOT / "README.md", *docs.rglob("*.md")):
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)|srcset=\"([^\"]+)\"", page.read_text()):
            assert (page.parent / "".join(target)).is_file(), f"{page.name}: {target}; run: make pictures"


def test_the_config_for_a_model_served_elsewhere_is_one():
    page = (ROOT / "docs/cluster.md").read_text()
    overlay = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)[0])
    raw = merge(yaml.safe_load((ROOT / "configs/paper.yaml").read_text()), overlay)
    config = parse_config(raw, "docs/cluster.md")
    # The options of `vllm serve` on that page.
    assert set(config.arms) == {"base"}
    for option in (
        f"--served-model-name {config.policy.served_model} ",
        f"--max-model-len {config.policy.max_model_len} ",
        f'{{"image": {config.policy.max_images}}}',
        f'{{"min_pixels": {config.policy.min_pixels}, "max_pixels": {config.policy.max_pixels}}}',
    ):
        assert option in page


@pytest.mark.parametrize("page", sorted((ROOT / "docs/tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_the_configs_of_a_tutorial_are_ones(page, tmp_path):
    """Each is laid over the demo, as the page says; a plan of tasks is one."""
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.DOTALL):
        written = yaml.safe_load(block)
        if "splits" in written:
            (tmp_path / "plan.yaml").write_text(block)
            assert set(read_plan(tmp_path / "plan.yaml").splits) == {"train_6", "test_4"}
        else:
            parse_config(merge(yaml.safe_load((ROOT / "configs/demo.yaml").read_text()), written), page.name)


def test_the_page_on_the_code_names_what_is_there():
    page = (ROOT / "docs/architecture.md").read_text()
    named = re.findall(r"[`\[]((?:[\w.]+/)*\w+\.(?:py|md))[`\]]", page)
    assert len(named) > 20
    places = (ROOT, ROOT / "src" / "arpo_replica")
    assert [name for name in named if not any((place / name).is_file() for place in places)] == []
    package = ROOT / "src" / "arpo_replica"
    listed = re.findall(r"^\| `(\w+)`", page, re.MULTILINE)
    folders = {path.parent.name for path in package.glob("*/__init__.py")} | {"guest"}
    assert set(listed) == folders


def test_every_function_of_the_walks_is_there():
    page = (ROOT / "docs/architecture.md").read_text()
    calls = re.findall(r"`((?:[\w.]+/)+\w+\.py)`, `([\w.]+)`", page)
    assert len(calls) >= 10
    for name, function in calls:
        path = next(
            place / name for place in (ROOT, ROOT / "src" / "arpo_replica") if (place / name).is_file()
        )
        for part in function.split("."):
            assert re.search(rf"(def|class) {part}\b|^\s+{part}: ", path.read_text(), re.MULTILINE), (
                name,
                part,
            )


def test_a_class_name_has_one_meaning():
    names = Counter(
        node.name
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []
