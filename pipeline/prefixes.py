"""Encodings of texts at the cost of what is kept of them.

The tokenizers library encodes all of a text, some 170 bytes a character, and truncates then: a
text of 200 MB would take all of a reader's memory for 256 tokens. So a long text is encoded by a
prefix, twice as long each time, until the prefix settles which tokens are kept. It does once
enough words follow the last of them: a tokenizer's model sees one word (a piece of its
pre-tokenizer) at a time, so that what comes after the cut can change only the words next to it.
White space alone would not do: many languages have none, and a word may be cut anywhere.

A text may be one word to its tokenizer, as all that has no white space is to XLM-R's: Chinese, Thai,
base64. To BERT's WordPiece a word of more than a hundred characters is unknown whatever it holds, so that
of a long run of letters and digits the ends are enough (`squeeze`). Unigram finds the best cut up to
each character from those before it (Viterbi), so that where the best cuts up to each of the next few
characters begin alike, that of the whole does too (`_begins_alike`). Of BPE nothing like it is known:
one word is encoded whole, however long, and so is to Unigram one whose cuts never meet.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Encoding, Tokenizer
from tokenizers.models import Unigram, WordPiece
from tokenizers.normalizers import BertNormalizer, Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence
from tokenizers.pre_tokenizers import BertPreTokenizer, Metaspace, WhitespaceSplit
from tokenizers.pre_tokenizers import Sequence as PreTokenizerSequence

from pipeline.errors import Interrupted

# What must follow the last kept token within a prefix. The words: no pre-tokenizer looks further ahead. The
# characters: longer than any added token, such as "<|endoftext|>", of which a cut makes several words.
_WORDS_BEHIND = 16
_CHARS_BEHIND = 256

# What stays of a long run at either end: longer than any word that WordPiece looks into, and than any added token.
_RUN_ENDS = 512
_RUN = re.compile(rf"(?<![0-9A-Za-z])[0-9A-Za-z]{{{2 * _RUN_ENDS + 1},}}")

NO_FAILURES = (KeyboardInterrupt, SystemExit, GeneratorExit, Interrupted)
"""What must pass where anything else is a document's failure: a panic in the tokenizers library is no Exception."""


def encode_texts(
    backend: Tokenizer,
    texts: pa.StringArray,
    num_chars: npt.NDArray[np.int64],
    *,
    prompt: str = "",
    first_chars: int | None = None,
) -> tuple[list[Encoding | None], dict[int, str]]:
    """An encoding for each text, None where there is none; and why, by the text's index.

    Args:
        backend: truncates; on the right, if `first_chars` is given.
        texts: N of them.
        num_chars: (N,), their lengths in characters.
        prompt: comes before each.
        first_chars: the length of the first prefix, in characters; None: every text is encoded whole.
    """
    encodings: list[Encoding | None] = [None] * len(texts)
    failed: dict[int, str] = {}
    todo = np.arange(len(texts))
    while len(todo):
        chosen = texts if len(todo) == len(texts) else texts.take(pa.array(todo))
        prefixes = chosen if first_chars is None else pc.utf8_slice_codeunits(chosen, 0, first_chars)
        prompted = [prompt + text for text in prefixes.to_pylist()]
        found, why = _encode_each(backend, prompted)
        again = []
        for index, encoding, text, place in zip(todo.tolist(), found, prompted, range(len(todo)), strict=True):
            is_part = first_chars is not None and num_chars[index] > first_chars
            if place in why:
                failed[index] = why[place]
            elif is_part and not (encoding and _is_settled(backend, encoding, len(text))):
                again.append(index)
            elif encoding:
                encodings[index] = encoding
            else:
                failed[index] = "the tokenizer finds no token in it"
        todo = np.array(again, np.int64)
        first_chars = first_chars and 2 * first_chars
    return encodings, failed


@dataclass(frozen=True)
class Squeezed:
    """Texts without the inside of long runs of letters and digits."""

    texts: pa.StringArray
    gaps: Mapping[int, list[tuple[int, int]]]
    """Of the texts that have any: (place in the squeezed text, characters left out there), in order."""

    def place(self, index: int, place: int) -> int:
        """Where in the text of that index a place in its squeezed text is."""
        return place + sum(num for gap, num in self.gaps.get(index, ()) if gap < place)


def squeeze(texts: pa.StringArray, num_chars: npt.NDArray[np.int64], first_chars: int) -> Squeezed:
    """The texts of more than `first_chars` characters squeezed: to a backend that `squeezes`, the same tokens."""
    gaps: dict[int, list[tuple[int, int]]] = {}
    for index in np.flatnonzero(num_chars > first_chars).tolist():
        text, begin, made, size = texts[index].as_py(), 0, [], 0
        for run in _RUN.finditer(text):
            kept = text[begin : run.start() + _RUN_ENDS]
            begin = run.end() - _RUN_ENDS
            size += len(kept)
            made.append(kept)
            gaps.setdefault(index, []).append((size, begin - run.start() - _RUN_ENDS))
        if made:
            before, after = texts[:index], texts[index + 1 :]
            texts = pa.concat_arrays([before, pa.array(["".join([*made, text[begin:]])], pa.string()), after])
    return Squeezed(texts, gaps)


