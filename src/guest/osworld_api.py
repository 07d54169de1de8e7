"""OSWorld's guest API (desktop_env/server/main.py there), so that OSWorld's own client can drive us.

Only set-up steps and evaluators use it; their commands come from task files, never from a policy.
Commands run as the desktop's user inside the desktop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shlex
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from .session import Session

COMMAND_S = 120.0
PYTHON_S = 30.0
OPEN_S = 30.0
FILM_START_S = 30.0
FILM = "recording.mp4"
WALLPAPER_KEY = ["org.gnome.desktop.background", "picture-uri"]
Answer = web.Response | dict[str, Any] | list[Any] | str
"""A dict or a list goes out as JSON, a string as text."""
Handler = Callable[[Any], Awaitable[Answer]]
"""Of a request's JSON, of its form, or of None."""


class Failed(Exception):
    """What was asked for cannot be done."""


def endpoint(handler: Handler, read: Callable[[web.Request], Awaitable[Any]] | None) -> Any:
    """``handler`` as aiohttp calls it. ``read``: how it wants the body; None: not at all."""

    async def answer(request: web.Request) -> web.Response:
        body = None if read is None else await read(request)
        try:
            made = await handler(body)
        except (Failed, OSError, aiohttp.ClientError) as problem:
            message = {"status": "error", "message": str(problem) or repr(problem)}
            return web.json_response(message, status=500)
        if isinstance(made, web.Response):
            return made
        return web.Response(text=made) if isinstance(made, str) else web.json_response(made)

    return answer


