"""A checkpoint's rollouts from its manifest to the indexes, over a loopback endpoint and fake desktops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from aiohttp import web

from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.base.locks import lock
from arpo_replica.base.unfinished import ASIDE
from arpo_replica.config import load_config
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.scores import read_episodes
from arpo_replica.evaluation.summary import ran_on_rows
from arpo_replica.policy.endpoint import Endpoint as PolicyEndpoint
from arpo_replica.policy.endpoint import check_endpoint
from arpo_replica.policy.manifest import read_manifest, register_model
from arpo_replica.rollout.collect import Progress
from arpo_replica.rollout.records import EpisodeRecord
from arpo_replica.rollout.run import (
    Copy,
    Serving,
    collect_rollouts,
    collect_served,
    make_labels,
    output_root,
)
from arpo_replica.tasks.splits import resolve
from fakes import CLICK, FINISHED, FakeProvider


class Endpoint(threading.Thread):
    """An OpenAI-compatible server in a thread: a click, then ``finished``."""

    def __init__(self):
        super().__init__(daemon=True)
        self.requests: list[dict] = []
        self.dies_after = 10**6
        """Requests that it answers; then it refuses whatever comes, as one that is going down."""
        self.loop = asyncio.new_event_loop()
        self.url = ""
        self.ready = threading.Event()
        self.start()
        assert self.ready.wait(10)

    def run(self):
        self.loop.run_until_complete(self.serve())
        self.loop.run_forever()

    async def serve(self):
        async def models(_):
            if len(self.requests) >= self.dies_after:
                raise web.HTTPBadGateway
            return web.json_response({"data": [{"id": "lab"}]})

        async def complete(request):
            body = await request.json()
            if len(self.requests) >= self.dies_after:
                raise web.HTTPBadGateway
            self.requests.append(body)
            turns = sum(message["role"] == "assistant" for message in body["messages"])
            reply = {"message": {"content": FINISHED if turns else CLICK}}
            return web.json_response(
                {"choices": [reply], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}
            )

        app = web.Application(client_max_size=2**26)
        app.router.add_get("/v1/models", models)
        app.router.add_post("/v1/chat/completions", complete)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        self.ready.set()

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.join(10)


@pytest.fixture
def endpoint():
    server = Endpoint()
    yield server
    server.stop()


def make_study(folder: Path, url: str | None):
    """A config with three tasks, and the manifest of its (empty) base policy."""
    tasks = folder / "tasks" / "fake"
    tasks.mkdir(parents=True)
    names = [f"task-{number}" for number in range(3)]
    for name in names:
        task = {"id": name, "instruction": f"Do {name}.", "config": [], "evaluator": {"func": "fake"}}
        (tasks / f"{name}.json").write_text(json.dumps(task))
    split = {"name": "mine", "source": "test", "tasks": {"fake": names}}
    (folder / "mine.json").write_text(json.dumps(split))
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    raw = load_config(ROOT / "configs/demo.yaml").model_dump(mode="json")
    raw.pop("targets", None)
    raw["report"]["titles"] = {}
    raw["policy"] |= {"endpoint": url, "model": str(folder / "model")}
    raw["tasks"] = {"root": str(folder / "tasks"), "splits": {"mine": str(folder / "mine.json")}}
    raw["training"]["stages"] = [{"name": "one", "split": "mine", "steps": 1}]
    raw["evaluation"] |= {"splits": ["mine"], "trials": 2}
    (folder / "config.yaml").write_text(json.dumps(raw))
    config = load_config(folder / "config.yaml")
    manifest = folder / "manifest.json"
    register_model(config, folder / "model", manifest)
    roots = [folder / "episodes" / "mine" / f"trial_{trial}" for trial in range(2)]
    return config, manifest, roots


def collect(config: StudyConfig, manifest: Path, roots: list[Path], *, provider: FakeProvider) -> Progress:
    """Collect on the tasks of the split as they are now."""
    splits = [resolve(config, "mine")]
    return collect_rollouts(config, manifest=manifest, splits=splits, roots=roots, provider=provider)


def rows(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "episodes.jsonl").read_text().split("\n") if line]


def test_a_checkpoint_is_collected_and_nothing_is_done_twice(tmp_path, endpoint, capsys):
    config, manifest, roots = make_study(tmp_path, endpoint.url)
    progress = collect(config, manifest, roots, provider=FakeProvider())
    assert (progress.done, progress.outcomes["success"]) == (6, 6)
    sha256 = json.loads(manifest.read_text())["sha256"]
    for trial, root in enumerate(roots):
        for row in rows(root):
            row.pop("directory")
            record = EpisodeRecord.model_validate(row)
            assert (record.arm, record.stage, record.split, record.trial) == ("base", "base", "mine", trial)
            assert (record.checkpoint_sha256, record.size, record.desktop) == (sha256, "nano", "process")
            assert record.sampling["temperature"] == config.evaluation.temperature
            assert record.sampling["max_steps"] == config.policy.max_steps
    # Every request has a seed of its own, and none asks a foreign server for vLLM's own fields.
    assert len({request["seed"] for request in endpoint.requests}) == len(endpoint.requests) == 12
    assert not any("skip_special_tokens" in request for request in endpoint.requests)
    heartbeat = json.loads((tmp_path / "episodes" / "heartbeat.json").read_text())
    assert (heartbeat["done"], heartbeat["total"]) == (6, 6)

    before = [(root / "episodes.jsonl").read_bytes() for root in roots]
    (roots[0] / "episodes.jsonl").unlink()
    idle = FakeProvider()
    endpoint.requests.clear()
    collect(config, manifest, roots, provider=idle)
    assert (idle.attempts, endpoint.requests) == (0, [])
    assert [(root / "episodes.jsonl").read_bytes() for root in roots] == before
    assert "all 6 episodes are there" in capsys.readouterr().err


def test_two_jobs_never_collect_the_same_episodes_at_once(tmp_path, endpoint, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    config, manifest, roots = make_study(tmp_path, endpoint.url)
    provider = FakeProvider()
    (tmp_path / "episodes").mkdir()
    with (tmp_path / "episodes" / "rollouts.lock").open("w") as other:
        assert lock(other, wait=False)
        with pytest.raises(UserError, match="Another process collects these episodes"):
            collect(config, manifest, roots, provider=provider)
    assert provider.attempts == 0


def test_a_third_trial_keeps_the_first_two(tmp_path, endpoint):
    config, manifest, roots = make_study(tmp_path, endpoint.url)
    collect(config, manifest, roots, provider=FakeProvider())
    endpoint.requests.clear()
    more = [*roots, roots[0].with_name("trial_2")]
    progress = collect(config, manifest, more, provider=FakeProvider())
    assert (progress.kept, progress.done, len(endpoint.requests)) == (6, 9, 6)


def test_other_weights_are_another_question(tmp_path, endpoint):
    config, manifest, roots = make_study(tmp_path, endpoint.url)
    collect(config, manifest, roots, provider=FakeProvider())
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(UserError, match="not those it names"):
        collect(config, manifest, roots, provider=FakeProvider())
    register_model(config, tmp_path / "model", manifest)
    progress = collect(config, manifest, roots, provider=FakeProvider())
    assert (progress.kept, progress.done) == (0, 6)


def test_a_dead_endpoint_is_refused_before_a_desktop_starts(tmp_path, endpoint):
    config, manifest, roots = make_study(tmp_path, endpoint.url)
    endpoint.stop()
    config.policy.endpoint = "http://127.0.0.1:9"
    provider = FakeProvider()
    with pytest.raises(UserError, match=r"does not answer.*policy\.endpoint"):
        collect(config, manifest, roots, provider=provider)
    assert provider.attempts == 0


def test_episodes_are_spread_over_copies_and_go_on_without_a_dead_one(tmp_path, endpoint):
    config, manifest, roots = make_study(tmp_path, endpoint.url)
    other = Endpoint()
    outputs = [output_root({"mine": resolve(config, "mine").load()}, root) for root in roots]
    labels = make_labels(config, read_manifest(manifest))

    @contextlib.asynccontextmanager
    async def two():
        async with contextlib.AsyncExitStack() as stack:
            options = {"model": None, "api_key": None, "timeout_s": 10.0, "connections": 4}
            served = [
                await stack.enter_async_context(PolicyEndpoint(url, **options))
                for url in (endpoint.url, other.url)
            ]
            yield Serving([Copy(entry, None) for entry in served])

    other.dies_after = 2
    progress = asyncio.run(collect_served(config, outputs, labels, provider=FakeProvider(), serving=two()))
    other.stop()
    assert progress.outcomes == {"success": 6}
    assert progress.retries >= 1
    assert len(other.requests) == 2
    assert len(endpoint.requests) >= 10  # 12 in all, and those of the conversations that broke


def test_all_copies_gone_end_the_job(tmp_path, endpoint):
    config, manifest, roots = make_study(tmp_path, endpoint.url)
    endpoint.dies_after = 3
    with pytest.raises(UserError, match=r"answers with status 502"):
        collect(config, manifest, roots, provider=FakeProvider())
    endpoint.dies_after = 10**6
    assert collect(config, manifest, roots, provider=FakeProvider()).outcomes["success"] >= 4


def test_an_endpoint_can_be_checked_before_any_work(endpoint):
    check_endpoint(endpoint.url)
    with pytest.raises(UserError, match=r"policy\.endpoint"):
        check_endpoint("http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match=r"policy\.endpoint"):
        check_endpoint("not a url")


def test_a_folder_that_is_no_output_is_refused(tmp_path, endpoint):
    config, manifest, _ = make_study(tmp_path, endpoint.url)
    for wrong in ("mine/run_0", "other/trial_0"):
        with pytest.raises(UserError, match="trial_"):
            collect(config, manifest, [tmp_path / wrong], provider=FakeProvider())


JOB = """
import sys
from pathlib import Path
from arpo_replica.config import load_config
from arpo_replica.rollout.run import collect_rollouts
from arpo_replica.tasks.splits import resolve
from fakes import FakeProvider
class Loud(FakeProvider):
    async def start(self, name):
        desktop = await super().start(name)
        close = desktop.close
        async def loudly():
            await close()
            print("closed", flush=True)
        desktop.close = loudly
        print("started", flush=True)
        return desktop
