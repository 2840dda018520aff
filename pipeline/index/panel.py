"""The panel: the queries that recall is measured with, and their exact nearest rows.

Given queries are best, for recall on documents flatters: where documents find 0.945 of their
neighbours, questions find 0.895. Next best are words of documents through the query encoder (0.924);
else documents, without themselves and the other chunks of their document. Which it was is told
wherever recall is.

Settings are chosen by one half of the panel, and what is published comes from the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError, UsageError
from pipeline.index.codecs import Floats
from pipeline.index.description import PanelSource
from pipeline.index.layout import REBUILD, digest, panel_schema
from pipeline.index.nearest import NUM_KEPT, Pairs, floors, from_table, joined
from pipeline.index.sample import Sample
from pipeline.index.shards import Rows, Shard, read_columns, unit
from pipeline.parallel import map_ahead
from pipeline.uris import Storage

NUM_QUERIES = 1000
"""At recall 0.95 the 95 % interval of one half is about 0.01 either way."""

MAX_OF_DOCUMENT = 32
"""Queries that are rows of one document: each of its rows is left out of all of them."""

_WORDS_PER_QUERY = 6

# Shards read at once: hides the round trips of object storage.
_READ_AHEAD = 8

Encode = Callable[[Sequence[str]], Floats]
"""Texts to unit vectors (Q, D), as queries."""


@dataclass(frozen=True, eq=False)
class Panel:
    """Queries by column.

    Attributes:
        source: what they are.
        vectors: (Q, D) unit vectors.
        texts: of queries that have one.
        doc_ids: of the documents they are, else empty.
        is_published: (Q,) whether its recall is published; else settings are chosen by it.
        floors: (Q,) scores that their exact nearest reach (pipeline.index.nearest).
    """

    source: PanelSource
    vectors: Floats
    texts: tuple[str, ...]
    doc_ids: tuple[str, ...]
    is_published: npt.NDArray[np.bool_]
    floors: Floats

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the queries."""
        names = "\0".join(self.doc_ids).encode()
        return digest(self.source.encode(), self.vectors.astype("<f4").tobytes(), names)

    def left_out_of(self, doc_ids: pa.Array | pa.ChunkedArray) -> tuple[Rows, Rows]:
        """Pairs (query, row) where a row of these is of the document that the query is."""
        if not self.doc_ids:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        # Chunks of one document may be several queries: each row goes to all of them.
        queries_of: dict[str, list[int]] = {}
        for query, doc_id in enumerate(self.doc_ids):
            queries_of.setdefault(doc_id, []).append(query)
        distinct = pa.array(queries_of, pa.string())
        found = np.flatnonzero(pc.is_in(doc_ids, value_set=distinct).to_numpy(zero_copy_only=False))
        which = [queries_of[doc_id] for doc_id in doc_ids.take(pa.array(found)).to_pylist()]
        queries = np.array([query for some in which for query in some], np.int64)
        return queries, np.repeat(found, [len(some) for some in which]).astype(np.int64)


def panel_of_texts(source: PanelSource, texts: Sequence[str], encode: Encode, dim: int) -> Panel:
    """The panel of given queries, or of words of documents.

    Raises:
        UsageError: no texts, or an encoder of another dim.
    """
    texts = tuple(texts)
    if not texts:
        raise UsageError("index.queries: there is no query in it; give a file with one, or leave the key out")
    vectors = unit(np.asarray(encode(texts), np.float32))
    if vectors.shape != (len(texts), dim):
        raise UsageError(f"queries have shape {vectors.shape}, the snapshot holds vectors of dim {dim}")
    return Panel(source, vectors, texts, (), _halves(len(texts)), np.full(len(texts), -np.inf, np.float32))


def draw_texts(texts: Sequence[str], num: int, seed: int) -> list[str]:
    """At most `num` of the given queries, each once, in their order."""
    distinct = list(dict.fromkeys(text for text in texts if text.strip()))
    chosen = np.random.default_rng(seed).choice(len(distinct), min(num, len(distinct)), replace=False)
    return [distinct[place] for place in np.sort(chosen).tolist()]


def words_of(texts: Iterable[str], num: int, seed: int) -> list[str]:
    """A query of six words, in their order, from each of at most `num` texts that have them."""
    random = np.random.default_rng(seed)
    found: list[str] = []
    for text in texts:
        words = text.split()
        if len(words) >= _WORDS_PER_QUERY and len(found) < num:
            places = np.sort(random.choice(len(words), _WORDS_PER_QUERY, replace=False))
            found.append(" ".join(words[place] for place in places))
    return found


def draw_documents(sample: Sample, num: int, seed: int) -> Rows:
    """Places (at most `num`) in the sample of the rows that make the panel, where no queries are given."""
    chosen = np.random.default_rng(seed + 1).choice(
        len(sample.addresses), min(num, len(sample.addresses)), replace=False
    )
    return np.asarray(np.sort(chosen), np.int64)


