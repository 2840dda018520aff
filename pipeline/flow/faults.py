"""From chunks at fault to documents at fault: a document of which a chunk has no vector is quarantined whole, once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.schema import Reason


def document_numbers(sequences: pa.Table) -> npt.NDArray[np.int64]:
    """Which document each sequence is of, (N,): 0, 1, 2, ... in order."""
    return np.asarray(np.cumsum(sequences["chunk_index"].to_numpy() == 0) - 1, np.int64)


def documents_at_fault(
    sequences: pa.Table, faults: Mapping[int, tuple[Reason, str]]
) -> tuple[pa.Table, dict[int, tuple[Reason, str]]]:
    """The documents of sequences, and what is wrong with some of them, by number.

    Args:
        sequences: the chunks of each document together and in order.
        faults: reason and message by the number of a sequence; of a document the first counts.

    Returns:
        One row a document. If there are texts, those of a document at fault are put together from its
        chunks, with spaces for the white space between them.
    """
    if not faults:
        return sequences.slice(0, 0), {}
    numbers = document_numbers(sequences)
    first = np.flatnonzero(sequences["chunk_index"].to_numpy() == 0)
    num_chunks = sequences["num_chunks"].to_numpy()
    found: dict[int, tuple[Reason, str]] = {}
    for index, (reason, message) in sorted(faults.items()):
        number = int(numbers[index])
        is_part = num_chunks[index] > 1 and reason != "killed_process"
        which = f"chunk {index - first[number]}: " if is_part else ""
        found.setdefault(number, (reason, which + message))
    documents = sequences.take(pa.array(first))
    if "text" in documents.schema.names:
        texts = documents["text"].to_pylist()
        for number in found:
            begin = int(first[number])
            texts[number] = _whole_text(sequences.slice(begin, int(num_chunks[begin])))
        place = documents.schema.get_field_index("text")
        documents = documents.set_column(place, documents.schema.field("text"), pa.array(texts, pa.string()))
    return documents, found


def _whole_text(chunks: pa.Table) -> str:
    text = ""
    for chunk in chunks.select(["char_begin", "text"]).to_pylist():
        text = text.ljust(chunk["char_begin"])[: chunk["char_begin"]] + chunk["text"]
    return text
