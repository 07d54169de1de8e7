"""A policy over an OpenAI-compatible endpoint (on loopback): requests, seeds, retries, refusals,
connections that end badly, screenshots that are sent once."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from arpo_replica.base.errors import PolicyError, RefusedError, UserError
from arpo_replica.config.models import PolicyConfig
from arpo_replica.policy import endpoint as module
from arpo_replica.policy.endpoint import Endpoint, EndpointPolicy, NamedImagePolicy, Sampling, request_seed
from arpo_replica.policy.prompt import first_text
from fakes import make_task, png

POLICY = PolicyConfig(max_images=2)
SAMPLING = Sampling(0.6, 0.9, 48, {"skip_special_tokens": False})


class Server:
    """Answers chat completions with what ``replies`` holds: text, a status, a body, or an action."""

    def __init__(self, *replies, models=("policy",), key: str = ""):
        self.replies, self.models, self.key = list(replies), models, key
        self.headers = {"Retry-After": "0", "Location": "/v1/models"}
        self.requests: list[dict] = []
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/v1/models", self.list_models)
        app.router.add_post("/v1/chat/completions", self.complete)
        self.server = TestServer(app, host="127.0.0.1")

    async def __aenter__(self):
        await self.server.start_server()
        return self

    async def __aexit__(self, *_):
        await self.server.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def allowed(self, request) -> bool:
        return not self.key or request.headers.get("Authorization") == f"Bearer {self.key}"

    async def list_models(self, request):
        if not self.allowed(request):
            return web.Response(status=401)
        return web.json_response({"data": [{"id": name} for name in self.models]})

    async def complete(self, request):
        self.requests.append(await request.json())
        reply = self.replies[min(len(self.requests), len(self.replies)) - 1]
        if reply == "drop":
            request.transport.abort()
            return web.Response()
        if reply == "hang":
            await asyncio.sleep(60)
        if isinstance(reply, int):
            return web.Response(status=reply, text="no\nluck", headers=self.headers)
        if isinstance(reply, str):
            reply = {
                "choices": [{"message": {"content": reply}}],
                "usage": {"prompt_tokens": 11, "completion_tokens": 7},
            }
        return web.json_response(reply)


def connect(server: Server, **options) -> Endpoint:
    settings = {"model": "policy", "api_key": None, "timeout_s": 5.0, "connections": 4}
    return Endpoint(options.pop("url", server.url), **(settings | options))


def converse(endpoint: Endpoint, *parts, number: int = 0):
    policy = EndpointPolicy(endpoint, POLICY, SAMPLING, parts or (0, "base", 0))
    return policy.start(make_task(number))


async def test_a_conversation_sends_prompt_history_and_screenshots():
    async with Server("Action: one()", "Action: two()", "Action: three()") as server, connect(server) as to:
        await to.check()
        conversation = converse(to)
        shots = [png((number, 0, 0)) for number in range(3)]
        replies = [await conversation.reply(shot) for shot in shots]
    assert [reply.text for reply in replies] == ["Action: one()", "Action: two()", "Action: three()"]
    assert (replies[0].prompt_tokens, replies[0].completion_tokens) == (11, 7)
    first, _, third = server.requests
    assert first["messages"][0]["content"][0]["text"] == first_text("Do task-000.")
    assert {key: first[key] for key in ("model", "temperature", "top_p", "max_tokens")} == {
        "model": "policy",
        "temperature": 0.6,
        "top_p": 0.9,
        "max_tokens": 48,
    }
    assert first["skip_special_tokens"] is False
    # Two screenshots are kept; all replies are.
    roles = [message["role"] for message in third["messages"]]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    parts = [part for message in third["messages"] for part in message["content"]]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert [base64.b64decode(url.removeprefix("data:image/png;base64,")) for url in urls] == shots[1:]
    assert [part["text"] for part in parts[1:] if part["type"] == "text"] == [
        "Action: one()",
        "Action: two()",
    ]


async def test_a_reply_may_be_drawn_again_and_is_then_the_only_one():
    async with (
        Server("nonsense", "more of it", "Action: two()", "Action: three()") as server,
        connect(server) as to,
    ):
        await to.check()
        conversation = converse(to)
        await conversation.reply(png())
        await conversation.again()
        assert (await conversation.again()).text == "Action: two()"
        await conversation.reply(png((9, 9, 9)))
    first, *again, last = server.requests
    assert [request["temperature"] for request in server.requests] == [0.6, 1.0, 1.0, 0.6]
    assert [request["messages"] for request in again] == [first["messages"]] * 2
    assert len({request["seed"] for request in server.requests}) == 4
    assert [message["role"] for message in last["messages"]] == ["user", "assistant", "user"]
    assert last["messages"][1]["content"][0]["text"] == "Action: two()"


async def seeds_of(*parts, number: int = 0, steps: int = 2) -> list[int]:
    async with Server("Action: wait()") as server, connect(server) as to:
        conversation = converse(to, *parts, number=number)
        for _ in range(steps):
            await conversation.reply(png())
    return [request["seed"] for request in server.requests]


async def test_every_request_has_its_own_seed_and_the_same_one_again():
    known = await seeds_of(0, "base", 0)
    assert await seeds_of(0, "base", 0) == known
    others = [
        *await seeds_of(1, "base", 0),
        *await seeds_of(0, "train_4", 0),
        *await seeds_of(0, "base", 1),
        *await seeds_of(0, "base", 0, number=1),
    ]
    assert len({*known, *others}) == 10
    assert all(0 <= seed < 2**31 for seed in known + others)


def test_seeds_are_the_same_in_every_process():
    code = "from arpo_replica.policy.endpoint import request_seed; print(request_seed(0, 'a', 1))"
    found = {
        int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=env).stdout)
        for env in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"})
    }
    assert found == {request_seed(0, "a", 1)}
    assert request_seed("ab", "c") != request_seed("a", "bc")


async def test_a_broken_connection_is_tried_again(monkeypatch):
    async with Server("drop", "drop", "Action: wait()") as server, connect(server) as to:
        reply = await converse(to).reply(png())
    assert reply.text == "Action: wait()"
    assert len(server.requests) == 3
    assert len({request["seed"] for request in server.requests}) == 1


async def test_a_connection_that_stays_broken_is_a_policy_error():
    async with Server("drop") as server, connect(server) as to:
        with pytest.raises(PolicyError, match="does not answer"):
            await converse(to).reply(png())
    assert len(server.requests) == module.CONNECT_RETRIES + 1


@pytest.mark.parametrize("status", [302, 400, 404, 413, 500, 502, 504])
async def test_a_bad_status_is_not_tried_again(status):
    async with Server(status) as server, connect(server) as to:
        with pytest.raises(PolicyError, match=f"status {status}: no luck") as caught:
            await converse(to).reply(png())
    assert len(server.requests) == 1
    assert isinstance(caught.value, RefusedError) == (status in (400, 413))


@pytest.mark.parametrize("status", [429, 503])
async def test_a_request_turned_away_unread_comes_again(status):
    async with Server(status, status, "Action: wait()") as server, connect(server) as to:
        assert (await converse(to).reply(png())).text == "Action: wait()"
    assert len(server.requests) == 3
    assert server.requests[0] == server.requests[2]
    async with Server(status) as server, connect(server) as to:
        with pytest.raises(PolicyError, match=f"status {status}"):
            await converse(to).reply(png())
    assert len(server.requests) == module.BUSY_RETRIES + 1


@pytest.mark.parametrize(
    ("asked", "waited"), [("7", 7.0), ("1e9", 30.0), ("nan", 30.0), ("-3", 0.05), ("soon", 1.0), (None, 1.0)]
)
def test_the_servers_wait_is_respected_and_bounded(asked, waited):
    class Answer:
        status = 429
        headers = {} if asked is None else {"Retry-After": asked}

    assert module._busy_wait(Answer(), 1) == waited


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"message": {"content": 5}}]},
        {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "many"}},
        {"choices": [{"message": {"content": "x"}}], "usage": 3},
    ],
    ids=range(7),
)
async def test_an_answer_that_is_no_completion_is_a_policy_error(body):
    async with Server(body) as server, connect(server) as to:
        with pytest.raises(PolicyError):
            await converse(to).reply(png())


async def test_odd_but_valid_answers():
    surrogate = {"choices": [{"message": {"content": "\ud800"}}]}
    nothing = {"choices": [{"message": {"content": None}}], "usage": None}
    async with Server(surrogate, nothing) as server, connect(server) as to:
        conversation = converse(to)
        assert (await conversation.reply(png())).text == "?"
        reply = await conversation.reply(png())
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("", 0, 0)


async def test_a_hanging_answer_and_an_endless_one_are_bounded(monkeypatch):
    async with Server("hang") as server, connect(server, timeout_s=0.2) as to:
        with pytest.raises(PolicyError):
            await converse(to).reply(png())
    monkeypatch.setattr(module, "MAX_ANSWER", 1000)
    async with Server("x" * 2000) as server, connect(server) as to:
        with pytest.raises(PolicyError, match="too long"):
            await converse(to).reply(png())


async def test_an_endpoint_that_does_not_answer_is_refused():
    async with Server() as server:
        url = server.url
    async with Endpoint(url, model=None, api_key=None, timeout_s=5, connections=1) as to:
        with pytest.raises(UserError, match=r"does not answer.*policy\.endpoint"):
            await to.check()


async def test_the_key_comes_from_the_environment(monkeypatch):
    async with Server("Action: wait()", key="secret") as server:
        monkeypatch.delenv("ARPO_API_KEY", raising=False)
        async with connect(server) as to:
            with pytest.raises(UserError, match="ARPO_API_KEY"):
                await to.check()
        monkeypatch.setenv("ARPO_API_KEY", "secret")
        async with connect(server) as to:
            await to.check()


async def test_the_model_is_found_or_missed():
    async with Server(models=("lab-7b", "other")) as server:
        async with connect(server, model=None, url=server.url + "/v1/") as to:
            await to.check()
            assert to.model == "lab-7b"
        async with connect(server, model="mine") as to:
            with pytest.raises(UserError, match=r"lab-7b.*not 'mine'"):
                await to.check()
    async with Server(models=()) as server, connect(server, model=None) as to:
        with pytest.raises(UserError, match="serves"):
            await to.check()


async def test_a_server_of_another_known_model_is_refused():
    """By its name or, as vLLM says it, by where the weights come from."""

    class Rooted(Server):
        async def list_models(self, request):
            return web.json_response({"data": [{"id": "policy", "root": "Fanbin/ARPO_UITARS1.5_7B"}]})

    def ask(url: str, *others: str) -> str:
        return module.check_endpoint(url, "policy", others=others)

    async with Rooted() as server:
        assert await asyncio.to_thread(ask, server.url, "ui-tars-1.5-7b") == "policy"
        with pytest.raises(
            UserError, match=r"serves 'policy', which is arpo_uitars1\.5_7b and not the model"
        ):
            await asyncio.to_thread(ask, server.url, "ui-tars-1.5-7b", "arpo_uitars1.5_7b")
        with pytest.raises(UserError, match=r"not 'mine'; correct arms\.x\.weights\.served_model"):
            await asyncio.to_thread(module.check_endpoint, server.url, "mine", section="arms.x.weights")


# --- secrets, and a model of another name --------------------------------------------------------------

KEY = "sk-secret-of-the-user"


class Echo(Server):
    """Writes the key back wherever it can, as some services do when they refuse it."""

    async def list_models(self, request):
        return web.json_response({"data": [{"id": f"model-for-{KEY}"}]})


@pytest.mark.parametrize("reply", [401, {"choices": KEY}, f"Thought: {KEY}\nAction: wait()"], ids=range(3))
async def test_a_key_that_the_server_writes_back_is_hidden(reply, monkeypatch, caplog, capsys):
    monkeypatch.setenv("LAB_KEY", KEY)
    said = ""
    async with Echo(reply) as server:
        if reply == 401:
            server.replies = [{"error": KEY}]
        async with connect(server, key_variable="LAB_KEY") as to:
            with pytest.raises(UserError) as refused:
                await to.check()
            said += str(refused.value) + repr(refused.value.__cause__) + repr(to)
            try:
                said += (await converse(to).reply(png())).text
            except PolicyError as error:
                said += str(error) + repr(error.__cause__)
    assert module.HIDDEN in said
    assert KEY not in said + caplog.text + "".join(capsys.readouterr())


async def test_the_key_is_in_no_record_of_a_run(monkeypatch):
    from arpo_replica.base.environments import ROOT
    from arpo_replica.config import load_config
    from arpo_replica.evaluation.provenance import write_provenance
    from arpo_replica.rollout.run import describe_sampling

    monkeypatch.setenv("LAB_KEY", KEY)
    monkeypatch.chdir(ROOT)
    config = load_config(ROOT / "configs/demo.yaml")
    config.policy = PolicyConfig(endpoint="https://lab.invalid/v1", api_key_variable="LAB_KEY")
    written = str(describe_sampling(config)) + config.model_dump_json()
    folder = ROOT / "results"
    out = folder / "test-provenance.json"
    try:
        written += str(write_provenance(config, out, manifests=[], splits=[])) + out.read_text()
    finally:
        out.unlink(missing_ok=True)
    assert "LAB_KEY" in written
    assert KEY not in written


@pytest.mark.parametrize(
    ("settings", "secret"),
    [
        ({"endpoint": f"https://user:{KEY}@lab.invalid"}, KEY),
        ({"endpoint": f"https://lab.invalid/?key={KEY}"}, KEY),
        ({"endpoint": f"lab.invalid/{KEY}"}, KEY),
        ({"endpoint": f"http://lab.invalid:{KEY}"}, KEY),
        ({"api_key_variable": KEY}, KEY),
        ({"api_key": KEY}, KEY),
    ],
    ids=range(6),
)
def test_a_key_in_a_config_is_refused_and_not_repeated(settings, secret):
    import yaml

    from arpo_replica.base.environments import ROOT
    from arpo_replica.config import parse_config

    raw = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    raw["policy"] |= settings
    with pytest.raises(UserError, match=f"policy.{next(iter(settings))}") as refused:
        parse_config(raw, "x.yaml")
    assert secret not in str(refused.value)


async def test_a_key_with_a_line_break_is_refused(monkeypatch):
    monkeypatch.setenv("ARPO_API_KEY", "sk-secret\nInjected: yes")
    async with Server() as server:
        with pytest.raises(UserError, match="without line breaks") as refused:
            async with connect(server) as to:
                await to.check()
    assert "sk-secret" not in str(refused.value)


async def test_each_kept_screenshot_is_in_a_request_once():
    async with Server("Action: wait()") as server, connect(server) as to:
        conversation = converse(to)
        shots = [png((number, 0, 0)) for number in range(4)]
        for shot in shots:
            await conversation.reply(shot)
    sent = str(server.requests[-1])
    assert [sent.count(base64.b64encode(shot).decode()) for shot in shots] == [0, 0, 1, 1]


def test_a_check_names_what_is_wrong(monkeypatch):
    monkeypatch.delenv("LAB_KEY", raising=False)

    async def refusals() -> list[str]:
        said = []
        async with Server(models=("a", "b"), key="k" * 20) as server:
            for settings in ({}, {"LAB_KEY": "wrong" * 4}, {"LAB_KEY": "k" * 20}):
                for name, value in settings.items():
                    monkeypatch.setenv(name, value)
                try:
                    said.append(await asyncio.to_thread(module.check_endpoint, server.url, "c", "LAB_KEY"))
                except UserError as error:
                    said.append(str(error))
            said.append(await asyncio.to_thread(module.check_endpoint, server.url, "b", "LAB_KEY"))
            said.append(await asyncio.to_thread(module.check_endpoint, server.url, None, "LAB_KEY"))
        return said

    no_key, wrong_key, no_model, second, first = asyncio.run(refusals())
    assert "wants a key; set LAB_KEY" in no_key
    assert "refuses the key in LAB_KEY" in wrong_key
    assert "serves ['a', 'b'], not 'c'; correct policy.served_model" in no_model
    assert (second, first) == ("b", "a")


# --- connections that end badly: what is sent again, and what is not ---


class RawServer:
    """Says ``answers``, one per connection and in order, to the first request on it, and then closes the
    connection without a word. None: closes it as soon as the request begins, most of it unread."""

    def __init__(self, *answers: tuple[int, dict] | None) -> None:
        self.answers = list(answers)
        self.connections = 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self.server.close()
        await self.server.wait_closed()

    async def serve(self, reader, writer):
        answer = self.answers[min(self.connections, len(self.answers) - 1)]
        self.connections += 1
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if answer is not None:
            await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
            status, value = answer
            text = json.dumps(value).encode()
            start = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(text)}"
            writer.write(start.encode() + b"\r\n\r\n" + text)
            await writer.drain()
            writer.close()
        else:
            writer.transport.abort()


GOOD = (200, {"choices": [{"message": {"content": "Action: wait()"}}]})
BIG = {"messages": "x" * 20_000_000}
"""More than the sockets' buffers hold, so that writing fails when the other end is gone."""