def squeezes(backend: Tokenizer) -> bool:
    """Whether a long run of ASCII letters and digits is within one word, unknown for its length alone."""
    parts: list[Any] = [] if backend.normalizer is None else [backend.normalizer]
    if isinstance(backend.normalizer, NormalizerSequence):
        parts = [backend.normalizer[index] for index in range(len(backend.normalizer))]
    return (
        isinstance(backend.model, WordPiece)
        and backend.model.max_input_chars_per_word < _RUN_ENDS
        and isinstance(backend.pre_tokenizer, BertPreTokenizer)
        and all(isinstance(part, BertNormalizer | Lowercase) for part in parts)
        and all(
            len(token.content) < _RUN_ENDS and not (token.content.isascii() and token.content.isalnum())
            for token in backend.get_added_tokens_decoder().values()
        )
    )


def own_span(encoding: Encoding) -> tuple[int, int]:
    """Characters [begin, end) of what was encoded that the kept tokens stand for, special ones aside."""
    special = encoding.special_tokens_mask
    own = [span for span, is_special in zip(encoding.offsets, special, strict=True) if not is_special]
    return (own[0][0], own[-1][1]) if own else (0, 0)


def _encode_each(backend: Tokenizer, texts: list[str]) -> tuple[list[Encoding | None], dict[int, str]]:
    """An encoding for each text, None where the tokenizer failed; and why."""
    try:
        return list(backend.encode_batch(texts)), {}
    except NO_FAILURES:
        raise
    except BaseException:
        pass  # one of them is at fault: which?
    encodings: list[Encoding | None] = [None] * len(texts)
    failed: dict[int, str] = {}
    for index, text in enumerate(texts):
        try:
            encodings[index] = backend.encode(text)
        except NO_FAILURES:
            raise
        except BaseException as error:
            failed[index] = f"the tokenizer failed: {error}"
    return encodings, failed


def _is_settled(backend: Tokenizer, encoding: Encoding, num_chars: int) -> bool:
    """Whether the tokens kept of a prefix of `num_chars` characters are those of any text that begins with it."""
    if not encoding.overflowing:
        return False
    kept = [word for word in encoding.word_ids if word is not None]
    seen = [word for word in encoding.overflowing[-1].word_ids if word is not None]
    if not kept or not seen or num_chars - own_span(encoding)[1] < _CHARS_BEHIND:
        return False
    return seen[-1] - kept[-1] >= _WORDS_BEHIND or _begins_alike(backend, encoding, seen[-1])


def _begins_alike(backend: Tokenizer, encoding: Encoding, last: int) -> bool:
    """Whether the word `last`, the prefix's last one, begins with the same tokens whatever follows the prefix.

    Of any longer word the best cut has a token's end among each `longest` characters that follow each
    other, and up to there it is the best cut of what is before. So its beginning is one of those compared.
    """
    if not isinstance(backend.model, Unigram) or not _ends_words_at_spaces(backend):
        return False
    parts = [encoding, *encoding.overflowing]
    own = [token for part in parts for token, word in zip(part.tokens, part.word_ids, strict=True) if word == last]
    if any(token.startswith("<0x") for token in own):  # a byte of a character, not what was encoded
        return False
    text, longest = "".join(own), _longest_token(backend)
    # One more than is kept: unknown characters that follow each other are one token.
    begin = own[: encoding.word_ids.count(last) + 1]
    cut = min(len("".join(begin)) + _CHARS_BEHIND, len(text) - _CHARS_BEHIND)
    # What follows the prefix may be combined with the last character that is not combining itself.
    if cut <= longest or all(map(unicodedata.combining, text[cut:])):
        return False
    cuts = (backend.model.tokenize(text[:end]) for end in range(cut, cut - longest, -1))
    return all([token.value for token in tokens[: len(begin)]] == begin for tokens in cuts)


def _ends_words_at_spaces(backend: Tokenizer) -> bool:
    """Whether each end of a word is told by the characters at it alone."""
    given = backend.pre_tokenizer
    # Its stubs know no __iter__.
    parts = list(cast(Iterable[Any], given)) if isinstance(given, PreTokenizerSequence) else [given]
    return all(part is None or isinstance(part, Metaspace | WhitespaceSplit) for part in parts)


@lru_cache(maxsize=16)
def _longest_token(backend: Tokenizer) -> int:
    """In characters."""
    return max(map(len, backend.get_vocab()))
