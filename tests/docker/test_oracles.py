"""OSWorld's own tasks, solved by scripts at the screen of a container, and not solved by doing nothing."""

import json
from pathlib import Path

import pytest
from docker_helpers import IMAGE

from arpo_replica.base.environments import ROOT
from arpo_replica.config import load_config
from arpo_replica.providers import osworld
from arpo_replica.tasks.splits import resolve
from arpo_replica.validation.validate import compare_validations, validate_tasks
from fakes import stop_server
from real_tasks import EXAMPLES, MISSING

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

SOLVED = {
    "chrome": "2ad9387a-65d8-4e33-ad5b-7580065a27ca",
    "gimp": "7b7617bd-57cc-468e-9c91-40c4ec2bcb3d",
    "libreoffice_impress": "2cd43775-7085-45d8-89fa-9e35c0a915cf",
    "vlc": "8ba5ae7a-5ae5-4eab-9fcc-5dd4fe3abf89",
}
INFEASIBLE = {
    "chrome": "480bcfea-d68f-4aaa-a0a9-2589ef319381",
    "vlc": "cb130f0d-d36f-4302-9838-b3baf46139b6",
}


@pytest.fixture(scope="module")
def study(engine, tmp_path_factory):
    """A function of a provider's settings: a config with the tasks above as the split ``few``."""
    if not (ROOT / "envs" / "evaluator" / ".venv" / "prepared").is_file():
        pytest.skip("envs/evaluator is not installed (python3 envs/prepare.py evaluator)")
    if not (EXAMPLES / "os").is_dir():
        pytest.skip(MISSING)
    folder = tmp_path_factory.mktemp("few")
    names = {domain: [one] for domain, one in SOLVED.items()}
    for domain, one in INFEASIBLE.items():
        names[domain] = [*names.get(domain, []), one]
    for split, listed in (("few", names), ("fewest", {"vlc": names["vlc"]})):
        content = {"name": split, "source": "the test", "tasks": listed}
        (folder / f"{split}.json").write_text(json.dumps(content))

    def configure(**desktop):
        config = load_config(ROOT / "configs" / "smoke.yaml")
        config.tasks.root = EXAMPLES
        config.tasks.splits |= {split: folder / f"{split}.json" for split in ("few", "fewest")}
        config.desktop = type(config.desktop).model_validate(
            {"count": 2, "screen": (1920, 1080), "start_timeout_s": 120, **desktop}
        )
        return config

    yield configure
    stop_server()


def on_containers(study, split, folder: Path):
    config = study(provider="container", container={"image": IMAGE})
    return validate_tasks(config, resolve(config, split), folder / "container" / f"{split}.json")


def test_scripts_solve_what_no_action_does_not(study, tmp_path):
    document = on_containers(study, "few", tmp_path)
    verdicts = {row["task"]: row["verdict"] for row in document["tasks"]}
    assert verdicts == {
        **{f"{domain}/{one}": "ok" for domain, one in SOLVED.items()},
        **{f"{domain}/{one}": "infeasible_ok" for domain, one in INFEASIBLE.items()},
    }, document["tasks"]
    assert document["mark"] == "OSWorld-compatible, container desktop"
    assert document["desktop"]["packages"]["vlc"].startswith("3.")


def test_desktop_envs_own_provider_gives_the_same_scores(study, engine, tmp_path):
    image = engine._client.images.get(IMAGE)
    repository, _, tag = osworld.IMAGE.rpartition(":")
    image.tag(repository, tag)
    config = study(provider="osworld", osworld={"image_digest": image.id})
    theirs = tmp_path / "osworld" / "fewest.json"
    document = validate_tasks(config, resolve(config, "fewest"), theirs)
    assert [row["verdict"] for row in document["tasks"]] == ["ok", "infeasible_ok"], document["tasks"]
    on_containers(study, "fewest", tmp_path)
    comparison = compare_validations(tmp_path / "container" / "fewest.json", theirs)
    assert comparison["different"] == []
    assert len(comparison["tasks"]) == 2
    assert comparison["second"]["kind"] == "osworld_container"
