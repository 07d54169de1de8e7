"""The page in Debian's Chromium: nothing runs that is not ours, and readers can use it."""

import asyncio
import base64
import contextlib
import io
import json
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from arpo_replica.desktop.devtools import DevTools
from synthetic_study import Study, evaluate, make_study, render

pytestmark = pytest.mark.desktop

HELPERS = Path(__file__).with_suffix(".js").read_text()
CHROMIUM = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
PAYLOADS = [
    "<script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "\"'><svg/onload=window.hacked=1>",
    "</pre></li></ol></details><iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "<a href=javascript:window.hacked=1 autofocus onfocus=window.hacked=1>x</a>",
    "</style><style>body{display:none}</style>",
    "</script><script>window.hacked=1</script>",
    "<math><mtext><table><mglyph><style><img src=x onerror=window.hacked=1>",
    "<form action=http://127.0.0.1:9/><input autofocus onfocus=window.hacked=1>",
    "<object data='data:text/html,<script>parent.hacked=1</script>'>",
    "<base href=http://127.0.0.1:9/><meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>",
    "{{7*7}}${7*7}<%= 7*7 %>",
]


class Reader:
    """A browser window with the page open."""

    def __init__(self, tools: DevTools, page: str) -> None:
        self.tools = tools
        self.page = page

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        return await self.tools.call(method, params, self.page)

    async def value(self, expression: str) -> Any:
        return await self.tools.evaluate(expression, self.page)

    async def count(self, selector: str) -> int:
        return await self.value(f"document.querySelectorAll({json.dumps(selector)}).length")

    async def key(self, name: str) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    async def click(self, selector: str) -> None:
        x, y = await self.value(f"ask.centre({json.dumps(selector)})")
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def go(self, episode: str) -> None:
        await self.value(f"location.hash = '#{episode}'")
        await self.value("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 20)))")

    async def size(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    async def media(self, media: str, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", media=media, features=features)

    async def background(self) -> str:
        return await self.value("getComputedStyle(document.body).backgroundColor")

    async def picture(self) -> Image.Image:
        data = (await self.call("Page.captureScreenshot"))["data"]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


@asynccontextmanager
async def reader(html: Path, *, scripts: bool = True) -> AsyncIterator[Reader]:
    """Open the page from disk in a Chromium of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            *CHROMIUM,
            f"--user-data-dir={profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            port = await asyncio.to_thread(wait_for_port, Path(profile) / "DevToolsActivePort")
            tools = DevTools(base_url=f"http://127.0.0.1:{port}", timeout_s=60)
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(tools.disconnect)
                found = Reader(tools, await tools.first_page())
                await found.call("Page.addScriptToEvaluateOnNewDocument", source=HELPERS)
                await found.size(1280, 900)
                if not scripts:
                    await found.call("Emulation.setScriptExecutionDisabled", value=True)
                await tools.navigate(html.as_uri(), found.page)
                yield found
                await tools.call("Browser.close")
                await asyncio.wait_for(process.wait(), 20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def wait_for_port(file: Path) -> int:
    """The port that Chromium chose, once it has written it whole."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if file.is_file() and "\n" in (text := file.read_text()):
            return int(text.split()[0])
        time.sleep(0.05)
    raise TimeoutError("Chromium did not open its DevTools port")


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study: Study = make_study(tmp_path_factory.mktemp("study"), tasks=5, trials=2, steps=4)
    evaluate(study)
    return render(study)


async def test_page_opens_clean_and_the_viewer_obeys_the_keyboard(html: Path) -> None:
    async with reader(html) as page:
        assert await page.value("seen") == []
        assert await page.value("performance.getEntriesByType('resource').length") == 0
        episode = await page.value("ask.longestEpisode()")
        await page.go(episode)
        where = f"document.querySelector('#{episode} .player output').textContent"
        count = await page.count(f"#{episode} .step")
        assert count >= 3
        assert await page.value(where) == f"1 of {count}"
        await page.key("ArrowRight")
        await page.key("ArrowRight")
        assert await page.value(where) == f"3 of {count}"
        await page.key("ArrowLeft")
        assert await page.value(where) == f"2 of {count}"
        assert await page.count(f"#{episode} .step:not([hidden])") == 1
        await page.click(f"#{episode} .player button:nth-of-type(2)")
        assert await page.value(where) == f"3 of {count}"
        await page.key("Escape")
        assert await page.count(f"#{episode}[open]") == 0
        assert await page.value("seen") == []


async def test_filters_and_links_of_the_matrix(html: Path) -> None:
    async with reader(html) as page:
        everything = await page.count(".card:not(.film, [hidden])")
        await page.value("ask.filter('outcome', 'failure')")
        shown = await page.count(".card:not(.film, [hidden])")
        assert 0 < shown < everything
        assert shown == await page.count(".card[data-outcome=failure]")
        # A link undoes the filter that would hide its target.
        hidden = await page.value("document.querySelector('.card[hidden]:not(.film)').id")
        await page.click(f".sign-link[href='#{hidden}']")
        await page.go(hidden)
        assert await page.count(f"#{hidden}[open]") == 1
        assert await page.count(".card:not(.film, [hidden])") == everything


async def test_the_click_is_drawn_over_the_screenshot(html: Path) -> None:
    async with reader(html) as page:
        episode = await page.value("ask.clickedEpisode()")
        await page.go(episode)
        found = await page.value(f"ask.showClick('{episode}')")
        scale = found["width"] / 168
        assert scale == 2
        assert found["markX"] == pytest.approx(found["left"] + found["x"] * scale, abs=1)
        assert found["markY"] == pytest.approx(found["top"] + found["y"] * scale, abs=1)
        picture = await page.picture()
        y = round(found["markY"])
        ring = [picture.getpixel((round(found["markX"]) - distance, y)) for distance in range(10, 20)]
        assert (209, 0, 111) in ring
        # The instruction's yellow in the corner: the screenshot itself is there.
        corner = (round(found["left"]) + 4, round(found["top"]) + 6)
        assert picture.getpixel(corner) == (255, 255, 153)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_contrast_is_enough(html: Path, scheme: str) -> None:
    async with reader(html) as page:
        await page.media("screen", scheme)
        await page.value("ask.openAll()")
        assert await page.value("ask.lowContrast()") == []
        background = await page.background()
        assert (background == "rgb(251, 250, 247)") == (scheme == "light")
        await page.click(".theme")
        assert await page.background() != background
        assert await page.value("ask.lowContrast()") == []


async def test_phone_width_scrolls_only_downwards(html: Path) -> None:
    async with reader(html) as page:
        await page.size(390, 800)
        await page.value("ask.openAll()")
        assert await page.value("document.documentElement.scrollWidth <= innerWidth")
        assert await page.value("document.querySelector('.banner').getBoundingClientRect().top < 400")


async def test_without_script_everything_is_there(html: Path) -> None:
    async with reader(html, scripts=False) as page:
        await page.call("Emulation.setScriptExecutionDisabled", value=False)
        await page.value(HELPERS)
        assert await page.count(".player, .theme, #filters select") == 0
        await page.value("ask.openAll()")
        assert await page.value("ask.hidden('.step, table, .figure-svg, .banner')") == 0
        assert await page.count(".step") > 20


async def test_print_gives_pages_with_banner_and_all_steps_of_open_episodes(html: Path) -> None:
    async with reader(html) as page:
        episode = await page.value("ask.longestEpisode()")
        await page.go(episode)
        await page.media("print", "dark")
        assert await page.background() == "rgb(255, 255, 255)"
        assert await page.value("ask.lowContrast()") == []
        assert await page.value(f"ask.hidden('#{episode} .step, .banner, .figure-svg')") == 0
        answer = await page.call("Page.printToPDF", printBackground=True)
        data = base64.b64decode(answer["data"])
        assert data.startswith(b"%PDF")
        assert len(data) > 100_000


async def test_hostile_text_neither_runs_nor_leaves(tmp_path: Path) -> None:
    study = make_study(
        tmp_path,
        tasks=3,
        trials=1,
        steps=1,
        text=lambda i: "\n".join(PAYLOADS),
        instruction="".join(PAYLOADS),
    )
    for path in study.episodes.rglob("episode.json"):
        # Errors of the environment carry text of the guest, which a policy can influence.
        path.write_text(path.read_text().replace('"errors": []', f'"errors": ["{PAYLOADS[1]}"]'))
    evaluate(study)
    async with reader(render(study)) as page:
        await page.value("ask.openAll()")
        await page.value("new Promise((done) => setTimeout(done, 300))")
        assert await page.value("window.hacked === undefined")
        assert await page.value("seen") == []
        assert await page.value("location.protocol") == "file:"
        assert await page.value("performance.getEntriesByType('resource').length") == 0
        assert await page.count("script:not([type]), style, iframe, object, img, math, base") == 2
        assert await page.value("document.querySelector('.model-text').textContent") == "\n".join(PAYLOADS)
