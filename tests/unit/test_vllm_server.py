"""The guard and the server's life: started, awaited, and stopped whatever happens; with stand-in programs.

The real vLLM is started in tests/training/test_serving.py (it needs envs/cpu).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from arpo_replica.base import supervisor
from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.cluster.costs import rollout_gpus
from arpo_replica.config import load_config
from arpo_replica.policy import vllm_server
from arpo_replica.policy.vllm_server import VllmServer

# Answers like vLLM after a moment, with a grandchild in a session of its own that ignores SIGTERM (an engine)
# and a great-grandchild whose parent is gone (a worker).
SERVER = """
import http.server, json, os, signal, subprocess, sys, time
from pathlib import Path
port, notes, scratch, mode = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
sleeper = "import time; time.sleep(600)"
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
orphan = "import subprocess, sys; "
orphan += f"print(subprocess.Popen([sys.executable, '-c', {sleeper!r}]).pid, flush=True)"
engine = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
middle = subprocess.Popen([sys.executable, "-c", orphan], stdout=subprocess.PIPE, start_new_session=True)
worker = int(middle.stdout.readline())
middle.wait()
(scratch / "socket").touch()
notes.write_text(json.dumps({"server": os.getpid(), "engine": engine.pid, "worker": worker,
                             "scratch": str(scratch)}))
print("loading", flush=True)
if mode == "die":
    print("ValueError: no such model", flush=True)
    sys.exit(3)
if mode == "hang":
    time.sleep(600)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.path == "/health" or (
            self.path == "/v1/models" and self.headers["Authorization"] == f"Bearer {os.environ['KEY']}")
        self.send_response(200 if known else 401)
        self.end_headers()
    def log_message(self, *arguments):
        pass
time.sleep(0.2)
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class StandIn(VllmServer):
    """Starts the program above instead of vLLM."""

    def __init__(self, folder: Path, mode: str = "serve", start_timeout_s: float = 20):
        config = load_config(ROOT / "configs" / "demo.yaml")
        config.serving.start_timeout_s = start_timeout_s
        super().__init__(config, folder, folder / "server.log")
        self.notes, self.mode = folder / "notes.json", mode

    def command(self, scratch: Path) -> tuple[list[str], dict[str, str]]:
        arguments = [str(self.port), str(self.notes), str(scratch), self.mode]
        return [sys.executable, "-c", SERVER, *arguments], {**os.environ, "KEY": self.api_key}


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def assert_all_gone(notes: Path) -> None:
    known = json.loads(notes.read_text())
    scratch = Path(known.pop("scratch"))
    assert wait_for(lambda: not any(alive(pid) for pid in known.values())), known
    assert wait_for(lambda: not scratch.exists())


async def test_it_is_started_awaited_and_stopped_with_all_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_server, "GRACE_S", 0.5)
    async with StandIn(tmp_path) as server:
        seconds = await server.ready()
        assert 0.2 < seconds < 15
        known = json.loads(server.notes.read_text())
        assert all(alive(known[name]) for name in ("server", "engine", "worker"))
        assert (tmp_path / "server.log").read_text() == "loading\n"
        server.check_alive()
    assert_all_gone(server.notes)
    with pytest.raises(UserError, match="ended with status"):
        server.check_alive()


async def test_a_server_that_dies_early_is_reported_with_the_end_of_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_server, "GRACE_S", 0.5)
    server = StandIn(tmp_path, "die")
    async with server:
        with pytest.raises(UserError, match=r"(?s)status 3.*no such model"):
            await server.ready()
    assert_all_gone(server.notes)


async def test_a_server_that_is_never_ready_is_the_users_to_correct(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_server, "GRACE_S", 0.5)
    server = StandIn(tmp_path, "hang", start_timeout_s=3.0)
    async with server:
        with pytest.raises(UserError, match=r"serving\.start_timeout_s"):
            await server.ready()
    assert_all_gone(server.notes)


async def test_a_program_that_is_not_there(tmp_path):
    class Missing(StandIn):
        def command(self, scratch):
            return [str(tmp_path / "no_such_program")], dict(os.environ)

    async with Missing(tmp_path) as server:
        with pytest.raises(UserError, match=r"(?s)status 127.*no_such_program"):
            await server.ready()


