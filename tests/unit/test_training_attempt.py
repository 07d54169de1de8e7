"""An attempt from outside: progress, failure, stall and the death of whoever watches. A stand-in trains."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_training_recipe import make_job

from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import Stopped, UserError
from arpo_replica.base.processes import descendants, memory_mb, oom_kills
from arpo_replica.config import load_config
from arpo_replica.training.job import Job
from arpo_replica.training.process import attempt as attempts
from arpo_replica.training.process.attempt import Attempt, Notice, PortTaken, Stalled, environment
from arpo_replica.training.process.failures import explain
from arpo_replica.training.run import go_on

# Stands for `arpo_replica.training.process.launch job.json`: writes steps as verl's file logger does.
STAND_IN = """#!{python}
import faulthandler, json, os, signal, subprocess, sys, time
from pathlib import Path
stacks = Path(os.environ["ARPO_STACKS"]) / f"{{os.getpid()}}.txt"
faulthandler.register(signal.SIGUSR1, file=stacks.open("a"))
orphan = "import time; time.sleep(600)"
subprocess.Popen([sys.executable, "-c", orphan], start_new_session=True)
Path(sys.argv[3]).with_name("pid").write_text(str(os.getpid()))
names = "reward_before reward_after success swapped_groups groups env_errors"
metrics = dict.fromkeys(names.split(), 1)
with open(os.environ["VERL_FILE_LOGGER_PATH"], "w") as file:
    for step in range(1, {steps} + 1):
        data = {{**{{f"arpo/{{k}}": v for k, v in metrics.items()}}, "timing_s/step": 0.1}}
        print(json.dumps({{"step": step, "data": data}}), file=file, flush=True)
        time.sleep(0.1)
def hang():
    time.sleep(600)
{end}
"""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    config = load_config(ROOT / "configs" / "demo.yaml")
    config.training.stall_timeout_s = 2
    job = make_job(tmp_path, config=config, scratch=tmp_path / "s")
    job.scratch.mkdir()
    job.steps.mkdir(parents=True)
    return job


def stand_in(job: Job, end: str, steps: int = 2) -> Path:
    path = job.out / "python"
    path.write_text(STAND_IN.format(python=sys.executable, steps=steps, end=end))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_line_and_a_row_per_step(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    attempt = Attempt(job, stand_in(job, "pass", steps=3))
    attempt.wait()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "arpo seed 3 train_4: step 3/3" in lines[2] and "ETA 0 s" in lines[2]
    assert "first step after" in lines[0]
    assert len((job.out / "metrics.jsonl").read_text().splitlines()) == 3
    assert not job.scratch.exists(), "the guard removes the scratch folder"
    assert descendants(attempt.process.pid) == []


def test_a_failure_shows_the_logs_end(job: Job) -> None:
    attempt = Attempt(job, stand_in(job, "sys.exit('the optimiser exploded')"))
    with pytest.raises(RuntimeError, match=r"status 1.*train_001\.log[\s\S]*the optimiser exploded"):
        attempt.wait()


def test_a_key_that_verl_does_not_have_is_the_users_mistake(job: Job) -> None:
    end = """
print("Could not override 'data.nonsense'.")
print("nanobind: leaked 4 instances!\\n - leaked instance 0x7f\\n" * 30)
sys.exit(1)
"""
    attempt = Attempt(job, stand_in(job, end))
    with pytest.raises(UserError, match=r"training\.verl names 'data\.nonsense'"):
        attempt.wait()
    assert "leaked" not in attempt.tail()


def test_a_stall_is_dumped_and_ended(job: Job) -> None:
    attempt = Attempt(job, stand_in(job, "hang()"))
    with pytest.raises(Stalled, match="stall_timeout_s"):
        attempt.wait()
    dump = (job.work / "logs" / "stall_001.txt").read_text()
    assert "in hang" in dump, "the stacks of the training's threads"
    assert "time.sleep(600)" in dump, "the process table"
    assert not alive(int((job.work / "pid").read_text()))


def test_the_death_of_a_needed_process_is_no_stall(job: Job) -> None:
    """vLLM dies while the trainer waits for it: found in seconds, long before the watchdog."""
    job.config.training.stall_timeout_s, job.config.training.dead_after_s = 600, 1
    end = """
