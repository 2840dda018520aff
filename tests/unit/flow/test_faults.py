"""A document of which a chunk is at fault is quarantined whole, and once."""

from __future__ import annotations

import pyarrow as pa

from pipeline.flow.faults import document_numbers, documents_at_fault

TEXT = "one two.\n\nthree four five"
SEQUENCES = pa.table(
    {
        "doc_id": ["a", "b", "b", "b", "c"],
        "chunk_index": pa.array([0, 0, 1, 2, 0], pa.int32()),
        "num_chunks": pa.array([1, 3, 3, 3, 1], pa.int32()),
        "char_begin": pa.array([0, 0, 10, 16, 0], pa.int64()),
        "text": pa.array(["x", TEXT[:8], TEXT[10:20], TEXT[16:], "y"]),
    }
)


def test_a_document_has_one_number() -> None:
    assert document_numbers(SEQUENCES).tolist() == [0, 1, 1, 1, 2]
    assert document_numbers(SEQUENCES.slice(0, 0)).tolist() == []


def test_the_first_fault_of_a_document_counts_and_names_its_chunk() -> None:
    faults = {3: ("invalid_vector", "zero"), 2: ("encode_failed", "no such luck"), 4: ("encode_failed", "nor here")}
    documents, found = documents_at_fault(SEQUENCES, faults)  # type: ignore[arg-type]
    assert documents["doc_id"].to_pylist() == ["a", "b", "c"]
    assert found == {1: ("encode_failed", "chunk 1: no such luck"), 2: ("encode_failed", "nor here")}


def test_its_text_is_put_together_from_its_chunks() -> None:
    documents, _ = documents_at_fault(SEQUENCES, {1: ("encode_failed", "")})
    assert documents["text"].to_pylist() == ["x", TEXT.replace("\n", " "), "y"]
