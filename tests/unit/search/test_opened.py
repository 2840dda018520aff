from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.errors import StoreError, UsageError
from pipeline.search import Neighbours, SearchableSnapshot, opened
from pipeline.uris import Storage
from tests.indexed import QUERIES, VECTORS
from tests.snapshots import make_snapshot

Indexed = Callable[..., SearchableSnapshot]


class FakeEncoder:
    """Each text is the number of a query."""

    def __init__(self, manifest: object) -> None:
        self.asked: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.asked.append(list(texts))
        return QUERIES[[int(text) for text in texts]]


def with_encoder(snapshot: SearchableSnapshot) -> SearchableSnapshot:
    return SearchableSnapshot(snapshot.storage, snapshot.manifest, FakeEncoder)  # type: ignore[arg-type]


def without_index(snapshot: SearchableSnapshot) -> SearchableSnapshot:
    return SearchableSnapshot(snapshot.storage, snapshot.manifest.model_copy(update={"index": None}))


def test_an_open_store_answers_by_its_index(indexed: Indexed) -> None:
    expected = indexed("rabitq").index.search(QUERIES, 4)
    found = pipeline.open(indexed("rabitq").storage.uri).search(QUERIES, 4)
    assert (found.addresses == expected.addresses).all()


def test_texts_go_through_the_snapshots_encoder(indexed: Indexed) -> None:
    snapshot = with_encoder(indexed("sq8"))
    assert snapshot.search(["3", "5"], 4).doc_ids == snapshot.search(QUERIES[[3, 5]], 4).doc_ids
    assert snapshot.search("3", 4).doc_ids == snapshot.search(QUERIES[3:4], 4).doc_ids


def test_without_an_index_search_is_exact(indexed: Indexed) -> None:
    snapshot = without_index(indexed("sq8"))
    assert snapshot.search(QUERIES, 4).doc_ids == snapshot.search(QUERIES, 4, exact=True).doc_ids
    with pytest.raises(StoreError, match="has no index"):
        _ = snapshot.index


@pytest.mark.parametrize("options", [{"nprobe": 3}, {"recall": 0.9}])
def test_settings_of_an_index_need_one(options: dict[str, Any], indexed: Indexed) -> None:
    with pytest.raises(UsageError, match="snapshot 1 has no index; leave them out"):
        without_index(indexed("sq8")).search(QUERIES, 4, **options)
    with pytest.raises(UsageError, match="with an exact search"):
        indexed("sq8").search(QUERIES, 4, exact=True, **options)


def test_exact_search_over_many_vectors_has_to_be_asked_for(indexed: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "MAX_EXACT_ROWS", 1000)
    snapshot = without_index(indexed("sq8"))
    with pytest.raises(UsageError, match="1,500 vectors takes minutes"):
        snapshot.search(QUERIES, 4)
    assert isinstance(snapshot.search(QUERIES, 4, exact=True), Neighbours)
    assert isinstance(indexed("sq8").search(QUERIES, 4), Neighbours)


def test_an_empty_snapshot_answers_with_nothing(tmp_path: Path) -> None:
    empty = make_snapshot(Storage(str(tmp_path)), [VECTORS[:0]])
    found = SearchableSnapshot(empty.storage, empty.manifest).search(QUERIES, 4)
    assert found.doc_ids == [[]] * len(QUERIES)


def test_an_open_snapshot_travels(indexed: Indexed) -> None:
    snapshot = indexed("sq8")
    again = pickle.loads(pickle.dumps(snapshot))  # noqa: S301
    assert again.search(QUERIES, 4).doc_ids == snapshot.search(QUERIES, 4).doc_ids
