"""The episode loop: outcomes, protocols, at-most-once actions, failures."""

from __future__ import annotations

import asyncio

import pytest

from arpo_replica.actions.coordinates import Frame
from arpo_replica.actions.parse import UITarsParser
from arpo_replica.base.errors import DesktopError, PolicyError, RefusedError
from arpo_replica.desktop.interface import WORDS, Score
from arpo_replica.rollout.episode import EpisodeLimits, EpisodeResult, Labels, make_record, run_episode
from fakes import CLICK, FINISHED, SCREEN, FakeProvider, ScriptedPolicy, broken, make_task

LIMITS = EpisodeLimits(max_steps=3, success_above=0.5, timeout_s=5)
PARSER = UITarsParser(Frame("absolute", SCREEN, SCREEN))
ALL = UITarsParser(Frame("absolute", SCREEN, SCREEN), "all")
BAD = "Action: os.system('ls')"


async def episode(
    *replies, provider=None, task=None, limits=LIMITS, parser=PARSER
) -> tuple[EpisodeResult, FakeProvider]:
    provider = provider or FakeProvider()
    desktop = await provider.start("one")
    result = await run_episode(task or make_task(), desktop, ScriptedPolicy(*replies), parser, limits)
    return result, provider


async def test_a_finished_episode_is_a_success_or_a_failure():
    result, _ = await episode(CLICK, FINISHED)
    assert (result.outcome, result.hard_score, result.standard_score) == ("success", 1.0, 1.0)
    assert [step.action["type"] for step in result.steps] == ["click", "finished"]
    assert [step.action_id is None for step in result.steps] == [False, True]
    result, _ = await episode(FINISHED, provider=FakeProvider(score=0.5))
    assert (result.outcome, result.hard_score) == ("failure", 0.5)


async def test_the_step_limit_truncates_and_splits_the_protocols():
    result, provider = await episode(CLICK)
    assert (result.outcome, result.hard_score, result.standard_score) == ("truncated", 1.0, 0.0)
    assert len(result.steps) == len(provider.desktops[0].actions) == LIMITS.max_steps


FULL = RefusedError("status 400: maximum context length is 2048 tokens")


async def test_a_conversation_that_outgrows_the_server_is_truncated_and_scored_as_it_is():
    result, provider = await episode(CLICK, CLICK, FULL, provider=FakeProvider(score=1.0))
    assert (result.outcome, result.hard_score, result.standard_score) == ("truncated", 1.0, 1.0)
    assert (len(result.steps), result.format_errors, result.refusal) == (2, 0, str(FULL))
    assert len(provider.desktops[0].actions) == 2
    assert set(result.screenshots) == {"step_000.webp", "step_001.webp", "step_002.webp"}
    assert result.final_screenshot == "step_002.webp"
    result, _ = await episode(CLICK, FULL, task=make_task(func="infeasible"))
    assert result.standard_score == 0.0  # no FAIL was said


async def test_a_refused_first_request_is_no_score():
    with pytest.raises(RefusedError, match="2048"):
        await episode(FULL)


async def test_an_infeasible_task_is_solved_by_saying_so():
    task = make_task(func="infeasible")
    result, _ = await episode("Action: call_user()", task=task)
    assert (result.outcome, result.hard_score) == ("success", 1.0)
    result, _ = await episode(FINISHED, task=task)
    assert (result.outcome, result.hard_score) == ("failure", 0.0)
    result, _ = await episode(CLICK, task=task)
    assert (result.outcome, result.hard_score, result.standard_score) == ("truncated", 0.0, 1.0)


async def test_an_unparsable_reply_ends_the_episode_and_reaches_no_desktop():
    result, provider = await episode("Action: os.system('ls')", provider=FakeProvider(score=0.0))
    assert (result.outcome, result.format_errors, len(result.steps)) == ("failure", 1, 1)
    assert result.steps[0].action is None
    assert result.steps[0].format_error
    assert provider.desktops[0].actions == []


async def test_all_actions_of_a_reply_run_and_each_is_a_step():
    two = CLICK + "\ntype(content='x')"
    result, provider = await episode(two, FINISHED, parser=ALL)
    acted = provider.desktops[0].actions
    assert [action.kind for action, _ in acted] == ["click", "type_text"]
    assert len({name for _, name in acted}) == 2
    assert result.taken == 3
    assert [(step.index, step.taken, step.screenshot) for step in result.steps] == [
        (0, 2, "step_000.webp"),
        (1, 1, "step_001.webp"),
    ]
    assert result.steps[0].further == [{"type": "type_text", "text": "x"}]
    assert list(result.screenshots) == ["step_000.webp", "step_001.webp", "step_002.webp"]
    # The parser of the other setting takes the first alone.
    result, provider = await episode(two, FINISHED)
    assert [action.kind for action, _ in provider.desktops[0].actions] == ["click"]
    assert result.taken == 2


