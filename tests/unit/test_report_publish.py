"""Publishing and comparing: what goes out, what is refused, and that it is the same each time."""

import hashlib
import html
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from rocrate.rocrate import ROCrate

from arpo_replica.base.checkout import require_clean
from arpo_replica.base.errors import UserError
from arpo_replica.cli import main
from arpo_replica.evaluation.records import Interval
from arpo_replica.evaluation.statistics import wilson
from arpo_replica.report.compare import as_text, compare_studies, difference, write_comparison
from arpo_replica.report.publish import files_of, publish_report
from synthetic_study import Study, evaluate, make_study, render
from synthetic_study import published_files as files


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = make_study(
        tmp_path_factory.mktemp("study"), tasks=3, trials=1, steps=2,
        overrides={"report": {"full_trajectories": True, "full_screenshots": True, "screenshots_mb": 0.001}},
    )  # fmt: skip
    evaluate(study)
    return study


@pytest.fixture(scope="module")
def page(study: Study) -> Path:
    return render(study)


def publish(study: Study, page: Path, to: Path) -> tuple[Path, Path]:
    folder, archive = to / "arpo_synthetic", to / "arpo_synthetic.zip"
    publish_report(study.config, files(study.results, page), folder, archive, repository=Path())
    return folder, archive


@pytest.fixture(scope="module")
def published(study: Study, page: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return publish(study, page, tmp_path_factory.mktemp("out"))


def test_folder_holds_the_page_and_all_that_is_behind_it(
    study: Study, page: Path, published: tuple[Path, Path]
) -> None:
    folder, archive = published
    names = {path.relative_to(folder).as_posix() for path in files_of(folder)}
    assert (folder / "index.html").read_bytes() == page.read_bytes()
    for name in ("summary.json", "claims.json", "provenance.json", "scores.csv"):
        assert (folder / "data" / name).read_bytes() == (study.results / name).read_bytes()
    assert {"tables/rates.csv", "tables/rates.json", "README.txt", ".nojekyll", "osworld/index.json"} <= names
    assert "training/arpo/seed_0/stage_train_32/metrics.jsonl" in names
    assert any(name.startswith("screenshots/") for name in names)
    taken = [path.relative_to(study.episodes).as_posix() for path in study.episodes.rglob("step_*.webp")]
    assert taken
    assert {f"trajectories/{name}" for name in taken} <= names
    results = [name for name in names if name.endswith("result.txt")]
    assert results
    assert all(name.startswith("osworld/pyautogui/screenshot/") for name in results)
    with zipfile.ZipFile(archive) as packed:
        assert packed.testzip() is None
        assert {name.removeprefix("arpo_synthetic/") for name in packed.namelist()} == names


def test_hashes_are_right_and_complete(published: tuple[Path, Path]) -> None:
    folder, _ = published
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    listed = dict(reversed(line.split("  ", 1)) for line in lines)
    names = {path.relative_to(folder).as_posix() for path in files_of(folder)}
    assert set(listed) == names - {"SHA256SUMS"}
    for name, sha256 in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
    assert (
        subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=False).returncode == 0
    )


def test_same_results_same_zip(
    study: Study, page: Path, published: tuple[Path, Path], tmp_path: Path
) -> None:
    _, again = publish(study, page, tmp_path)
    assert again.read_bytes() == published[1].read_bytes()


def test_metadata_are_a_crate(published: tuple[Path, Path]) -> None:
    folder, _ = published
    document = json.loads((folder / "ro-crate-metadata.json").read_bytes())
    entities = {entity["@id"]: entity for entity in document["@graph"]}
    about = entities["ro-crate-metadata.json"]
    assert about["about"] == {"@id": "./"}
    assert about["conformsTo"]["@id"].startswith("https://w3id.org/ro/crate/1.")
    root = entities["./"]
    for key in ("name", "description", "datePublished", "license"):
        assert root[key]
    assert "nano · process" in root["name"]
    parts = {part["@id"] for part in root["hasPart"]}
    assert {"index.html", "data/claims.json", "tables/rates.csv", "trajectories/", "osworld/"} <= parts
    for name in parts:
        assert (folder / name).exists(), name
        if entities[name]["@type"] == "File":
            data = (folder / name).read_bytes()
            assert entities[name]["sha256"] == hashlib.sha256(data).hexdigest()
            assert entities[name]["contentSize"] == str(len(data))
    assert ROCrate(folder).name == root["name"]