server = subprocess.Popen(["bash", "-c", "exec -a ray::vLLMHttpServer sleep 3"])
hang()
"""
    attempt = Attempt(make_job(job.out.parent, config=job.config, scratch=job.scratch), stand_in(job, end))
    with pytest.raises(Stalled, match=r"process of the training died .ray::vLLM"):
        attempt.wait()
    assert "in hang" in (job.work / "logs" / "stall_001.txt").read_text()
    assert not alive(int((job.work / "pid").read_text()))


@pytest.mark.parametrize("end", ["sys.exit(1)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_what_the_kernel_killed_for_memory_is_said(
    job: Job, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Such a death leaves no line in a log; the kernel counts it."""
    counts = iter([4, 5])
    monkeypatch.setattr(attempts, "oom_kills", lambda: next(counts))
    with pytest.raises(UserError, match=r"ended 1 process of this machine.*training\.micro_batch") as caught:
        Attempt(job, stand_in(job, end)).wait()
    assert "\n" not in str(caught.value)


def test_the_kernels_counter_is_read(tmp_path: Path) -> None:
    file = tmp_path / "vmstat"
    file.write_text("nr_free_pages 12\noom_kill 3\nswap_ra 0\n")
    assert oom_kills(file) == 3
    file.write_text("nr_free_pages 12\n")
    assert oom_kills(file) == 0
    assert oom_kills(tmp_path / "none") == 0


def test_a_training_that_stops_itself_says_why(job: Job) -> None:
    end = f"""
Path({str(job.stop_file)!r}).write_text("Mend the desktops.")
sys.exit(1)
"""
    with pytest.raises(UserError, match=r"^Mend the desktops\.$"):
        Attempt(job, stand_in(job, end)).wait()


@pytest.mark.parametrize(
    ("log", "named"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB", r"training\.micro_batch"),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`", r"training\.micro_batch"),
        (
            "ValueError: Free memory on device cuda:0 (20.5/79.1 GiB) on startup is less than desired GPU "
            "memory utilization (0.4, 31.6 GiB). Decrease GPU memory",
            r"\(20\.5/79\.1 GiB\).*training\.speed\.rollout_memory",
        ),
        (
            "AssertionError: max_token_len must be greater than the sequence length. Got max_token_len=4096 "
            "and max_seq_len=tensor(5021)",
            r"has 5021 tokens.*only 4096.*training\.speed\.micro_batch_tokens",
        ),
        ("RuntimeError: No CUDA GPUs are available", "accelerator"),
        ("Total available GPUs 1.0 is less than total desired GPUs 8", r"training\.gpus x training\.nodes"),
        (
            "ValueError: No available memory for the cache blocks.",
            r"policy\.max_model_len.*serving\.cpu_kv_cache_gib",
        ),
        ("OSError: [Errno 28] No space left on device", "keep_checkpoints"),
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", r"desktop\.count"),
        ("Exception: Worker failed with error 'Memory usage increased after sleeping.'", "GPUs of its own"),
        ("AssertionError: Error in memory profiling. Initial free memory 9 GiB", "GPUs of its own"),
        ("torch.distributed.DistNetworkError: port: 49183, code: -98, name: EADDRINUSE", "start it again"),
    ],
)
def test_known_failures_get_one_sentence(job: Job, log: str, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        Attempt(job, stand_in(job, f"print({log!r}); sys.exit(1)")).wait()
    assert "\n" not in str(caught.value)
    assert "train_001.log" in str(caught.value)


def test_a_port_that_was_taken_meanwhile_costs_a_start(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = "print('torch.distributed.DistNetworkError: port: 4, name: EADDRINUSE'); sys.exit(1)"
    end = f"if json.load(open(sys.argv[3]))['attempt'] < 3:\n    {taken}"
    python = stand_in(job, end)
    monkeypatch.setattr(attempts, "python_of", lambda name: python)
    go_on(job, Notice())
    assert len(list((job.work / "logs").glob("train_*.log"))) == 3
    stand_in(job, taken)
    with pytest.raises(PortTaken, match="start it again"):
        go_on(job, Notice())
    assert len(list((job.work / "logs").glob("train_*.log"))) == 6, "it gives up after as many again"


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (
            [
                f"env_error in m/{name}, rollout 1, attempt 2: {why}"
                for name, why in [("a", "old"), ("b-s1", "x.y")]
            ],
            r"errors \(the last one: x\.y\); mend .* 'process'",
        ),
        ([], r"environment errors; mend the desktops"),
    ],
)
def test_a_step_without_any_rollout_names_the_last_reason(job: Job, lines: list[str], named: str) -> None:
    end = "Sync replay buffer selected terminal groups with no materializable trajectories. Enable x"
    log = [*lines, f"RuntimeError: {end}"]
    said = explain("\n".join(log), job)
    assert said is not None
    assert re.search(named, said)
    assert "old" not in said