async def test_no_request_follows_on_a_connection_that_brought_an_error():
    # As vLLM does: it answers 400 and closes, and the next request must not be lost to that.
    async with (
        RawServer((400, {"error": "Cache miss"}), GOOD) as server,
        connect(server, timeout_s=20.0) as to,
    ):
        with pytest.raises(PolicyError, match=r"status 400.*Cache miss"):
            await to.complete({"messages": []})
        assert await to.complete(BIG) == GOOD[1]
    assert server.connections == 2


async def test_a_request_that_broke_while_it_was_written_is_sent_again():
    async with RawServer(None, None, GOOD) as server, connect(server, timeout_s=20.0) as to:
        assert await to.complete(BIG) == GOOD[1]
    assert server.connections == 3


async def test_an_answer_that_breaks_off_is_not_asked_for_again():
    class Half(RawServer):
        async def serve(self, reader, writer):
            self.connections += 1
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
            await writer.drain()
            writer.close()

    async with Half() as server, connect(server, timeout_s=20.0) as to:
        with pytest.raises(PolicyError, match="the endpoint failed"):
            await to.complete({"messages": []})
    assert server.connections == 1


# --- each screenshot is sent once, as long as the server remembers it ---


class ForgetfulServer:
    """Remembers images by name, as vLLM does, and refuses a name that it has forgotten."""

    model = "m"

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.received: list[list[bool]] = []
        self.broken: str | None = None

    @staticmethod
    def hide(text: str) -> str:
        return text

    async def complete(self, body: dict[str, Any]) -> Any:
        if self.broken is not None:
            raise PolicyError(self.broken)
        images = [p for m in body["messages"] for p in m["content"] if p["type"] == "image_url"]
        self.received.append([part["image_url"] is not None for part in images])
        for part in images:
            if part["image_url"] is None and part["uuid"] not in self.known:
                raise PolicyError("the endpoint answers with status 400: Cache miss for image at index 0")
        self.known |= {part["uuid"] for part in images}
        return {"choices": [{"message": {"content": f"reply {len(self.received)}"}}], "usage": {}}


