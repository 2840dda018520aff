"""Tokens of a long text are those of all of it, at the cost of a prefix; a tokenizer that panics costs one document."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Encoding, Regex, Tokenizer, models, normalizers, pre_tokenizers

from pipeline.errors import Interrupted
from pipeline.prefixes import encode_texts, own_span, squeeze, squeezes
from tests.models import minilm_path

MAX_TOKENS = 6
LONG_TOKEN = "<|" + "a " * 60 + "|>"


@dataclass(eq=False)
class Counting:
    """A backend, and the characters that were handed to it."""

    backend: Any
    handed: list[int] = field(default_factory=list)

    def encode_batch(self, texts: list[str]) -> list[Encoding]:
        self.handed += map(len, texts)
        return list(self.backend.encode_batch(texts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)


def minilm(max_tokens: int) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(minilm_path() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def words(max_tokens: int) -> Tokenizer:
    """One token a word, whose offsets tell where it ends; which may depend on what follows it, as GPT-4's do."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, "[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s*[\r\n]+|\s+(?!\S)|\s+|\S+"), "isolated")
    tokenizer.add_special_tokens([AddedToken("<|end of text|>", rstrip=True, lstrip=True), AddedToken(LONG_TOKEN)])
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def unigram(max_tokens: int) -> Tokenizer:
    """As XLM-R's: a word is whatever has no white space, and how it is cut depends on all of it."""
    scores = {"<unk>": 0.0, "\u2581": -3.0, "the": -2.0, "北京": -4.0, "北": -6.0, "大学": -5.0}
    scores |= {letter: -5.0 - index / 7 for index, letter in enumerate("abcdef0123456789.,ehtl")}
    scores |= {"ab": -6.0, "bc": -5.5, "abc": -8.0, "cab": -7.3, "f0": -6.1, "0f0": -7.7, "aaaa": -8.0, "aa": -6.0}
    scores |= {"\u0301": -5.0, "\u0323": -5.0}
    tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=0, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.add_special_tokens([AddedToken("[SEP]"), AddedToken(LONG_TOKEN)])
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def encode(backend: Any, texts: list[str], **kwargs: Any) -> tuple[list[Encoding | None], dict[int, str]]:
    array = pa.array(texts, pa.string())
    return encode_texts(backend, array, pc.utf8_length(array).to_numpy(zero_copy_only=False), **kwargs)


@pytest.fixture(scope="module")
def backends() -> list[Tokenizer]:
    return [minilm(MAX_TOKENS), words(MAX_TOKENS), unigram(MAX_TOKENS)]


PIECES = st.one_of(
    st.sampled_from(
        [
            "the ",
            "unbelievably",
            " ",
            "\n",
            "[SEP]",
            "[SE",
            "<|end of text|>",
            LONG_TOKEN,
            "a" * 90,
            "e\u0301",
            "北京",
            ".",
        ]
    ),
    st.text(max_size=6),
)
LONG_TEXTS = st.builds(lambda pieces, times: "".join(pieces) * times, st.lists(PIECES, max_size=8), st.integers(1, 60))


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(LONG_TEXTS, min_size=1, max_size=3),
    first_chars=st.integers(1, 400),
    prompt=st.sampled_from(["", "to: "]),
)
@example(texts=["a" * 101 + " b" * 400], first_chars=100, prompt="")  # of up to 100 letters a word, of more [UNK]
@example(texts=["x y z" + "\n" * 300 + " " * 600 + "\n" + " y" * 300], first_chars=700, prompt="")
@example(texts=["x " + LONG_TOKEN * 20], first_chars=100, prompt="")
@example(texts=["x " * 3 + "[SEP]" * 100], first_chars=9, prompt="")
def test_kept_tokens_are_those_of_the_whole_text(
    texts: list[str], first_chars: int, prompt: str, backends: list[Tokenizer]
) -> None:
    for backend in backends:
        found, failed = encode(backend, texts, prompt=prompt, first_chars=first_chars)
        for index, text in enumerate(texts):
            whole, one = backend.encode(prompt + text), found[index]
            if one is None:
                assert not len(whole)
                assert index in failed
                continue
            assert one.ids == whole.ids
            assert own_span(one) == own_span(whole)
            assert bool(one.overflowing) == bool(whole.overflowing)


@pytest.mark.parametrize("word", ["word after word, ", "北京大学", "well,well,"])
def test_a_text_of_10_mb_costs_a_prefix(word: str) -> None:
    """Also one without white space: to this tokenizer a word ends at a comma, and at each of these characters."""
    num_bytes = 10_000_000
    text = word * (num_bytes // len(word.encode()))
    counting = Counting(minilm(256))
    (found,), _ = encode(counting, [text], first_chars=6 * 256)
    assert found is not None
    assert len(found) == 256
    assert sum(counting.handed) <= 4 * 6 * 256


def test_a_text_that_is_not_settled_is_doubled_until_it_is_whole() -> None:
    counting = Counting(minilm(MAX_TOKENS))
    (found,), _ = encode(counting, ["a" * 1000], first_chars=100)
    assert counting.handed == [100, 200, 400, 800, 1000]
    assert found is not None
    assert found.tokens == ["[CLS]", "[UNK]", "[SEP]"]


def test_without_a_first_length_all_is_encoded() -> None:
    counting = Counting(minilm(MAX_TOKENS))
    encode(counting, ["a " * 1000])
    assert counting.handed == [2000]


class PanicError(BaseException):
    """As the panic of a Rust library comes: no Exception."""


class Panics:
    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.backend = minilm(MAX_TOKENS)

    def encode(self, text: str) -> Encoding:
        if text == "bad":
            raise self.error
        return self.backend.encode(text)

    def encode_batch(self, texts: list[str]) -> list[Encoding]:
        return [self.encode(text) for text in texts]


def test_a_panic_costs_one_document() -> None:
    found, failed = encode(Panics(PanicError("index out of bounds")), ["one", "bad", "two"])
    assert [encoding is not None for encoding in found] == [True, False, True]
    assert failed == {1: "the tokenizer failed: index out of bounds"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), GeneratorExit(), Interrupted(15)])
