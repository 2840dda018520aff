"""Unit vectors for tests of the index: clustered, as those of texts are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def clustered(
    num: int, dim: int = 16, *, num_topics: int = 12, spread: float = 0.5, seed: int = 0
) -> npt.NDArray[np.float32]:
    """(N, D) unit vectors around so many topics."""
    random = np.random.default_rng(seed)
    topics = np.random.default_rng(99).normal(size=(num_topics, dim))
    topics /= np.linalg.norm(topics, axis=1, keepdims=True)
    noise = random.normal(size=(num, dim)) * spread / dim**0.5
    vectors = topics[random.integers(num_topics, size=num)] + noise
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
