"""Characters and key names to keycodes."""

import pytest

from arpo_replica.actions.keys import ALIASES, NAMED_KEYS
from guest.keymap import (
    FIRST_KEYCODE,
    FIRST_LENT,
    KEYS,
    SPECIAL,
    Layout,
    Stroke,
    char_keysym,
    key_keysym,
)

A, LESS, COMMA = 0x61, 0x3C, 0x2C
LENDABLE = [code for code in range(FIRST_LENT, 256) if code not in SPECIAL]


def layout(lent=4):
    """``a A`` on 38, ``, <`` on 59, a key with ``< >`` on 94, nothing else; so many keycodes to lend."""
    mapping = [[0, 0] for _ in range(LENDABLE[lent - 1] + 1 - FIRST_KEYCODE)]
    mapping[38 - FIRST_KEYCODE] = [A, 0x41]
    mapping[59 - FIRST_KEYCODE] = [COMMA, LESS]
    mapping[94 - FIRST_KEYCODE] = [LESS, 0x3E]
    return Layout(mapping)


@pytest.mark.parametrize(
    ("char", "keysym"),
    [
        ("a", 0x61),
        ("é", 0xE9),
        ("€", 0x010020AC),
        ("\n", 0xFF0D),
        ("\t", 0xFF09),
        ("\x07", None),
        ("\x7f", None),
    ],
)
def test_keysyms_of_characters(char, keysym):
    assert char_keysym(char) == keysym


def test_keys_by_name():
    assert key_keysym("enter") == 0xFF0D
    assert key_keysym("up") == 0xFF52
    assert key_keysym("f12") == 0xFFC9
    assert key_keysym("?") == 0x3F
    assert key_keysym("A") == 0x41
    assert key_keysym("nonsense") is None
    assert key_keysym("") is None


def test_the_guest_has_the_parsers_table_of_keys():
    assert set(KEYS) == NAMED_KEYS
    signs = [name for name in ALIASES.values() if name not in NAMED_KEYS]
    assert [name for name in signs if key_keysym(name) is None] == []


def test_a_character_of_the_mapping_is_typed_by_its_own_key():
    keys = layout()
    assert keys.stroke(A) == Stroke(38, False)
    assert keys.stroke(0x41) == Stroke(38, True)
    assert keys.stroke(LESS) == Stroke(94, False)  # unshifted before shifted
    with pytest.raises(KeyError):
        keys.stroke(char_keysym("€"))


def test_foreign_characters_are_lent_keycodes_in_one_go():
    keys = layout()
    euro, one = char_keysym("€"), char_keysym("一")
    told = keys.lend("a€一€")
    assert [pair for pair in told if pair != (0, 0)] == [(euro, euro), (one, one)]
    assert {keys.stroke(euro).keycode, keys.stroke(one).keycode} == set(LENDABLE[:2])
    assert keys.lend("€一") is None


def test_the_oldest_loan_ends_first_and_never_one_that_the_text_needs():
    keys = layout(lent=3)
    keys.lend("一")
    keys.lend("二")
    keys.lend("三")
    assert keys.evicts("四")
    assert not keys.evicts("三")
    keys.lend("一四")
    assert keys.has(char_keysym("一"))
    assert not keys.has(char_keysym("二"))


def test_a_long_text_is_cut_where_keycodes_run_out():
    keys = layout(lent=3)
    pieces = keys.chunks("a一二a三四五一\x07")
    assert pieces == ["a一二a三", "四五一"]
    for piece in pieces:
        keys.lend(piece)
        assert all(keys.has(char_keysym(char)) for char in piece)
    with pytest.raises(ValueError, match="too many"):
        keys.lend("一二三四")
    assert keys.chunks("") == []


def test_no_special_key_is_ever_lent():
    """225 is XF86Search: a browser goes to its address bar, whatever the key means."""
    keys = layout(lent=len(LENDABLE))
    told = keys.lend("".join(chr(0x4E00 + number) for number in range(keys.capacity)))
    lent = {FIRST_LENT + number for number, pair in enumerate(told) if pair != (0, 0)}
    assert lent == set(LENDABLE)
    assert 225 not in lent
