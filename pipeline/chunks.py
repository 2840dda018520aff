"""A document that does not fit the model -> overlapping windows that do, none of its text left out.

Where a text may be cut is the Unicode consortium's own library's to say (ICU, by icu4py): the ends of
sentences (UAX #29), then of lines, then white space, then wherever a line may be broken (UAX #14, which
knows languages that write no spaces). A window is filled up to its tokens, and cut at the last place of
the best kind in its second half; the next one begins at the first such place among the last
`overlap` tokens of it. Where there is no place, as in a megabyte of hex, a token's end does.

Tokens are counted by the model's own tokenizer, once over a piece of the text. A count by pieces is
an estimate (a word may be cut otherwise at the edge), so each window is then encoded as it will be,
prompt and special tokens included: that is its sequence, and a window that turns out too long is cut
shorter. A piece is a few dozen windows, which bounds memory whatever the document's length; no window
holds more characters than a piece.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

CHARS_PER_TOKEN = 64
"""Prose has 4 to 6. What has more of them for each token of a window is cut there all the same."""

# Raised by one when the same text would be cut otherwise.
_RULES = 1

_WHITE = np.array([code for code in range(0x3001) if chr(code).isspace()], np.uint32)

# A line's end within a paragraph is no sentence's.
_WRAP = re.compile(r"(?<![\r\n])\r?\n(?![\r\n])")

# icu4py counts in UTF-16; of characters that are one unit each, that is the same.
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")

Places = npt.NDArray[np.int64]


class Chunk(NamedTuple):
    """A window over a text."""

    ids: npt.NDArray[np.int32]
    """Its sequence, with prompt and special tokens."""
    begin: int
    end: int
    """Characters [begin, end) of the text; no white space at either end."""


class UnchunkableError(Exception):
    """A text of which no windows can be made."""


def chunker_rules() -> dict[str, Any]:
    """What of the chunker itself decides where it cuts, for a fingerprint: ICU's rules change with its versions."""
    from icu4py import icu_version_info

    return {"name": "icu", "rules": _RULES, "icu": icu_version_info[0]}