def test_invented_data_are_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path, tasks=2, trials=1, steps=0, arms=("base",))
    for path in study.episodes.rglob("episodes.jsonl"):
        lines = [
            json.dumps({**json.loads(line), "synthetic": True}) for line in path.read_text().splitlines()
        ]
        path.write_text("\n".join(lines) + "\n")
    evaluate(study)
    page = render(study)
    text = page.read_text()
    assert "Nothing on this page was measured" in text
    assert "invented · process" in text
    with pytest.raises(UserError, match="invented data are never published"):
        publish(study, page, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("left", ["episode.json", "manifest.json"])
def test_one_mark_that_is_left_is_enough(study: Study, page: Path, tmp_path: Path, left: str) -> None:
    """Who takes the mark out of summary, claims and scores still publishes no invented study."""
    results = tmp_path / "results"
    shutil.copytree(study.results, results)
    path = next(results.rglob(left))
    raw = json.loads(path.read_bytes())
    recipe = {**raw.get("recipe", {}), "synthetic": True}
    path.write_text(json.dumps(raw | ({"synthetic": True} if left == "episode.json" else {"recipe": recipe})))
    with pytest.raises(UserError, match=f"{left} says that its data is synthetic"):
        publish_report(
            study.config, files(results, page), tmp_path / "out", tmp_path / "out.zip", repository=Path()
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("full", [True, False])
def test_what_offline_arms_learnt_from_goes_along(
    study: Study, page: Path, tmp_path: Path, full: bool
) -> None:
    results = tmp_path / "results"
    shutil.copytree(study.results, results)
    taught = results / "offline/train_32/trial_0"
    shutil.copytree(next(study.episodes.rglob("trial_0")), taught)
    learning = results / "models/kto/seed_0/stage_train_32/learning.jsonl"
    learning.parent.mkdir(parents=True)
    learning.write_text('{"step": 1, "loss": 0.5}\n')
    report = study.config.report.model_copy(update={"full_trajectories": full})
    config = study.config.model_copy(update={"report": report})
    publish_report(config, files(results, page), tmp_path / "out", tmp_path / "out.zip", repository=Path())
    names = {path.relative_to(tmp_path / "out").as_posix() for path in files_of(tmp_path / "out")}
    assert "training/kto/seed_0/stage_train_32/learning.jsonl" in names
    assert "offline/train_32/trial_0/episodes.jsonl" in names
    assert any(name.startswith("offline/") and name.endswith("steps.jsonl") for name in names) == full


def test_published_refuses_uncommitted_changes(tmp_path: Path) -> None:
    study = make_study(
        tmp_path / "study",
        tasks=2,
        trials=1,
        steps=0,
        arms=("base",),
        overrides={"report": {"published": True}},
    )
    evaluate(study)
    page = render(study)
    checkout = tmp_path / "checkout"
    checkout.mkdir()

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(checkout), *identity, *arguments], check=True, capture_output=True)

    git("init", "-q")
    (checkout / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "first")
    folder, archive = tmp_path / "out", tmp_path / "out.zip"
    provenance = study.results / "provenance.json"

    def recorded(jobs: Sequence[object] = (), **state: object) -> None:
        raw = json.loads(provenance.read_bytes())
        git = {"commit": "a" * 40, "changed": [], **state}
        provenance.write_text(json.dumps({**raw, "git": git, "cluster_jobs": list(jobs)}))

    def go() -> None:
        publish_report(study.config, files(study.results, page), folder, archive, repository=checkout)

    recorded(dirty=True)
    with pytest.raises(UserError, match="was made from a checkout with uncommitted changes"):
        go()
    recorded(dirty=False)
    (checkout / "a").write_text("2")
    with pytest.raises(UserError, match=r"1 uncommitted changes \(first: a\)"):
        go()
    git("commit", "-qam", "second")
    manifest = study.results / "models" / "arpo" / "seed_0" / "stage_x" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"versions": {"arpo-replica": "a" * 40 + "+changes"}}))
    with pytest.raises(
        UserError, match=r"stage_x/manifest\.json was trained from a checkout with uncommitted"
    ):
        go()
    manifest.write_text(json.dumps({"versions": {"arpo-replica": "a" * 40}}))
    job = {"rule": "collect_rollouts", "output": "episodes.jsonl", "job": "7"}
    recorded(dirty=False, jobs=[{**job, "commit": "b+changes"}])
    with pytest.raises(
        UserError, match=r"episodes\.jsonl was made by job 7 from a checkout with uncommitted"
    ):
        go()
    recorded(
        dirty=False, jobs=[{**job, "commit": "b+changes"}, {**job, "commit": "c"}, {**job, "output": "x"}]
    )
    go()
    assert archive.is_file()


