"""A user's mistake gets one clear sentence and a failing status before any work starts."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest


def refusal(workspace, *arguments: str, **environment: str) -> str:
    """What a run says that refuses to start."""
    done = workspace.run(*arguments, **environment)
    assert done.returncode != 0
    shown = done.stdout + done.stderr
    assert "Traceback" not in shown
    assert not (workspace.root / "results").exists()
    return " ".join(shown.split())


def refusal_by_the_machine(workspace, **environment: str) -> str:
    """What a run says that refuses to start for what this machine lacks; a dry run says it and goes on."""
    warned = workspace.run("--dry-run", "--quiet", "rules", **environment)
    assert warned.returncode == 0, warned.stderr
    found = re.search(r"A run would refuse to start: (.*)", warned.stdout + warned.stderr)
    assert found is not None, warned.stderr
    said = refusal(workspace, **environment)
    assert " ".join(found[1].split()) in said
    return said


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("  trials: 2", "  trails: 2", "unknown key 'evaluation.trails'; did you mean 'trials'?"),
        ("  trials: 2", "  trials: two", "'evaluation.trials' is 'two'"),
        ("size: nano", "size: 70b", "'size' is '70b'"),
        ("size: nano", "size: 7b", "size is '7b', but policy.model is 'nano'"),
        (
            "threads: 2",
            "threads: 2\nnano: {hidden_size: 100}",
            "nano.hidden_size is 100; it must be",
        ),
        ("threads: 2", "threads: 2\nnano: {vocabulary: 500}", "nano.vocabulary is 500; it must be at least"),
        (
            "  screen: [168, 224]",
            "  screen: [50, 50]",
            "desktop.screen is 50x50; MiniWoB++ pages need",
        ),
        ("  tasks_per_step: 4", "  tasks_per_step: 6", "training.tasks_per_step (6) must be a multiple of"),
        ("  rollouts_per_task: 4", "  rollouts_per_task: 1", "'training.rollouts_per_task' is 1"),
        ("  micro_batch: 16", "  micro_batch: 5", "training.micro_batch (5) must divide"),
        (
            "  micro_batch: 16",
            "  micro_batch: 16\n  lora: {rank: 4, alpha: 8, targets: [w_proj]}",
            "training.lora.targets names 'w_proj', but the layers that can have an adapter here are q_proj,",
        ),
        ("  micro_batch: 16", "  micro_batch: 16\n  lora: {rank: 0, alpha: 8}", "'training.lora.rank' is 0"),
        (
            "  micro_batch: 16",
            "  micro_batch: 16\n  lora: {rank: 400, alpha: 8}",
            "training.lora.rank is 400, but the model is only 192 wide (hidden_size); lower it.",
        ),
        (
            "arms:\n",
            "arms:\n  first: {weights: m}\n  second: {weights: m}\n",
            "arms.second has the weights of the arm 'first'; give it others or drop it",
        ),
        ("  tasks_per_step: 4\n", "  tasks_per_step: 8\n", "the split 'train_4' has only 4 tasks"),
        ("  max_model_len: 2048", "  max_model_len: 40", "policy.max_new_tokens (48) leaves no room"),
        ("splits: [test_in, test_out]", "splits: [test_inn]", "evaluation.splits names the split 'test_inn'"),
    ],
)
def test_config_mistakes(checkout, old, new, sentence):
    checkout.edit("configs/demo.yaml", old, new)
    assert sentence in refusal(checkout)


def test_unknown_task_id_is_named(checkout):
    path = checkout.root / "data/splits/miniwob_train_4.json"
    split = json.loads(path.read_text())
    next(iter(split["tasks"].values()))[0] = "click-nothing-s001"
    path.write_text(json.dumps(split))
    assert "miniwob/click-nothing-s001" in refusal(checkout)


def test_a_model_folder_without_weights_is_refused(checkout):
    folder = checkout.root / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    checkout.edit("configs/demo.yaml", "  model: nano", "  model: model")
    said = refusal_by_the_machine(checkout)
    assert "policy.model 'model' is no model folder with config.json and *.safetensors; give" in said


def test_the_model_of_a_study_that_has_not_run_is_refused(checkout):
    checkout.edit("configs/demo.yaml", "  model: nano", "  model: results/first/nano/model")
    said = refusal_by_the_machine(checkout)
    assert "*.safetensors; run the study 'first' first, which makes it, or give" in said


def test_an_endpoint_that_does_not_answer(checkout):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        checkout.edit("configs/demo.yaml", "  model: nano", f"  model: nano\n  endpoint: {url}")
        said = refusal_by_the_machine(checkout)
    assert url in said
    assert "policy.endpoint" in said


def test_a_missing_desktop_program_names_its_package(checkout, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for folder in ("/usr/bin", "/bin"):
        for program in Path(folder).iterdir():
            if program.name != "openbox" and not (tools / program.name).exists():
                (tools / program.name).symlink_to(program)
    assert "apt-get install openbox" in refusal_by_the_machine(checkout, PATH=str(tools))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--configfile", "configs/nanno.yaml"],
            "is no config configs/nanno.yaml; did you mean 'configs/nano.yaml'?",
        ),
        (["--configfile", "demo.yaml"], "There is no config demo.yaml; did you mean 'configs/demo.yaml'?"),
        (["--config", "evaluatoin.trials=5"], "write --config 'evaluation={trials: 5}'."),
        (["--config", "policy.speed.x=a"], "write --config 'policy={speed: {x: a}}'."),
        (["--config", "seeds=[0]", "table1"], "not 'table1'; if that is a target, put '--' before it."),
        (["--config", "evaluatoin={trials: 5}"], "unknown key 'evaluatoin'; did you mean 'evaluation'?"),
        (["tabel1"], "There is no target 'tabel1'; did you mean 'table1'?"),
        (["--", "nonsense"], "There is no target 'nonsense'; 'snakemake --list-rules' names them all."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_slip_on_the_command_line_is_one_sentence(checkout, arguments, sentence):
    said = refusal(checkout, *arguments)
    assert said.endswith(sentence)
    assert "File " not in said


def test_what_the_sentence_says_to_write_works(checkout):
    assert "trial_4" in checkout.run("--dry-run", "--config", "evaluation={trials: 5}").stdout
