"""The hub, by a stand-in on this machine: what is asked of it, and what is there after a broken download."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu_env
pytest.importorskip("huggingface_hub")

HUB, REVISION = "someone/model", "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "chat_template.jinja": b"{{ x }}",
    "pytorch_model.bin": b"pickle",
    "modeling_evil.py": b"import os",
    "README.md": b"words",
}


class Hub(ThreadingHTTPServer):
    """Serves ``FILES``; notes what is asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.broken = ""
        """A file whose body ends too early."""


class Handler(BaseHTTPRequestHandler):
    """The part of the hub's HTTP interface that a snapshot needs."""

    server: Hub

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        tree = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in FILES.items()
        ]
        about = {"id": HUB, "sha": REVISION, "siblings": [{"rfilename": name} for name in FILES], "tags": []}
        if path == f"/api/models/{HUB}/revision/{REVISION}":
            return self.answer(json.dumps(about).encode())
        if path == f"/api/models/{HUB}/tree/{REVISION}":
            return self.answer(json.dumps(tree).encode())
        name = path.removeprefix(f"/{HUB}/resolve/{REVISION}/")
        if name in FILES:
            return self.answer(FILES[name], name)
        self.send_error(404)
        return None

    def answer(self, data: bytes, name: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if name and name == self.server.broken else data)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def fetch(hub: Hub, folder: Path, revision: str = REVISION) -> subprocess.CompletedProcess[str]:
    """As ``run_module`` calls it."""
    return subprocess.run(
        [sys.executable, "-m", "arpo_replica.models.weights", HUB, revision, str(folder)],
        env={
            **{key: value for key, value in os.environ.items() if "proxy" not in key.lower()},
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(folder.parent / "home"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_only_weights_and_data_of_the_pinned_commit_come(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "store" / "model"
    done = fetch(hub, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    wanted = ("config.json", "model.safetensors", "chat_template.jinja")
    assert found == {name: FILES[name] for name in wanted}
    assert not [path for path in hub.asked if path.endswith((".bin", ".py", ".md"))]
    assert all(REVISION in path for path in hub.asked)


def test_a_broken_download_leaves_no_folder_and_the_next_one_completes_it(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "store" / "model"
    hub.broken = "model.safetensors"
    done = fetch(hub, folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "set policy.model to the folder." in done.stderr.strip().splitlines()[-1]
    assert not folder.exists()
    hub.broken = ""
    folder.mkdir()
    (folder / "tokenizer.json").touch()  # what is left of a folder whose config.json was deleted
    done = fetch(hub, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_commit_that_the_hub_does_not_have_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    done = fetch(hub, tmp_path / "store" / "model", "f" * 40)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(f"{HUB} at ffffffffffff cannot be fetched")