class Recorder:
    """Films of the screen, as OSWorld's client asks for them."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, _: None) -> Answer:
        """Film the screen with ffmpeg until /end_recording."""
        if self._process is not None and self._process.returncode is None:
            return web.json_response({"status": "error", "message": "a recording runs already"}, status=400)
        width, height = self.session.config.screen
        command = ["ffmpeg", "-y", "-f", "x11grab", "-draw_mouse", "1", "-s", f"{width}x{height}"]
        command += ["-framerate", "30", "-i", self.session.environment["DISPLAY"]]
        command += ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-flush_packets", "1", str(self._film())]
        self._film().unlink(missing_ok=True)
        self._process = await self.session.spawn(command)
        deadline = time.monotonic() + FILM_START_S
        while not self._film().exists() or self._film().stat().st_size == 0:
            if self._process.returncode is not None or time.monotonic() > deadline:
                raise Failed("ffmpeg does not film")
            await asyncio.sleep(0.05)
        return {"status": "success", "message": "Started recording"}

    async def end(self, _: None) -> Answer:
        """The film as mp4."""
        process, self._process = self._process, None
        if process is None:
            return web.json_response({"status": "error", "message": "no recording runs"}, status=400)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        await process.wait()
        return web.Response(body=self._film().read_bytes(), content_type="video/mp4")

    def _film(self) -> Path:
        return self.session.private / FILM


class OsworldApi:
    """Handlers of OSWorld's endpoints other than /screenshot."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._recorder = Recorder(session)
        self._accessibility = asyncio.Lock()

    def routes(self) -> list[web.RouteDef]:
        """Endpoint table."""
        by_json: dict[str, Handler] = {
            "/execute": self.execute,
            "/setup/execute": self.execute,
            "/execute_with_verification": self.execute_with_verification,
            "/setup/execute_with_verification": self.execute_with_verification,
            "/setup/launch": self.launch,
            "/setup/download_file": self.download_file,
            "/setup/open_file": self.open_file,
            "/setup/activate_window": self.activate_window,
            "/setup/close_window": self.close_window,
            "/setup/change_wallpaper": self.change_wallpaper,
            "/list_directory": self.list_directory,
            "/run_python": self.run_python,
            "/run_bash_script": self.run_bash_script,
        }
        by_form: dict[str, Handler] = {
            "/setup/upload": self.upload,
            "/file": self.file,
            "/window_size": self.window_size,
        }
        post: dict[str, Handler] = {
            "/wallpaper": self.wallpaper,
            "/screen_size": self.screen_size,
            "/desktop_path": self.desktop_path,
            "/start_recording": self._recorder.start,
            "/end_recording": self._recorder.end,
        }
        get: dict[str, Handler] = {
            "/terminal": self.terminal,
            "/accessibility": self.accessibility,
            "/platform": self.platform,
            "/cursor_position": self.cursor_position,
        }
        return [
            *(web.post(path, endpoint(handler, web.Request.json)) for path, handler in by_json.items()),
            *(web.post(path, endpoint(handler, web.Request.post)) for path, handler in by_form.items()),
            *(web.post(path, endpoint(handler, None)) for path, handler in post.items()),
            *(web.get(path, endpoint(handler, None)) for path, handler in get.items()),
        ]

    # -- programs ---------------------------------------------------------------------------------

    async def execute(self, body: dict[str, Any]) -> Answer:
        """``{command, shell}`` -> ``{status, output, error, returncode}``."""
        return await self._finished(self._command(body), COMMAND_S)

    async def execute_with_verification(self, body: dict[str, Any]) -> Answer:
        """As execute; then waits until the window exists and the check command succeeds."""
        wanted = body.get("verification") or {}
        code, output, error = await self._run(self._command(body), COMMAND_S)
        result = {"output": output, "error": error, "returncode": code}
        deadline = time.monotonic() + float(body.get("max_wait_time", 10))
        while True:
            if await self._verified(wanted):
                return {"status": "success", **result, "verification": "success"}
            if time.monotonic() > deadline:
                return web.json_response({"status": "verification_failed", **result}, status=500)
            await asyncio.sleep(min(float(body.get("check_interval", 1)), 1.0))

    async def _verified(self, wanted: dict[str, Any]) -> bool:
        window = wanted.get("window_exists")
        if window and not (
            self.session.windows.find(window, False, False) or self.session.windows.find(window, False, True)
        ):
            return False
        check = wanted.get("command_success")
        if not check:
            return True
        try:
            return (await self._run(self._command({"command": check, "shell": True}), 5.0))[0] == 0
        except OSError:
            return False

    async def launch(self, body: dict[str, Any]) -> Answer:
        """``{command, shell}``: start a program, do not wait for it."""
        command = self._command(body)
        if self._runs_already(command):
            return f"{shlex.join(command)} runs already"
        await self.session.spawn(command)
        return f"{shlex.join(command)} launched successfully"

    def _runs_already(self, command: list[str]) -> bool:
        """A full-screen desktop has its browser and its DevTools relay from the start."""
        if not self.session.config.fullscreen or not command:
            return False
        program = Path(command[0]).name
        if program in ("google-chrome", "google-chrome-stable", "chromium", "chromium-browser"):
            return self.session.browser_alive and all(word.startswith("--") for word in command[1:])
        return program == "socat" and any(word.startswith("tcp-listen:9222") for word in command[1:])

    async def run_python(self, body: dict[str, Any]) -> Answer:
        """``{code}`` -> ``{status, output, error, return_code}``."""
        answer = await self._finished(["/usr/bin/python3", "-c", str(body.get("code", ""))], PYTHON_S)
        code = answer.pop("returncode")
        return {**answer, "return_code": code, "status": "success" if code == 0 else "error"}

    async def run_bash_script(self, body: dict[str, Any]) -> Answer:
        """``{script, timeout, working_dir}``; stdout and stderr come merged in ``output``."""
        script = f"exec 2>&1\n{body.get('script', '')}"
        limit = float(body.get("timeout", PYTHON_S))
        return await self._finished(["/bin/bash", "-c", script], limit, body.get("working_dir"))

    async def _finished(
        self, command: list[str], limit_s: float, folder: str | None = None
    ) -> dict[str, Any]:
        code, output, error = await self._run(command, limit_s, folder)
        return {"status": "success", "output": output, "error": error, "returncode": code}

    async def _run(
        self, command: list[str], limit_s: float, folder: str | None = None
    ) -> tuple[int, str, str]:
        if not command:
            raise Failed("no command")
        process = await asyncio.create_subprocess_exec(
            *command,
            env=self.session.environment,
            cwd=folder or self.session.config.home,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            output, error = await asyncio.wait_for(process.communicate(), limit_s)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise TimeoutError(f"{shlex.join(command)[:200]} took longer than {limit_s:g} s") from None
        return process.returncode or 0, output.decode(errors="replace"), error.decode(errors="replace")

    def _command(self, body: dict[str, Any]) -> list[str]:
        command: str | list[str] = body.get("command", [])
        if body.get("shell"):
            text = command if isinstance(command, str) else " ".join(command)
            return ["/bin/bash", "-c", text]
        words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
        return [self._expand(word) for word in words]

    def _expand(self, text: str) -> str:
        return f"{self.session.config.home}/{text[2:]}" if text.startswith("~/") else text

    # -- files ------------------------------------------------------------------------------------

    async def upload(self, form: dict[str, Any]) -> Answer:
        """Multipart ``file_path``, ``file_data``: write the file, make its folders."""
        place, data = form.get("file_path"), form.get("file_data")
        if not isinstance(place, str) or not isinstance(data, web.FileField):
            return web.Response(text="file_path and file_data are wanted", status=400)
        await asyncio.to_thread(_store, Path(self._expand(place)), data.file.read())
        return "File Uploaded"

    async def download_file(self, body: dict[str, Any]) -> Answer:
        """``{url, path}``: load a file from the network, if this desktop has one."""
        url, path = str(body.get("url", "")), Path(self._expand(str(body.get("path", ""))))
        if not url.startswith(("http://", "https://")) or not path.name:
            return web.Response(text="url and path are wanted", status=400)
        limit = aiohttp.ClientTimeout(total=COMMAND_S)
        async with (
            aiohttp.ClientSession(timeout=limit, raise_for_status=True) as http,
            http.get(url) as answer,
        ):
            await asyncio.to_thread(_store, path, await answer.read())
        return "File downloaded successfully"

    async def file(self, form: dict[str, Any]) -> Answer:
        """Form ``file_path`` -> bytes; 404 if there is no such file."""
        path = Path(self._expand(str(form.get("file_path", ""))))
        try:
            body = await asyncio.to_thread(path.read_bytes)
        except (FileNotFoundError, IsADirectoryError):
            return web.json_response({"error": "File not found"}, status=404)
        return web.Response(body=body, content_type="application/octet-stream")

    async def desktop_path(self, _: None) -> Answer:
        """``{desktop_path}``."""
        return {"desktop_path": f"{self.session.config.home}/Desktop"}

    async def list_directory(self, body: dict[str, Any]) -> Answer:
        """``{path}`` -> ``{directory_tree}``, nested ``{type, name, children}``."""
        path = Path(self._expand(str(body.get("path", ""))))
        tree = await asyncio.to_thread(_tree, path)
        if tree["type"] != "directory":
            return web.json_response({"error": f"{path} is no folder"}, status=400)
        return {"directory_tree": tree}

    async def open_file(self, body: dict[str, Any]) -> Answer:
        """``{path}``: open a file (or start a program of that name) and wait for its window."""
        place = str(body.get("path", ""))
        path = Path(self._expand(place))
        exists = await asyncio.to_thread(path.exists)
        await self.session.spawn(["xdg-open", str(path)] if exists else [place])
        deadline = time.monotonic() + OPEN_S
        while (window := self.session.windows.find(path.stem, False, False)) is None:
            if time.monotonic() > deadline:
                return web.Response(text=f"no window shows {path.name}", status=500)
            await asyncio.sleep(0.05)
        self.session.windows.activate(window)
        return "File opened and window activated successfully"

    # -- windows and screen -----------------------------------------------------------------------

    async def activate_window(self, body: dict[str, Any]) -> Answer:
        """``{window_name, strict, by_class}``."""
        return self._window(body, self.session.windows.activate)

    async def close_window(self, body: dict[str, Any]) -> Answer:
        """``{window_name, strict, by_class}``."""
        return self._window(body, self.session.windows.close)

    def _window(self, body: dict[str, Any], act: Callable[[Any], None]) -> Answer:
        name = str(body.get("window_name", ""))
        window = self.session.windows.find(name, bool(body.get("strict")), bool(body.get("by_class")))
        if not name or window is None:
            return web.Response(text=f"Window {name!r} not found", status=404 if name else 400)
        act(window)
        return "done"

    async def screen_size(self, _: None) -> Answer:
        """``{width, height}``."""
        width, height = self.session.config.screen
        return {"width": width, "height": height}

    async def window_size(self, form: dict[str, Any]) -> Answer:
        """Form ``app_class_name`` -> ``{width, height}``."""
        name = str(form.get("app_class_name", ""))
        window = self.session.windows.find(name, False, True)
        if not name or window is None:
            return web.json_response({"error": f"no window of class {name!r}"}, status=404)
        width, height = self.session.windows.size(window)
        return {"width": width, "height": height}

    async def change_wallpaper(self, body: dict[str, Any]) -> Answer:
        """``{path}``."""
        path = Path(self._expand(str(body.get("path", ""))))
        if not await asyncio.to_thread(path.is_file):
            return web.Response(text="File not found", status=404)
        try:
            return await self._finished(["gsettings", "set", *WALLPAPER_KEY, path.as_uri()], PYTHON_S)
        finally:
            if shutil.which("feh") is not None:  # no GNOME shows what its settings say
                await self.session.spawn(["feh", "--no-fehbg", "--bg-fill", str(path)])

    async def wallpaper(self, _: None) -> Answer:
        """The wallpaper's bytes."""
        output = (await self._run(["gsettings", "get", *WALLPAPER_KEY], PYTHON_S))[1]
        path = Path(output.strip().strip("'").removeprefix("file://"))
        return web.Response(body=await asyncio.to_thread(path.read_bytes), content_type="image/png")

    async def terminal(self, _: None) -> Answer:
        """Text of the terminal in front; also what OSWorld's client tests the connection with."""
        try:
            output = await self._at_spi("--terminal")
        except (OSError, Failed):
            output = ""  # no accessibility bus, so no terminal that could be read
        return {"output": output, "status": "success"}

    async def accessibility(self, _: None) -> Answer:
        """``{"AT": xml}``."""
        return {"AT": await self._at_spi("--tree")}

    async def _at_spi(self, what: str) -> str:
        # A process of its own, one at a time: AT-SPI's library crashes when several threads use it.
        if self.session.config.fullscreen:
            raise Failed("this desktop has no accessibility bus")
        source = resources.files(__package__).joinpath("accessibility.py").read_text()
        async with self._accessibility:
            code, output, error = await self._run(["/usr/bin/python3", "-c", source, what], COMMAND_S)
        if code != 0:
            raise Failed(error.strip()[-300:])
        return output

    async def platform(self, _: None) -> Answer:
        """Name of the system, as text."""
        return platform.system()

    async def cursor_position(self, _: None) -> Answer:
        """``[x, y]``."""
        return list(self.session.input.position())


def _store(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _tree(path: Path) -> dict[str, Any]:
    if path.is_dir() and not path.is_symlink():
        children = [_tree(child) for child in sorted(path.iterdir())]
        return {"type": "directory", "name": path.name, "children": children}
    return {"type": "file", "name": path.name}
