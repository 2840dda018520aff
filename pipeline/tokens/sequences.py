"""Documents -> sequences: the token ids that sentence-transformers would make.

A sequence is prompt + text, with special tokens. A text that does not fit is truncated to
`max_tokens`, which is told per row, with the last character that was kept; or it is cut into chunks
(see pipeline.chunks), each a sequence of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Encoding

from pipeline.chunks import Chunk, Chunker, UnchunkableError
from pipeline.prefixes import NO_FAILURES, Squeezed, encode_texts, own_span, squeeze
from pipeline.row_hashes import row_hashes
from pipeline.schema import DOCUMENT_FIELDS, QUARANTINE_SCHEMA, SEQUENCE_FIELDS
from pipeline.tokens.load import SequenceTokenizer

# An encoding holds about a hundred bytes a token until its ids are taken out; a piece bounds that.
_PIECE_BYTES = 2**20


class Tokenized(NamedTuple):
    """What became of documents: each is in one of the two, in the documents' order."""

    sequences: pa.Table
    """SEQUENCE_FIELDS, then the kept columns, then `text` (the chunk's own) if asked for."""
    quarantine: pa.Table
    """QUARANTINE_SCHEMA."""


def tokenize(
    documents: pa.Table,
    tokenizer: SequenceTokenizer,
    *,
    input_file: str,
    with_text: bool = False,
    quarantine_text: bool = False,
) -> Tokenized:
    """Make each document's sequence, or those of its chunks.

    Args:
        documents: DOCUMENT_FIELDS, then the kept columns.
        tokenizer: of the model that will encode.
        input_file: for the quarantine.
        with_text: whether the sequences carry the text on.
        quarantine_text: whether quarantined rows carry it.

    Returns:
        Sequences with `char_begin` and `char_end` in the document's own text, in characters; and
        the documents that make no sequence (reason "encode_failed", stage "tokenize").
    """
    documents = documents.combine_chunks()
    texts = documents["text"].combine_chunks()
    with _truncation(tokenizer):
        pieces = [_encode(tokenizer, texts[begin:end]) for begin, end in _pieces(texts)]
    failed = dict(chain.from_iterable(((p + i, m) for i, m in e.failed.items()) for p, e in _placed(pieces)))
    kept = documents.filter(~np.isin(np.arange(len(documents)), list(failed))) if failed else documents
    return Tokenized(
        _sequences(kept, [piece for piece in pieces if len(piece.lengths)], with_text=with_text),
        _quarantine(documents, failed, input_file, with_text=quarantine_text),
    )


@contextmanager
def _truncation(tokenizer: SequenceTokenizer) -> Iterator[None]:
    """While chunks are made, the backend truncates on the right, to what one chunk may have."""
    before = tokenizer.backend.truncation if tokenizer.chunker else None
    try:
        yield
    finally:
        if before is not None:
            tokenizer.backend.enable_truncation(**before)


@dataclass(frozen=True)
class _Encoded:
    """The sequences of a piece of the documents, in order."""

    num_documents: int
    num_chunks: npt.NDArray[np.int32]
    """Of each document that did not fail."""
    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]
    char_begin: npt.NDArray[np.int64]
    char_end: npt.NDArray[np.int64]
    failed: dict[int, str]


