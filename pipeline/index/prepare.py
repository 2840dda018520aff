"""What all stages of an index build share: the choice, the trained quantizer, the panel.

An index is named by what it is made of: snapshot, codec, lists, queries. Quantizer and panel are put under
that name before anything is made with them, so that a run that goes on uses those of the one that was killed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.sections import Index
from pipeline.index.assign import Work
from pipeline.index.choose import Choice, choose
from pipeline.index.description import FORMAT_VERSION, FileRef
from pipeline.index.files import load_quantizer, put_once, put_quantizer, table_bytes, undamaged
from pipeline.index.layout import digest, index_folder
from pipeline.index.panel import (
    NUM_QUERIES,
    Encode,
    Panel,
    Truth,
    draw_documents,
    draw_texts,
    look_up,
    panel_of_documents,
    panel_of_texts,
    panel_table,
    parse_panel,
    some_of_each,
    with_floors,
    words_of,
)
from pipeline.index.quantizer import train
from pipeline.index.recall import RERANK_DEPTHS, probe_levels
from pipeline.index.sample import Sample, join_samples, plan_sample, read_sample
from pipeline.index.shards import Rows, Shard, plain, shards_of
from pipeline.snapshots.reader import Snapshot
from pipeline.uris import Storage

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Found = TypeVar("Found")


class Run(Protocol):
    """Runs the tasks of a stage: what `call` gives for each item, in the order of the items."""

    def __call__(self, stage: str, call: Callable[[Item], Found], items: Sequence[Item]) -> Iterable[Found]:
        """`stage` is one of sample, assign, merge, measure; `call` and what it takes and gives can be pickled."""


def in_process(stage: str, call: Callable[[Item], Found], items: Sequence[Item]) -> Iterator[Found]:
    """One after the other."""
    return map(call, items)


@dataclass(frozen=True)
class Queries:
    """Where the panel comes from.

    Attributes:
        texts: given queries (`index.queries`); None: made from documents.
        encode: texts to unit vectors (Q, D), as queries; None: there is no encoder, documents it is.
    """

    texts: tuple[str, ...] | None = None
    encode: Encode | None = None

    @property
    def fingerprint(self) -> str:
        """16 hex digits."""
        given = () if self.texts is None else self.texts
        return digest(b"%d%d" % (self.texts is not None, self.encode is not None), *(text.encode() for text in given))


@dataclass(frozen=True, eq=False)
class Plan:
    """What the stages of one build share."""

    snapshot: Snapshot
    shards: tuple[Shard, ...]
    choice: Choice
    work: Work
    centroids: FileRef

    @property
    def storage(self) -> Storage:
        """Of the store."""
        return self.snapshot.storage

    @property
    def levels(self) -> tuple[int, ...]:
        """The numbers of probes that recall is measured at."""
        only_all, up_to_all = self.choice.is_exact, self.choice.is_small
        return probe_levels(self.work.quantizer.nlist, only_all=only_all, up_to_all=up_to_all)

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths of a rerank that recall is measured at; lists that hold the vectors need none."""
        return RERANK_DEPTHS if self.work.quantizer.codec.name != "float16" else (0,)


@dataclass(frozen=True, eq=False)
class Aim:
    """What is to be built; known from the shards table alone.

    Attributes:
        snapshot: what is indexed.
        shards: those of its shards that have rows.
        choice: codec, lists and sample.
        queries: what recall is measured with.
        lists_per_row: 1, or 2: every row also stands in its second nearest list.
        attempt: how many indexes of this aim there are already, and were damaged since.
    """

    snapshot: Snapshot
    shards: tuple[Shard, ...]
    choice: Choice
    queries: Queries
    lists_per_row: int = 1
    attempt: int = 0

    @classmethod
    def of(cls, snapshot: Snapshot, index: Index, queries: Queries | None = None, lists_per_row: int = 1) -> Aim:
        """The aim of a config's section.

        Raises:
            InputError: the snapshot has no rows.
            ConfigError: more lists than rows.
        """
        shards = shards_of(snapshot) if snapshot.shards.num_rows else []
        num_rows = sum(shard.num_rows for shard in shards)
        choice = choose(num_rows, snapshot.dim if shards else 1, index.codec, index.nlist)
        return cls(snapshot, tuple(shards), choice, queries or Queries(), lists_per_row)

    @property
    def index_id(self) -> str:
        """The name of the index; it begins with that of its rows, by which gc knows whose it is."""
        choice = self.choice
        how = [FORMAT_VERSION, choice.codec, choice.nlist, choice.is_exact, self.lists_per_row, self.attempt]
        return f"{self.snapshot.manifest.rows_fp}-{digest(self.queries.fingerprint.encode(), orjson.dumps(how))}"


