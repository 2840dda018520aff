"""Sequences: the library's own token ids, and what is told of each document."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from pipeline.chunks import Chunk, Chunker, UnchunkableError
from pipeline.config import EncoderSettings
from pipeline.errors import ModelError
from pipeline.model import ModelDescription, describe_model
from pipeline.schema import DOCUMENT_FIELDS, QUARANTINE_SCHEMA, SEQUENCE_FIELDS
from pipeline.tokens import SequenceTokenizer, load_tokenizer, tokenize
from tests.models import minilm_path, write_json

TEXTS = [
    "the time said that they would be there",
    "  spaces before and after\n\n",
    "Ünïcödé: straße, ΑΒΓ, 北京, عربى, 🎉 and \x00 NUL",
    "one [SEP] two [MASK] three",
    "so " * 300,
    "x",
    "a" * 500,
    "many. short! words? " * 60,
    "\u200b\ufeff",
]


def loaded(path: Path, **settings: Any) -> tuple[ModelDescription, SequenceTokenizer]:
    description = describe_model(path, EncoderSettings(model=str(path), **settings))
    return description, load_tokenizer(path, description)


def documents(texts: list[str], **keep: pa.Array) -> pa.Table:
    hashes = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
    columns = {
        "doc_id": pa.array([f"d{index}" for index in range(len(texts))], pa.string()),
        "row": pa.array(range(len(texts)), pa.int64()),
        "content_hash": pa.array(hashes, pa.binary(16)),
        "text": pa.array(texts, pa.string()),
    }
    kept = [pa.field(name, array.type) for name, array in keep.items()]
    return pa.table({**columns, **keep}, schema=pa.schema([*DOCUMENT_FIELDS, *kept]))


def ids_of_library(path: Path, texts: list[str], prompt: str | None = None) -> list[list[int]]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(path), device="cpu")
    rows = [model.preprocess([text], prompt=prompt)["input_ids"][0].tolist() for text in texts]
    assert any(len(row) == model.max_seq_length for row in rows), "the premise: some are truncated"
    return rows


@pytest.mark.parametrize("which", ["tiny", "minilm"])
@pytest.mark.parametrize("prompt", [None, "Query: "])
def test_ids_are_the_librarys(which: str, prompt: str | None, tiny: Path) -> None:
    path = tiny if which == "tiny" else minilm_path()
    _, tokenizer = loaded(path, prompt=prompt)
    sequences = tokenize(documents(TEXTS), tokenizer, input_file="f").sequences
    assert sequences["input_ids"].to_pylist() == ids_of_library(path, TEXTS, prompt)


def test_flags_of_the_config_win_over_tokenizer_json_as_in_the_library(tiny: Path, tmp_path: Path) -> None:
    """transformers rebuilds this tokenizer from the vocabulary and the flags; tokenizer.json alone says otherwise."""
    path = Path(shutil.copytree(tiny, tmp_path / "cased"))
    config = (path / "tokenizer_config.json").read_text()
    assert '"do_lower_case": true' in config
    (path / "tokenizer_config.json").write_text(config.replace('"do_lower_case": true', '"do_lower_case": false'))
    texts = ["THE time", "the time", *TEXTS]
    _, tokenizer = loaded(path)
    found = tokenize(documents(texts), tokenizer, input_file="f").sequences["input_ids"].to_pylist()
    assert found[0] != found[1]
    assert found == ids_of_library(path, texts)
    # do_lower_case of sentence-transformers lowers before all else.
    write_json(path / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": True})
    _, tokenizer = loaded(path)
    found = tokenize(documents(texts), tokenizer, input_file="f").sequences["input_ids"].to_pylist()
    assert found[0] == found[1]
    assert found == ids_of_library(path, texts)


def test_queries_have_the_query_prompt(tiny: Path) -> None:
    _, tokenizer = loaded(tiny, query_prompt="who: ", prompt="it: ")
    _, plain = loaded(tiny)
    assert [ids.tolist() for ids in tokenizer.query_ids(["x"])] == [ids.tolist() for ids in plain.query_ids(["who: x"])]


def test_truncation_is_told_with_the_last_character_kept(tiny: Path) -> None:
    texts = ["the time", "the time " * 40]
    _, tokenizer = loaded(tiny, max_tokens=10, prompt="to: ")
    sequences = tokenize(documents(texts), tokenizer, input_file="f").sequences
    assert sequences["truncated"].to_pylist() == [False, True]
    assert sequences["num_tokens"].to_pylist() == [2 + 2 + 2, 10]
    assert sequences["char_begin"].to_pylist() == [0, 0]
    # 10 tokens: [CLS], "to", ":", six words of the text, [SEP]
    assert sequences["char_end"].to_pylist() == [len(texts[0]), len("the time the time the time")]
    assert sequences["chunk_index"].to_pylist() == [0, 0]
    assert sequences["num_chunks"].to_pylist() == [1, 1]


def test_a_long_text_is_told_as_if_all_of_it_were_encoded(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the time said " * 400, "there", "it " * 3000 + "x" * 300, "x" * 5000 + " the" * 100]
    _, tokenizer = loaded(tiny, prompt="to: ")
    assert tokenizer.first_chars == 6 * 48
    whole = tokenize(documents(texts), replace(tokenizer, first_chars=None), input_file="f")
    assert tokenize(documents(texts), tokenizer, input_file="f").sequences.equals(whole.sequences)
    assert whole.sequences["truncated"].to_pylist() == [True, False, True, True]
    assert tokenizer.squeezes
    assert whole.sequences["char_end"][3].as_py() > 5000, "characters of the text, not of what is left of a long word"


def test_truncation_on_the_left_keeps_the_end_of_a_long_text(tiny: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny, tmp_path / "left"))
    config = json.loads((path / "tokenizer_config.json").read_text())
    write_json(path / "tokenizer_config.json", {**config, "truncation_side": "left"})
    _, tokenizer = loaded(path)
    text = "the " * 5000 + "there"
    (row,) = tokenize(documents([text]), tokenizer, input_file="f").sequences.to_pylist()
    assert (row["truncated"], row["num_tokens"], row["char_end"]) == (True, 48, len(text))
    assert row["input_ids"] == ids_of_library(path, [text])[0]


def test_characters_are_counted_not_bytes(tiny: Path) -> None:
    _, tokenizer = loaded(tiny)
    sequences = tokenize(documents(["北京 🎉"]), tokenizer, input_file="f").sequences
    assert sequences["char_end"].to_pylist() == [4]


def test_pieces_do_not_change_the_answer(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokenizer = loaded(tiny)
    whole = tokenize(documents(TEXTS), tokenizer, input_file="f")
    monkeypatch.setattr("pipeline.tokens.sequences._PIECE_BYTES", 20)
    assert tokenize(documents(TEXTS), tokenizer, input_file="f").sequences.equals(whole.sequences)


def test_kept_columns_and_text_come_along_in_schema_order(tiny: Path) -> None:
    _, tokenizer = loaded(tiny)
    table = documents(["one", "two"], lang=pa.array(["a", None]), when=pa.array([1, 2], pa.timestamp("ns")))
    sequences = tokenize(table, tokenizer, input_file="f", with_text=True).sequences
    assert sequences.schema.names == [*(field.name for field in SEQUENCE_FIELDS), "lang", "when", "text"]
    assert sequences.schema.field("input_ids") == pa.field("input_ids", pa.list_(pa.int32()), nullable=False)
    assert sequences["lang"].to_pylist() == ["a", None]
    sequences.validate(full=True)


def test_no_documents_make_no_sequences_of_the_same_schema(tiny: Path) -> None:
    _, tokenizer = loaded(tiny)
    empty = tokenize(documents([]), tokenizer, input_file="f")
    assert (len(empty.sequences), len(empty.quarantine)) == (0, 0)
    assert empty.sequences.schema == tokenize(documents(["x"]), tokenizer, input_file="f").sequences.schema


def test_the_row_hash_sees_id_content_and_kept_values(tiny: Path) -> None:
    _, tokenizer = loaded(tiny)

    def row_hash(doc_id: str, text: str, **keep: pa.Array) -> bytes:
        table = documents([text], **keep)
        table = table.set_column(0, DOCUMENT_FIELDS[0], pa.array([doc_id]))
        (value,) = tokenize(table, tokenizer, input_file="f").sequences["row_hash"].to_pylist()
        return bytes(value)

    kept: list[pa.Array] = [
        pa.array([1]),
        pa.array([2]),
        pa.array(["1"]),
        pa.array([None], pa.int64()),
        pa.array([1.5]),
    ]
    kept += [pa.array([b"\xff"]), pa.array([1], pa.timestamp("ns")), pa.array([[1, 2]]), pa.array([{"a": 1}])]
    hashes = [row_hash("a", "x"), row_hash("b", "x"), row_hash("a", "y"), *(row_hash("a", "x", k=k) for k in kept)]
    assert len(set(hashes)) == len(hashes)
    assert row_hash("a", "x", k=kept[0]) == row_hash("a", "x", k=pa.array([1]))


_SECONDS = 2**62  # far outside of Python's years
_TIME = pa.timestamp("us", "UTC")


@pytest.mark.parametrize(
    "kind",
    [
        pa.timestamp("s"),
        pa.duration("s"),
        pa.date32(),
        pa.list_(_TIME),
        pa.large_list(pa.duration("s")),
        pa.list_(_TIME, 1),
        pa.struct([("a", pa.date32()), ("b", pa.list_(pa.struct([("c", _TIME)])))]),
        pa.map_(pa.string(), _TIME),
        pa.map_(_TIME, pa.string()),
        pa.dictionary(pa.int32(), _TIME),
        pa.list_(pa.dictionary(pa.int32(), _TIME)),
    ],
    ids=str,
)
def test_times_at_any_depth_outside_of_pythons_years_are_hashed(tiny: Path, kind: pa.DataType) -> None:
    """One such value raised OverflowError for all of the split."""
    _, tokenizer = loaded(tiny)

    def array(kind: pa.DataType, value: int) -> pa.Array:
        if pa.types.is_dictionary(kind):
            return pa.DictionaryArray.from_arrays(pa.array([0], kind.index_type), array(kind.value_type, value))
        if pa.types.is_struct(kind):
            return pa.StructArray.from_arrays([array(child.type, value) for child in kind], fields=list(kind))
        if pa.types.is_map(kind):
            return pa.MapArray.from_arrays([0, 1], array(kind.key_type, value), array(kind.item_type, value))
        if pa.types.is_fixed_size_list(kind):
            return pa.FixedSizeListArray.from_arrays(array(kind.value_type, value), type=kind)
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            made = pa.ListArray if pa.types.is_list(kind) else pa.LargeListArray
            return made.from_arrays([0, 1], array(kind.value_type, value), type=kind)
        if pa.types.is_string(kind):
            return pa.array([str(value)])
        return (
            pa.array([value % 2**30 if kind.bit_width == 32 else value])
            .cast(pa.int64())
            .cast(pa.int32() if kind.bit_width == 32 else pa.int64())
            .view(kind)
        )

    def row_hash(value: int) -> bytes:
        sequences = tokenize(documents(["x"], k=array(kind, value)), tokenizer, input_file="f").sequences
        assert sequences["k"].type == kind
        return bytes(sequences["row_hash"][0].as_py())

    assert row_hash(_SECONDS + 2**30 - 1) == row_hash(_SECONDS + 2**30 - 1)
    assert row_hash(_SECONDS + 2**30 - 1) != row_hash(_SECONDS + 2**30 - 2)


class _Fails:
    """A tokenizer that raises on one text and finds nothing in another."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def encode(self, text: str) -> Any:
        if text == "bad":
            raise ValueError("cannot")
        return self._backend.encode(text, add_special_tokens=text != "")

    def encode_batch(self, texts: list[str]) -> list[Any]:
        return [self.encode(text) for text in texts]


