"""Codecs: vectors to codes, and the cosines of queries with codes.

    float16   2 D bytes; nothing lost of a float16 store
    sq8       D bytes; each dimension cut into 256 levels between the least and greatest of the sample
    rabitq    D * bits / 8 + 8 bytes (pipeline.index.rabitq)

A code is read without any library: float16 is a list column; sq8 decodes to
`low + (level + 0.5) / 255 * span`, which is also what faiss' QT_8bit does with `trained` = low, span.

Scores are `cosine ~ weights . levels + offset`, one matrix product over blocks of codes that fit the
cache. faiss' scanner of the same bytes takes a tenth less for one query and more for many; it gives the
nearest alone, not all scores, and has no filter of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

# Rows of codes that are floats at once: 0.75 MiB at 384 dimensions.
_BLOCK_ROWS = 512


class Prepared(NamedTuple):
    """Queries as a codec scores them: weights (D, Q), offset (Q,)."""

    weights: Floats
    offset: Floats


class Codec(Protocol):
    """What a codec does; B is the bytes of a code, N vectors, Q queries.

    Attributes:
        is_residual: whether codes are of the difference to the list's centroid; then the cosine of
            query and centroid has to be added to each score.
    """

    @property
    def name(self) -> str:
        """As `index.codec` names it."""

    @property
    def dim(self) -> int:
        """D."""

    @property
    def num_bytes(self) -> int:
        """B."""

    @property
    def is_residual(self) -> bool:
        """See above."""

    def encode(self, vectors: Floats, centroids: Floats) -> Codes:
        """(N, D) unit vectors and the centroids (N, D) of their lists to (N, B)."""

    def decode(self, codes: Codes, centroids: Floats) -> Floats:
        """(N, B) back to (N, D); what scores are the products with."""

    def prepare(self, queries: Floats) -> Prepared:
        """(Q, D) unit vectors, for `score`."""

    def score(self, queries: Prepared, codes: Sequence[Codes]) -> Floats:
        """Cosines (Q, N) with arrays of codes, N rows in all; of a residual codec less those with the centroids."""

    def parameters(self) -> dict[str, Any]:
        """As JSON; what `make_codec` takes."""

    def arrays(self) -> dict[str, Floats]:
        """Parameters that are too large for JSON, by name."""


@dataclass(frozen=True, eq=False)
class Float16:
    """The vectors themselves; scores are of their unit vectors, for float16 keeps unit norm only within 1e-3."""

    dim: int

    name = "float16"
    is_residual = False

    @property
    def num_bytes(self) -> int:
        """B."""
        return 2 * self.dim

    def encode(self, vectors: Floats, centroids: Floats) -> Codes:
        """(N, D) to (N, B)."""
        return np.ascontiguousarray(vectors.astype("<f2")).view(np.uint8)

    def decode(self, codes: Codes, centroids: Floats) -> Floats:
        """(N, B) to (N, D), of unit norm."""
        values = np.empty((len(codes), self.dim), np.float32)
        self._fill([np.ascontiguousarray(codes)], values)
        return values

    def prepare(self, queries: Floats) -> Prepared:
        """(Q, D), for `score`."""
        return Prepared(np.ascontiguousarray(queries.T), np.zeros(len(queries), np.float32))

    def score(self, queries: Prepared, codes: Sequence[Codes]) -> Floats:
        """Cosines (Q, N)."""
        return products(codes, queries.weights, self._fill).T

    def _fill(self, codes: list[Codes], values: Floats) -> None:
        np.concatenate([some.view("<f2") for some in codes], out=values)
        norms = np.sqrt(np.einsum("nd,nd->n", values, values))
        values /= np.maximum(norms, np.float32(1e-12))[:, None]  # what is 0 stays 0, and no score is lost to a NaN

    def parameters(self) -> dict[str, Any]:
        """As JSON."""
        return {"dim": self.dim}

    def arrays(self) -> dict[str, Floats]:
        """None."""
        return {}


@dataclass(frozen=True, eq=False)
class Sq8:
    """A byte a dimension, of the vector itself: a row can move to another list as it is.

    `low` and `span` (D,): level l of dimension d stands for low[d] + (l + 0.5) / 255 * span[d].
    """

    low: Floats
    span: Floats
    clipped_ratio: float
    """Share of the values of a held-out tenth of the sample that lay outside the range of the rest."""

    name = "sq8"
    is_residual = False

    @classmethod
    def train(cls, sample: Floats) -> Sq8:
        """The range of each dimension in the sample (N, D)."""
        # Tenths by stride, so that the sample is not copied.
        held_out, rest = sample[::10], [sample[start::10] for start in range(1, min(10, len(sample)))]
        low, high = held_out.min(0), held_out.max(0)
        clipped = 0.0
        if rest:
            rest_low = np.min([some.min(0) for some in rest], axis=0)
            rest_high = np.max([some.max(0) for some in rest], axis=0)
            clipped = float(((held_out < rest_low) | (held_out > rest_high)).mean())
            low, high = np.minimum(low, rest_low), np.maximum(high, rest_high)
        # A dimension that never changes has a span all the same: its level is then 0.
        return cls(low, np.maximum(high - low, np.float32(1e-9)), clipped)

    @property
    def dim(self) -> int:
        """D."""
        return len(self.low)

    @property
    def num_bytes(self) -> int:
        """B."""
        return len(self.low)

    def encode(self, vectors: Floats, centroids: Floats) -> Codes:
        """(N, D) to (N, B); what lies outside the range gets its end."""
        levels = (vectors - self.low) * (np.float32(255) / self.span)
        return np.clip(levels, 0, 255, out=levels).astype(np.uint8)

    def decode(self, codes: Codes, centroids: Floats) -> Floats:
        """(N, B) to (N, D)."""
        return self.low + (codes.astype(np.float32) + np.float32(0.5)) * (self.span / np.float32(255))

    def prepare(self, queries: Floats) -> Prepared:
        """(Q, D), for `score`."""
        step = self.span / np.float32(255)
        return Prepared((queries * step).T, queries @ (self.low + np.float32(0.5) * step))

    def score(self, queries: Prepared, codes: Sequence[Codes]) -> Floats:
        """Cosines (Q, N)."""
        scores = products(codes, queries.weights, lambda some, levels: np.concatenate(some, out=levels))
        scores += queries.offset
        return scores.T

    def parameters(self) -> dict[str, Any]:
        """As JSON; float32 values pass through it whole."""
        return {"low": self.low.tolist(), "span": self.span.tolist(), "clipped_ratio": self.clipped_ratio}

    def arrays(self) -> dict[str, Floats]:
        """None."""
        return {}


def products(codes: Sequence[Codes], weights: Floats, fill: Callable[[list[Codes], Floats], object]) -> Floats:
    """Products (N, Q) of weights (D, Q) with arrays of codes, N rows in all, some at a time.

    Args:
        codes: joined nowhere but in a block: copying them costs as much again as the product.
        weights: of the queries.
        fill: makes floats (n, D) of arrays of codes, n rows in all.
    """
    num = sum(map(len, codes))
    found = np.empty((num, weights.shape[1]), np.float32)
    floats = np.empty((min(_BLOCK_ROWS, num), len(weights)), np.float32)
    end = 0
    for some in _blocks(codes):
        begin, end = end, end + sum(map(len, some))
        fill(some, floats[: end - begin])
        np.matmul(floats[: end - begin], weights, out=found[begin:end])
    return found


def _blocks(codes: Sequence[Codes]) -> Iterator[list[Codes]]:
    """Pieces of the arrays, of at most _BLOCK_ROWS rows together."""
    block: list[Codes] = []
    num = 0
    for one in codes:
        for begin in range(0, len(one), _BLOCK_ROWS):
            piece = one[begin : begin + _BLOCK_ROWS]
            if num + len(piece) > _BLOCK_ROWS:
                yield block
                block, num = [], 0
            block.append(piece)
            num += len(piece)
    if block:
        yield block


def make_codec(name: str, parameters: Mapping[str, Any], arrays: Mapping[str, Floats]) -> Codec:
    """The codec of that name from what its `parameters` and `arrays` gave.

    Raises:
        KeyError: a parameter is missing.
        ValueError: no such codec.
    """
    if name == "float16":
        return Float16(int(parameters["dim"]))
    if name == "sq8":
        low, span = (np.array(parameters[key], np.float32) for key in ("low", "span"))
        return Sq8(low, span, float(parameters["clipped_ratio"]))
    if name == "rabitq":
        from pipeline.index.rabitq import Rabitq

        return Rabitq(arrays["rotation"], int(parameters["bits"]))
    raise ValueError(f"no such codec: {name}")
