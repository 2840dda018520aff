"""RaBitQ: a few bits a dimension of a randomly rotated residual, with an unbiased estimate of products.

After Gao and Long, "RaBitQ" (SIGMOD 2024) and its extension to several bits (SIGMOD 2025): a random
rotation spreads what a vector differs from its centroid evenly over all dimensions; each becomes one of
2^bits evenly spaced levels u. With residual r = x - c and rotation P the product with a query q is

    q . x  =  q . c + b + s (Pq . u),    s = |r|^2 / (Pr . u),    b = c . r - s (Pc . u)

whose expectation over rotations is exact, and whose error falls with 1 / sqrt(D). `s` and `b` are stored
with the code. The scale of the levels is the one of a few that leaves the least angle between u and Pr; the paper
searches all of them, for less than one part in a thousand of that angle, and at 40 times the time.

A code is: levels, dimension 0 in the highest bits of byte 0, padded to whole bytes; then s and b, as
little-endian float32. faiss' RaBitQ has the same levels and factors laid out otherwise, and no rotation of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.index.codecs import Codes, Floats, Prepared, products

BITS = (1, 4)

_FACTOR_BYTES = 8

_BLOCK_ROWS = 1024

# Of a standard normal value, the width of a level that loses least: Max (1960), table of uniform quantizers.
_WIDTH = {1: 1.596, 4: 0.3352}
_SCALES = {1: (1.0,), 4: (0.8, 0.9, 1.0, 1.1, 1.25)}


@dataclass(frozen=True, eq=False)
class Rabitq:
    """`rotation` (D, D) is orthogonal: rows are the new axes; `bits` are 1 or 4 a dimension."""

    rotation: Floats
    bits: int

    name = "rabitq"
    is_residual = True

    @classmethod
    def train(cls, dim: int, bits: int, seed: int) -> Rabitq:
        """A rotation drawn evenly from all (QR of a normal matrix, signs of R's diagonal made positive)."""
        normal = np.random.default_rng(seed).standard_normal((dim, dim))
        q, r = np.linalg.qr(normal)
        return cls(np.ascontiguousarray((q * np.sign(np.diag(r))).T, np.float32), bits)

    @property
    def dim(self) -> int:
        """D."""
        return len(self.rotation)

    @property
    def num_bytes(self) -> int:
        """B."""
        return self._level_bytes + _FACTOR_BYTES

    @property
    def _level_bytes(self) -> int:
        return (self.dim * self.bits + 7) // 8

    def encode(self, vectors: Floats, centroids: Floats) -> Codes:
        """(N, D) unit vectors and the centroids (N, D) of their lists to (N, B)."""
        codes = np.empty((len(vectors), self.num_bytes), np.uint8)
        for begin in range(0, len(vectors), _BLOCK_ROWS):
            end = begin + _BLOCK_ROWS
            codes[begin:end] = self._encode(vectors[begin:end], centroids[begin:end])
        return codes

    def _encode(self, vectors: Floats, centroids: Floats) -> Codes:
        residuals = vectors - centroids
        rotated = residuals @ self.rotation.T
        squared = np.einsum("nd,nd->n", residuals, residuals)
        deviation = np.sqrt(np.maximum(squared, np.float32(1e-30)) / np.float32(self.dim))[:, None]
        best = np.full(len(vectors), -np.inf, np.float32)
        levels = np.zeros(rotated.shape, np.uint8)
        for scale in _SCALES[self.bits]:
            tried = self._levels(rotated / (deviation * np.float32(_WIDTH[self.bits] * scale)))
            centred = self._centred(tried)
            product = np.einsum("nd,nd->n", rotated, centred)
            cosine = product / np.linalg.norm(centred, axis=1)
            better = cosine > best
            best[better], levels[better] = cosine[better], tried[better]
        centred = self._centred(levels)
        product = np.einsum("nd,nd->n", rotated, centred)
        # A row that is its centroid has no residual to scale.
        factor = np.where(squared > 1e-12, squared / np.where(product > 0, product, 1), 0).astype(np.float32)
        own = np.einsum("nd,nd->n", centroids, residuals)
        shift = own - factor * np.einsum("nd,nd->n", centroids @ self.rotation.T, centred)
        factors = np.stack([factor, shift], 1).astype("<f4")
        return np.concatenate([self._pack(levels), factors.view(np.uint8)], 1)

    def _levels(self, scaled: Floats) -> Codes:
        half = 2 ** (self.bits - 1)
        return np.asarray(np.clip(np.floor(scaled) + half, 0, 2 * half - 1), np.uint8)

    def _centred(self, levels: Codes) -> Floats:
        return levels.astype(np.float32) - np.float32((2**self.bits - 1) / 2)

    def _pack(self, levels: Codes) -> Codes:
        if self.bits == 1:
            return np.packbits(levels, axis=1)
        if levels.shape[1] % 2:
            levels = np.pad(levels, ((0, 0), (0, 1)))
        return np.asarray((levels[:, 0::2] << 4) | levels[:, 1::2], np.uint8)

    def _unpack(self, codes: Codes) -> Codes:
        packed = codes[:, : self._level_bytes]
        if self.bits == 1:
            return np.unpackbits(packed, axis=1, count=self.dim)
        levels = np.empty((len(codes), 2 * packed.shape[1]), np.uint8)
        np.right_shift(packed, 4, out=levels[:, 0::2])
        np.bitwise_and(packed, 15, out=levels[:, 1::2])
        return levels[:, : self.dim]

    def _factors(self, codes: Codes) -> Floats:
        return np.ascontiguousarray(codes[:, self._level_bytes :]).view("<f4")

    def unpacked(self, codes: Codes) -> tuple[Codes, Floats]:
        """Codes (N, B) to levels (N, D) and factors s, b (N, 2)."""
        return self._unpack(codes), self._factors(codes)

    def decode(self, codes: Codes, centroids: Floats) -> Floats:
        """(N, B) to (N, D), without the correction `b`, which no vector has."""
        residuals = (self._centred(self._unpack(codes)) * self._factors(codes)[:, :1]) @ self.rotation
        return np.asarray(centroids + residuals, np.float32)

    def prepare(self, queries: Floats) -> Prepared:
        """(Q, D), for `score`."""
        rotated = queries @ self.rotation.T
        return Prepared(np.ascontiguousarray(rotated.T), rotated.sum(1) * np.float32(-(2**self.bits - 1) / 2))

    def score(self, queries: Prepared, codes: Sequence[Codes]) -> Floats:
        """Cosines (Q, N), less those of queries and centroids."""
        scores = products(codes, queries.weights, self._fill)
        scores += queries.offset
        factors = np.concatenate([self._factors(some) for some in codes])
        scores *= factors[:, :1]
        scores += factors[:, 1:]
        return scores.T

    def _fill(self, codes: list[Codes], levels: Floats) -> None:
        levels[:] = self._unpack(np.concatenate(codes))

    def parameters(self) -> dict[str, Any]:
        """As JSON."""
        return {"bits": self.bits}

    def arrays(self) -> dict[str, Floats]:
        """The rotation."""
        return {"rotation": self.rotation}
