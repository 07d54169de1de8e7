"""What a stage's replay store begins with: nothing, recorded successes of the base policy, or another store.

The released code has lines, commented out, that fill its buffer from a file before the first step. Here
``training.replay.preload`` takes the successes from the episodes that offline arms learn from too (rule
``collect_offline_episodes``): the base policy's own, sampled as in training. ``training.replay.carry`` takes
the store that the stage before ended with.

No torch here: what begins is a list of names and folders (``StartStore``); ``sampler`` fills the store.
"""

from collections.abc import Sequence
from pathlib import Path

from arpo_replica.base.errors import UserError
from arpo_replica.base.files import file_sha256
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.training import StageConfig
from arpo_replica.policy.manifest import Manifest
from arpo_replica.rollout.records import RecordedEpisode
from arpo_replica.rollout.run import describe_sampling, sampled_as_in_training
from arpo_replica.tasks.model import Task
from arpo_replica.training.job import PREFIX_VERL, REPLAY_FILE, StartStore
from arpo_replica.training.offline.data import digest, read_rollouts


def start_store(
    config: StudyConfig, arm: str, *, parent: Path, source: Manifest, indexes: Sequence[Path]
) -> StartStore:
    """What the store of a stage of the arm begins with: recorded successes if it starts from the base policy.

    ``parent``: path of the manifest that the stage goes on from, absolute; ``source``: its content;
    ``indexes``: of the base policy's recorded episodes. Raises ``UserError`` if these are not what the config
    asks for.
    """
    replay = config.recipe(arm).replay
    if not replay.enabled:
        return StartStore()
    if source.arm == arm:
        if not replay.carry:
            return StartStore()
        path = parent.parent / "checkpoints" / f"{PREFIX_VERL}{source.step}" / REPLAY_FILE
        if not path.is_file():
            raise UserError(
                f"training.replay.carry needs the replay store of the stage '{source.stage}', but there is "
                f"no {path}; train that stage again, or set the key to false."
            )
        facts = {"store_sha256": file_sha256(path)}
        return StartStore(before=parent.parent, stage=source.stage, steps=source.step, facts=facts)
    if not replay.preload:
        return StartStore()
    rollouts = successes(config, arm, source.sha256, indexes)
    return StartStore(
        episodes=[rollout.directory.absolute() for rollout in rollouts],
        facts={"episodes_sha256": digest(rollouts), "preloaded_successes": len(rollouts)},
    )


def successes(
    config: StudyConfig, arm: str, checkpoint_sha256: str, indexes: Sequence[Path]
) -> list[RecordedEpisode]:
    """The recorded episodes that the replay rule would have stored, by task and trial.

    Raises ``UserError`` for episodes of another policy or otherwise sampled ones, and if none succeeded.
    """
    rollouts = read_rollouts(indexes, checkpoint_sha256)
    wanted = describe_sampling(sampled_as_in_training(config))
    for rollout in rollouts:
        other = [key for key, value in wanted.items() if rollout.record.sampling.get(key) != value]
        if other:
            found = rollout.record.sampling.get(other[0])
            raise UserError(
                f"{rollout.directory} was recorded with {other[0]} {found!r}, but this study asks for "
                f"{wanted[other[0]]!r}; delete {rollout.directory.parent} and run again."
            )
    above = config.recipe(arm).replay.success_above
    kept = [rollout for rollout in rollouts if (rollout.record.hard_score or 0.0) > above]
    if not kept:
        raise UserError(
            f"The arm '{arm}' begins with successes of the base policy (replay.preload), but none of its "
            f"{len(rollouts)} episodes on '{config.offline_split}' is one; raise offline.rollouts_per_task "
            "or choose another offline.split."
        )
    return kept


def check_preload(
    config: StudyConfig, arm: str, stage: StageConfig, tasks: list[Task] | None, recorded: list[Task] | None
) -> None:
    """Refuse a store that could not be filled as the config says. Raises ``UserError``.

    ``tasks``: of the stage; ``recorded``: of the base policy's episodes; None if these are not known yet.
    """
    recipe = config.recipe(arm)
    if arm not in config.preloading_arms:
        return
    if recipe.temperature != config.training.temperature:
        raise UserError(
            f"arms.{arm}.temperature is {recipe.temperature}, but the episodes for its replay.preload are "
            f"sampled at training.temperature ({config.training.temperature}); give both the same value."
        )
    if recipe.importance_correction != "none":
        raise UserError(
            f"The arm '{arm}' has replay.preload and importance_correction '{recipe.importance_correction}', "
            "but recorded episodes do not hold the probabilities of their tokens; set one of them back."
        )
    there = {task.sha256 for task in recorded or ()}
    missing = [task for task in tasks or () if recorded is not None and task.sha256 not in there]
    if missing:
        raise UserError(
            f"replay.preload of the arm '{arm}' needs episodes of the tasks of the stage '{stage.name}', but "
            f"offline.split '{config.offline_split}' lacks {len(missing)} of these {len(tasks or ())} "
            f"('{missing[0].id}'); name a split that has them."
        )
