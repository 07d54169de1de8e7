"""The small tokenizer: short sequences, nothing lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arpo_replica.models.nano.tokenizer import (
    SPECIAL_TOKENS,
    build_tokenizer,
    choose_vocabulary,
    prompt_sections,
)
from arpo_replica.policy.prompt import first_text

pytestmark = pytest.mark.cpu_env

TEXTS = [
    'Enter "Dannie" into the text field and press Submit.',
    "Thought: Type Dannie.\nAction: type(content='Dannie')",
    "Thought: Click OK.\nAction: click(point='<point>84 112</point>')",
    "Click button OK.",
] * 5
TOKENIZER = build_tokenizer(choose_vocabulary(TEXTS, 225, 1024, "English"))


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text).ids


def decode(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=False)


def test_the_constant_prompt_takes_a_few_tokens():
    text = first_text("Click button OK.")
    assert len(text) > 1250
    assert len(encode(text)) <= 12
    assert decode(encode(text)) == text


@pytest.mark.parametrize(
    ("reply", "tokens"),
    [
        ("Thought: Click OK.\nAction: click(point='<point>84 112</point>')", 8),
        ("Thought: Type Dannie.\nAction: type(content='Dannie')", 7),
        ("Action: finished(content='')", 60),
    ],
)
def test_replies_are_short(reply, tokens):
    assert len(encode(reply)) <= tokens
    assert decode(encode(reply)) == reply


def test_every_coordinate_is_one_token():
    seen = {tuple(encode(f"{space}{number}")) for number in range(225) for space in ("", " ")}
    assert len(seen) == 450
    assert {len(ids) for ids in seen} == {1}
    assert len(encode("987")) == 3


def test_special_tokens_have_the_ids_of_the_list():
    assert encode("".join(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))


def test_a_word_is_the_same_token_in_the_instruction_and_in_what_is_typed():
    (word,) = encode("Dannie")
    assert word in encode('Enter "Dannie" now')
    assert word in encode("\nAction: type(content='Dannie')")


@given(st.text())
def test_every_text_survives(text):
    assert decode(encode(text)) == text


@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4), st.integers(0, 224), st.integers(0, 224))
def test_replies_encode_as_they_were_sampled(thoughts, x, y):
    ids = encode(f"Thought: {thoughts[0]}\nAction: click(point='<point>{x} {y}</point>')<|im_end|>")
    assert encode(decode(ids)) == ids


def test_the_vocabulary_must_hold_the_fixed_entries():
    with pytest.raises(ValueError, match=r"nano.vocabulary is 700; it must be at least 7\d\d"):
        choose_vocabulary(TEXTS, 225, 700, "English")


def test_the_prompt_is_cut_without_loss():
    assert first_text("X").startswith("".join(prompt_sections("English")))
