"""Documents -> sequences: the token ids that sentence-transformers would make, one sequence a document.

The model's own tokenizer is what transformers' AutoTokenizer makes of its files, and that is not
always what `tokenizer.json` says (a class may rebuild it from the vocabulary and the flags of
tokenizer_config.json). But importing transformers imports torch: two seconds and 240 MiB in every
reader's process. So it is asked once per node, in a process of its own, and its answer is kept in
the cache; from then on a reader needs the tokenizers library alone, which starts in 30 ms.

A sequence is prompt + text, with special tokens, truncated to `max_tokens`. Truncation is told
per row, with the last character that was kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock
from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence

from pipeline.errors import ModelError, NotSupportedError, StorageFault
from pipeline.model import ModelDescription, cache_path, check_files
from pipeline.prefixes import encode_texts, own_span
from pipeline.row_hashes import row_hashes
from pipeline.schema import DOCUMENT_FIELDS, QUARANTINE_SCHEMA, SEQUENCE_FIELDS

# An encoding holds about a hundred bytes a token until its ids are taken out; a piece bounds that.
_PIECE_BYTES = 2**20

# Characters of a text that are encoded first: prose has 4 to 6 a token, so that nearly always once is enough.
_CHARS_PER_TOKEN = 64

_RESOLVE = """
import sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True, trust_remote_code=False)
with open(sys.argv[2], "w", encoding="utf-8") as file:
    file.write(tokenizer.backend_tokenizer.to_str())