@dataclass(frozen=True)
class Chunker:
    """Makes windows.

    Args:
        backend: the model's tokenizer, without truncation while it is used here.
        prompt: comes before each window.
        max_tokens: of a window's sequence.
        tokens: that a window is planned with, of its own text alone.
        overlap: most tokens that a window shares with the one before; at most half of `tokens`.
    """

    backend: Tokenizer
    prompt: str
    max_tokens: int
    tokens: int
    overlap: int

    def chunks(self, text: str) -> list[Chunk]:
        """Windows that cover all of the text but white space, in order.

        Raises:
            UnchunkableError: a character alone is more tokens than a window may have, or there is no token at all.
        """
        made: list[Chunk] = []
        begin, covered, spare = 0, 0, 0
        piece_chars = num_chars = self.tokens * CHARS_PER_TOKEN
        while begin < len(text):
            piece, is_last = text[begin : begin + num_chars], begin + num_chars >= len(text)
            windows = self._windows(piece, max(1, self.tokens - spare), is_last=is_last)
            encodings = self.backend.encode_batch([self.prompt + piece[w.begin : w.end] for w in windows])
            num_chars, resume = piece_chars, begin
            for window, encoding in zip(windows, encodings, strict=True):
                excess = len(encoding) - self.max_tokens
                if window.begin == window.end or begin + window.end <= covered:
                    pass  # white, or of what the window before holds, after one that was cut shorter
                elif excess > 0:
                    resume = begin + window.start
                    num_chars = self._shorter(window.cut - window.start, excess)
                    if resume + num_chars <= covered:  # shorter without what it shares with the window before
                        resume, num_chars = covered, begin + window.cut - covered
                    # What comes of edges comes again in the next window, but is never much.
                    spare = min(spare + excess, self.tokens // 8)
                    break
                elif len(encoding):
                    made.append(Chunk(np.array(encoding.ids, np.int32), begin + window.begin, begin + window.end))
                    covered = begin + window.end
                resume = begin + window.following
            begin = resume
        if not made:
            raise UnchunkableError("the tokenizer finds no token in it")
        return made

    def _shorter(self, length: int, excess: int) -> int:
        """The characters of a piece that ends well within a window of `length` which has too many tokens."""
        if length == 1:
            raise UnchunkableError(
                f"one character of it makes a sequence of {self.max_tokens + excess} tokens, and {self.max_tokens} "
                "is the most; raise encoder.chunk.tokens"
            )
        return min(length - 1, max(1, length * self.max_tokens // (self.max_tokens + excess)))

    def _windows(self, piece: str, capacity: int, *, is_last: bool) -> list[_Window]:
        """Windows over a piece from its begin on, as far as it tells where they end; at least one."""
        tokens = _Tokens.of(self.backend.encode(piece, add_special_tokens=False).offsets, piece)
        levels = [tokens.between(places) for places in _places(piece)]
        overlap = min(self.overlap, capacity // 2)
        windows: list[_Window] = []
        start = 0
        while True:
            first = tokens.before(start)
            left = len(tokens.starts) - first
            if left <= capacity and is_last:
                return [*windows, _Window.of(piece, start, len(piece), len(piece))]
            if left <= capacity and windows:
                return windows
            most = len(piece) if left <= capacity else int(tokens.starts[first + capacity])
            middle = int(tokens.starts[first + min(capacity, left) // 2]) if left else start
            cut = _last_of(levels, middle, most) or max(most, start + 1)
            following = cut
            lowest = max(tokens.before(cut) - overlap, first + 1)
            if lowest < tokens.before(cut):
                begin = int(tokens.starts[lowest])
                following = _first_of(levels, begin, cut) or begin
            if following <= start:
                following = cut
            windows.append(_Window.of(piece, start, cut, following))
            start = following


class _Window(NamedTuple):
    """A window over a piece: characters [start, cut), of which [begin, end) are not white at the ends."""

    start: int
    cut: int
    begin: int
    end: int
    following: int
    """Where the next window starts."""

    @classmethod
    def of(cls, piece: str, start: int, cut: int, following: int) -> _Window:
        text = piece[start:cut]
        begin = start + len(text) - len(text.lstrip())
        return cls(start, cut, begin, max(begin, start + len(text.rstrip())), following)


@dataclass(frozen=True)
class _Tokens:
    """Where the N tokens of a piece lie, in characters and in order; without the white space that some count in."""

    starts: Places
    ends: Places
    solid: Places
    """Of the characters that are not white."""
    num_chars: int

    @classmethod
    def of(cls, offsets: Sequence[tuple[int, int]], piece: str) -> _Tokens:
        spans = np.array(offsets, np.int64).reshape(-1, 2)
        codes = np.frombuffer(piece.encode("utf-32-le"), np.uint32)
        solid = np.flatnonzero(~np.isin(codes, _WHITE))
        after = np.append(solid, len(piece))
        before = np.concatenate([[0], solid + 1])
        starts = after[np.searchsorted(solid, spans[:, 0])]
        ends = before[np.searchsorted(solid, spans[:, 1])]
        return cls(np.maximum.accumulate(starts), np.maximum.accumulate(ends), solid, len(piece))

    def before(self, place: int) -> int:
        """How many tokens start before a place."""
        return int(np.searchsorted(self.starts, place))

    def between(self, places: Places) -> Places:
        """The places that are within no token; one that white space follows moves behind it."""
        places = np.append(self.solid, self.num_chars)[np.searchsorted(self.solid, places)]
        places = np.unique(places[places < self.num_chars])
        if not len(self.ends):
            return places
        index = np.searchsorted(self.starts, places) - 1
        return places[(index < 0) | (self.ends[index] <= places)]


def _places(piece: str) -> list[Places]:
    """Where the piece may be cut, by kind, the best first; its ends are none."""
    from icu4py.breakers import LineBreaker, SentenceBreaker

    flat = _ASTRAL.sub(_stand_in, piece)
    unwrapped = _WRAP.sub(lambda found: " " * len(found[0]), flat)
    sentences = _ends(SentenceBreaker(unwrapped, "root"), len(piece))
    breaks = _ends(LineBreaker(flat, "root"), len(piece))
    codes = np.frombuffer(piece.encode("utf-32-le"), np.uint32)[breaks - 1]
    return [sentences, breaks[np.isin(codes, (10, 13))], breaks[np.isin(codes, _WHITE)], breaks]


def _ends(breaker: Any, num_chars: int) -> Places:
    ends = np.fromiter((end for _, end in breaker.segments()), np.int64)
    return ends[ends < num_chars]


def _stand_in(found: re.Match[str]) -> str:
    """A character of one UTF-16 unit that breaks like it: an ideograph like emoji and ideographs, else a letter."""
    return "\u4e00" if unicodedata.east_asian_width(found[0]) == "W" else "a"


def _last_of(levels: Sequence[Places], above: int, most: int) -> int | None:
    """The last place in (above, most] of the best kind that has one there."""
    for places in levels:
        index = int(np.searchsorted(places, most, side="right")) - 1
        if index >= 0 and places[index] > above:
            return int(places[index])
    return None


def _first_of(levels: Sequence[Places], least: int, below: int) -> int | None:
    """The first place in [least, below) of the best kind that has one there."""
    for places in levels:
        index = int(np.searchsorted(places, least))
        if index < len(places) and places[index] < below:
            return int(places[index])
    return None
