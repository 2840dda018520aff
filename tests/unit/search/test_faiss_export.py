from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np
import pytest

from pipeline.errors import NotSupportedError
from pipeline.search import SearchableSnapshot
from tests.indexed import NUM, QUERIES

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


def test_a_codec_that_faiss_does_not_read_is_refused(indexed: Indexed) -> None:
    with pytest.raises(NotSupportedError, match="codes of rabitq .* index.codec=sq8"):
        indexed("rabitq").index.to_faiss()