def prepare(aim: Aim, run: Run = in_process) -> Plan:
    """Draw the sample, train, make the panel; or take them over from an earlier run."""
    snapshot, shards, choice, index_id = aim.snapshot, aim.shards, aim.choice, aim.index_id
    storage, manifest = snapshot.storage, snapshot.manifest
    seed = int(manifest.shards.checksum[:7], 16)  # faiss takes 31 bits

    loaded, panel = load_quantizer(storage, index_id), _load_panel(storage, index_id)
    if loaded is None or panel is None:
        drawn = plan_sample(shards, choice.num_sample, seed)
        num_drawn = sum(len(rows) for _, rows in drawn)
        sample = join_samples(run("sample", partial(_read_sample, storage), drawn), num_drawn, snapshot.dim)
        # First, for what is wrong with the queries is found here.
        if panel is None:
            panel = _put_panel(storage, index_id, _make_panel(snapshot, shards, sample, aim.queries, seed))
        if loaded is None:
            log.info("training %d lists of %s on %d rows", choice.nlist, choice.codec, num_drawn)
            trained = train(sample.vectors, choice.nlist, choice.codec, manifest.encoder_fp, seed=seed)
            loaded = put_quantizer(storage, index_id, trained)
    keep = pa.schema([plain(snapshot.schema.field(name)) for name in (*manifest.keep, *_place_columns(snapshot))])
    work = Work(index_id, loaded[0], panel, keep, aim.lists_per_row)
    return Plan(snapshot, shards, choice, work, loaded[1])


def _place_columns(snapshot: Snapshot) -> tuple[str, ...]:
    """What tells a chunk's place in its document, kept where documents were cut: answers need no embedding shard."""
    is_chunked = snapshot.shards["num_documents"].null_count < snapshot.shards.num_rows
    return ("num_chunks", "char_begin", "char_end") if is_chunked else ()


def _read_sample(storage: Storage, drawn: tuple[Shard, Rows]) -> Sample:
    return read_sample(storage, *drawn)


def _make_panel(snapshot: Snapshot, shards: Sequence[Shard], sample: Sample, queries: Queries, seed: int) -> Panel:
    if queries.texts is not None and queries.encode is not None:
        some = draw_texts(queries.texts, NUM_QUERIES, seed)
        return with_floors(panel_of_texts("queries", some, queries.encode, snapshot.dim), sample)
    places = draw_documents(sample, NUM_QUERIES, seed)
    addresses = sample.addresses[places]
    if queries.encode is not None and "text" in snapshot.schema.names:
        texts = look_up(snapshot.storage, shards, addresses, ["text"])["text"].to_pylist()
        words = words_of(texts, NUM_QUERIES, seed)
        if 2 * len(words) >= len(places):  # a handful would say less than as many documents as there are
            return with_floors(panel_of_texts("words", words, queries.encode, snapshot.dim), sample)
    table = look_up(snapshot.storage, shards, addresses, ["doc_id", "num_chunks"])
    kept = some_of_each(table["doc_id"].to_pylist(), seed)
    table = table.take(pa.array(kept))
    panel = panel_of_documents(sample, places[kept], table["doc_id"].to_pylist())
    return with_floors(panel, sample, table["num_chunks"].to_numpy().astype(np.int64))


def _panel_name(index_id: str) -> str:
    return f"{index_folder(index_id)}/work/panel.parquet"


def _put_panel(storage: Storage, index_id: str, panel: Panel) -> Panel:
    """The panel that the build has from now on: an encoder may not give the same vectors twice."""
    empty = Truth(*([np.zeros(0, kind)] * len(panel) for kind in (np.int64, np.float32, np.int64)))  # type: ignore[arg-type]
    table = panel_table(panel, empty).append_column("floor", pa.array(panel.floors))
    return _parse(storage, index_id, put_once(storage, _panel_name(index_id), table_bytes(table)))


def _load_panel(storage: Storage, index_id: str) -> Panel | None:
    try:
        data = storage.read(_panel_name(index_id))
    except FileNotFoundError:
        return None
    return _parse(storage, index_id, data)


def _parse(storage: Storage, index_id: str, data: bytes) -> Panel:
    with undamaged(storage.full_uri(_panel_name(index_id)), "panel"):
        return parse_panel(pq.read_table(pa.BufferReader(data)))[0]
