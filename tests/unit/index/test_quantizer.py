from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.index.codecs import Float16, Sq8
from pipeline.index.quantizer import Quantizer, golden_vector, order_lists, train
from tests.vectors import clustered

FP = "e" * 16


def made(codec: str = "sq8", seed: int = 0) -> Quantizer:
    return train(clustered(800), 20, codec, FP, seed=seed)


@pytest.mark.parametrize("codec", ["float16", "sq8", "rabitq"])
def test_the_same_sample_and_seed_give_the_same_quantizer(codec: str) -> None:
    assert made(codec).fingerprint == made(codec).fingerprint
    assert made(codec).fingerprint != made(codec, seed=1).fingerprint


def test_each_vector_goes_to_its_nearest_centroid() -> None:
    quantizer, vectors = made(), clustered(300, seed=2)
    distances = ((vectors[:, None] - quantizer.centroids[None]) ** 2).sum(2)
    found = quantizer.nearest_lists(vectors, 3)
    assert (found == np.argsort(distances, axis=1)[:, :3]).all()
    assert (quantizer.nearest_lists(vectors, 1)[:, 0] == found[:, 0]).all()
    assert quantizer.nearest_lists(vectors, 100).shape == (300, 20)


def test_whatever_gives_a_code_its_meaning_changes_the_fingerprint() -> None:
    quantizer = made()
    codec = quantizer.codec
    assert isinstance(codec, Sq8)
    moved = quantizer.centroids.copy()
    moved[3, 2] += 1e-6
    others = [
        replace(quantizer, centroids=moved),
        replace(quantizer, codec=replace(codec, low=codec.low - np.float32(1e-6))),
        replace(quantizer, codec=Float16(16)),
        replace(quantizer, encoder_fp="f" * 16),
        *(train(clustered(800), 20, "rabitq", FP, seed=0, bits=bits) for bits in (1, 4)),
    ]
    assert len({quantizer.fingerprint, *(other.fingerprint for other in others)}) == len(others) + 1
    rabitq = train(clustered(800), 20, "rabitq", FP, seed=0)
    turned = replace(rabitq, codec=train(clustered(800), 20, "rabitq", FP, seed=9).codec)
    assert turned.fingerprint != rabitq.fingerprint, "same centroids, another rotation"


def test_neighbouring_ids_are_near_and_parents_ascend() -> None:
    quantizer = train(clustered(4000, num_topics=30, spread=0.7), 64, "float16", FP, seed=0)
    assert (np.diff(quantizer.parents) >= 0).all()
    assert len(np.unique(quantizer.parents)) == 8
    steps = np.linalg.norm(np.diff(quantizer.centroids, axis=0), axis=1)
    shuffled = np.random.default_rng(0).permutation(quantizer.centroids)
    assert steps.mean() < 0.8 * np.linalg.norm(np.diff(shuffled, axis=0), axis=1).mean()


def test_an_order_has_every_list_once() -> None:
    for num in (1, 2, 3, 17):
        order, parents = order_lists(clustered(num))
        assert sorted(order.tolist()) == list(range(num))
        assert len(parents) == num


def test_equal_rows_and_as_many_lists_as_rows_are_trained_on() -> None:
    same = np.tile(golden_vector(8), (50, 1))
    for sample, nlist in ((same, 4), (clustered(5, 8), 5), (same[:1], 1)):
        quantizer = train(sample, nlist, "sq8", FP, seed=0)
        assert quantizer.nlist == nlist
        lists = quantizer.nearest_lists(sample, 1)[:, 0]
        decoded = quantizer.decode(quantizer.encode(sample, lists), lists)
        np.testing.assert_allclose(decoded, sample, atol=0.01)


@pytest.mark.parametrize("codec", ["float16", "sq8", "rabitq"])
def test_a_golden_code_that_decodes_otherwise_is_refused(codec: str) -> None:
    quantizer = made(codec)
    golden = quantizer.golden()
    quantizer.check_golden(golden, "here")
    other = golden | {"decoded": [value + 0.01 for value in golden["decoded"]]}
    with pytest.raises(StoreError, match="here: its codes of"):
        quantizer.check_golden(other, "here")
    with pytest.raises(StoreError, match="here: its codes of"):
        quantizer.check_golden(golden | {"code": golden["code"][2:]}, "here")


def test_two_levels_cluster_as_well_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(3000, num_topics=40)

    def error(quantizer: Quantizer) -> float:
        nearest = quantizer.centroids[quantizer.nearest_lists(vectors, 1)[:, 0]]
        return float(((vectors - nearest) ** 2).sum(1).mean())

    flat = error(train(vectors, 64, "float16", FP, seed=0))
    monkeypatch.setattr("pipeline.index.quantizer._MAX_FLAT_LISTS", 8)
    two_level = train(vectors, 64, "float16", FP, seed=0)
    assert two_level.nlist == 64
    assert error(two_level) < 1.15 * flat
