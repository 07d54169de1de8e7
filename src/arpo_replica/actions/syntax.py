r"""The text of a reply -> its calls, as names and strings. Nothing is understood here, and nothing evaluated.

    calls      one call, or several, each beginning on a line of its own
    call       name ( argument , ... )             a comma may follow the last argument
    argument   key = 'string'   or a value that no action needs: key = 5, 5, 'string'
    after it   # a comment, blank lines, a model's end mark at the very end

**Where a string ends.** Models write ``type(content='print('hello')')``. In a call that takes one free text
(``FREE``) a string ends at the last quote of its kind from which the rest of the reply is still a valid call
or calls. Two things keep "the last" from taking too much:

* A line that begins a call, from which the rest is valid, is that call: ``type(content='a')`` and
  ``hotkey(key='enter')`` on two lines are two actions, not one text that holds the second.
* ``)`` with a comment behind it closes the call if the text has no parenthesis left open: in
  ``type(content='a') # types 'a' (once')`` it does, in ``type(content='echo $(date +'%Y') # now')`` not.

All other strings (points, directions) end at the first quote, as in Python; keys (``ONE``) too if that is
valid, so that ``hotkey(key=''')`` is the key ``'``.

**Time** is linear in the reply. All places where a text may end (``_endings``) are found in one pass. Then
the lines that could begin a call are read from the last to the first, so that it is known which later ones
are valid; for each it is enough to look at the nearest valid one, or two (``_Reader._free``). The text itself
is cut out only for calls that are returned. No expression here backtracks: its loops are possessive (``*+``).
"""

import re
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

from arpo_replica.base.errors import FormatError

FREE = frozenset({"type", "finished", "call_user", "error_env"})
"""Calls with one free text."""
ONE = frozenset({"hotkey", "press"})
"""Calls with one short string that may itself be a quote."""
END_MARKS = (
    *("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|end|>", "<|return|>"),
    *("</s>", "<eos>", "<end_of_turn>", "[EOS]"),
)
"""What a model ends its reply with; some servers leave it in the text."""
MAX_MARKS = 100
MAX_WRITTEN = 30_000
"""Longest text of a call as it is written, with escapes, in characters."""
MAX_SHORT = 1_000
"""Longest of its other strings."""
MAX_PLACES = 3_000
"""Lines that may begin a call, and places where a text may end."""