OWNER = """
import asyncio, sys
from pathlib import Path
from test_vllm_server import StandIn
async def main():
    async with StandIn(Path(sys.argv[1])) as server:
        await server.ready()
        print("ready", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


def start_owner(folder: Path) -> subprocess.Popen:
    here = Path(__file__).parent
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": f"{here}:{here.parent}"},
    )
    assert owner.stdout.readline() == b"ready\n"
    return owner


def test_nothing_outlives_a_killed_owner(tmp_path):
    owner = start_owner(tmp_path)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert_all_gone(tmp_path / "notes.json")


def test_the_server_does_not_outlive_a_killed_guard(tmp_path):
    owner = start_owner(tmp_path)
    known = json.loads((tmp_path / "notes.json").read_text())
    watcher = psutil.Process(known["server"]).parent()
    assert supervisor.__name__ in " ".join(watcher.cmdline())
    family = watcher.children(recursive=True)
    watcher.kill()
    assert wait_for(lambda: not alive(known["server"]))
    owner.kill()
    owner.wait()
    owner.stdout.close()
    for process in family:  # what no process is left to stop: end what this test began
        if process.is_running():
            process.kill()


def test_a_server_started_in_a_thread_outlives_that_thread(tmp_path):
    """A parent-death signal would not let it: it is tied to the thread that forked."""

    async def main():
        server = StandIn(tmp_path)
        starter = threading.Thread(target=server._start)
        starter.start()
        starter.join()
        await server.ready()
        await server.__aexit__(None, None, None)

    asyncio.run(main())
    assert_all_gone(tmp_path / "notes.json")


def test_the_guard_passes_the_exit_status_on():
    for code, expected in (("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 128 + 9)):
        with subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", supervisor.__name__, "--grace", "1", "--"),
                *(sys.executable, "-c", code),
            ],
            stdin=subprocess.PIPE,
        ) as watcher:
            assert watcher.wait(20) == expected


# --- the command line ------------------------------------------------------------------------------------


@pytest.fixture
def config():
    return load_config(ROOT / "configs/demo.yaml")


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_the_command_serves_what_the_config_says(config, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_server, "python_of", lambda environment: Path(f"/{environment}/bin/python"))
    config = config.model_copy(
        update={"policy": config.policy.model_copy(update={"max_images": 3, "max_model_len": 1234})}
    )
    command = vllm_server.serve_command(config, tmp_path, 4711)
    assert command[:3] == ["/cpu/bin/python", "-m", "arpo_replica.policy.serve"]
    assert option(command, "--host") == "127.0.0.1"
    assert option(command, "--port") == "4711"
    assert option(command, "--max-model-len") == "1234"
    assert option(command, "--dtype") == "float32"
    assert json.loads(option(command, "--limit-mm-per-prompt"))["image"] == 3
    pixels = json.loads(option(command, "--mm-processor-kwargs"))
    assert pixels == {"min_pixels": config.policy.min_pixels, "max_pixels": config.policy.max_pixels}
    cuda = config.model_copy(update={"accelerator": "cuda"})
    command = vllm_server.serve_command(cuda, tmp_path, 4711)
    assert command[:4] == ["/gpu/bin/python", "-m", "vllm.entrypoints.cli.main", "serve"]
    assert "uni" not in command
    assert option(command, "--dtype") == "auto"
    assert "--tensor-parallel-size" not in command
    assert "--quantization" not in command
    reduced = cuda.model_copy(update={"serving": cuda.serving.model_copy(update={"quantization": "fp8"})})
    assert option(vllm_server.serve_command(reduced, tmp_path, 4711), "--quantization") == "fp8"
    several = cuda.model_copy(update={"serving": cuda.serving.model_copy(update={"tensor_parallel": 2})})
    command = vllm_server.serve_command(several, tmp_path, 4711)
    assert option(command, "--tensor-parallel-size") == "2"
    assert option(command, "--mm-encoder-tp-mode") == "data"
    assert option(command, "--mm-processor-cache-type") == "shm"
    assert rollout_gpus(several, "grpo") == 2


def test_copies_have_gpus_of_their_own(config, monkeypatch):
    def cards(accelerator="cuda", **serving):
        update = {"accelerator": accelerator, "serving": config.serving.model_copy(update=serving)}
        changed = config.model_copy(update=update)
        return vllm_server.cards_of_copies(changed), rollout_gpus(changed, "grpo")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cards() == ([None], 1)
    assert cards(data_parallel=2, tensor_parallel=2) == (["0,1", "2,3"], 4)
    assert cards("cpu", data_parallel=2) == ([None, None], 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a")
    assert cards(data_parallel=2) == (["3", "GPU-5a"], 2)
    with pytest.raises(UserError, match=r"is 3 GPUs, but CUDA_VISIBLE_DEVICES names 2"):
        cards(data_parallel=3)


def test_a_whole_image_fits_into_one_engine_step(config):
    big = config.policy.model_copy(update={"max_pixels": 12_845_056, "max_model_len": 65_536})
    assert vllm_server.batched_tokens(config.model_copy(update={"policy": big})) >= 12_845_056 // 784
    assert vllm_server.batched_tokens(config) == 2048


def test_the_key_is_no_argument_and_the_child_is_offline(config, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    variables = vllm_server.serve_environment(config, tmp_path, "secret")
    assert variables["VLLM_API_KEY"] == "secret"
    assert variables["HF_HUB_OFFLINE"] == variables["VLLM_NO_USAGE_STATS"] == "1"
    assert variables["VLLM_HOST_IP"] == "127.0.0.1"
    assert (variables["OMP_NUM_THREADS"], variables["OMP_WAIT_POLICY"]) == ("1", "PASSIVE")
    assert "PYTHONDONTWRITEBYTECODE" not in variables
    monkeypatch.setattr(vllm_server, "python_of", lambda environment: Path("/python"))
    assert "secret" not in " ".join(vllm_server.serve_command(config, tmp_path, 1))


def test_a_missing_environment_is_the_users_to_install(config, tmp_path, monkeypatch):
    monkeypatch.setattr("arpo_replica.base.environments.ROOT", tmp_path)
    with pytest.raises(UserError, match="envs/cpu is not installed"):
        vllm_server.serve_command(config, tmp_path, 1)
    python = tmp_path / "envs/cpu/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/root/of/somebody/else/python3")
    with pytest.raises(
        UserError, match="made by /root/of/somebody/else/python3, which this user cannot start"
    ):
        vllm_server.serve_command(config, tmp_path, 1)
