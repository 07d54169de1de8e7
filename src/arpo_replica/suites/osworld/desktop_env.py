"""Everything that is done to desktop-env, in one place, for one version: ``prepare`` refuses any other.

No file of it is changed. Four names in its modules are given subclasses, and ``requests``, through which it
speaks to desktops and file hosts, gets a transport adapter of ours:

- **at most once**: its client repeats a request up to three times when the answer is not 200, so an action or
  a set-up command can run three times (``controllers/python.py``, ``retry_times``). Ours sends once;
- **a broken desktop is no score**: its getters turn a desktop that does not answer into "no such file",
  which scores 0. The adapter raises ``GuestGone``, which no ``except Exception`` can swallow, and notes it;
- **failed set-up steps**: most are only logged. In a set-up ours raise;
- **readiness, not sleeps**: opening tabs waits for the browser's port instead of 5 s per attempt;
- **attached**: a ``DesktopEnv`` on a desktop that somebody else runs (``attach``);
- **whole downloads**: files of a task come from ``client``;
- **no code from desktops**: one metric ``eval``s what a command printed; it gets ``ast.literal_eval``. One
  runs a program that the policy wrote; it does so without network (``confine``).
"""

import ast
import functools
import importlib.metadata
import logging
import os
import socket
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import requests.sessions
from requests.adapters import HTTPAdapter

from arpo_replica.desktop.interface import DesktopAddress
from arpo_replica.suites.osworld.confine import run_without_network

VERSION = "1.0.2"
CONNECT_S = 10.0
ANSWER_S = 300.0
"""For requests that upstream makes without any time limit."""
BROWSER_S = 60.0
LOCK_S = 600.0
"""Wait for the lock of port allocation: desktops that start together queue up (upstream: 10 s)."""
READY_S = 0.2
"""How often a started container is asked whether it is ready (upstream: 1 s; after a stop it sleeps 3 s)."""


class GuestGone(BaseException):
    """The desktop does not answer. No ``Exception``: upstream catches those and goes on."""


class StepFailed(Exception):
    """A set-up step failed that upstream would only have logged."""


@dataclass
class Guest:
    """The desktop this process works with and what became of the last requests to it."""

    ports: frozenset[tuple[str, int]] = frozenset()
    gone: str | None = None
    """What a request that got no answer says; such an episode has no score."""
    refused: str | None = None
    """What the last answer says if it was an error."""
    files: dict[str, str] = field(default_factory=dict)
    """URL of a file of the task at hand -> where its content lies (``client``)."""
    strict: bool = False
    """True in an episode's set-up: a step that fails raises."""


GUEST = Guest()


class _Adapter(HTTPAdapter):
    """The transport of every ``requests`` call in this process."""

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        url = str(request.url)
        parts = urlsplit(url)
        if (parts.hostname or "", parts.port or 80) in GUEST.ports:
            return self._ask_guest(request, parts.path, *args, **options)
        if request.method == "GET" and url in GUEST.files:
            return _from_file(request, Path(GUEST.files[url]))
        return super().send(request, *args, **options)

    def _ask_guest(
        self, request: requests.PreparedRequest, path: str, *args: Any, **options: Any
    ) -> requests.Response:
        if options.get("timeout") is None:
            options["timeout"] = (CONNECT_S, ANSWER_S)
        options["proxies"] = {}
        try:
            response = super().send(request, *args, **options)
            content = response.content  # a body cut short must fail here, not in a getter
        except (requests.RequestException, OSError) as error:
            GUEST.gone = f"no answer to {request.method} {path}: {type(error).__name__}"
            raise GuestGone(GUEST.gone) from error
        words = content[:200].decode(errors="replace")
        GUEST.refused = None if response.ok else f"{path} answered {response.status_code}: {words}"
        return response


def _from_file(request: requests.PreparedRequest, path: Path) -> requests.Response:
    response = requests.Response()
    response.status_code = 200
    response.reason = "OK"
    response.url = str(request.url)
    response.request = request
    response.headers["Content-Length"] = str(path.stat().st_size)
    response.raw = path.open("rb")
    return response


