from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import orjson
import pytest

from pipeline.index.codecs import Codec, Float16, Floats, Sq8, make_codec
from pipeline.index.rabitq import Rabitq
from tests.vectors import clustered

DIM = 48


def codecs(sample: Floats) -> list[Codec]:
    return [Float16(DIM), Sq8.train(sample), Rabitq.train(DIM, 1, seed=3), Rabitq.train(DIM, 4, seed=3)]


@pytest.mark.parametrize("which", range(4))
def test_scores_are_the_products_with_what_codes_decode_to(which: int) -> None:
    vectors, queries = clustered(2500, DIM), clustered(5, DIM, seed=1)
    codec = codecs(vectors)[which]
    centroids = np.tile(vectors[:5].mean(0, keepdims=True), (len(vectors), 1)).astype(np.float32)
    codes = codec.encode(vectors, centroids)
    assert codes.shape == (2500, codec.num_bytes)
    assert codes.dtype == np.uint8
    scores = codec.score(codec.prepare(queries), np.split(codes, [3, 3, 516, 531, 1100]))  # empty, small, a block and 1
    assert scores.shape == (5, 2500)
    expected = queries @ codec.decode(codes, centroids).T
    if codec.is_residual:
        factors = np.ascontiguousarray(codes[:, -4:]).view("<f4")[:, 0]
        expected = expected - (queries @ centroids[0])[:, None] + factors
    np.testing.assert_allclose(scores, expected, atol=2e-5)


@pytest.mark.parametrize(("which", "at_most"), [(0, 1e-3), (1, 0.005), (2, 0.2), (3, 0.02)])
def test_a_score_is_near_the_cosine(which: int, at_most: float) -> None:
    vectors, queries = clustered(1000, DIM), clustered(20, DIM, seed=1)
    codec = codecs(vectors)[which]
    centroids = np.tile(vectors.mean(0, keepdims=True), (len(vectors), 1)).astype(np.float32)
    scores = codec.score(codec.prepare(queries), [codec.encode(vectors, centroids)])
    if codec.is_residual:
        scores = scores + (queries @ centroids[0])[:, None]
    error = scores - queries @ vectors.T
    assert np.sqrt((error**2).mean()) < at_most
    assert abs(error.mean()) < at_most / 5, "estimates must not lean to one side"


@pytest.mark.parametrize("bits", [1, 4])
def test_an_estimate_is_exact_on_average_over_rotations(bits: int) -> None:
    vectors = clustered(2, 24, seed=5)
    centroid = clustered(1, 24, seed=8)
    estimates = []
    for seed in range(600):
        codec = Rabitq.train(24, bits, seed)
        estimates.append(codec.score(codec.prepare(vectors[1:]), [codec.encode(vectors[:1], centroid)])[0, 0])
    exact = float(vectors[0] @ vectors[1] - vectors[1] @ centroid[0])
    deviation = np.std(estimates) / len(estimates) ** 0.5
    assert abs(np.mean(estimates) - exact) < 4 * deviation + 1e-6


def test_sq8_is_faiss_qt_8bit_byte_for_byte() -> None:
    sample, vectors = clustered(500, DIM), clustered(200, DIM, seed=4)
    codec = Sq8.train(sample)
    theirs = faiss.ScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_8bit)
    faiss.copy_array_to_vector(np.concatenate([codec.low, codec.span]), theirs.trained)
    codes = codec.encode(vectors, vectors)
    np.testing.assert_allclose(theirs.decode(codes), codec.decode(codes, vectors), atol=1e-6)
    different = theirs.compute_codes(vectors) != codes
    assert different.mean() < 0.001, "only where rounding decides"


def test_what_lies_outside_the_sample_is_clipped_and_told() -> None:
    sample = np.zeros((20, 2), np.float32)
    sample[:, 0] = np.linspace(0, 1, 20)
    sample[10, 1] = 9  # a held-out row
    codec = Sq8.train(sample)
    # Held out are rows 0 and 10: of row 0 dimension 0 is below the rest, of row 10 dimension 1 is above.
    assert codec.clipped_ratio == 2 / 4
    assert codec.encode(np.array([[-5, 20]], np.float32), sample).tolist() == [[0, 255]]


def test_a_dimension_that_never_changes_decodes_to_itself() -> None:
    sample = np.full((30, 4), 0.5, np.float32)
    codec = Sq8.train(sample)
    np.testing.assert_allclose(codec.decode(codec.encode(sample, sample), sample), sample, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 4])
def test_only_what_a_query_differs_from_the_centroid_is_estimated(bits: int) -> None:
    vectors, centroid = clustered(200, DIM), clustered(1, DIM, seed=8)
    codec = Rabitq.train(DIM, bits, seed=0)
    codes = codec.encode(vectors, np.repeat(centroid, 200, 0))
    exact = (vectors - centroid) @ centroid[0]
    np.testing.assert_allclose(codec.score(codec.prepare(centroid), [codes])[0], exact, atol=1e-5)


@pytest.mark.parametrize("bits", [1, 4])
@pytest.mark.parametrize("dim", [1, 7, 9])
def test_any_dim_is_packed_into_whole_bytes(bits: int, dim: int) -> None:
    vectors = clustered(50, dim)
    codec = Rabitq.train(dim, bits, seed=0)
    codes = codec.encode(vectors, np.zeros_like(vectors))
    assert codes.shape == (50, (dim * bits + 7) // 8 + 8)
    assert np.isfinite(codec.decode(codes, np.zeros_like(vectors))).all()


def test_a_row_that_is_its_centroid_scores_as_the_centroid() -> None:
    vectors = clustered(3, DIM)
    codec = Rabitq.train(DIM, 4, seed=0)
    codes = codec.encode(vectors, vectors)
    np.testing.assert_allclose(codec.decode(codes, vectors), vectors)
    np.testing.assert_allclose(codec.score(codec.prepare(vectors), [codes]), 0, atol=1e-6)


@pytest.mark.parametrize("which", range(4))
def test_parameters_pass_through_json_without_a_change(which: int) -> None:
    vectors = clustered(300, DIM)
    codec = codecs(vectors)[which]
    told: dict[str, Any] = orjson.loads(orjson.dumps(codec.parameters()))
    again = make_codec(codec.name, told, codec.arrays())
    assert (codec.encode(vectors, vectors) == again.encode(vectors, vectors)).all()
    with pytest.raises(ValueError, match="pq"):
        make_codec("pq", told, {})


def test_a_row_without_a_direction_scores_nothing_and_hides_none() -> None:
    vectors = clustered(3, DIM)
    codec = Float16(DIM)
    codes = codec.encode(np.concatenate([vectors, np.zeros((2, DIM), np.float32)]), np.zeros((5, DIM), np.float32))
    scores = codec.score(codec.prepare(vectors), [codes])
    np.testing.assert_allclose(scores[:, 3:], 0)
    np.testing.assert_allclose(np.diag(scores), 1, atol=1e-3)
