"""Prints what the installed desktop-env has: ``data/osworld/evaluators.json``. Needs envs/evaluator."""

import inspect
import json

from desktop_env.controllers.setup import SetupController
from desktop_env.evaluators import getters, metrics

from arpo_replica.suites.osworld.desktop_env import installed_version


def make_inventory():
    def functions(module, prefix=""):
        return sorted(
            name.removeprefix(prefix)
            for name, value in vars(module).items()
            if inspect.isfunction(value) and name.startswith(prefix) and not name.startswith("_")
        )

    steps = {
        name.removeprefix("_").removesuffix("_setup"): value
        for name, value in vars(SetupController).items()
        if name.startswith("_") and name.endswith("_setup") and name != "_proxy_setup"
    }
    return {
        "package": "desktop-env",
        "version": installed_version(),
        "metrics": functions(metrics),
        "getters": functions(getters, "get_"),
        "set_up": sorted(
            name
            for name, value in steps.items()
            if "raise NotImplementedError" not in inspect.getsource(value)
        ),
    }


if __name__ == "__main__":
    print(json.dumps(make_inventory(), indent=1))