"""


@dataclass(frozen=True)
class SequenceTokenizer:
    """A model's tokenizer with its prompts; truncates, never pads."""

    backend: Tokenizer
    prompt: str
    query_prompt: str
    first_chars: int | None = None
    """Characters of a text that are encoded first; None: all, since the end of a text is what is kept."""

    def query_ids(self, queries: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Token ids of each query, with the query prompt."""
        encodings = self.backend.encode_batch([self.query_prompt + query for query in queries])
        return [np.array(encoding.ids, np.int32) for encoding in encodings]


class Tokenized(NamedTuple):
    """What became of documents: each is in one of the two, in the documents' order."""

    sequences: pa.Table
    """SEQUENCE_FIELDS, then the kept columns, then `text` if asked for."""
    quarantine: pa.Table
    """QUARANTINE_SCHEMA."""


# By folder and by all of the description that a tokenizer depends on.
_loaded: dict[tuple[str, str], SequenceTokenizer] = {}


def load_tokenizer(path: str | Path, description: ModelDescription) -> SequenceTokenizer:
    """The tokenizer of the model folder at `path`; cached per process.

    Raises:
        ModelError: the files are not those described, or make no tokenizer.
        StorageFault: the cache folder cannot be written.
    """
    key = (str(path), json.dumps(description.spelled_out(""), sort_keys=True))
    if key not in _loaded:
        # Rayon would start a thread for each core of the node in each of the many readers on it.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        _loaded[key] = _load(Path(path) / description.transformer, description)
    return _loaded[key]


def tokenize(
    documents: pa.Table,
    tokenizer: SequenceTokenizer,
    *,
    input_file: str,
    with_text: bool = False,
    quarantine_text: bool = False,
) -> Tokenized:
    """Make each document's sequence.

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
    pieces = [_encode(tokenizer, texts[begin:end]) for begin, end in _pieces(texts)]
    failed = dict(chain.from_iterable(((p + i, m) for i, m in e.failed.items()) for p, e in _placed(pieces)))
    kept = documents.filter(~np.isin(np.arange(len(documents)), list(failed))) if failed else documents
    return Tokenized(
        _sequences(kept, [piece for piece in pieces if len(piece.lengths)], with_text=with_text),
        _quarantine(documents, failed, input_file, with_text=quarantine_text),
    )


@dataclass(frozen=True)
class _Encoded:
    """The sequences of a piece of the documents; arrays have an entry for each that did not fail."""

    num_documents: int
    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]
    char_begin: npt.NDArray[np.int64]
    char_end: npt.NDArray[np.int64]
    failed: dict[int, str]


def _load(folder: Path, description: ModelDescription) -> SequenceTokenizer:
    check_files(folder, description.tokenizer, description.model)
    seen = [dict(description.tokenizer), description.config_digest, version("transformers"), version("tokenizers")]
    name = hashlib.blake2b(json.dumps(seen, sort_keys=True).encode(), digest_size=16).hexdigest()
    resolved = cache_path() / "tokenizers" / f"{name}.json"
    try:
        resolved.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{resolved}.lock"):
            if not resolved.is_file():
                _resolve(folder, resolved, description.model)
    except OSError as error:
        raise StorageFault(
            f"the tokenizer cannot be kept in {resolved.parent}: {error}; make room there, or set XDG_CACHE_HOME"
        ) from None
    backend = Tokenizer.from_file(str(resolved))
    if description.do_lower_case and not _lowers(backend.normalizer):
        rest = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = NormalizerSequence([Lowercase(), *rest])
    num_special = backend.num_special_tokens_to_add(False)
    if num_special >= description.max_tokens:
        raise ModelError(
            f"encoder.max_tokens: {description.max_tokens} leaves no room beside {num_special} special tokens"
        )
    backend.no_padding()
    backend.enable_truncation(description.max_tokens, direction=description.truncation_side)
    if any(backend.encode("a").type_ids):
        raise NotSupportedError(f"token types in single texts, as {description.model} has")
    first_chars = description.max_tokens * _CHARS_PER_TOKEN if description.truncation_side == "right" else None
    return SequenceTokenizer(backend, description.prompt, description.query_prompt, first_chars)


def _lowers(normalizer: Any) -> bool:
    if isinstance(normalizer, NormalizerSequence):
        return any(isinstance(normalizer[index], Lowercase) for index in range(len(normalizer)))
    return isinstance(normalizer, Lowercase)


def _resolve(folder: Path, resolved: Path, name: str) -> None:
    """Write what AutoTokenizer makes of `folder`, in one piece."""
    temporary = resolved.with_suffix(f".{os.getpid()}")
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", _RESOLVE, str(folder), str(temporary)],
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        temporary.unlink(missing_ok=True)
        reason = (done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1]
        raise ModelError(f"the tokenizer of {name} cannot be loaded from {folder}: {reason}")
    temporary.replace(resolved)


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
    encodings, failed = encode_texts(
        tokenizer.backend, texts, num_chars, prompt=tokenizer.prompt, first_chars=tokenizer.first_chars
    )
    sound = np.array([encoding is not None for encoding in encodings], bool)
    found = [encoding for encoding in encodings if encoding is not None]
    ids = [encoding.ids for encoding in found]
    lengths = np.fromiter(map(len, ids), np.int32, len(ids))
    truncated = np.fromiter((bool(encoding.overflowing) for encoding in found), bool, len(found))
    char_begin = np.zeros(len(found), np.int64)
    char_end = num_chars[sound]
    for index in np.flatnonzero(truncated):
        span = np.array(own_span(found[index])) - len(tokenizer.prompt)
        char_begin[index], char_end[index] = np.maximum(span, 0)
    all_ids = np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum()))
    return _Encoded(len(texts), all_ids, lengths, truncated, char_begin, char_end, failed)


def _sequences(documents: pa.Table, pieces: list[_Encoded], *, with_text: bool) -> pa.Table:
    lengths = np.concatenate([np.zeros(0, np.int32), *(piece.lengths for piece in pieces)])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids = np.concatenate([np.zeros(0, np.int32), *(piece.ids for piece in pieces)])
    num_documents = len(documents)
    zeros = np.zeros(num_documents, np.int32)
    own = {field.name for field in DOCUMENT_FIELDS}
    keep = documents.select([name for name in documents.column_names if name not in own])
    columns = {
        "content_hash": documents["content_hash"],
        "row_hash": pa.array(row_hashes(documents, keep), pa.binary(16)),
        "input_ids": pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids)),
        "doc_id": documents["doc_id"],
        "chunk_index": zeros,
        "num_chunks": zeros + 1,
        "char_begin": np.concatenate([np.zeros(0, np.int64), *(piece.char_begin for piece in pieces)]),
        "char_end": np.concatenate([np.zeros(0, np.int64), *(piece.char_end for piece in pieces)]),
        "num_tokens": lengths,
        "truncated": np.concatenate([np.zeros(0, bool), *(piece.truncated for piece in pieces)]),
        "row": documents["row"],
    }
    text_field = [next(field for field in DOCUMENT_FIELDS if field.name == "text")] if with_text else []
    schema = pa.schema([*SEQUENCE_FIELDS, *keep.schema, *text_field])
    arrays = [columns[field.name] for field in SEQUENCE_FIELDS] + keep.columns
    return pa.Table.from_arrays([*arrays, documents["text"]] if with_text else arrays, schema=schema)


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
