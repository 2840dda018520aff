"""Windows over a long text: each fits, together they hold all of it, and they are cut where a reader would cut."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pipeline.chunks import CHARS_PER_TOKEN, Chunk, Chunker, UnchunkableError
from tests.models import minilm_path

NUM_SPECIAL = 2


def minilm() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(minilm_path() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def unigram() -> Tokenizer:
    """As XLM-R's: a mark before each word and each text, pieces of any length, no word too long to be looked at."""
    pieces = [("<unk>", 0.0), ("\u2581", -2.0), ("aaaa", -3.0), ("the", -3.0), ("\u2581the", -2.5), (".", -3.0)]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    ends = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return tokenizer


def bytewise() -> Tokenizer:
    """As RoBERTa's: white space is part of the token that follows it, and a character may be several tokens."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {letter: index for index, letter in enumerate(sorted(letters))}
    vocabulary |= {"Ġt": len(vocabulary), "Ġth": len(vocabulary) + 1, "Ġthe": len(vocabulary) + 2}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    ends = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return tokenizer


@pytest.fixture(scope="module")
def backends() -> list[Tokenizer]:
    return [minilm(), unigram(), bytewise()]


def make_chunker(backend: Any, tokens: int, overlap: int = 0, prompt: str = "") -> Chunker:
    num_prompt = len(backend.encode(prompt, add_special_tokens=False)) if prompt else 0
    return Chunker(backend, prompt, tokens + num_prompt + NUM_SPECIAL, tokens, overlap)


def check(chunker: Chunker, text: str, chunks: list[Chunk]) -> None:
    """What must hold of any text."""
    covered = 0
    for chunk in chunks:
        own = text[chunk.begin : chunk.end]
        assert own == own.strip() != ""
        assert text[covered : chunk.begin].strip() == "", "no window holds it"
        assert chunk.end > covered, "nothing that the windows before do not hold"
        covered = chunk.end
        assert chunk.ids.tolist() == chunker.backend.encode(chunker.prompt + own).ids
        assert len(chunk.ids) <= chunker.max_tokens
    assert text[covered:].strip() == "", "no window holds the end"


PIECES = st.one_of(
    st.sampled_from(
        [
            *(
                "the ",
                "time. ",
                "Said who? ",
                "\n",
                "\n\n",
                "  ",
                "[SEP]",
                "a" * 150,
                "a" * 60,
                "e\u0301",
                "北京。",
                "🎉",
            ),
            *(
                "🎉",
                "\u200b",
                "\x00",
                "\u202e",
                "\r\n",
                "Dr. Who",
                "http://x.y/z?q=1 ",
                "👩‍👩‍👧 ",
                "שלום ",
                "𐌰𐌱 ",
                "\ufeff",
            ),
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
)
TEXTS = st.builds(lambda pieces, times: "".join(pieces) * times, st.lists(PIECES, max_size=8), st.integers(1, 40))


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, tokens=st.integers(4, 40), overlap=st.integers(0, 20), prompt=st.sampled_from(["", "to: "]))
@example(text="the " + "a" * 5000 + " time", tokens=6, overlap=2, prompt="")
@example(text="🎉" * 300, tokens=9, overlap=4, prompt="to: ")
@example(text="北京大学" * 200, tokens=7, overlap=3, prompt="")
@example(text="\u200b" * 3000 + "the time", tokens=5, overlap=0, prompt="")
@example(text="a" * 99 + "\u200b" + "a" * 99 + " the" * 99, tokens=8, overlap=3, prompt="")
def test_windows_fit_and_together_hold_all_of_any_text(
    text: str, tokens: int, overlap: int, prompt: str, backends: list[Tokenizer]
) -> None:
    if not text.strip():
        return
    for backend in backends:
        chunker = make_chunker(backend, tokens, min(overlap, tokens // 2), prompt)
        check(chunker, text, chunker.chunks(text))


SENTENCE = "The river of the north carries the ledger, and the winter follows. "


def test_windows_are_cut_between_sentences_and_share_some_of_them() -> None:
    text = SENTENCE * 200
    chunker = make_chunker(minilm(), 100, 32)
    chunks = chunker.chunks(text)
    check(chunker, text, chunks)
    assert all(text[chunk.begin :].startswith("The river") for chunk in chunks)
    assert all(text[chunk.end - 1] == "." for chunk in chunks)
    for before, after in pairwise(chunks):
        shared = chunker.backend.encode(text[after.begin : before.end], add_special_tokens=False)
        assert 16 <= len(shared) <= 32, "two sentences"
    assert min(len(chunk.ids) for chunk in chunks[:-1]) > 80, "windows are filled"


@pytest.mark.parametrize("wrap", ["\n", "\r\n"])
def test_a_line_that_ends_within_a_sentence_is_no_place_to_cut_while_sentences_end_elsewhere(wrap: str) -> None:
    text = SENTENCE.replace(" carries ", f"{wrap}carries ") * 100
    chunks = make_chunker(minilm(), 100, 32).chunks(text)
    assert all(text[chunk.end - 1] == "." for chunk in chunks)


def test_where_no_sentence_ends_windows_are_cut_at_lines_then_at_white_space() -> None:
    lines = "\n".join(["river engine letter orchard"] * 300)
    for text, after in ((lines, "\n"), (lines.replace("\n", " "), " ")):
        chunks = make_chunker(minilm(), 50, 12).chunks(text)
        assert {text[chunk.end] for chunk in chunks[:-1]} == {after}
        assert all(text[chunk.begin - 1].isspace() for chunk in chunks[1:])


def test_a_language_without_spaces_is_cut_between_its_sentences() -> None:
    text = "北京大学在北京。" * 300
    chunker = make_chunker(minilm(), 60, 20)
    chunks = chunker.chunks(text)
    check(chunker, text, chunks)
    assert {text[chunk.end - 1] for chunk in chunks} == {"。"}


def test_offsets_are_characters_also_behind_emoji() -> None:
    """The library that finds the places counts in UTF-16."""
    text = "🎉🎉 The winter follows. " * 100
    chunks = make_chunker(minilm(), 40, 10).chunks(text)
    assert all(text[chunk.begin :].startswith("🎉🎉 The") for chunk in chunks)
    assert all(text[chunk.end - 1] == "." for chunk in chunks)


def test_what_no_place_breaks_is_cut_at_tokens() -> None:
    text = "a" * 10_000
    chunker = make_chunker(unigram(), 50, 10)
    chunks = chunker.chunks(text)
    check(chunker, text, chunks)
    assert all(0 < before.end - after.begin <= 40 for before, after in pairwise(chunks))


class Counting:
    """A backend, and the longest text that was handed to it at once."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend, self.longest, self.all = backend, 0, 0

    def encode(self, text: str, **options: Any) -> Any:
        self.longest, self.all = max(self.longest, len(text)), self.all + len(text)
        return self._backend.encode(text, **options)

    def encode_batch(self, texts: list[str]) -> list[Any]:
        return [self.encode(text) for text in texts]