def test_a_long_log_is_read_in_no_time(job: Job) -> None:
    """Ray repeats verl's whole command line, and a crash after environment errors is not always known."""
    line = "env_error in m/click, rollout 3, attempt 2: DesktopError: " + "x" * 900
    log = "\n".join([line] * 400)
    began = time.perf_counter()
    assert explain(log, job) is None
    said = explain(f"{log}\nRuntimeError: selected terminal groups with no materializable trajectories.", job)
    assert said is not None and "(the last one: DesktopError: xxx" in said
    assert time.perf_counter() - began < 5


def test_nothing_survives_the_watchers_death(job: Job, tmp_path: Path) -> None:
    """SIGKILL of the process that waits: guard, training and what the training started are gone."""
    python = stand_in(job, "hang()")
    code = (
        "import sys; from pathlib import Path; from arpo_replica.training.process.attempt import Attempt; "
        "from arpo_replica.training.job import Job; "
        "Attempt(Job.model_validate_json(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])).wait()"
    )
    file = tmp_path / "job.json"
    file.write_text(job.model_dump_json())
    watcher = subprocess.Popen([sys.executable, "-c", code, str(file), str(python)])
    deadline = time.monotonic() + 30
    while not (job.work / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    below = descendants(watcher.pid)
    pids = [process.pid for process in below]
    assert len(pids) >= 3
    assert memory_mb(below) > 5
    watcher.kill()
    watcher.wait()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in pids if alive(pid)] == []
    assert not job.scratch.exists()


def test_descendants_are_found_below_other_sessions() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        assert child.pid in {process.pid for process in descendants(os.getpid())}
    finally:
        child.kill()
        child.wait()


SAVES = """
while not Path("save_now").exists():
    time.sleep(0.05)
folder = Path("global_step_2")
folder.mkdir()
(folder / "w").write_text("x")
(folder / "complete.json").write_text('{"w": 1}')
time.sleep(600)
"""


def test_it_ends_as_soon_as_the_checkpoint_is_whole(job: Job) -> None:
    notice = Notice(grace_s=60)
    notice.give()
    attempt = Attempt(job, stand_in(job, SAVES.replace("{", "{{").replace("}", "}}").format()), notice=notice)
    with pytest.raises(Stopped, match="after step 2"):
        attempt.wait()
    assert time.monotonic() - attempt.started < 30
    assert attempt.process.poll() is not None


def test_it_ends_without_one_when_the_time_is_over(job: Job) -> None:
    notice = Notice(grace_s=0.5)
    notice.give()
    attempt = Attempt(job, stand_in(job, "hang()"), notice=notice)
    with pytest.raises(Stopped, match="after step 0"):
        attempt.wait()
    assert job.save_file.exists()


def test_gpus_of_other_makers_are_not_named(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm sets ROCR_VISIBLE_DEVICES beside CUDA_VISIBLE_DEVICES; verl refuses that."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "2,3")
    variables = environment(job)
    assert variables["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "ROCR_VISIBLE_DEVICES" not in variables