def installed_version() -> str:
    """Version of desktop-env here."""
    return importlib.metadata.version("desktop-env")


def prepare() -> None:
    """Import desktop-env and put our subclasses in place. Raises ``RuntimeError`` for another version."""
    if installed_version() != VERSION:
        raise RuntimeError(
            f"suites/osworld/desktop_env.py is for desktop-env {VERSION}, not {installed_version()}"
        )
    logging.disable(logging.DEBUG)
    requests.sessions.HTTPAdapter = _Adapter  # type: ignore[attr-defined]
    import tldextract.tldextract
    from desktop_env import desktop_env
    from desktop_env.controllers import setup as setup_module

    # The list of public suffixes that the package brings, not one fetched from the web at some moment.
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=())
    probe = desktop_env.PythonController(vm_ip="127.0.0.1", server_port=1)
    if (probe.retry_times, probe.retry_interval) != (3, 5):
        raise RuntimeError(
            "desktop-env's client repeats requests in another way than known: revise upstream.py"
        )

    class Once(desktop_env.PythonController):
        """Sends every request at most once."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.retry_times, self.retry_interval = 1, 0

    from desktop_env.evaluators import metrics
    from desktop_env.evaluators.metrics import basic_os

    basic_os.eval = ast.literal_eval
    runs_a_program = metrics.check_python_file_by_test_suite
    metrics.check_python_file_by_test_suite = functools.update_wrapper(
        functools.partial(run_without_network, runs_a_program), runs_a_program
    )
    desktop_env.PythonController = setup_module.PythonController = Once
    desktop_env.SetupController = _checked(setup_module.SetupController)
    desktop_env.create_vm_manager_and_provider = _create(desktop_env.create_vm_manager_and_provider)


ADVISORY = ("_activate_window_setup", "_close_window_setup")
"""Steps that may fail: with them the task only chooses which window is in front, and upstream goes on too."""
CHECKED = ("_launch_setup", "_execute_setup", "_change_wallpaper_setup", "_update_browse_history_setup")
WARNINGS: list[str] = []
"""What advisory steps said since the last set-up began."""


def _checked(upstream: type[Any]) -> type[Any]:
    """``SetupController`` whose steps say when they fail."""

    class Checked(upstream):
        """A failed step is an error in an episode's set-up. In an evaluator's postconfig a step may fail
        because of what the policy did, and the score goes on as upstream's."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            # Made when the desktop is up: while one starts, a request without an answer is normal.
            GUEST.ports = frozenset({(self.vm_ip, self.server_port)})

        def setup(self, config: list[dict[str, Any]], use_proxy: bool = False) -> bool:
            """Upstream's, with a desktop that is known to listen: its own waiting takes 100 s."""
            try:
                socket.create_connection((self.vm_ip, self.server_port), CONNECT_S).close()
            except OSError as error:
                GUEST.gone = f"nothing listens on port {self.server_port}: {error}"
                raise GuestGone(GUEST.gone) from error
            done: bool = super().setup(config, use_proxy)
            if not done:
                GUEST.gone = GUEST.gone or "no connection"
                raise GuestGone(GUEST.gone)
            return done

        def _chrome_open_tabs_setup(self, *args: Any, **options: Any) -> Any:
            wait_for_browser(self.vm_ip, self.chromium_port)
            heard = _Listener()
            heard.log.addHandler(heard)
            try:
                result = super()._chrome_open_tabs_setup(*args, **options)
            finally:
                heard.log.removeHandler(heard)
            if GUEST.strict and heard.messages:
                raise StepFailed(heard.messages[0])
            return result

    def check(name: str, advisory: bool) -> None:
        original = getattr(upstream, name)

        def step(self: Any, *args: Any, **options: Any) -> Any:
            GUEST.refused = None
            result = original(self, *args, **options)
            if GUEST.refused and advisory:
                WARNINGS.append(GUEST.refused)
            elif GUEST.refused and GUEST.strict:
                raise StepFailed(GUEST.refused)
            return result

        setattr(Checked, name, step)

    for name in CHECKED + ADVISORY:
        check(name, name in ADVISORY)
    return Checked


