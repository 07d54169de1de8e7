"""Tables, schemas and their page: stable columns, safe cells, the same bytes, the mark in every row."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import jsonschema
import pandas as pd
import pytest

from arpo_replica.evaluation.published import load_claims
from arpo_replica.evaluation.tables import (
    SCHEMAS,
    TABLES,
    as_csv,
    render_results,
    render_schema,
    table_files,
    write_tables,
)
from synthetic_study import Study, evaluate, make_study

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = make_study(tmp_path_factory.mktemp("study"), tasks=5, screenshots=False)
    evaluate(study)
    return study


def write(study: Study, folder: Path) -> dict[str, bytes]:
    results = study.results
    written = write_tables(
        results / "summary.json", results / "claims.json", results / "scores.parquet", folder
    )
    assert [f"x/{path.name}" for path in written] == table_files("x")
    return {path.name: path.read_bytes() for path in written}


def test_the_page_and_the_schemas_are_up_to_date() -> None:
    assert (ROOT / "docs/results.md").read_text() == render_results(), "run: arpo docs"
    for name in SCHEMAS:
        committed = (ROOT / f"docs/schemas/{name}.schema.json").read_text()
        assert committed == render_schema(name), "run: arpo docs"


def test_what_each_claim_takes_is_said_once() -> None:
    claims, _ = load_claims(ROOT / "data/paper/claims.yaml", ROOT / "data/paper/results.yaml")
    takes = {claim.id: claim.effort() for claim in claims}
    assert takes["table1_base_standard"] == "base"
    assert takes["table1_gain_over_base"] == "released"
    assert takes["table1_gain_over_grpo"] == "trained"  # nobody published weights of GRPO alone
    assert takes["figure3_replay"] == "trained"
    rows = [line for line in render_results().splitlines() if line.startswith("| ") and line.count("`") > 8]
    for name, effort in takes.items():
        assert sum(f"`{name}`" in row for row in rows) == (effort != "unmeasured"), name


@pytest.mark.parametrize("name", ["summary", "claims"])
def test_what_is_written_fits_its_schema(study: Study, name: str) -> None:
    schema = json.loads(render_schema(name))
    document = json.loads((study.results / f"{name}.json").read_bytes())
    jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "surprise": 1}, schema)


def test_tables_have_their_columns_and_the_mark(study: Study, tmp_path: Path) -> None:
    files = write(study, tmp_path)
    for table in TABLES:
        names = table.names
        assert names[:4] == ["study", "size", "desktop", "synthetic"]
        rows = list(csv.DictReader(io.StringIO(files[f"{table.name}.csv"].decode())))
        again = json.loads(files[f"{table.name}.json"])["rows"]
        assert len(rows) == len(again)
        for row in rows:
            assert list(row) == names
            assert (row["study"], row["size"], row["synthetic"]) == ("synthetic", "nano", "false")
    rates = pd.read_csv(io.BytesIO(files["rates.csv"]))
    assert len(rates) == 3 * 2 * 2
    assert len(pd.read_csv(io.BytesIO(files["episodes.csv"]))) == len(
        pd.read_parquet(study.results / "scores.parquet")
    )


def test_a_table_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    empty = make_study(tmp_path, tasks=3, trials=0, steps=0)
    evaluate(empty)
    files = write(empty, tmp_path / "tables")
    assert files["flips.csv"].decode().splitlines() == [
        ",".join(next(table.names for table in TABLES if table.name == "flips"))
    ]


def test_the_same_inputs_give_the_same_bytes(study: Study, tmp_path: Path) -> None:
    assert write(study, tmp_path / "a") == write(study, tmp_path / "b")


def test_no_cell_is_a_formula() -> None:
    text = as_csv(["a", "b"], [{"a": '=HYPERLINK("http://x")', "b": -1.5}, {"a": "@x", "b": None}]).decode()
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[1] == ['\'=HYPERLINK("http://x")', "-1.5"]
    assert rows[2] == ["'@x", ""]