def test_what_ends_the_run_is_no_failure_of_a_document(error: BaseException) -> None:
    with pytest.raises(type(error)):
        encode(Panics(error), ["one", "bad"])


# -- long words ------------------------------------------------------------------

RUNS = st.builds(
    lambda letters, num: (letters * num)[:num], st.sampled_from(["a", "f0", "Ab9"]), st.integers(900, 1500)
)
WITH_RUNS = st.builds("".join, st.lists(st.one_of(RUNS, RUNS, PIECES), min_size=1, max_size=6))


@settings(max_examples=100, deadline=None)
@given(text=WITH_RUNS)
@example(text="a" * 1025 + "\u0301 b")
@example(text="é" + "a" * 2000 + "北" + "b" * 2000 + "[SEP]" + "c" * 2000 + " d e f g h")
@example(text="x y " + "a" * 1025)
def test_a_text_without_the_inside_of_its_long_words_has_the_same_tokens(text: str, backends: list[Tokenizer]) -> None:
    backend = backends[0]
    assert squeezes(backend)
    array = pa.array(["b", text, "c"], pa.string())
    found = squeeze(array, pc.utf8_length(array).to_numpy(zero_copy_only=False), 100)
    assert found.texts[0].as_py() == "b"
    assert found.texts[2].as_py() == "c"
    whole, short = backend.encode(text), backend.encode(found.texts[1].as_py())
    assert short.ids == whole.ids
    spans = [[encoding, *encoding.overflowing] for encoding in (whole, short)]
    for one, other in zip(*spans, strict=True):
        assert other.ids == one.ids
        assert [(found.place(1, begin), found.place(1, end)) for begin, end in other.offsets] == one.offsets


@pytest.mark.parametrize("text", ["a" * 10**7, "f0" * 5_000_000 + " the end", "x " * 3 + "b" * 10**7])
def test_10_mb_of_one_word_are_not_tokenized(text: str) -> None:
    array = pa.array([text], pa.string())
    found = squeeze(array, pc.utf8_length(array).to_numpy(zero_copy_only=False), 1000)
    assert len(found.texts[0].as_py()) < 1100
    assert found.place(0, len(found.texts[0].as_py())) == len(text)


WORDS = st.builds(
    lambda pieces, times, end: "".join(pieces) * times + end,
    st.lists(st.sampled_from([*"abcf0", "abc", "北京", "\u0301", "\ufdfa", "\ue000", "[SEP", "]", " "]), min_size=1),
    st.integers(1, 300),
    st.text("abc0 \u0301", max_size=8),
)


@settings(max_examples=150, deadline=None)
@given(text=WORDS, first_chars=st.integers(200, 900))
@example(text="\ue000" * 900 + "a", first_chars=300)  # unknown ones are one token, up to the end
@example(text="0" + "\u0301" * 900 + "\u0323" * 9, first_chars=600)  # marks change places with those that follow
@example(text="a" * 1203, first_chars=300)  # whose cuts never meet
@example(text="x" * 300 + "[SEP]" * 40, first_chars=300)
def test_a_long_word_begins_as_unigram_cuts_all_of_it(text: str, first_chars: int) -> None:
    backend = unigram(MAX_TOKENS)
    [found], _ = encode(backend, [text], first_chars=first_chars)
    whole = backend.encode(text)
    assert (found.ids if found else []) == whole.ids
    assert not found or own_span(found) == own_span(whole)


@pytest.mark.parametrize("word", ["北京大学", "f00badcafe", "abc\ue000", "\ue000ab"])
def test_10_mb_of_one_word_cost_unigram_a_prefix(word: str) -> None:
    counting = Counting(unigram(64))
    (found,), _ = encode(counting, [word * (10_000_000 // len(word))], first_chars=64 * 64)
    assert found is not None
    assert len(found) == 64
    assert sum(counting.handed) <= 4 * 64 * 64


def test_a_cut_that_depends_on_the_end_is_not_settled_by_a_prefix() -> None:
    """Of an odd number of these the first is alone, and nobody knows which number it is before the end."""
    backend = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("a", -5.0), ("b", -1.0), ("aa", -2.0), ("ab", -1.0)], unk_id=0)
    )
    backend.enable_truncation(MAX_TOKENS)
    for num in (3000, 3001):
        text = "a" * num + "b"
        counting = Counting(backend)
        [found], _ = encode(counting, [text], first_chars=400)
        assert found is not None
        assert found.ids == backend.encode(text).ids
        assert counting.handed[-1] == len(text)


def test_other_tokenizers_look_into_long_words() -> None:
    def changed(**parts: object) -> Tokenizer:
        backend = minilm(MAX_TOKENS)
        for name, part in parts.items():
            setattr(backend, name, part)
        return backend

    assert squeezes(changed())
    assert squeezes(changed(normalizer=normalizers.Sequence([normalizers.Lowercase(), normalizers.BertNormalizer()])))
    assert not squeezes(words(MAX_TOKENS))
    assert not squeezes(changed(pre_tokenizer=pre_tokenizers.Digits()))
    assert not squeezes(changed(normalizer=normalizers.Replace("a", " ")))
    long_words = models.WordPiece({"[UNK]": 0}, max_input_chars_per_word=5000)
    assert not squeezes(changed(model=long_words))
    backend = changed()
    backend.add_tokens([AddedToken("abc")])
    assert not squeezes(backend)
