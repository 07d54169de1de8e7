"""The fork server and its client, with the standard library only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from arpo_replica.training.process.fork_server import Program, read_command

# Its first child runs the test's commands through the client, as Ray and multiprocessing would.
SERVER = """
import json, os, subprocess, sys
from pathlib import Path
from arpo_replica.training.process import fork_client
from arpo_replica.training.process.fork_server import ForkServer
folder, test = Path(sys.argv[1]), sys.argv[2]
client = folder / "python"
client.write_text(f"#!{sys.executable} -IS\\n" + Path(fork_client.__file__).read_text())
client.chmod(0o755)
os.environ["ARPO_FORK_SERVER"], os.environ["ARPO_PYTHON"] = str(folder / "s"), sys.executable
marker = ["only in the server's memory"]
sys.modules["preloaded_here"] = marker
def first():
    exec(compile(test, "<test>", "exec"), {"__name__": "__main__", "client": str(client)})
sys.exit(ForkServer(folder / "s", client).serve(first) % 256)
"""


def serve(tmp_path: Path, test: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SERVER, str(tmp_path), test]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def test_a_child_has_its_own_arguments_environment_files_and_the_servers_modules(tmp_path: Path) -> None:
    code = (
        "import json, os, sys; import preloaded_here; data = sys.stdin.read(); "
        "os.write(int(sys.argv[1]), b'through a passed file'); "
        "print(json.dumps([sys.argv, os.environ['MARK'], os.getcwd(), data, preloaded_here]))"
    )
    test = f"""
import os, subprocess
read, write = os.pipe()
done = subprocess.run([client, "-u", "-c", {code!r}, str(write), "x y"], input="typed", text=True,
    capture_output=True, env={{**os.environ, "MARK": "ü"}}, cwd="/", pass_fds=[write])
os.close(write)
print(done.stdout.strip()); print(os.read(read, 100).decode()); print(os.read(read, 1) == b"")
print(done.returncode, done.stderr)
"""
    lines = serve(tmp_path, test).stdout.splitlines()
    arguments, mark, folder, typed, preloaded = json.loads(lines[0])
    assert arguments[0] == "-c" and arguments[2] == "x y"
    assert (mark, folder, typed) == ("ü", "/", "typed")
    assert preloaded == ["only in the server's memory"]
    assert lines[1:4] == ["through a passed file", "True", "0 "]


def test_status_signals_and_errors_come_through(tmp_path: Path) -> None:
    test = """
import subprocess
def run(code):
    return subprocess.run([client, "-c", code], capture_output=True, text=True)
print(run("import sys; sys.exit(7)").returncode)
print(run("import sys; sys.exit('sorry')"))
print(run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)").returncode)
failed = run("raise ValueError('inside')")
print(failed.returncode, "ValueError: inside" in failed.stderr)
print(run("import atexit; atexit.register(print, 'bye')").stdout.strip())
"""
    lines = serve(tmp_path, test).stdout.splitlines()
    assert lines[0] == "7"
    assert "returncode=1" in lines[1] and "sorry" in lines[1]
    assert lines[2:] == [str(-signal.SIGKILL), "1 True", "bye"]


def test_multiprocessing_starts_its_processes_there(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(
        "import os\ndef work(queue):\n    import preloaded_here\n"
        "    queue.put((os.getppid(), preloaded_here))\n"
    )
    test = f"""
import multiprocessing, os, sys
sys.path.insert(0, {str(tmp_path)!r})
os.environ["PYTHONPATH"] = {str(tmp_path)!r}
from work import work
context = multiprocessing.get_context("spawn")
queue = context.Queue()
process = context.Process(target=work, args=(queue,))
process.start()
print(queue.get(timeout=20) == (os.getppid(), ["only in the server's memory"]))
process.join(20)
print(process.exitcode)
stuck = context.Process(target=__import__("time").sleep, args=(600,))
stuck.start()
stuck.terminate()
stuck.join(20)
print(stuck.exitcode)
"""
    done = serve(tmp_path, test)
    assert done.stdout.splitlines() == ["True", "0", "-15"], done.stderr


def test_client_and_process_die_together(tmp_path: Path) -> None:
    test = """
import os, subprocess, sys, time
sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
client_process = subprocess.Popen([client, "-c", sleeper], stdout=subprocess.PIPE, text=True)
pid = int(client_process.stdout.readline())
client_process.kill()
deadline = time.monotonic() + 20
while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
    time.sleep(0.02)
print(os.path.exists(f"/proc/{pid}"))
"""
    assert serve(tmp_path, test).stdout.splitlines() == ["False"]


def test_nothing_survives_the_server(tmp_path: Path) -> None:
    sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    test = f"""
import os, subprocess, time
process = subprocess.Popen([client, "-c", {sleeper!r}], stdout=subprocess.PIPE, text=True)
print(int(process.stdout.readline()), process.pid, os.getpid(), flush=True)
time.sleep(600)
"""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path), test], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    pids = [int(word) for word in server.stdout.readline().split()]
    assert all(psutil.pid_exists(pid) for pid in pids)
    server.kill()
    server.wait()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [pid for pid in pids if alive(pid)] == []


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_without_a_server_the_client_is_an_interpreter(tmp_path: Path) -> None:
    from arpo_replica.training.process import fork_client

    done = subprocess.run(
        [sys.executable, "-IS", fork_client.__file__, "-c", "print(6 * 7)"],
        env={**os.environ, "ARPO_FORK_SERVER": str(tmp_path / "none"), "ARPO_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "program"),
    [
        (["-u", "x.py", "-a"], Program("script", "x.py", ["x.py", "-a"])),
        (["-B", "-X", "dev", "-m", "pkg.mod", "1"], Program("module", "pkg.mod", ["pkg.mod", "1"])),
        (["-c", "pass", "--multiprocessing-fork"], Program("code", "pass", ["-c", "--multiprocessing-fork"])),
    ],
)
def test_command_lines(arguments: list[str], program: Program) -> None:
    assert read_command(arguments) == program


def test_a_command_line_without_a_program() -> None:
    with pytest.raises(ValueError, match="no program"):
        read_command(["-u"])