def test_a_document_that_cannot_be_tokenized_costs_no_other(tiny: Path) -> None:
    _, tokenizer = loaded(tiny)
    failing: Any = _Fails(tokenizer.backend)
    texts = ["one", "bad", "two", "", "three"]
    found = tokenize(documents(texts), SequenceTokenizer(failing, "", ""), input_file="f", quarantine_text=True)
    assert found.sequences["doc_id"].to_pylist() == ["d0", "d2", "d4"]
    good = tokenize(documents(texts), tokenizer, input_file="f").sequences.take([0, 2, 4])
    assert found.sequences.equals(good)
    assert found.quarantine.schema == QUARANTINE_SCHEMA
    rows = found.quarantine.to_pylist()
    assert [(row["doc_id"], row["row"], row["text"]) for row in rows] == [("d1", 1, "bad"), ("d3", 3, "")]
    assert [row["message"] for row in rows] == ["the tokenizer failed: cannot", "the tokenizer finds no token in it"]
    assert {(row["stage"], row["reason"], row["input_file"]) for row in rows} == {("tokenize", "encode_failed", "f")}


def test_another_tokenizer_than_described_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny, tmp_path / "changed"))
    description = describe_model(path, EncoderSettings(model=str(path)))
    write_json(path / "tokenizer_config.json", {})
    with pytest.raises(ModelError, match="not the one that the run began with"):
        load_tokenizer(path, description)


