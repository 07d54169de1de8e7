"""A tokenizer of about a thousand entries, made for short sequences.

Time on a CPU goes with the number of tokens, so whatever is constant in the study is one token: each
section of UI-TARS's prompt, the fixed parts of a reply, every word of the study's texts, every whole
number that can be a coordinate (with and without a space before it). Anything else falls back to bytes,
so that every text survives encoding and decoding.

It is a byte-level BPE without merges (``ignore_merges``): a pre-tokenizer cuts the text, a piece that is
in the vocabulary is one token, any other piece becomes its bytes. Saved in the format of the library
``tokenizers``; transformers and vLLM load it through ``TokenizersBackend``.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from arpo_replica.base.tables import filled, table_of

_TABLE = table_of(__file__)
SPECIAL_TOKENS: tuple[str, ...] = tuple(_TABLE["special_tokens"])
REPLY_PHRASES: tuple[str, ...] = tuple(_TABLE["reply_phrases"])
CHAT_TEMPLATE = "".join(_TABLE["chat_template"])

_MIN_COUNT = 4
_ROLES = ("user", "assistant", "system")
# A number, a word or a run of signs takes the space before it along; other white space stands alone.
_PIECES = r" ?[0-9]{1,3}| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\n|\s"


def prompt_sections(language: str) -> list[str]:
    """The constant text of UI-TARS's prompt, cut before every heading; the instruction is left out."""
    from arpo_replica.policy.prompt import first_text

    mark = "\0"
    before, _ = first_text(mark, language).split(mark)
    sections = re.split(r"(?=\n## )", before)
    if sections[-1].endswith("\n"):
        # The newline that follows the last heading stays with it: the instruction starts a new piece.
        return sections
    raise ValueError("the prompt of ui-tars no longer has its instruction on a line of its own")


def word_pieces(text: str) -> list[str]:
    """The pieces that the pre-tokenizer cuts a text into, phrases left aside."""
    return re.findall(_PIECES, text)


def choose_vocabulary(texts: Iterable[str], numbers: int, size: int, language: str) -> list[str]:
    """The pieces that get a token of their own, special tokens and bytes left aside.

    ``texts``: the study's instructions and replies. ``numbers``: coordinates are below this. Pieces that
    ``texts`` have at least ``_MIN_COUNT`` times are taken by frequency, ties by alphabet, until the
    vocabulary has ``size`` entries.
    Raises ValueError when ``size`` is too small for the fixed entries.
    """
    fixed = [*prompt_sections(language), *REPLY_PHRASES, *_ROLES]
    fixed += [str(number) for number in range(10, numbers)]
    fixed += [f" {number}" for number in range(numbers)]
    counts: Counter[str] = Counter()
    phrases = re.compile("|".join(re.escape(p) for p in _by_length(REPLY_PHRASES)))
    for text in texts:
        for part in phrases.split(text):
            counts.update(word_pieces(part))
    known = set(fixed)
    frequent = sorted(counts, key=lambda piece: (-counts[piece], piece))
    words = [p for p in frequent if p not in known and len(p.encode()) > 1 and counts[p] >= _MIN_COUNT]
    room = size - len(SPECIAL_TOKENS) - 256 - len(fixed)
    if room < 0:
        raise ValueError(f"nano.vocabulary is {size}; it must be at least {size - room}")
    return fixed + words[:room]


def build_tokenizer(pieces: list[str]) -> Any:
    """A ``tokenizers.Tokenizer`` whose vocabulary is special tokens, 256 bytes and ``pieces``."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    letters = _byte_letters()
    vocabulary = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    for byte in range(256):
        vocabulary[letters[byte]] = len(vocabulary)
    for piece in pieces:
        vocabulary.setdefault("".join(letters[byte] for byte in piece.encode()), len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    # Whatever the word rule would cut in two has to be tried first, the longest first.
    whole = [piece for piece in pieces if word_pieces(piece) != [piece]]
    pattern = "|".join([*(_escape(piece) for piece in _by_length(whole)), _PIECES])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    return tokenizer


def tokenizer_config(model_max_length: int) -> dict[str, Any]:
    """``tokenizer_config.json``."""
    special = list(SPECIAL_TOKENS[1:])
    return filled(_TABLE["tokenizer_config"], longest=model_max_length, special=special)


def _by_length(pieces: Iterable[str]) -> list[str]:
    return sorted(pieces, key=lambda piece: (-len(piece), piece))


def _escape(text: str) -> str:
    """``text`` as a literal in the regular expressions of ``tokenizers`` (Oniguruma)."""
    return "".join(c if c.isalnum() or ord(c) > 127 else f"\\x{ord(c):02x}" for c in text)


def _byte_letters() -> dict[int, str]:
    """One printable character for each byte, as GPT-2 and ``ByteLevel`` have it."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}
