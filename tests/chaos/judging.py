"""What a snapshot lost or doubled against a clean run's, and what was encoded again: counted, not judged."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.snapshots.reader import Snapshot
from pipeline.snapshots.records import parse_record_name
from tests.chaos.proxy import Exchange

Key = tuple[str, int, bytes]
"""doc_id, chunk_index, content_hash."""
Found = dict[Key, list[npt.NDArray[np.float32]]]

_MIN_COSINE = 0.9999
_WRITTEN_ONCE = r"store/(embeddings|quarantine|records|snapshots)/"


@dataclass(frozen=True)
class Clean:
    """What a run makes of a corpus when nothing goes wrong."""

    vectors: dict[Key, npt.NDArray[np.float32]]
    num_quarantined: int
    num_splits: int


def rows_of(snapshot: Snapshot) -> Found:
    """The vectors of a snapshot, by what says which text of which document they are of."""
    table = snapshot.dataset().to_table(columns=["doc_id", "chunk_index", "content_hash", "vector"])
    found: Found = {}
    dim = table.schema.field("vector").type.list_size
    vectors = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    keys = zip(*(table[name].to_pylist() for name in ("doc_id", "chunk_index", "content_hash")), strict=True)
    for key, vector in zip(keys, vectors.reshape(-1, dim), strict=True):
        found.setdefault(key, []).append(vector)
    return found


def differences(found: Found, clean: Clean) -> dict[str, int]:
    """How many rows are lost, doubled, foreign and strayed, as the harness defines them."""
    return {
        "lost": len(clean.vectors.keys() - found.keys()),
        "doubled": sum(len(vectors) - 1 for vectors in found.values()),
        "foreign": len(found.keys() - clean.vectors.keys()),
        "strayed": sum(
            _cosine(vector, clean.vectors[key]) < _MIN_COSINE
            for key, vectors in found.items()
            for vector in vectors
            if key in clean.vectors
        ),
    }


def recorded(exchanges: list[Exchange]) -> dict[str, int]:
    """Splits whose record was stored, and how many requests there had been by then."""
    found: dict[str, int] = {}
    for exchange in list(exchanges):
        key = parse_record_name(exchange.name) if exchange.method == "PUT" else None
        if key is not None and exchange.reply is not None and exchange.reply.status == 200:
            stored_at = exchange.answered_at or 0
            found[key.split_id] = min(found.get(key.split_id, stored_at), stored_at)
    return found


def rewritten(exchanges: list[Exchange]) -> int:
    """How many names that a manifest can list, manifests among them, were stored with several contents."""
    contents: dict[str, set[str]] = {}
    for exchange in list(exchanges):
        if exchange.method == "PUT" and re.match(_WRITTEN_ONCE, exchange.name) and exchange.reply is not None:
            etag = dict(exchange.reply.headers).get("ETag", "")
            if exchange.reply.status == 200:
                contents.setdefault(exchange.name, set()).add(etag)
    return sum(len(etags) > 1 for etags in contents.values())


def encoded_again(exchanges: list[Exchange], started_at: list[int]) -> tuple[int, int]:
    """How many shards were put of splits that had been put before; how many of them by commands that knew better."""
    records = recorded(exchanges)
    attempts = {
        exchange.name: exchange.number
        for exchange in reversed(list(exchanges))
        if exchange.method == "PUT" and exchange.name.startswith("store/embeddings/")
    }
    by_split = Counter(name.rpartition("/")[2].split("-")[0] for name in attempts)
    knew_better = 0
    for name, number in attempts.items():
        start = max((begin for begin in started_at if begin <= number), default=0)
        knew_better += records.get(name.rpartition("/")[2].split("-")[0], math.inf) <= start
    return sum(by_split.values()) - len(by_split), knew_better


def _cosine(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> float:
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))