def test_a_broken_tokenizer_is_told_in_a_sentence(tiny: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny, tmp_path / "broken"))
    (path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer of .* cannot be loaded") as caught:
        loaded(path)
    assert "\n" not in str(caught.value)


def test_readers_import_neither_torch_nor_transformers() -> None:
    """Two seconds and 240 MiB in every reader's process."""
    heavy = "{'torch', 'transformers', 'huggingface_hub'}"
    code = f"import sys, pipeline.tokens; print(sorted({heavy} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ids_are_int32_without_python_lists_between(tiny: Path) -> None:
    _, tokenizer = loaded(tiny)
    ids = tokenize(documents(["the time"]), tokenizer, input_file="f").sequences["input_ids"].combine_chunks()
    assert ids.values.to_numpy(zero_copy_only=True).dtype == np.int32


# -- chunks ----------------------------------------------------------------------

LONG = "the time said that they would be there. " * 40


def test_a_document_that_does_not_fit_is_cut_into_chunks_and_the_others_are_what_they_were(tiny: Path) -> None:
    texts = ["the time", LONG, "x", "a" * 30 + " " + "the " * 200, "there"]
    keep = {"lang": pa.array(["a", "b", None, "d", "e"])}
    _, cutting = loaded(tiny, overlong="chunk", prompt="to: ")
    _, truncating = loaded(tiny, prompt="to: ")
    unbounded = Tokenizer.from_str(truncating.backend.to_str())
    unbounded.no_truncation()  # so that it tells where a chunk holds less than its text
    found = tokenize(documents(texts, **keep), cutting, input_file="f").sequences
    rows = found.to_pylist()
    assert [row["doc_id"] for row in rows] == sorted(row["doc_id"] for row in rows), "the documents' order"
    for number, text in enumerate(texts):
        chunks = [row for row in rows if row["doc_id"] == f"d{number}"]
        assert [row["chunk_index"] for row in chunks] == list(range(len(chunks)))
        assert {row["num_chunks"] for row in chunks} == {len(chunks)}
        assert (len(chunks) > 1) == (number in (1, 3))
        assert {(row["lang"], row["row"], row["truncated"]) for row in chunks} == {
            (keep["lang"][number].as_py(), number, False)
        }
        assert {row["content_hash"] for row in chunks} == {documents(texts)["content_hash"][number].as_py()}
        for row in chunks:
            assert row["num_tokens"] == len(row["input_ids"]) <= 48
        assert (chunks[0]["char_begin"], chunks[-1]["char_end"]) == (0, len(text.strip()))
        own = [text[row["char_begin"] : row["char_end"]] for row in chunks]
        assert [row["input_ids"] for row in chunks] == [unbounded.encode("to: " + part).ids for part in own]
    assert len({row["row_hash"] for row in rows}) == len(rows)
    # Those that fit are to the bit what they are where documents are truncated.
    plain = tokenize(documents(texts, **keep), truncating, input_file="f").sequences
    single = found.filter(pa.compute.equal(found["num_chunks"], 1))
    assert single.equals(plain.take([0, 2, 4]))


def test_the_text_of_a_chunk_is_its_own(tiny: Path) -> None:
    _, tokenizer = loaded(tiny, overlong="chunk")
    texts = ["  one ", LONG]
    rows = tokenize(documents(texts), tokenizer, input_file="f", with_text=True).sequences.to_pylist()
    assert rows[0]["text"] == "  one "
    assert [row["text"] for row in rows[1:]] == [LONG[row["char_begin"] : row["char_end"]] for row in rows[1:]]


def test_pieces_do_not_change_the_chunks(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokenizer = loaded(tiny, overlong="chunk")
    texts = [*TEXTS, LONG, "so"]
    whole = tokenize(documents(texts), tokenizer, input_file="f")
    monkeypatch.setattr("pipeline.tokens.sequences._PIECE_BYTES", 20)
    assert tokenize(documents(texts), tokenizer, input_file="f").sequences.equals(whole.sequences)


def test_windows_of_fewer_tokens_than_the_model_takes(tiny: Path) -> None:
    chunk = {"tokens": 12, "overlap_tokens": 4}
    _, tokenizer = loaded(tiny, overlong="chunk", chunk=chunk, prompt="to: ")
    _, plain = loaded(tiny)
    rows = tokenize(documents(["the time " * 7, LONG]), tokenizer, input_file="f").sequences.to_pylist()
    assert [row["num_chunks"] for row in rows if row["doc_id"] == "d0"] == [2, 2], "it fits the model, but no window"
    assert max(row["num_tokens"] for row in rows) == 12 + 2 + 2
    # Queries are the model's own length.
    assert len(tokenizer.query_ids(["the " * 100])[0]) == len(plain.query_ids(["the " * 100])[0]) == 48


def test_queries_are_the_models_own_length_also_after_an_interrupt(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokenizer = loaded(tiny, overlong="chunk", chunk={"tokens": 12, "overlap_tokens": 4})

    def interrupted(self: Chunker, text: str) -> list[Chunk]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Chunker, "chunks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokenize(documents([LONG]), tokenizer, input_file="f")
    assert len(tokenizer.query_ids(["the " * 100])[0]) == 48


def test_the_side_of_truncation_does_not_matter_to_chunks(tiny: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny, tmp_path / "left"))
    config = json.loads((path / "tokenizer_config.json").read_text())
    write_json(path / "tokenizer_config.json", {**config, "truncation_side": "left"})
    (_, left), (_, right) = loaded(path, overlong="chunk"), loaded(tiny, overlong="chunk")
    found = [tokenize(documents([LONG, "x"]), one, input_file="f").sequences for one in (left, right)]
    assert found[0].equals(found[1])
    query = "the " * 100 + "there"
    assert left.query_ids([query])[0].tolist() == loaded(path)[1].query_ids([query])[0].tolist()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"chunk": {"tokens": 47}}, "encoder.chunk.tokens: 47 is above the 46 that .* takes"),
        ({"chunk": {"tokens": 45}, "prompt": "to: "}, "encoder.chunk.tokens: 45 is above the 44 that .* takes"),
        ({"prompt": "the " * 46}, "encoder.prompt: its 46 tokens leave none of the 46 of a chunk"),
    ],
)
def test_windows_that_no_sequence_holds_are_refused(tiny: Path, settings: Any, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        loaded(tiny, overlong="chunk", **settings)


def test_another_version_of_the_library_that_finds_the_places_is_refused(tiny: Path) -> None:
    description = describe_model(tiny, EncoderSettings(model=str(tiny), overlong="chunk"))
    assert description.chunk is not None
    with pytest.raises(ModelError, match="the ICU library is version [0-9]+ here, and documents are cut by version 1"):
        load_tokenizer(tiny, replace(description, chunk={**description.chunk, "icu": 1}))


def test_a_document_that_cannot_be_cut_is_quarantined_and_costs_no_other(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tokenizer = loaded(tiny, overlong="chunk")
    texts = ["one", LONG, "bad " * 100, "two"]
    good = tokenize(documents(texts), tokenizer, input_file="f").sequences
    cut = Chunker.chunks

    def chunks(self: Chunker, text: str) -> list[Chunk]:
        if "bad" in text:
            raise UnchunkableError("cannot")
        return cut(self, text)

    monkeypatch.setattr(Chunker, "chunks", chunks)
    found = tokenize(documents(texts), tokenizer, input_file="f")
    assert found.sequences.equals(good.filter(pa.compute.not_equal(good["doc_id"], "d2")))
    assert [(row["doc_id"], row["reason"], row["message"]) for row in found.quarantine.to_pylist()] == [
        ("d2", "encode_failed", "cannot")
    ]
