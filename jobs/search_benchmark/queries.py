"""The queries that all answer, and what is right: the exact nearest rows over the whole snapshot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.index_benchmark.vectors import blocks, sample
from pipeline.index.codecs import Floats
from pipeline.index.nearest import Nearest
from pipeline.index.panel import Panel, look_up, merge_nearest, panel_of_documents, panel_of_texts
from pipeline.index.recall import TIE
from pipeline.index.shards import Rows, read_columns, shards_of
from pipeline.snapshots.reader import Snapshot

K = 10

_SEED = 11


@dataclass(frozen=True, eq=False)
class Questions:
    """Queries with their answers.

    Attributes:
        source: what they are.
        vectors: (Q, D) unit vectors.
        right: of each, the row addresses that are right: the K nearest, and what ties with the last of them.
        left_out: of each, the rows that are no answer: the document that it is.
    """

    source: str
    vectors: Floats
    right: tuple[Rows, ...]
    left_out: tuple[Rows, ...]

    @property
    def num_asked(self) -> int:
        """Neighbours to ask for, so that K are left without what is left out."""
        return K + max(map(len, self.left_out))

    def recall(self, found: Rows) -> float:
        """recall@10 of answers (Q', num_asked) to the first Q' queries."""
        hits = []
        for addresses, right, left_out in zip(found, self.right[: len(found)], self.left_out, strict=False):
            answer = addresses[(addresses >= 0) & ~np.isin(addresses, left_out)][:K]
            num = min(K, len(right))
            hits.append(min(num, len(np.intersect1d(answer, right))) / num if num else 1.0)
        return float(np.mean(hits))


def documents(snapshot: Snapshot, num: int) -> Questions:
    """So many documents of the snapshot, drawn evenly, each left out of its own answers."""
    drawn = sample(snapshot, 16 * num)
    random = np.random.default_rng(_SEED)
    places = np.sort(random.choice(len(drawn.addresses), min(num, len(drawn.addresses)), replace=False))
    table = look_up(snapshot.storage, shards_of(snapshot), drawn.addresses[places], ["doc_id"])
    return _answered(snapshot, panel_of_documents(drawn, places, table["doc_id"].to_pylist()))


def texts(snapshot: Snapshot, asked: Sequence[str], encode: Callable[[Sequence[str]], Floats]) -> Questions:
    """Given texts."""
    return _answered(snapshot, panel_of_texts("queries", asked, encode, snapshot.dim))


def _answered(snapshot: Snapshot, panel: Panel) -> Questions:
    nearest = Nearest(panel.vectors, panel.floors)
    for shard, (addresses, vectors) in zip(shards_of(snapshot), blocks(snapshot), strict=True):
        doc_ids = read_columns(snapshot.storage, shard, ["doc_id"])["doc_id"]
        nearest.add(vectors, addresses, panel.left_out_of(doc_ids))
    truth = merge_nearest(panel, [nearest.table()])
    right = tuple(
        addresses[scores >= scores[min(K, len(scores)) - 1] - TIE] if len(scores) else addresses
        for addresses, scores in zip(truth.addresses, truth.scores, strict=True)
    )
    return Questions(panel.source, panel.vectors, right, tuple(truth.left_out))