def start_named(server: ForgetfulServer) -> Any:
    policy = PolicyConfig(max_images=3)
    return NamedImagePolicy(server, policy, Sampling(1.0, 1.0, 8), ()).start(make_task())  # type: ignore[arg-type]


async def test_a_screenshot_is_sent_once() -> None:
    server = ForgetfulServer()
    conversation = start_named(server)
    for number in range(5):
        await conversation.reply(f"png {number}".encode())
    assert conversation.refused == 0
    assert server.received == [
        [True],
        [False, True],
        [False, False, True],
        [False, False, True],
        [False, False, True],
    ]


async def test_equal_screenshots_have_one_name() -> None:
    server = ForgetfulServer()
    conversation = start_named(server)
    await conversation.reply(b"same")
    await conversation.reply(b"same")
    assert len(server.known) == 1
    assert server.received[1] == [False, False]


async def test_a_forgotten_name_is_sent_again_with_its_screenshot() -> None:
    server = ForgetfulServer()
    conversation = start_named(server)
    await conversation.reply(b"a")
    await conversation.reply(b"b")
    server.known.clear()
    await conversation.reply(b"c")
    assert conversation.refused == 1
    assert server.received[-2:] == [[False, False, True], [True, True, True]]
    assert conversation.replies == ["reply 1", "reply 2", "reply 4"]
    assert len(conversation.images) == 3


async def test_other_failures_are_not_tried_again() -> None:
    server = ForgetfulServer()
    conversation = start_named(server)
    await conversation.reply(b"a")
    server.broken = "the endpoint does not answer"
    with pytest.raises(PolicyError, match="does not answer"):
        await conversation.reply(b"b")
    assert len(server.received) == 1


async def test_a_history_that_is_too_long_is_not_sent_again() -> None:
    server = ForgetfulServer()
    conversation = start_named(server)
    await conversation.reply(b"a")
    server.broken = "status 400: Input length (46808) exceeds model's maximum context length"
    with pytest.raises(PolicyError, match="46808"):
        await conversation.reply(b"b")
    assert conversation.refused == 0
