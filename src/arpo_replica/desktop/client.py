"""Client of a desktop's guest server. Nothing is ever sent twice: a lost answer is a lost answer."""

import json
from collections.abc import Callable
from typing import Any

import aiohttp

from arpo_replica.actions.keys import key_name
from arpo_replica.actions.types import Action, Hotkey, TypeText
from arpo_replica.base.errors import DesktopError

Command = str | list[str]
COMMAND_S = 130.0
"""The guest gives up on a command after 120 s."""


KEY_S = 0.02
"""Time that typing one character may take, on top of a call's limit."""
FOREIGN_S = 0.3
"""The same for each different character that no key has. The guest lends keys to some forty at a time, and
twice waits up to 5 s for programs to have read the ones before."""


def typing_s(action: Action) -> float:
    """Seconds that an action may take longer than others: a long text is no broken desktop."""
    if not isinstance(action, TypeText):
        return 0.0
    return KEY_S * len(action.text) + FOREIGN_S * sum(character > "~" for character in set(action.text))


class GuestClient:
    """One desktop's HTTP API (OSWorld's, and our /act, /rest, /reset, /health).

    Every method raises ``DesktopError`` when the guest does not answer or refuses.
    """

    def __init__(
        self,
        connector: Callable[[], aiohttp.BaseConnector],
        screen: tuple[int, int],
        timeout_s: float = 15.0,
        base_url: str = "http://localhost",
        act_s: float | None = None,
    ) -> None:
        """``timeout_s`` bounds each call that names no time of its own, ``act_s`` an action if it may last
        longer."""
        self.screen = screen
        self._connector = connector
        self._base = base_url
        self._timeout_s = timeout_s
        self._act_s = timeout_s if act_s is None else act_s
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connection; the desktop goes on."""
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def _call(
        self, method: str, path: str, timeout_s: float | None = None, **body: Any
    ) -> tuple[bytes, Any]:
        limit = self._timeout_s if timeout_s is None else timeout_s
        if self._http is None:
            self._http = aiohttp.ClientSession(connector=self._connector())
        try:
            async with self._http.request(
                method, self._base + path, timeout=aiohttp.ClientTimeout(total=limit), **body
            ) as answer:
                data = await answer.read()
                if answer.status != 200:
                    text = data[:300].decode(errors="replace").strip()
                    raise DesktopError(f"the guest refused {path} with {answer.status}: {text}")
                return data, answer.headers
        except TimeoutError as error:
            raise DesktopError(f"the guest did not answer {path} within {limit:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise DesktopError(f"the guest did not answer {path}: {error!r}") from error

    async def _json(
        self, method: str, path: str, timeout_s: float | None = None, **body: Any
    ) -> dict[str, Any]:
        data, _ = await self._call(method, path, timeout_s, **body)
        try:
            answer: dict[str, Any] = json.loads(data)
            return answer
        except ValueError as error:
            raise DesktopError(f"the guest answered {path} with no JSON: {data[:80]!r}") from error

    # -- seeing and acting ------------------------------------------------------------------------

    async def health(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Facts of a desktop that is up; waits for one that is still starting."""
        return await self._json("GET", "/health", timeout_s)

    async def screenshot(self) -> bytes:
        """The screen with the mouse pointer, PNG."""
        return (await self._call("GET", "/screenshot"))[0]

    async def act(self, action: Action, action_id: str) -> tuple[dict[str, Any], bytes]:
        """Apply the action unless its id was seen before; the facts and the screen at rest, PNG.

        Facts: ``status`` (``applied`` or ``duplicate``), ``ignored`` (names of keys that do not exist).
        """
        written = action.to_json()
        if isinstance(action, Hotkey):  # the guest knows the keys by one name each
            written["keys"] = [key_name(key) or key for key in action.keys]
        body = {"id": action_id, "action": written, "screenshot": True}
        png, headers = await self._call("POST", "/act", self._act_s + typing_s(action), json=body)
        try:
            facts: dict[str, Any] = json.loads(headers["X-Desktop-Act"])
        except (KeyError, ValueError) as error:
            raise DesktopError("the guest answered /act without its facts") from error
        return facts, png

    async def rest(self) -> None:
        """Return when the screen has come to rest (or keeps changing for a second)."""
        await self._json("POST", "/rest")

    async def calm(self, windows: int, windows_s: float, calm_s: float) -> None:
        """Return when so many windows are there and no program has anything to do.

        Waits at most ``windows_s`` for the windows, which is an error then, and ``calm_s`` for the calm.
        """
        body = {"windows": windows, "windows_s": windows_s, "calm_s": calm_s}
        await self._json("POST", "/calm", windows_s + calm_s + self._timeout_s, json=body)

    async def reset(self, relaunch: bool, windows: int, timeout_s: float) -> str:
        """Clean the desktop; ``kept``, ``relaunched`` or ``none``: what became of its browser.

        ``windows``: how many clean ones the browser has; with any other number it is relaunched.
        """
        body = {"relaunch": relaunch, "windows": windows}
        answer = await self._json("POST", "/reset", timeout_s, json=body)
        return str(answer["browser"])

    # -- OSWorld's set-up steps and getters -------------------------------------------------------

    async def execute(self, command: Command, shell: bool = False) -> dict[str, Any]:
        """Run a command to its end; ``{output, error, returncode}``."""
        body = {"command": command, "shell": shell}
        return await self._json("POST", "/setup/execute", COMMAND_S, json=body)

    async def execute_source(self, source: str, timeout_s: float) -> dict[str, Any]:
        """Run Python source as OSWorld's client does; ``{output, error, returncode}``."""
        body = {"command": ["python", "-c", source], "shell": False}
        return await self._json("POST", "/execute", timeout_s, json=body)

    async def screen_size(self) -> tuple[int, int]:
        """Width and height of the desktop's screen in pixels, as it is."""
        size = await self._json("POST", "/screen_size")
        try:
            return int(size["width"]), int(size["height"])
        except (KeyError, TypeError, ValueError) as error:
            raise DesktopError(f"the guest answered /screen_size with {size!r}") from error

    async def launch(self, command: Command, shell: bool = False) -> None:
        """Start a program, do not wait for it."""
        await self._call("POST", "/setup/launch", json={"command": command, "shell": shell})

    async def upload(self, path: str, data: bytes) -> None:
        """Write a file in the desktop, with its folders."""
        form = aiohttp.FormData()
        form.add_field("file_path", path)
        form.add_field("file_data", data, filename=path.rsplit("/", 1)[-1])
        await self._call("POST", "/setup/upload", COMMAND_S, data=form)

    async def file(self, path: str) -> bytes:
        """A file of the desktop. There being none is an error too."""
        return (await self._call("POST", "/file", COMMAND_S, data={"file_path": path}))[0]
