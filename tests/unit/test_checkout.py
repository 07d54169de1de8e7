"""Which code a result was made with."""

from __future__ import annotations

import subprocess

from arpo_replica.base.checkout import answer_of, code_version


def git(folder, *arguments):
    name = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(("git", "-C", str(folder), *name, *arguments), check=True, capture_output=True)


def test_the_commit_and_whether_files_differ_from_it(tmp_path):
    assert code_version(tmp_path) == "unknown"
    git(tmp_path, "init")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "one")
    commit = code_version(tmp_path)
    assert len(commit) == 40
    (tmp_path / "file").write_text("two")
    assert code_version(tmp_path) == f"{commit}+changes"


def test_a_program_that_is_not_there_or_fails_has_no_answer():
    assert answer_of(["no-such-program"]) is None
    assert answer_of(["git", "no-such-command"]) is None
