"""The prompts of UI-TARS's models, word for word: a model is asked as it was trained.

Sources: ``uitars``: COMPUTER_USE_DOUBAO of the package ``ui-tars`` (Apache-2.0). ``uitars_box``:
UITARS_USR_PROMPT_THOUGHT with UITARS_CALL_USR_ACTION_SPACE of OSWorld (``mm_agents/prompts.py``, Apache-2.0).
``arpo``: ``uitars_system_prompt`` of ARPO's released code (``verl/trainer/gui_agent.py``, Apache-2.0), with
the spelling mistake of its system line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Style:
    """How a conversation looks. ``template`` gives the text with {language} and {instruction}."""

    template: Callable[[], str]
    system: str | None = None
    """System message; None: the chat template's own, "You are a helpful assistant." in Qwen2-VL's."""
    own_turn: bool = False
    """The first screenshot comes in a user turn of its own, after the one with the text."""
    box_tokens: bool = False
    """Replies in the history have ``<|box_start|>`` and ``<|box_end|>``, which many servers strip."""


_OPENING = """You are a GUI agent. You are given a task and your action history, with screenshots. You need \
to perform the next action to complete the task."""
_FORMAT = """

## Output Format
```
Thought: ...
Action: ...
```

## Action Space
"""
_BOXES = """
click(start_box='<|box_start|>(x1,y1)<|box_end|>')
left_double(start_box='<|box_start|>(x1,y1)<|box_end|>')
right_single(start_box='<|box_start|>(x1,y1)<|box_end|>')
drag(start_box='<|box_start|>(x1,y1)<|box_end|>', end_box='<|box_start|>(x3,y3)<|box_end|>')
hotkey(key='')
"""
_SCROLL_WAIT = """\
scroll(start_box='<|box_start|>(x1,y1)<|box_end|>', direction='down or up or right or left')
wait() #Sleep for 5s and take a screenshot to check for any changes.
"""
_CLOSING = """
- Write a small plan and finally summarize your next action (with its target element) in one sentence in \
`Thought` part.

## User Instruction
{instruction}
"""
_ESCAPES = (
    r"""# Use escape characters \', \", and \n in content part to ensure we can parse the content in """
    "normal python string format."
)


def _doubao() -> str:
    from ui_tars.prompt import COMPUTER_USE_DOUBAO

    return str(COMPUTER_USE_DOUBAO)


def _osworld() -> str:
    return (
        f"{_OPENING} {_FORMAT}{_BOXES}"
        "type(content='') #If you want to submit your input, use \"\\n\" at the end of `content`.\n"
        f"{_SCROLL_WAIT}"
        "finished()\n"
        "call_user() # Submit the task and call the user when the task is unsolvable, or when you need the "
        "user's help.\n"
        "\n\n## Note\n- Use {language} in `Thought` part."
        f"{_CLOSING}"
    )


def _arpo() -> str:
    return (
        f"{_OPENING}{_FORMAT}{_BOXES}"
        f"type(content='xxx') {_ESCAPES} If you want to submit your input, use \\n at the end of content. \n"
        f"{_SCROLL_WAIT}"
        f"finished(content='xxx') {_ESCAPES}\n"
        "\n## Note\n- Use {language} in `Thought` and `Action` part."
        f"{_CLOSING}"
    )


STYLES = {
    "uitars": Style(_doubao),
    "uitars_box": Style(_osworld, system="You are a helpful assistant.", own_turn=True, box_tokens=True),
    "arpo": Style(_arpo, system="Your are a helpful assistant.", own_turn=True, box_tokens=True),
}
"""``policy.prompt`` of the config -> how it is asked."""