def _pieces(texts: pa.StringArray) -> list[tuple[int, int]]:
    """Ranges over the texts, cut about every `_PIECE_BYTES`."""
    ends = np.cumsum(pc.binary_length(texts).to_numpy(zero_copy_only=False), dtype=np.int64)
    cuts = np.flatnonzero(np.diff(ends // _PIECE_BYTES)) + 1
    bounds = [0, *cuts.tolist(), len(texts)]
    return [(begin, end) for begin, end in pairwise(bounds) if begin < end]


def _placed(pieces: list[_Encoded]) -> Iterator[tuple[int, _Encoded]]:
    position = 0
    for piece in pieces:
        yield position, piece
        position += piece.num_documents


def _encode(tokenizer: SequenceTokenizer, texts: pa.StringArray) -> _Encoded:
    num_chars = pc.utf8_length(texts).to_numpy(zero_copy_only=False).astype(np.int64)
    if tokenizer.chunker is not None:
        tokenizer.backend.enable_truncation(tokenizer.chunker.max_tokens)
    first_chars = tokenizer.first_chars
    if first_chars is not None and tokenizer.squeezes:
        short = squeeze(texts, num_chars, first_chars)
    else:
        short = Squeezed(texts, {})
    encodings, failed = encode_texts(
        tokenizer.backend,
        short.texts,
        pc.utf8_length(short.texts).to_numpy(zero_copy_only=False).astype(np.int64) if short.gaps else num_chars,
        prompt=tokenizer.prompt,
        first_chars=first_chars,
    )
    made: list[list[_Sequence]] = []
    for index, encoding in enumerate(encodings):
        if encoding is None:
            continue
        if encoding.overflowing and tokenizer.chunker is not None:
            chunks = _chunks(tokenizer.chunker, texts[index].as_py())
            if isinstance(chunks, str):
                failed[index] = chunks
            else:
                made.append([_Sequence(*chunk, truncated=False) for chunk in chunks])
        else:
            sequence = _sequence(encoding, int(num_chars[index]), len(tokenizer.prompt))
            if sequence.truncated:
                ends = (short.place(index, sequence.begin), short.place(index, sequence.end))
                sequence = sequence._replace(begin=ends[0], end=ends[1])
            made.append([sequence])
    rows = list(chain.from_iterable(made))
    return _Encoded(
        len(texts),
        np.fromiter(map(len, made), np.int32, len(made)),
        np.concatenate([np.zeros(0, np.int32), *(row.ids for row in rows)]),
        np.fromiter((len(row.ids) for row in rows), np.int32, len(rows)),
        np.fromiter((row.truncated for row in rows), bool, len(rows)),
        np.fromiter((row.begin for row in rows), np.int64, len(rows)),
        np.fromiter((row.end for row in rows), np.int64, len(rows)),
        dict(sorted(failed.items())),
    )


class _Sequence(NamedTuple):
    ids: npt.NDArray[np.int32]
    begin: int
    end: int
    truncated: bool


def _sequence(encoding: Encoding, num_chars: int, num_prompt_chars: int) -> _Sequence:
    ids = np.array(encoding.ids, np.int32)
    if not encoding.overflowing:
        return _Sequence(ids, 0, num_chars, truncated=False)
    begin, end = own_span(encoding)
    return _Sequence(ids, max(begin - num_prompt_chars, 0), max(end - num_prompt_chars, 0), truncated=True)


def _chunks(chunker: Chunker, text: str) -> list[Chunk] | str:
    """The chunks of a text, or why there are none."""
    chunker.backend.no_truncation()
    try:
        return chunker.chunks(text)
    except UnchunkableError as error:
        return str(error)
    except NO_FAILURES:
        raise
    except BaseException as error:
        return f"the tokenizer failed: {error}"


def _sequences(documents: pa.Table, pieces: list[_Encoded], *, with_text: bool) -> pa.Table:
    lengths = np.concatenate([np.zeros(0, np.int32), *(piece.lengths for piece in pieces)])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids = np.concatenate([np.zeros(0, np.int32), *(piece.ids for piece in pieces)])
    num_chunks = np.concatenate([np.zeros(0, np.int32), *(piece.num_chunks for piece in pieces)])
    char_begin = np.concatenate([np.zeros(0, np.int64), *(piece.char_begin for piece in pieces)])
    char_end = np.concatenate([np.zeros(0, np.int64), *(piece.char_end for piece in pieces)])
    texts = _texts(documents["text"], num_chunks, char_begin, char_end) if with_text else None
    rows = documents.drop_columns("text")
    if len(lengths) > len(rows):
        rows = rows.take(pa.array(np.repeat(np.arange(len(rows)), num_chunks)))
    first = np.repeat(np.cumsum(num_chunks) - num_chunks, num_chunks)
    chunk_index = (np.arange(len(lengths)) - first).astype(np.int32)
    own = {field.name for field in DOCUMENT_FIELDS}
    keep = rows.select([name for name in rows.column_names if name not in own])
    hashed = rows.select(["content_hash", "doc_id"]).append_column("chunk_index", pa.array(chunk_index))
    columns = {
        "content_hash": rows["content_hash"],
        "row_hash": pa.array(row_hashes(hashed, keep), pa.binary(16)),
        "input_ids": pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids)),
        "doc_id": rows["doc_id"],
        "chunk_index": chunk_index,
        "num_chunks": np.repeat(num_chunks, num_chunks),
        "char_begin": char_begin,
        "char_end": char_end,
        "num_tokens": lengths,
        "truncated": np.concatenate([np.zeros(0, bool), *(piece.truncated for piece in pieces)]),
        "row": rows["row"],
    }
    text_field = [next(field for field in DOCUMENT_FIELDS if field.name == "text")] if with_text else []
    schema = pa.schema([*SEQUENCE_FIELDS, *keep.schema, *text_field])
    arrays = [columns[field.name] for field in SEQUENCE_FIELDS] + keep.columns
    return pa.Table.from_arrays([*arrays, texts] if with_text else arrays, schema=schema)


def _texts(
    texts: pa.ChunkedArray,
    num_chunks: npt.NDArray[np.int32],
    char_begin: npt.NDArray[np.int64],
    char_end: npt.NDArray[np.int64],
) -> pa.ChunkedArray | pa.Array:
    """The text of each row: the document's, or of several chunks each its own."""
    if len(char_begin) == len(texts):
        return texts
    ends = np.cumsum(num_chunks)
    made: list[str] = []
    for text, begin, end in zip(texts, ends - num_chunks, ends, strict=True):
        whole = text.as_py()
        spans = zip(char_begin[begin:end].tolist(), char_end[begin:end].tolist(), strict=True)
        made += [whole] if end - begin == 1 else [whole[a:b] for a, b in spans]
    return pa.array(made, pa.string())


def _quarantine(documents: pa.Table, failed: dict[int, str], input_file: str, *, with_text: bool) -> pa.Table:
    rows = documents.select(["doc_id", "row", "content_hash", "text"]).take(pa.array(failed, pa.int64())).to_pylist()
    return pa.Table.from_pylist(
        [
            {
                **row,
                "text": row["text"] if with_text else None,
                "input_file": input_file,
                "stage": "tokenize",
                "reason": "encode_failed",
                "message": message,
            }
            for row, message in zip(rows, failed.values(), strict=True)
        ],
        schema=QUARANTINE_SCHEMA,
    )
