"""Guards for work-arounds: each names the upstream release it was written for and refuses any other.

A work-around that silently no longer applies is worse than a crash, so every module that replaces an
upstream function first calls these.
"""

import inspect
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any


class UpstreamChanged(RuntimeError):
    """An upstream package is not what a work-around was written for."""


VERL_VERSION = "0.9.1"
"""What the work-arounds for verl were written for, and what trainings run on."""


def require_verl(module: str) -> None:
    """``require_version`` of a module that replaces functions of verl."""
    require_version("verl", (VERL_VERSION,), module)


def require_version(package: str, expected: tuple[str, ...], module: str) -> None:
    """Raise ``UpstreamChanged`` unless the installed version (without local part) is an expected one."""
    try:
        found = version(package).partition("+")[0]
    except PackageNotFoundError as error:
        raise UpstreamChanged(f"{module} needs the package {package}, which is not installed.") from error
    if found not in expected:
        raise UpstreamChanged(
            f"{module} was written for {package} {' or '.join(expected)}, but {found} is installed: "
            f"check whether the work-around is still needed, then add the version there."
        )


def require_function(owner: Any, name: str, parameters: tuple[str, ...], module: str) -> Callable[..., Any]:
    """The function ``owner.name``, whose first parameters must be these.

    Raises ``UpstreamChanged`` if it is gone or begins with other parameters.
    """
    function: Callable[..., Any] | None = getattr(owner, name, None)
    where = f"{getattr(owner, '__name__', owner)}.{name}"
    if not callable(function):
        raise UpstreamChanged(f"{module} replaces {where}, which no longer exists.")
    found = tuple(inspect.signature(function).parameters)[: len(parameters)]
    if found != parameters:
        raise UpstreamChanged(f"{module} replaces {where}{parameters}, which now begins with {found}.")
    return function