_NAME = r"[A-Za-z_][A-Za-z0-9_]{0,31}+"
_START = re.compile(rf"^[^\S\n]*+({_NAME})\s*+\(\s*+", re.MULTILINE)
_KEY = re.compile(rf"({_NAME})\s*+=\s*+")
_BLANK = re.compile(r"\s*+")
_STRINGS = {quote: re.compile(rf"{quote}((?:[^{quote}\\]|\\.)*+){quote}\s*+", re.DOTALL) for quote in "'\""}
_LITERAL = re.compile(r"(?:[+-]?+\d{1,20}+(?:\.\d{0,20}+)?+|None|True|False)(?![A-Za-z0-9_.])\s*+")
_CLOSING = re.compile(r"(?<!\\)(?:\\\\)*+(['\"])\s*+(?:,\s*+)?+\)")
_BLANK_IN_LINE = re.compile(r"[^\S\n]*+")
_GAP = re.compile(r"(?:[^\S\n]*+(?:#[^\n]*+)?+\n)*+(?:[^\S\n]*+(?:#[^\n]*+)?+\Z)?+")
_ESCAPE = re.compile(
    r"\\(?:u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"
    r"|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.)|\Z)",
    re.DOTALL,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"', "\n": ""}


@dataclass(frozen=True, slots=True)
class Call:
    """One ``name(key='value', ...)``, not yet understood."""

    name: str
    arguments: dict[str, str] = field(default_factory=dict)
    extra: str | None = None
    """The first argument without a name or without quotes, as written."""


class _Ending(NamedTuple):
    quote: int
    """Position of the quote that may end a text."""
    commented: bool
    """A comment follows the call that it ends."""


class _Found(NamedTuple):
    """A call that can be read: all of it, or all but the text that lies between ``text`` and ``quote``."""

    call: Call
    next: int
    """Where the next call begins; the length of the reply after the last one."""
    key: str = ""
    text: int = -1
    quote: str = ""


def read_calls(text: str, most: int) -> list[Call]:
    """All calls in ``text``, which must hold nothing else, at most so many. Raises ``FormatError``."""
    text = text.rstrip()
    for _ in range(MAX_MARKS):
        mark = next((mark for mark in END_MARKS if text.endswith(mark)), "")
        text = text.removesuffix(mark).rstrip() if mark else text
    return _Reader(text).calls(most)


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.starts = {match.start(): match for match in _few(_START, text)}
        self.endings: dict[tuple[str, int], list[_Ending]] = {}
        """(kind of quote, where the rest then goes on) -> the places where a text may end."""
        self.nearest: dict[str, list[int]] = {"'": [], '"': []}
        """Kind of quote -> beginnings of a valid rest before which a text may end, the nearest one last."""
        self.found: dict[int, _Found] = {}
        self._line = (0, 0)
        """Beginning and end of the line that ``_rest`` looked at last."""
        self._gap = (0, 0, 0, False)

    def calls(self, most: int) -> list[Call]:
        first = next(iter(self.starts), None)
        if first is None or self.text[:first].strip():
            raise FormatError(f"expected a call, found {self._quote(0)}")
        self._endings()
        self._valid(len(self.text))
        problem = FormatError("")
        for position in reversed(self.starts):
            try:
                self.found[position] = self._read(self.starts[position])
                self._valid(position)
            except FormatError as error:
                problem = error
        calls: list[Call] = []
        position = first
        while position < len(self.text):
            if position not in self.found:
                raise problem
            if len(calls) == most:
                raise FormatError(f"more than {most} actions in one reply")
            calls.append(self._whole(self.found[position]))
            position = self.found[position].next
        return calls

    def _valid(self, position: int) -> None:
        """From here on the reply is valid: a text may end before it."""
        for kind, positions in self.nearest.items():
            if (kind, position) in self.endings:
                positions.append(position)

    def _endings(self) -> None:
        for match in _few(_CLOSING, self.text):
            rest, commented = self._rest(match.end())
            if rest is not None:
                ending = _Ending(match.start(1), commented)
                self.endings.setdefault((match.group(1), rest), []).append(ending)

    def _rest(self, position: int) -> tuple[int | None, bool]:
        """Where the reply goes on after a call that ends at ``position``, and whether a comment lies between.

        None: other text follows. What was found for the last line is kept: with many calls in a comment, or
        many lines of comment, none is looked at again and again.
        """
        text, begin = self.text, _skip(_BLANK_IN_LINE, self.text, position)
        commented = text.startswith("#", begin)
        if not commented and begin < len(text) and text[begin] != "\n":
            return None, False
        if not self._line[0] <= begin < self._line[1]:
            end = text.find("\n", begin)
            self._line = begin, len(text) if end < 0 else end + 1
        line = self._line[1]
        if self._gap[0] != line:
            run = self._gap[1] <= line <= self._gap[2]
            first, end = self._gap[1:3] if run else (line, _skip(_GAP, text, line))
            self._gap = line, first, end, text.find("#", line, end) >= 0
        rest = self._gap[2]
        known = rest == len(text) or rest in self.starts
        return rest if known else None, commented or self._gap[3]

    def _read(self, start: re.Match[str]) -> _Found:
        """The call that begins here. Raises ``FormatError`` if it, or the rest after it, is not valid."""
        text, position = self.text, start.end()
        call = Call(start.group(1))
        while not text.startswith(")", position):
            begin = position
            key = _KEY.match(text, begin)
            name, position = (key.group(1), key.end()) if key else ("", begin)
            quote = text[position : position + 1]
            value = _STRINGS.get(quote, _LITERAL).match(text, position)
            last = value is not None and text.startswith((")", ","), value.end())
            if name and quote in _STRINGS and (call.name in FREE or (call.name in ONE and not last)):
                return self._free(call, name, position + 1, quote)
            if value is None:
                raise FormatError(f"expected a quoted string, found {self._quote(position)}")
            position = value.end()
            if not last:
                raise FormatError(f"expected ',' or ')', found {self._quote(position)}")
            if not name or quote not in _STRINGS:
                call = replace(call, extra=text[begin:position].strip())
            elif name in call.arguments:
                raise FormatError(f"{call.name} has the argument '{name}' twice")
            else:
                call.arguments[name] = _unescape(value.group(1), MAX_SHORT)
            if text.startswith(",", position):
                position = _skip(_BLANK, text, position + 1)
        rest, _ = self._rest(position + 1)
        if rest is None or (rest < len(text) and rest not in self.found):
            raise FormatError(f"text after the action: {self._quote(position + 1)}")
        return _Found(call, rest)

    def _free(self, call: Call, key: str, position: int, quote: str) -> _Found:
        """A call whose last argument is the text from ``position`` on, wherever that may end.

        Only of the nearest valid rest can the endings lie before ``position``: between two valid beginnings
        stands at least the call that the first of them begins.
        """
        if key in call.arguments:
            raise FormatError(f"{call.name} has the argument '{key}' twice")
        for rest in self.nearest[quote][:-3:-1]:
            if self.endings[quote, rest][-1].quote >= position:
                return _Found(call, rest, key, position, quote)
        raise FormatError("a string has no end")

    def _whole(self, found: _Found) -> Call:
        if not found.quote:
            return found.call
        text, end, opened = self.text, found.text, 0
        for ending in self.endings[found.quote, found.next]:
            if ending.quote >= found.text:
                opened += text.count("(", end, ending.quote) - text.count(")", end, ending.quote)
                end = ending.quote
                if ending.commented and opened <= 0:
                    break
        written = _unescape(text[found.text : end], MAX_WRITTEN)
        arguments = {**found.call.arguments, found.key: written}
        return replace(found.call, arguments=arguments)

    def _quote(self, position: int) -> str:
        return ascii(self.text[position : position + 24]) if position < len(self.text) else "the end"


def _few(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """All matches. Raises ``FormatError`` if they are more than any valid reply has."""
    found = list(islice(pattern.finditer(text), MAX_PLACES + 1))
    if len(found) > MAX_PLACES:
        raise FormatError("the reply has too many beginnings or ends of calls")
    return found


def _skip(pattern: re.Pattern[str], text: str, position: int) -> int:
    """Where what the pattern matches here ends."""
    match = pattern.match(text, position)
    return match.end() if match else position


def _unescape(text: str, longest: int) -> str:
    """Python's escapes, and JSON's pairs for one character; an unknown escape stands for itself."""
    if len(text) > longest:
        raise FormatError(f"a string has more than {longest} characters")
    return _ESCAPE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    high, low, *codes, character = match.groups()
    if high:
        return chr(0x10000 + (int(high, 16) - 0xD800 << 10) + int(low, 16) - 0xDC00)
    code = next(filter(None, codes), None)
    if code is None:
        return _ESCAPES.get(character or "", match.group())
    if int(code, 16) > 0x10FFFF:
        raise FormatError("an escape names no character")
    return chr(int(code, 16))