@pytest.mark.parametrize("text", [SENTENCE * 10_000, "a" * 500_000, "f0" * 250_000, "\u200b" * 300_000 + "the time"])
def test_a_long_text_is_tokenized_in_pieces_and_about_twice(text: str) -> None:
    for backend in (minilm(), unigram()):
        counting: Any = Counting(backend)
        chunks = make_chunker(counting, 100, 20).chunks(text)
        assert counting.longest <= 100 * CHARS_PER_TOKEN
        assert counting.all <= 4 * len(text)
        assert chunks[-1].end == len(text.strip())


def test_one_character_of_too_many_tokens_is_told() -> None:
    with pytest.raises(UnchunkableError, match="one character of it makes a sequence of 6 tokens, and 4 is the most"):
        make_chunker(bytewise(), 2).chunks("the 🎉 the")


@pytest.mark.parametrize("space", ["\n", " ", "\u3000"])
def test_white_space_makes_no_window(space: str) -> None:
    text = space * 3000 + "the time " + space * 3000 + "there" + space * 3000
    for backend in (minilm(), unigram(), bytewise()):
        chunker = make_chunker(backend, 4)
        chunks = chunker.chunks(text)
        check(chunker, text, chunks)
        assert text[chunks[0].begin :].startswith("the time")
        assert text[: chunks[-1].end].endswith("there")
