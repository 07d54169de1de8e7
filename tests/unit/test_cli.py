"""What every subcommand has in common: a mistake is one sentence and a status, never a traceback."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from arpo_replica import cli
from arpo_replica.base.errors import UserError
from synthetic_study import evaluate, make_study

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_lies_beside_the_environments_python():
    done = subprocess.run(
        [Path(sys.executable).with_name("arpo"), "explain", "policy.max_steps"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert "policy.max_steps" in done.stdout


def raising(error: BaseException):
    def run(_: object) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (UserError("The key 'x' is wrong; drop it."), 2, "The key 'x' is wrong; drop it."),
        (PermissionError(13, "Permission denied", "/x/y"), 2, "/x/y: Permission denied; correct the path"),
        (IsADirectoryError(21, "Is a directory", "/x/.tmp", None, "/x/y"), 2, "/x/y: Is a directory"),
        (OSError(28, "No space left on device", "/x/y"), 2, "/x/y: No space left on device"),
        (asyncio.CancelledError(), 75, "Stopped by a signal"),
        (KeyboardInterrupt(), 130, "Stopped by a signal"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_one_sentence_and_a_status(monkeypatch, capsys, error, status, sentence):
    monkeypatch.setattr(cli, "load_config", raising(error))
    assert cli.main(["check"]) == status
    said = capsys.readouterr().err
    assert said.startswith(sentence)
    assert said.count("\n") == 1


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(cli, "load_config", raising(OSError("nothing that a user named")))
    with pytest.raises(OSError, match="nothing that a user named"):
        cli.main(["check"])


def test_a_page_that_cannot_be_written_is_named(tmp_path, monkeypatch, capsys):
    study = make_study(tmp_path / "study", tasks=3, trials=1, steps=2)
    evaluate(study)
    monkeypatch.chdir(ROOT)
    place = tmp_path / "pages" / "page.html"
    place.mkdir(parents=True)
    assert cli.main(["compare", str(study.results), str(study.results), "--out", str(place)]) == 2
    assert f"{place}: Is a directory" in capsys.readouterr().err
    assert list(place.parent.iterdir()) == [place]


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["check", "--config"], ["validate-tasks", "--trials", "two"]]
)
def test_an_unknown_command_or_option_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "plan", "doctor", "status"])
def test_the_studys_files_are_given_alike(command, capsys):
    files = ["configs/demo.yaml", "configs/recipes/grpo.yaml"]
    options = cli.make_parser().parse_args([command, "--config", *files])
    (given,) = options.config if command == "plan" else [options.config]  # plan takes several studies
    assert [str(path) for path in given] == files
    assert cli.main([command, "--config", "configs/dmeo.yaml"]) in {1, 2}
    said = capsys.readouterr()
    assert "There is no config configs/dmeo.yaml; did you mean 'configs/demo.yaml'?" in said.out + said.err


@pytest.mark.parametrize("arguments", [["doctor", "--list"], ["explain", "policy.max_steps"]])
def test_a_reader_that_goes_away_ends_it_quietly(arguments):
    """`arpo ... | head -0`: the pipe has no reader when the first line is written."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "arpo_replica", *arguments]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 128 + signal.SIGPIPE
