from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import pytest

from pipeline.index.quantizer import train
from pipeline.index.rabitq import Rabitq
from pipeline.search import SearchableSnapshot
from pipeline.search.faiss_export import rabitq_codes
from tests.indexed import NUM, QUERIES, VECTORS, make_indexed

Indexed = Callable[..., SearchableSnapshot]


@pytest.mark.parametrize("nprobe", [1, 4, 20])
@pytest.mark.parametrize("codec", ["sq8", "float16"])
def test_faiss_finds_the_same_neighbours_with_as_many_probes(codec: str, nprobe: int, indexed: Indexed) -> None:
    index = indexed(codec).index
    native = index.to_faiss()
    assert native.ntotal == NUM
    scores, ids = native.search(QUERIES, 10, params=faiss.SearchParametersIVF(nprobe=nprobe))  # type: ignore[call-arg]
    found = index.search(QUERIES, 10, nprobe=nprobe)
    enough = (ids >= 0).all(1)  # where ten rows are in so few lists; ours would go on to others
    assert enough.any()
    # Of float16 our scores are of unit vectors, which those in the lists are within 1e-3.
    np.testing.assert_allclose(found.scores[enough], scores[enough], atol=2e-5 if codec == "sq8" else 1e-3)
    same = [set(mine) == set(theirs) for mine, theirs in zip(found.addresses[enough], ids[enough], strict=True)]
    assert np.mean(same) >= 0.95, "but for ties at the tenth"


@pytest.mark.parametrize("lists_per_row", [1, 2])
@pytest.mark.parametrize("bits", [1, 4])
def test_faiss_gives_codes_of_rabitq_the_scores_that_they_have_here(
    bits: int, lists_per_row: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.index.prepare.train", partial(train, bits=bits))
    vectors = np.concatenate([VECTORS[:400], VECTORS[:1]])
    vectors = np.asarray(vectors[:, :13] / np.linalg.norm(vectors[:, :13], axis=1, keepdims=True), np.float32)
    index = make_indexed(tmp_path, "rabitq", vectors, nlist=8, lists_per_row=lists_per_row, recall_target=0.1).index
    assert index.quantizer.codec.parameters() == {"bits": bits}
    native = index.to_faiss()
    assert native.ntotal == len(vectors) * lists_per_row
    queries = vectors[::9] @ np.diag(np.linspace(1, 1.2, 13)).astype(np.float32)
    queries = np.asarray(queries / np.linalg.norm(queries, axis=1, keepdims=True), np.float32)
    own = faiss.IVFRaBitQSearchParameters()
    own.nprobe, own.qb = 8, 0
    params = faiss.SearchParametersPreTransform(index_params=own)  # type: ignore[call-arg]
    scores, ids = native.search(queries, native.ntotal, params=params)
    for query in range(len(queries)):
        expected: dict[int, list[float]] = {}
        for list_id in range(8):
            for group in index.lists.groups(index.directory.groups_of([list_id])).values():
                mine = index.quantizer.score(queries[query : query + 1], group.codes, list_id)[0]
                for address, score in zip(group.addresses.tolist(), mine.tolist(), strict=True):
                    expected.setdefault(address, []).append(score)
        found: dict[int, list[float]] = {}
        for address, score in zip(ids[query].tolist(), scores[query].tolist(), strict=True):
            found.setdefault(address, []).append(score)
        assert found.keys() == expected.keys()
        for address in found:
            assert sorted(found[address]) == pytest.approx(sorted(expected[address]), abs=2e-5)


@pytest.mark.parametrize("bits", [1, 4])
def test_a_list_whose_rows_are_all_deleted_is_an_empty_one(bits: int) -> None:
    codec = Rabitq.train(16, bits, seed=0)
    no_rows = np.zeros((0, 16), np.float32)
    one = rabitq_codes(codec, codec.encode(VECTORS[:1], VECTORS[1:2]), VECTORS[1])
    assert rabitq_codes(codec, codec.encode(no_rows, no_rows), VECTORS[1]).shape == (0, one.shape[1])