folder = Path(sys.argv[1])
roots = [folder / "episodes/mine/trial_0"]
config = load_config(folder / "config.yaml")
collect_rollouts(config, manifest=folder / "manifest.json", splits=[resolve(config, "mine")], roots=roots,
                 provider=Loud(delay_s=30))
"""


def test_sigterm_closes_the_desktops(tmp_path, endpoint):
    make_study(tmp_path, endpoint.url)
    job = subprocess.Popen(
        [sys.executable, "-c", JOB, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    started = [job.stdout.readline() for _ in range(3)]
    job.send_signal(signal.SIGTERM)
    rest, _ = job.communicate(timeout=20)
    assert started == [b"started\n"] * 3
    assert rest == b"closed\n" * 3
    assert job.returncode != 0


def test_a_policy_whose_weights_only_a_server_has(tmp_path, endpoint):
    config, manifest, roots = make_study(tmp_path, endpoint.url)
    raw = config.model_dump(mode="json")
    raw["policy"] |= {"model": "served", "served_model": "lab", "recipe": "uitars_15", "prompt": "arpo"}
    raw["arms"] = {"base": {}}
    (tmp_path / "config.yaml").write_text(json.dumps(raw))
    config = load_config(tmp_path / "config.yaml")
    written = register_model(config, None, manifest)
    assert (written.weights, written.recipe["source"][:24]) == ({}, "served, weights not seen")
    progress = collect(config, manifest, roots[:1], provider=FakeProvider())
    assert progress.outcomes["success"] == 3
    assert rows(roots[0])[0]["checkpoint_sha256"] == written.sha256
    assert rows(roots[0])[0]["sampling"]["prompt"] == "arpo"
    first = endpoint.requests[0]
    assert (first["model"], first["messages"][0]["role"]) == ("lab", "system")
    # A manifest that only claims to have no weights is still refused.
    forged = json.loads(manifest.read_text()) | {"recipe": {"source": "/some/folder"}}
    manifest.write_text(json.dumps(forged))
    with pytest.raises(UserError):
        collect(config, manifest, roots[1:], provider=FakeProvider())


@pytest.mark.parametrize("missing", ["endpoint", "served_model"])
def test_a_served_policy_names_its_server_and_model(tmp_path, missing):
    config, _, _ = make_study(tmp_path, "http://127.0.0.1:9")
    raw = config.model_dump(mode="json")
    raw["policy"] |= {"model": "served", "served_model": "lab", missing: None}
    (tmp_path / "config.yaml").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"policy.model is 'served', which needs"):
        load_config(tmp_path / "config.yaml")


def test_a_served_policy_cannot_be_trained(tmp_path):
    from arpo_replica.config import parse_config
    from arpo_replica.workflow.study import Study

    config, _, _ = make_study(tmp_path, "http://127.0.0.1:9")
    raw = config.model_dump(mode="json")
    raw["policy"] |= {"model": "served", "served_model": "lab"}
    with pytest.raises(UserError, match="the arm 'grpo' needs weights"):
        Study(parse_config(raw, "x")).source_of()
    raw["arms"] = {"base": {}}
    assert Study(parse_config(raw, "x")).source_of() == []


def test_lent_desktops_are_marked_as_what_they_are(tmp_path, endpoint):
    config, manifest, roots = make_study(tmp_path, endpoint.url)
    config.desktop.provider, config.desktop.remote.lends = "remote", "container"
    collect(config, manifest, roots[:1], provider=FakeProvider())
    assert {row["desktop"] for row in rows(roots[0])} == {"container"}


def test_where_desktops_run_is_recorded_and_changes_nothing_that_is_there(tmp_path, endpoint):
    config, manifest, roots = make_study(tmp_path, endpoint.url)
    place = config.desktop.remote
    config.desktop.provider, place.pools = "remote", ["http://first:1"]

    class Placed(FakeProvider):
        async def start(self, name):
            desktop = await super().start(name)
            desktop.ran_on = {"pool": place.pools[0], "image": "a" * 64}
            return desktop

    collect(config, manifest, roots, provider=Placed())
    shutil.rmtree(roots[1] / "fake.task-1")
    kept = {path: path.read_bytes() for root in roots for path in root.glob("*/episode.json")}
    place.pools, config.desktop.container.engine = ["http://second:1"], "bwrap"
    collect(config, manifest, roots, provider=Placed())
    assert len(kept) == 5 and {path: path.read_bytes() for path in kept} == kept
    assert not list(roots[0].parent.glob(f"*{ASIDE}")), "nothing was put aside"
    table = read_episodes(config, roots)
    assert [(row.pool, row.image, row.episodes) for row in ran_on_rows(table)] == [
        ("http://first:1", "a" * 64, 5),
        ("http://second:1", "a" * 64, 1),
    ]