class _Listener(logging.Handler):
    """Hears of pages that did not load: upstream only logs them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.log = logging.getLogger("desktopenv.setup")
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "exceeds time limit" in record.getMessage():
            self.messages.append(record.getMessage())


def wait_for_browser(host: str, port: int) -> None:
    """Return when DevTools answers; after a minute return all the same, upstream then says what is wrong."""
    deadline = time.monotonic() + BROWSER_S
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        try:
            with opener.open(f"http://{host}:{port}/json/version", timeout=5):
                return
        except (OSError, ValueError):
            time.sleep(0.1)


MARK = "ARPO_DESKTOP"
"""Variable in the environment of DockerProvider's containers: whose container it is."""


class _AttachedProvider:
    """Provider of a desktop that somebody else runs: starts and stops nothing."""

    def __init__(self, desktop: DesktopAddress) -> None:
        self.desktop = desktop

    def start_emulator(self, *_: Any) -> None:
        """It runs."""

    def get_ip_address(self, _: str) -> str:
        """Host and ports of server, DevTools, VNC (nobody asks) and VLC, as DockerProvider gives them."""
        desktop = self.desktop
        return f"{desktop.host}:{desktop.server}:{desktop.chromium}:0:{desktop.vlc}"

    def revert_to_snapshot(self, *_: Any) -> None:
        """Whoever runs the desktop cleans it."""
        raise RuntimeError("this desktop is reset by its own provider")

    def stop_emulator(self, *_: Any, **__: Any) -> None:
        """Whoever started it stops it."""


_pending: list[DesktopAddress] = []
_mark: list[str] = []


def _create(upstream: Any) -> Any:
    """``create_vm_manager_and_provider`` that knows attached desktops and marks containers."""

    def create(name: str, region: Any, use_proxy: bool = False) -> tuple[Any, Any]:
        if _pending:
            return None, _AttachedProvider(_pending.pop())
        manager, provider = upstream(name, region, use_proxy=use_proxy)
        if name == "docker":
            from desktop_env.providers.docker import provider as docker_module

            docker_module.LOCK_TIMEOUT = LOCK_S
            docker_module.WAIT_TIME, docker_module.RETRY_INTERVAL = 0, READY_S
            provider.environment[MARK] = _mark[-1]
        return manager, provider

    return create


def attach(desktop: DesktopAddress, screen: tuple[int, int], password: str, cache: Path) -> Any:
    """A ``DesktopEnv`` on a running desktop. It starts nothing; ``reset(task)`` runs the set-up steps."""
    _pending.append(desktop)
    try:
        return _environment("docker", "attached", screen, password, cache)
    finally:
        _pending.clear()


def start(
    hypervisor: str, vm: str, *, snapshot: str, mark: str, screen: tuple[int, int], password: str, cache: Path
) -> Any:
    """A ``DesktopEnv`` that starts its own desktop by desktop-env's ``docker`` or ``vmware`` provider."""
    _mark[:] = [mark]
    return _environment(hypervisor, vm, screen, password, cache, snapshot_name=snapshot)


def _environment(
    provider: str, vm: str, screen: tuple[int, int], password: str, cache: Path, **options: Any
) -> Any:
    from desktop_env.desktop_env import DesktopEnv

    return DesktopEnv(
        provider_name=provider,
        path_to_vm=vm,
        os_type="Ubuntu",
        action_space="pyautogui",
        screen_size=screen,
        cache_dir=os.fspath(cache),
        require_a11y_tree=False,
        headless=True,
        client_password=password,
        **options,
    )


def address_of(environment: Any) -> DesktopAddress:
    """Where the desktop of an environment listens."""
    # DockerProvider says localhost, a name that not every sandbox knows.
    host = "127.0.0.1" if environment.vm_ip == "localhost" else environment.vm_ip
    return DesktopAddress(host, environment.server_port, environment.chromium_port, environment.vlc_port)
