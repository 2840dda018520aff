"""The quantizer: centroids of the lists and a codec, trained once on a sample of all shards.

Centroids are k-means by faiss with the metric L2: on unit vectors it ranks as the cosine does, and leaves
smaller residuals than the inner product. Up to 8,192 lists it is flat; above, where flat k-means of 96
rows a list takes hours (its cost grows with the square of lists), it is of two levels, faiss' own:
about sqrt(lists) clusters, each cut into its share of the lists.

Lists are numbered along a walk from centroid to nearest centroid, so that what one query probes lies
together in the files and takes fewer requests.

The fingerprint covers all that gives a code its meaning. Parts with equal centroids and another codec
look alike and decode to nonsense (faiss merges them without a word): only the fingerprint tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson

from pipeline.errors import StoreError
from pipeline.index.codecs import Codec, Codes, Float16, Floats, Sq8
from pipeline.index.layout import REBUILD, digest
from pipeline.index.rabitq import Rabitq

METRIC: Literal["l2"] = "l2"

_MAX_FLAT_LISTS = 8192

# Iterations after which recall no longer moves.
_ITERATIONS = 8

# Rows of which the products with all centroids are held at once: 64 MiB of float32.
_MAX_SCORES = 16 * 2**20

_METADATA_KEY = b"vecmill.quantizer"

Lists = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Quantizer:
    """What turns vectors into list ids and codes.

    Attributes:
        centroids: (nlist, D) float32.
        parents: (nlist,) ascending: which cluster of centroids each is of.
        codec: with its parameters.
        encoder_fp: of the encoder whose vectors it was trained on.
    """

    centroids: Floats
    parents: Lists
    codec: Codec
    encoder_fp: str

    @property
    def nlist(self) -> int:
        """Number of lists."""
        return len(self.centroids)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.centroids.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over centroids, codec, encoder, dim and metric."""
        arrays = self.codec.arrays()
        told = {
            "codec": self.codec.name,
            "parameters": self.codec.parameters(),
            "arrays": sorted(arrays),
            "encoder_fp": self.encoder_fp,
            "dim": self.dim,
            "metric": METRIC,
        }
        large = (_little_endian(arrays[name]) for name in sorted(arrays))
        return digest(_little_endian(self.centroids), *large, orjson.dumps(told, option=orjson.OPT_SORT_KEYS))

    @cached_property
    def _half_squares(self) -> Floats:
        return np.asarray(0.5 * np.einsum("nd,nd->n", self.centroids, self.centroids), np.float32)

    def nearest_lists(self, vectors: Floats, num: int) -> Lists:
        """The `num` nearest lists (N, num) of each of (N, D), nearest first; ties by list id."""
        num = min(num, self.nlist)
        found = np.empty((len(vectors), num), np.int32)
        step = max(1, _MAX_SCORES // self.nlist)
        for begin in range(0, len(vectors), step):
            closeness = vectors[begin : begin + step] @ self.centroids.T
            closeness -= self._half_squares
            found[begin : begin + step] = _greatest(closeness, num)
        return found

    def encode(self, vectors: Floats, lists: Lists) -> Codes:
        """(N, D) unit vectors, each for one list (N,), to codes (N, B)."""
        centroids = self.centroids[lists] if self.codec.is_residual else self.centroids[:0]
        return self.codec.encode(vectors, centroids)

    def decode(self, codes: Codes, lists: Lists) -> Floats:
        """Codes (N, B) of rows of lists (N,) to (N, D)."""
        return self.codec.decode(codes, self.centroids[lists])

    def score(self, queries: Floats, codes: Codes, list_id: int) -> Floats:
        """Cosines (Q, N), as the codec has them, of unit queries (Q, D) with codes (N, B) of one list."""
        scores = self.codec.score(self.codec.prepare(queries), [codes])
        if self.codec.is_residual:
            scores = scores + (queries @ self.centroids[list_id])[:, None]
        return scores

    def golden(self) -> dict[str, Any]:
        """A vector that anyone can make, as list 0 encodes it, and what it decodes to: for index.json."""
        lists = np.zeros(1, np.int32)
        code = self.encode(golden_vector(self.dim)[None], lists)
        return {"code": code[0].tobytes().hex(), "decoded": self.decode(code, lists)[0].tolist()}

    def check_golden(self, golden: dict[str, Any], where: str) -> None:
        """Refuse to read codes that this code, or this machine, decodes to something else.

        Raises:
            StoreError: it does.
        """
        code = np.frombuffer(bytes.fromhex(golden["code"]), np.uint8)[None]
        expected = np.array(golden["decoded"], np.float32)
        fits = code.shape[1] == self.codec.num_bytes and len(expected) == self.dim
        if not fits or not np.allclose(self.decode(code, np.zeros(1, np.int32))[0], expected, atol=1e-5):
            raise StoreError(
                f"{where}: its codes of {self.codec.name} decode here to other vectors than where it was built; "
                f"{REBUILD}; or read it with the version that built it"
            )

    def metadata(self) -> dict[bytes, bytes]:
        """For the schema of centroids.parquet: all but centroids and large arrays."""
        told = {
            "fingerprint": self.fingerprint,
            "encoder_fp": self.encoder_fp,
            "metric": METRIC,
            "codec": self.codec.name,
            "parameters": self.codec.parameters(),
        }
        return {_METADATA_KEY: orjson.dumps(told)}


def parse_metadata(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """What `Quantizer.metadata` told.

    Raises:
        KeyError, ValueError: it is not there.
    """
    return dict(orjson.loads((metadata or {})[_METADATA_KEY]))


def golden_vector(dim: int) -> Floats:
    """cos(1), cos(2), ..., cos(D), at unit norm."""
    vector = np.cos(np.arange(1, dim + 1, dtype=np.float64))
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def train(sample: Floats, nlist: int, codec: str, encoder_fp: str, *, seed: int, bits: int = 4) -> Quantizer:
    """The quantizer of a sample (N, D) of unit vectors; the same sample and seed give the same one.

    Args:
        sample: at least `nlist` rows; 96 a list are enough.
        nlist: number of lists.
        codec: "float16", "sq8" or "rabitq".
        encoder_fp: of the encoder that made the vectors.
        seed: of k-means and rotation.
        bits: of rabitq, 1 or 4.
    """
    sample = np.ascontiguousarray(sample, np.float32)
    order, parents = order_lists(centroids := _cluster(sample, nlist, seed), seed)
    dim = sample.shape[1]
    made: Codec
    if codec == "float16":
        made = Float16(dim)
    elif codec == "sq8":
        made = Sq8.train(sample)
    else:
        made = Rabitq.train(dim, bits, seed)
    return Quantizer(np.ascontiguousarray(centroids[order]), parents, made, encoder_fp)


def order_lists(centroids: Floats, seed: int = 0) -> tuple[Lists, Lists]:
    """An order (nlist,) in which near centroids are near, and each one's parent, ascending along it.

    Parents are clusters of about sqrt(nlist) centroids; both they and the centroids in each are walked from
    one to the nearest not yet visited.
    """
    import faiss  # where an index is built: searching, and what is measured on a GPU, do without

    num_parents = max(1, round(len(centroids) ** 0.5))
    of_parent = _cluster(centroids, num_parents, seed)
    _, found = faiss.knn(centroids, of_parent, 1)
    member_of = found[:, 0]
    order: list[int] = []
    parents: list[int] = []
    for number, parent in enumerate(_walk(of_parent, of_parent[0])):
        members = np.flatnonzero(member_of == parent)
        if len(members):
            start = centroids[order[-1]] if order else of_parent[parent]
            walked = members[_walk(centroids[members], start)]
            order.extend(walked.tolist())
            parents.extend([number] * len(walked))
    return np.array(order, np.int32), np.array(parents, np.int32)


def _walk(points: Floats, start: Floats) -> npt.NDArray[np.int64]:
    """The order (N,) of going from `start` (D,) to the nearest point, and on to the nearest not visited."""
    left = np.ones(len(points), bool)
    order = np.empty(len(points), np.int64)
    here = start
    for place in range(len(points)):
        distances = np.einsum("nd,nd->n", points - here, points - here)
        order[place] = np.argmin(np.where(left, distances, np.inf))
        left[order[place]] = False
        here = points[order[place]]
    return order


def _cluster(points: Floats, num: int, seed: int) -> Floats:
    """k-means centroids (num, D) of points (N, D), N >= num."""
    import faiss

    same = {"seed": seed, "min_points_per_centroid": 1}
    if num > _MAX_FLAT_LISTS:
        from faiss.contrib.clustering import two_level_clustering

        found, _ = two_level_clustering(  # type: ignore[no-untyped-call]
            points, round(num**0.5), num, clustering_niter=_ITERATIONS, **same
        )
        return np.asarray(found, np.float32)
    all_points = max(1, -(-len(points) // num))  # no sampling of the sample
    means = faiss.Kmeans(points.shape[1], num, niter=_ITERATIONS, max_points_per_centroid=all_points, **same)
    means.train(points)
    return np.asarray(means.centroids, np.float32)


def _greatest(scores: Floats, num: int) -> Lists:
    """Columns of the `num` greatest of each row (N, M), greatest first; ties by column."""
    if num == 1:
        return np.asarray(scores.argmax(1)[:, None], np.int32)
    if num < scores.shape[1]:
        kept = np.sort(np.argpartition(-scores, num - 1, axis=1)[:, :num], axis=1)
    else:
        kept = np.broadcast_to(np.arange(num), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, kept, 1), axis=1, kind="stable")
    return np.asarray(np.take_along_axis(kept, order, 1), np.int32)


def _little_endian(values: Floats) -> bytes:
    return np.ascontiguousarray(values, "<f4").tobytes()