def some_of_each(doc_ids: Sequence[str], seed: int) -> Rows:
    """Places of at most MAX_OF_DOCUMENT rows of each document: a row is left out of no more queries than that."""
    seen: Counter[str] = Counter()
    kept = []
    for place in np.random.default_rng(seed + 2).permutation(len(doc_ids)).tolist():
        seen[doc_ids[place]] += 1
        if seen[doc_ids[place]] <= MAX_OF_DOCUMENT:
            kept.append(place)
    return np.array(sorted(kept), np.int64)


def look_up(storage: Storage, shards: Sequence[Shard], addresses: Rows, names: Sequence[str]) -> pa.Table:
    """Columns of the rows at these addresses, in their order.

    Raises:
        StoreError: a shard is missing or damaged.
    """
    of_ordinal = {shard.ordinal: shard for shard in shards}
    places = [np.flatnonzero(addresses >> 32 == ordinal) for ordinal in np.unique(addresses >> 32).tolist()]

    def read(here: Rows) -> pa.Table:
        shard = of_ordinal[int(addresses[here[0]]) >> 32]
        return read_columns(storage, shard, names).take(pa.array(addresses[here] & 0xFFFFFFFF))

    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        tables = list(map_ahead(pool, read, places, _READ_AHEAD))
    return pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(places))))


def panel_of_documents(sample: Sample, places: Rows, doc_ids: Sequence[str]) -> Panel:
    """The panel of these rows of the sample, each left out of its own answers with all of its document."""
    num = len(places)
    vectors = sample.vectors[places]
    return Panel("documents", vectors, (), tuple(doc_ids), _halves(num), np.full(num, -np.inf, np.float32))


def with_floors(panel: Panel, sample: Sample, num_chunks: npt.NDArray[np.int64] | None = None) -> Panel:
    """The panel with its floors; `num_chunks` (Q,) of the documents that the queries are."""
    left_out = np.zeros(len(panel), np.int64) if num_chunks is None else num_chunks
    return replace(panel, floors=floors(panel.vectors, sample.vectors, left_out))


def _halves(num: int) -> npt.NDArray[np.bool_]:
    """Every other one; a single query is both chosen by and published."""
    return np.asarray(np.arange(num) % 2 == (1 if num > 1 else 0), bool)


@dataclass(frozen=True, eq=False)
class Truth:
    """The exact nearest of each query, nearest first, and what was left out of its answers."""

    addresses: list[Rows]
    scores: list[Floats]
    left_out: list[Rows]


def merge_nearest(panel: Panel, tables: Iterable[pa.Table]) -> Truth:
    """What all assign stages found, as one; memory is that of NUM_KEPT a query, whatever comes.

    Args:
        panel: the queries.
        tables: NEAR_SCHEMA, of row sets that have no row in common.
    """
    best, left_out = Pairs.empty(), [Pairs.empty()]
    for table in tables:
        found, own = from_table(table)
        best = best.joined(found).best(NUM_KEPT)
        left_out.append(own)
    own = joined(left_out)
    own = own.best(len(own.query))  # all: by query, then address
    bounds, own_bounds = (np.searchsorted(some.query, np.arange(1, len(panel))) for some in (best, own))
    return Truth(
        np.split(best.address, bounds),
        np.split(np.clip(best.score, -1, 1), bounds),
        np.split(own.address, own_bounds),
    )


def panel_table(panel: Panel, truth: Truth) -> pa.Table:
    """As panel.parquet."""
    num = len(panel)
    schema = panel_schema(panel.vectors.shape[1])
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(panel.vectors).reshape(-1)), type=schema.field("vector").type
    )
    columns = {
        "query_id": pa.array(np.arange(num, dtype=np.int32)),
        "source": pa.array([panel.source] * num, pa.string()),
        "is_published": pa.array(panel.is_published),
        "text": pa.array(panel.texts or [None] * num, pa.string()),
        "doc_id": pa.array(panel.doc_ids or [None] * num, pa.string()),
        "vector": vectors,
        "left_out": pa.array(truth.left_out, schema.field("left_out").type),
        "neighbours": pa.array(truth.addresses, schema.field("neighbours").type),
        "scores": pa.array(truth.scores, schema.field("scores").type),
    }
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def parse_panel(table: pa.Table) -> tuple[Panel, Truth]:
    """The panel and its exact nearest from panel.parquet.

    Raises:
        StoreError: it has no rows.
    """
    if not table.num_rows:
        raise StoreError(f"panel.parquet has no queries; {REBUILD}")
    vectors = np.asarray(table["vector"].combine_chunks().flatten().to_numpy(), np.float32).reshape(table.num_rows, -1)
    texts, doc_ids = (tuple(table[name].drop_null().to_pylist()) for name in ("text", "doc_id"))
    is_published = np.asarray(table["is_published"].to_numpy(), bool)
    # Only while the index is built.
    floor = table["floor"].to_numpy() if "floor" in table.column_names else np.full(len(vectors), -np.inf, np.float32)
    panel = Panel(table["source"][0].as_py(), vectors, texts, doc_ids, is_published, floor)
    neighbours, left_out = (
        [np.array(values, np.int64) for values in table[name].to_pylist()] for name in ("neighbours", "left_out")
    )
    return panel, Truth(neighbours, [np.array(values, np.float32) for values in table["scores"].to_pylist()], left_out)