async def test_actions_beyond_the_step_limit_do_not_run():
    result, provider = await episode(CLICK + "\nhotkey(key='a')", parser=ALL)
    assert [action.kind for action, _ in provider.desktops[0].actions] == ["click", "hotkey", "click"]
    assert (result.outcome, result.taken, len(result.steps)) == ("truncated", LIMITS.max_steps, 2)


async def test_a_control_action_discards_the_others_of_its_reply():
    result, provider = await episode(CLICK + "\nfinished()", parser=ALL)
    assert (provider.desktops[0].actions, result.outcome, result.taken) == ([], "success", 1)


async def test_the_first_calls_for_help_may_be_waits():
    limits = EpisodeLimits(max_steps=3, success_above=0.5, timeout_s=5, call_user_waits=2)
    result, provider = await episode("Action: call_user()", task=make_task(func="infeasible"), limits=limits)
    assert [action.kind for action, _ in provider.desktops[0].actions] == ["wait", "wait"]
    assert [step.action["type"] for step in result.steps] == ["wait", "wait", "fail"]
    assert (result.outcome, result.hard_score) == ("success", 1.0)


async def test_an_unparsable_reply_may_be_asked_for_again():
    limits = EpisodeLimits(max_steps=3, success_above=0.5, timeout_s=5, reasks=2)
    result, _ = await episode(BAD, BAD, FINISHED, limits=limits)
    assert (result.outcome, result.format_errors, len(result.steps)) == ("success", 0, 1)
    assert result.steps[0].discarded == [BAD, BAD]
    result, _ = await episode(BAD, BAD, BAD, FINISHED, limits=limits)
    assert (result.format_errors, result.steps[0].discarded, result.taken) == (1, [BAD, BAD], 1)
    assert (await episode(BAD, FINISHED))[0].steps[0].discarded == []


async def test_every_action_has_an_id_of_its_own_and_is_sent_once():
    _, provider = await episode(CLICK)
    _, other = await episode(CLICK)
    ids = [name for _, name in provider.desktops[0].actions + other.desktops[0].actions]
    assert len(set(ids)) == 2 * LIMITS.max_steps


async def test_the_record_shows_what_the_policy_saw_and_the_evaluated_state():
    result, _ = await episode(CLICK, FINISHED)
    assert list(result.screenshots) == ["step_000.webp", "step_001.webp", "step_002.webp"]
    assert [step.screenshot for step in result.steps] == ["step_000.webp", "step_001.webp"]
    assert result.final_screenshot == "step_002.webp"
    assert result.screenshots["step_000.webp"] != result.screenshots["step_001.webp"]
    assert result.steps[0].prompt_tokens == 100


async def test_text_that_utf8_cannot_hold_is_recorded_harmlessly():
    result, _ = await episode("Action: wait()\n\ud800")
    assert result.steps[0].text == "Action: wait()\n?"
    assert result.steps[0].format_error


@pytest.mark.parametrize("event", ["reset", "act", "evaluate"])
async def test_a_broken_desktop_is_an_error_not_a_score(event):
    with pytest.raises(DesktopError, match=event):
        await episode(CLICK, FINISHED, provider=FakeProvider(broken(event)))


async def test_the_record_says_what_the_evaluator_wanted_and_found():
    result, _ = await episode(FINISHED, provider=FakeProvider(score=Score.of(0.0, "a file", "x" * 1000)))
    labels = Labels("base", 0, "base", "nano", "process", "0" * 64, {})
    record = make_record(make_task(), result, labels, split="s", trial=0, errors=[], started_at=0.0)
    assert (record.expected, record.found) == ("a file", "x" * WORDS)
    broken = make_record(make_task(), None, labels, split="s", trial=0, errors=["gone"], started_at=0.0)
    assert (broken.expected, broken.found) == ("", "")


@pytest.mark.parametrize("score", [float("nan"), -0.1, 1.5])
async def test_a_score_outside_its_range_is_an_error(score):
    with pytest.raises(DesktopError, match="score"):
        await episode(FINISHED, provider=FakeProvider(score=score))


async def test_a_failing_policy_is_passed_on():
    with pytest.raises(PolicyError, match="gone"):
        await episode(PolicyError("gone"))


async def test_time_runs_out_as_a_desktop_error():
    limits = EpisodeLimits(max_steps=3, success_above=0.5, timeout_s=0.05)
    with pytest.raises(DesktopError, match=r"longer than 0\.05 s"):
        await episode(CLICK, provider=FakeProvider(delay_s=1), limits=limits)


async def test_a_time_out_inside_is_not_taken_for_the_episodes_own():
    def hook(event, desktop):
        if event == "act":
            raise TimeoutError("socket")

    with pytest.raises(DesktopError, match="socket"):
        await episode(CLICK, provider=FakeProvider(hook))


async def test_cancelling_is_not_swallowed():
    task = asyncio.create_task(episode(CLICK, provider=FakeProvider(delay_s=1)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
