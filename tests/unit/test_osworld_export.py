"""The export in OSWorld's layout, read the way OSWorld's show_result.py reads it."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from arpo_replica.actions.types import Click, Fail, Finished, TypeText, Wait
from arpo_replica.base.errors import UserError
from arpo_replica.cli import main
from arpo_replica.config import load_config
from arpo_replica.evaluation.osworld_export import export_osworld
from arpo_replica.evaluation.scores import score_episodes
from arpo_replica.rollout.records import StepRecord, write_episode, write_index
from arpo_replica.tasks.splits import load_split
from fakes import episode_record, step_record

ROOT = Path(__file__).parents[2]
# Outcome, infeasible, hard score, standard score of the split's tasks; the last one has no episode.
OUTCOMES = [
    ("success", False, 1.0, 1.0),
    ("failure", False, 0.0, 0.0),
    ("failure", False, 0.4, 0.4),
    ("truncated", False, 1.0, 0.0),
    ("truncated", True, 0.0, 1.0),
    ("env_error", False, None, None),
    None,
]


@pytest.fixture
def config(monkeypatch):
    monkeypatch.chdir(ROOT)
    return load_config(ROOT / "configs/demo.yaml")


def png(shade):
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def record(task, outcome, infeasible, hard, standard, **more):
    steps = 0 if outcome == "env_error" else 4
    errors = ["desktop: it ended"] * (outcome == "env_error")
    fixed = {
        **{"arm": "arpo", "stage": "train_4", "trial": 1, "desktop": "container"},
        **{"checkpoint_sha256": "0" * 64, "format_errors": 1, "n_steps": steps, "errors": errors},
        **{"final_screenshot": f"step_{steps:03d}.webp", "started_at": 1_700_000_000.0},
        **{"duration_s": 30.0, "evaluate_s": 2.0},
    }
    scores = {"outcome": outcome, "hard_score": hard, "standard_score": standard}
    return episode_record(task, infeasible=infeasible, **scores, **(fixed | more))


def steps(outcome):
    """A click, a word, a wait, and an end: by the policy, or by a reply that was no action."""
    if outcome == "env_error":
        return []
    last = {"success": Finished(), "failure": Fail(), "truncated": None}[outcome]
    actions = [Click(3, 4), TypeText('é"<'), Wait(), last]
    return [
        step_record(
            index,
            f"Thought: {index}\u2028\nAction: x",
            action=None if action is None else action.to_json(),
            action_id=str(index),
            format_error="no action" if action is None else None,
            **{"model_s": 1.0, "env_s": 0.5, "prompt_tokens": 1, "completion_tokens": 1},
        )
        for index, action in enumerate(actions)
    ]


@pytest.fixture
def episodes(config, tmp_path):
    """A finished set of episodes."""
    root = tmp_path / "episodes/arpo/seed_0/stage_train_4/test_in/trial_1"
    for task, entry in zip(
        load_split(config.tasks.splits["test_in"], config.tasks.root), OUTCOMES, strict=False
    ):
        if entry is not None:
            images = {f"step_{n:03d}.webp": png(10 * n) for n in range(5)} if entry[0] != "env_error" else {}
            write_episode(root, record(task, *entry), steps(entry[0]), images)
    write_index(root)
    return tmp_path / "episodes"


def read_as_osworld_does(result_dir, model):
    """Task -> score, from folders that hold a result.txt; files beside them are not looked at."""
    found = {}
    for domain in (result_dir / "pyautogui" / "screenshot" / model).iterdir():
        if domain.is_dir():
            for example in domain.iterdir():
                if example.is_dir() and "result.txt" in [path.name for path in example.iterdir()]:
                    found[f"{domain.name}/{example.name}"] = float((example / "result.txt").read_text())
    return found


def test_every_action_of_a_reply_is_a_line(config, episodes, tmp_path):
    for path in episodes.rglob("steps.jsonl"):
        lines = [StepRecord.model_validate_json(line) for line in path.read_text().split("\n") if line]
        if lines:
            lines[0].further = [TypeText("a").to_json()]
            path.write_text("".join(step.to_line() for step in lines))
    [run] = export_osworld(config, episodes, tmp_path / "out").runs
    [written, *_] = sorted((tmp_path / "out").rglob("traj.jsonl"), key=lambda file: -file.stat().st_size)
    assert run.model in written.parts
    lines = [json.loads(line) for line in written.read_text().split("\n") if line]
    assert [line["step_num"] for line in lines] == [1, 1, 2, 3, 4]
    assert [line["action"] for line in lines[:2]] == ["pyautogui.click(3, 4)", "pyautogui.write('a')"]
    assert [line["screenshot_file"] is None for line in lines[:2]] == [True, False]


@pytest.mark.parametrize("protocol", ["hard", "standard"])
def test_osworlds_reader_gets_our_rates(config, episodes, tmp_path, protocol):
    index = export_osworld(config, episodes, tmp_path / "out", protocol)
    [run] = index.runs
    scores = read_as_osworld_does(tmp_path / "out", run.model)
    table = score_episodes(config, [episodes], tmp_path / "scores.parquet")
    assert set(table["desktop_mark"]) == {"OSWorld-compatible, container desktop"}
    valid = table[table["valid"]]
    assert scores == {
        f"{domain}/{task}": score
        for domain, task, score in zip(
            valid["domain"], valid["task_id"], valid[f"{protocol}_score"], strict=True
        )
    }
    assert sum(scores.values()) / len(scores) == pytest.approx(float(valid[f"{protocol}_score"].mean()))
    assert run.mean_score == pytest.approx(sum(scores.values()) / len(scores))
    assert run.success_of_scored == pytest.approx(float(valid[f"success_{protocol}"].mean()))
    assert (run.scored, run.tasks) == (5, 20)
    ids = [f"{t.domain}/{t.id}" for t in load_split(config.tasks.splits["test_in"], config.tasks.root)]
    assert run.env_errors == {ids[5]: "desktop: it ended"}
    assert run.missing == sorted(ids[6:])
    assert json.loads((tmp_path / "out/index.json").read_text()) == index.model_dump(mode="json")


def test_what_a_killed_job_was_removing_is_not_exported(config, episodes, tmp_path):
    root = episodes / "arpo/seed_0/stage_train_4/test_in/trial_1"
    shutil.copytree(next(root.glob("*.*/")), root / ".tmp-dead")
    [run] = export_osworld(config, episodes, tmp_path / "out").runs
    assert run.scored + len(run.env_errors) == 6


def test_the_protocols_differ_where_episodes_were_cut(config, episodes, tmp_path):
    hard, standard = (
        read_as_osworld_does(
            tmp_path / protocol, export_osworld(config, episodes, tmp_path / protocol, protocol).runs[0].model
        )
        for protocol in ("hard", "standard")
    )
    assert sorted(hard.values()) == [0.0, 0.0, 0.4, 1.0, 1.0]
    assert sum(hard[task] != standard[task] for task in hard) == 2


def test_files_of_one_task(config, episodes, tmp_path):
    [run] = export_osworld(config, episodes, tmp_path / "out").runs
    folder = tmp_path / "out/pyautogui/screenshot" / run.model / "miniwob/click-test-2-s500"
    lines = [json.loads(line) for line in (folder / "traj.jsonl").read_text().split("\n") if line]
    assert [line["step_num"] for line in lines] == [1, 2, 3, 4]
    assert [line["action"] for line in lines][::2] == ["pyautogui.click(3, 4)", "WAIT"]
    assert "é" not in lines[1]["action"], "text of a policy is an escaped literal"
    assert [line["done"] for line in lines] == [False, False, False, True]
    assert lines[-1]["action"] == "DONE"
    assert lines[0]["response"] == "Thought: 0\u2028\nAction: x"
    assert [line["action_timestamp"] for line in lines] == sorted(line["action_timestamp"] for line in lines)
    for number, line in enumerate(lines, start=1):
        assert re.fullmatch(rf"step_{number}_\d{{8}}@\d{{12}}\.png", line["screenshot_file"])
        with Image.open(folder / line["screenshot_file"]) as image:
            assert image.format == "PNG"
            assert image.getpixel((0, 0)) == (10 * number, 0, 0), "the screen after the action"
    assert len(list(folder.glob("step_*.png"))) == 5


def test_ends_of_other_kinds(config, episodes, tmp_path):
    [run] = export_osworld(config, episodes, tmp_path / "out").runs
    base = tmp_path / "out/pyautogui/screenshot" / run.model / "miniwob"
    tasks = load_split(config.tasks.splits["test_in"], config.tasks.root)

    def lines(index):
        text = (base / tasks[index].id / "traj.jsonl").read_text()
        return [json.loads(line) for line in text.split("\n") if line]

    assert lines(1)[-1]["action"] == "FAIL"
    cut = lines(3)[-1]
    assert (cut["action"], cut["done"], cut["info"]) == ("", False, {"format_error": "no action"})
    assert lines(5) == [{"Error": "desktop: it ended"}]
    assert not (base / tasks[5].id / "result.txt").exists()


def test_the_mark_of_the_desktops_is_said(config, episodes, tmp_path, monkeypatch, capsys):
    arguments = ["export-osworld", "--config", "configs/demo.yaml", "--episodes", str(episodes)]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    mark = "OSWorld-compatible, container desktop"
    said = capsys.readouterr().out
    assert f"5 of 20 tasks have a score, 1 env_error [{mark}]" in said
    assert json.loads((tmp_path / "out/index.json").read_text())["runs"][0]["desktop_mark"] == mark
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["export-osworld", "--config", "configs/demo.yaml", "--out", str(tmp_path / "b"),
                 "--episodes", str(tmp_path / "nothing")]) == 2  # fmt: skip
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["export-osworld", "--config", "configs/demo.yaml", "--out", str(tmp_path / "b"),
                 "--episodes", str(tmp_path / "file")]) == 2  # fmt: skip
    assert "name the folder of a study's episodes" in capsys.readouterr().err


def test_nothing_to_export_is_an_error(config, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no finished"):
        export_osworld(config, tmp_path / "empty", tmp_path / "out")