def test_a_study_for_publication_does_not_start_in_a_checkout_with_changes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no git checkout"):
        require_clean(tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(
        [*("git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"),
         *("commit", "-q", "--allow-empty", "-m", "first")],
        check=True,
    )  # fmt: skip
    require_clean(tmp_path)
    (tmp_path / "new").write_text("1")
    with pytest.raises(UserError, match=r"1 uncommitted changes \(first: new\)"):
        require_clean(tmp_path)


def interval(successes: int, trials: int) -> Interval:
    return wilson(successes, trials)


def test_difference_of_studies_is_newcombes_for_simple_runs() -> None:
    value, low, high = difference(interval(56, 70), interval(48, 80))
    # Newcombe 1998, table II, example a, method 10: 0.2000, 0.0524 to 0.3339.
    assert (round(value, 4), round(low, 4), round(high, 4)) == (0.2, 0.0524, 0.3339)


def test_compare_two_studies(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_study(tmp_path, name="synthetic_b", tasks=3, trials=1, steps=0, choose=lambda *_: "success")
    evaluate(other)
    found = compare_studies(study.results, other.results)
    # Nothing of this list is infeasible, so the protocols agree and it stands once.
    (pair,) = [p for p in found.pairs if (p.split, p.arm) == ("test_in", "base")]
    assert pair.protocol == "both"
    # The other list holds an infeasible task.
    assert [p.protocol for p in found.pairs if (p.split, p.arm) == ("test_out", "base")] == [
        "hard",
        "standard",
    ]
    assert pair.yours is not None
    assert pair.yours.value == 1
    assert pair.gap is not None
    assert pair.gap[0] == pytest.approx((pair.mine.value if pair.mine else 0) - 1)
    assert ("report.full_trajectories", "true", "false") in found.settings
    out = tmp_path / "compare.html"
    assert main(["compare", str(study.results), str(other.results), "--out", str(out)]) == 0
    assert "yours: synthetic_b (nano, process)" in capsys.readouterr().out
    before = out.read_bytes()
    write_comparison(found, out)
    assert out.read_bytes() == before
    text = out.read_text()
    assert "<script" not in text
    assert "script-src 'none'" in html.unescape(text)


def test_studies_of_different_marks_or_tasks_get_no_difference(study: Study, tmp_path: Path) -> None:
    other = make_study(tmp_path, name="synthetic_b", tasks=2, trials=1, steps=0)
    evaluate(other)
    assert "other tasks" in as_text(compare_studies(study.results, other.results))
    summary = other.results / "summary.json"
    summary.write_text(summary.read_text().replace('"desktop": "process"', '"desktop": "container"', 1))
    found = compare_studies(study.results, other.results)
    assert not found.comparable
    assert all(pair.gap is None for pair in found.pairs)
    assert "The marks differ" in as_text(found)
    assert main(["compare", str(study.results), str(tmp_path)]) == 2
    # The config says one desktop, the episodes' own records another.
    summary.write_text(summary.read_text().replace('"desktop": "container"', '"desktop": "process"', 1))
    assert compare_studies(study.results, other.results).comparable
    summary.write_text(re.sub(r'"desktops": \{[^}]*\}', '"desktops": {"container": 2}', summary.read_text()))
    assert not compare_studies(study.results, other.results).comparable


def test_published_folder_can_be_compared(study: Study, published: tuple[Path, Path]) -> None:
    found = compare_studies(study.results, published[0])
    assert all(pair.gap is None or pair.gap[0] == 0 for pair in found.pairs)
    assert found.settings == []
