from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UsageError
from pipeline.index.codecs import Codes, Floats, Prepared, Sq8
from pipeline.index.layout import DELETED_SCHEMA
from pipeline.index.quantizer import Lists, Quantizer
from pipeline.search import SearchableSnapshot, exact_search, open_index
from pipeline.search.best import Best
from pipeline.search.lists import Group
from pipeline.search.lists import Lists as IndexLists
from pipeline.search.neighbours import Chunk
from pipeline.search.ranges import Range, RangeReader
from pipeline.search.scan import Scan
from tests.indexed import NLIST, NUM, QUERIES, VECTORS, brute_force, make_indexed, recall, rewritten, stored

Indexed = Callable[..., SearchableSnapshot]

CODECS = ["auto", "float16", "sq8", "rabitq"]


@pytest.mark.parametrize("lists_per_row", [1, 2])
@pytest.mark.parametrize("codec", CODECS[1:])
def test_with_all_lists_probed_the_neighbours_are_the_nearest_each_once(
    codec: str, lists_per_row: int, indexed: Indexed
) -> None:
    found = indexed(codec, lists_per_row=lists_per_row).index.search(QUERIES, 10, nprobe=NLIST)
    exact = {"float16": 1.0, "sq8": 0.9, "rabitq": 0.9}[codec]
    assert recall(found.doc_ids, brute_force(QUERIES, 10)) >= exact
    assert all(len(set(row)) == 10 for row in found.doc_ids)
    assert (np.diff(found.scores, axis=1) <= 0).all()


def test_lists_of_float16_answer_exactly_by_default(indexed: Indexed) -> None:
    snapshot = indexed("auto", nlist="auto")
    assert snapshot.index.description.codec == "float16"
    found, exact = snapshot.search(QUERIES, 10), snapshot.search(QUERIES, 10, exact=True)
    assert found.doc_ids == exact.doc_ids
    assert (found.addresses == exact.addresses).all()
    np.testing.assert_allclose(found.scores, exact.scores, atol=1e-6)
    assert found.kept == exact.kept


@pytest.mark.parametrize("codec", CODECS)
def test_an_answer_has_the_ids_and_kept_columns_of_its_row(codec: str, indexed: Indexed) -> None:
    found = indexed(codec).index.search(QUERIES, 10)
    for doc_ids, kept, addresses in zip(found.doc_ids, found.kept, found.addresses.tolist(), strict=True):
        for doc_id, columns, address in zip(doc_ids, kept, addresses, strict=True):
            row = int(doc_id[1:])
            assert columns == {"lang": ("de", "en", None)[row % 3], "year": 2000 + row % 20}
            ordinal, of_shard = (3, row) if row < 1000 else (5, row - 1000)
            assert address == ordinal << 32 | of_shard


@pytest.mark.parametrize("codec", CODECS)
def test_queries_that_come_together_are_answered_as_those_that_come_alone(codec: str, indexed: Indexed) -> None:
    index = indexed(codec, lists_per_row=2).index
    together = index.search(QUERIES, 7, nprobe=4)
    for number in range(len(QUERIES)):
        alone = index.search(QUERIES[number : number + 1], 7, nprobe=4)
        assert alone.doc_ids[0] == together.doc_ids[number]
        np.testing.assert_allclose(alone.scores[0], together.scores[number], atol=1e-6)


def test_blocks_windows_and_cuts_change_nothing(indexed: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    index = indexed("rabitq", lists_per_row=2).index
    expected = index.search(QUERIES, 10)
    monkeypatch.setattr("pipeline.search.reader._MAX_CANDIDATES", 200)
    monkeypatch.setattr("pipeline.search.reader._MAX_PROBES", 70)
    monkeypatch.setattr("pipeline.search.scan._WINDOW_BYTES", 1000)
    monkeypatch.setattr("pipeline.search.scan._MAX_SCORES", 300)
    monkeypatch.setattr("pipeline.search.best._MAX_PENDING", 50)
    monkeypatch.setattr("pipeline.search.rerank._BLOCK_BYTES", 1000)
    found = index.search(QUERIES, 10)
    assert (found.addresses == expected.addresses).all()
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    assert (index.search(QUERIES, 10, where="true").addresses == expected.addresses).all()


def test_a_list_is_read_and_scored_once_for_all_queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_index(make_indexed(tmp_path), cache_bytes=0)
    asked: list[Range] = []
    scored: list[int] = []
    read, score = RangeReader.read, Sq8.score

    def reading(self: RangeReader, ranges: Sequence[Range]) -> list[memoryview]:
        asked.extend(ranges)
        return read(self, ranges)

    def scoring(self: Sq8, queries: Prepared, codes: Sequence[Codes]) -> Floats:
        scored.append(len(queries.offset))
        return score(self, queries, codes)

    monkeypatch.setattr(RangeReader, "read", reading)
    monkeypatch.setattr(Sq8, "score", scoring)
    index.search(QUERIES, 5, nprobe=6)
    groups = range(len(index.directory.part))
    codes = [one for one in asked if one in {index.directory.codes_range(group) for group in groups}]
    assert len(codes) == len(set(codes)) == len(scored)
    assert sum(scored) == 6 * len(QUERIES)
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("num_queries", [1, len(QUERIES)])
def test_no_more_codes_than_a_window_or_a_list_are_at_hand(
    num_queries: int, indexed: Indexed, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = indexed("sq8").index
    directory = index.directory
    of_list = np.bincount(directory.list_id, directory.num_rows * directory.code_bytes, minlength=NLIST)
    window = int(2.5 * of_list.mean())
    read: list[float] = []
    groups = IndexLists.groups

    def reading(self: IndexLists, numbers: Sequence[int]) -> dict[int, Group]:
        read.append(of_list[np.unique(directory.list_id[list(numbers)])].sum())
        return groups(self, numbers)

    monkeypatch.setattr("pipeline.search.scan._WINDOW_BYTES", window)
    monkeypatch.setattr(IndexLists, "groups", reading)
    index.search(QUERIES[:num_queries], 10, nprobe=NLIST)
    assert sum(read) == of_list.sum()
    assert max(read) <= max(window, of_list.max())
    assert len(read) < NLIST


@pytest.mark.parametrize("where", [None, "true"])
def test_no_more_probes_than_a_block_holds_are_at_hand(
    where: str | None, indexed: Indexed, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_hand: list[int] = []
    run = Scan.run

    def running(self: Scan, query: Any, probes: Lists, best: Best, wanted: Any = None) -> None:
        at_hand.append(probes.size)
        run(self, query, probes, best, wanted)

    monkeypatch.setattr("pipeline.search.reader._MAX_PROBES", 100)
    monkeypatch.setattr(Scan, "run", running)
    indexed("sq8").index.search(QUERIES, 1, nprobe=5, where=where)
    assert sum(at_hand) == 5 * len(QUERIES)
    assert max(at_hand) <= 100


@pytest.mark.parametrize("exact", [False, True])
def test_answers_that_are_too_many_for_arrow_are_told(
    exact: bool, indexed: Indexed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowing(*_: object) -> None:
        raise pa.ArrowInvalid("offset overflow while concatenating arrays")

    snapshot = indexed("sq8")
    monkeypatch.setattr("pipeline.search.lists.pa.concat_batches", overflowing)
    monkeypatch.setattr("pipeline.search.exact.pa.concat_tables", overflowing)
    with pytest.raises(UsageError, match=r"columns of 80 answers .*\(offset overflow .*\); search with fewer queries"):
        snapshot.search(QUERIES, 2, exact=exact)


def test_reranked_scores_are_exact_cosines(indexed: Indexed) -> None:
    index = indexed("rabitq").index
    assert index.probing().rerank
    found = index.search(QUERIES, 10)
    rows = np.array([[int(doc_id[1:]) for doc_id in row] for row in found.doc_ids])
    np.testing.assert_allclose(found.scores, np.einsum("qd,qkd->qk", QUERIES, stored()[rows]), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_vectors_are_reranked_as_they_are_stored(dtype: str, indexed: Indexed) -> None:
    found = indexed("rabitq", dtype=dtype).index.search(VECTORS[:20], 1, nprobe=NLIST)
    assert found.doc_ids == [[f"d{row}"] for row in range(20)]
    np.testing.assert_allclose(found.scores, 1, atol=1e-3 if dtype == "float16" else 1e-6)


@pytest.mark.parametrize("codec", CODECS)
def test_k_beyond_the_corpus_answers_with_all_of_it(codec: str, indexed: Indexed) -> None:
    found = indexed(codec).index.search(QUERIES[:3], 10**30)
    assert found.scores.shape == (3, NUM)
    assert all(len(set(row)) == NUM for row in found.doc_ids)


def test_more_lists_are_probed_while_fewer_than_k_are_found(indexed: Indexed) -> None:
    found = indexed("sq8").index.search(QUERIES[:3], 400, nprobe=1)
    assert found.scores.shape == (3, 400)


def test_each_row_is_found_once_however_lists_change_places(indexed: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Centroids as near as each other are told apart by rounding, which is another for another number of queries."""
    random, real = np.random.default_rng(0), Quantizer.nearest_lists

    def rounded(self: Quantizer, vectors: Floats, num: int) -> Lists:
        found = real(self, vectors, NLIST)
        return random.permuted(found[:, :10], axis=1)[:, :num] if num < 10 else found[:, :num]

    monkeypatch.setattr(Quantizer, "nearest_lists", rounded)
    index = indexed("sq8").index
    for number in range(10):
        found = index.search(QUERIES[number : number + 2], NUM, nprobe=1)
        assert [len(set(row)) for row in found.doc_ids] == [NUM, NUM]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("num", [1, 2])
def test_a_corpus_of_a_row_or_two_is_searched(num: int, codec: str, tmp_path: Path) -> None:
    snapshot = make_indexed(tmp_path, codec, VECTORS[:num], nlist="auto")
    found = snapshot.search(QUERIES[:2], 10)
    assert [sorted(row) for row in found.doc_ids] == [[f"d{row}" for row in range(num)]] * 2


@pytest.mark.parametrize("codec", CODECS)
def test_rows_that_are_all_equal_are_found_by_address(codec: str, tmp_path: Path) -> None:
    snapshot = make_indexed(tmp_path, codec, np.repeat(VECTORS[:1], 300, 0), nlist=4)
    found = snapshot.search(VECTORS[:1], 5, nprobe=4)
    assert found.doc_ids == [["d0", "d1", "d2", "d3", "d4"]]


def test_no_query_is_no_answer(indexed: Indexed) -> None:
    found = indexed("sq8").index.search(QUERIES[:0], 3)
    assert (found.doc_ids, found.kept, found.chunks) == ([], [], [])


@pytest.mark.parametrize(
    ("queries", "options", "message"),
    [
        (QUERIES, {"k": 0}, "k must be at least 1: 0"),
        (QUERIES.astype(str), {"k": 1}, "queries are of <U32"),
        (QUERIES.astype(complex), {"k": 1}, "queries are of complex128"),
        (np.ones((2, 3), np.float32), {"k": 1}, r"\(2, 3\), the index holds vectors of dim 16"),
        (QUERIES[0], {"k": 1}, "dim 16"),
        (2 * QUERIES, {"k": 1}, "query 0 has norm 2; queries are unit vectors"),
        (np.where(np.arange(40) == 7, np.nan, QUERIES.T).T, {"k": 1}, "query 7 has norm nan; "),
        (QUERIES, {"k": 1, "nprobe": 0}, "nprobe must be from 1 to the number of lists, 20: 0"),
        (QUERIES, {"k": 1, "nprobe": 21}, "number of lists, 20: 21"),
        (QUERIES, {"k": 1, "recall": 0.0}, "recall must be above 0"),
        (QUERIES, {"k": 1, "where": 5}, "the filter 5 cannot be used"),
        (QUERIES, {"k": 1, "where": "lang = '\udcff'"}, "the filter .* cannot be used"),
        (QUERIES, {"k": 1, "recall": 0.9, "nprobe": 3}, "nprobe or recall, not both"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    queries: np.ndarray, options: dict[str, object], message: str, indexed: Indexed
) -> None:
    with pytest.raises(UsageError, match=message):
        indexed("sq8").index.search(queries, **options)  # type: ignore[arg-type]


WHERE = [
    ("lang = 'de' AND year >= 2010", lambda row: row % 3 == 0 and row % 20 >= 10),
    ("lang IS NULL", lambda row: row % 3 == 2),
    ("doc_id IN ('d3', 'd700', 'd1400')", lambda row: row in (3, 700, 1400)),
    ("year = 1999", lambda row: False),
    ("lang <> 'de'", lambda row: row % 3 == 1),  # null is no
]


@pytest.mark.parametrize(("where", "passes"), WHERE)
@pytest.mark.parametrize("codec", ["float16", "sq8"])
def test_a_filter_finds_k_that_pass_it_or_all_there_are(
    where: str, passes: Callable[[int], bool], codec: str, indexed: Indexed
) -> None:
    snapshot = indexed(codec, lists_per_row=2)
    rows = np.array([row for row in range(NUM) if passes(row)], np.int64)
    found = snapshot.search(QUERIES, 10, nprobe=1, where=where)
    assert found.scores.shape == (len(QUERIES), min(10, len(rows)))
    assert all(passes(int(doc_id[1:])) for row in found.doc_ids for doc_id in row)
    if len(rows):
        everywhere = snapshot.search(QUERIES, 10, nprobe=NLIST, where=where)
        assert recall(everywhere.doc_ids, brute_force(QUERIES, 10, rows)) >= (1.0 if codec == "float16" else 0.9)
    assert snapshot.search(QUERIES, 10, exact=True, where=where).doc_ids == (
        brute_force(QUERIES, 10, rows) if len(rows) else [[]] * len(QUERIES)
    )


def test_deleted_rows_are_no_neighbours(tmp_path: Path) -> None:
    snapshot = make_indexed(tmp_path)
    gone = {doc_id for row in snapshot.index.search(QUERIES, 3, nprobe=NLIST).doc_ids for doc_id in row}
    deleted = with_deletions(snapshot, gone)
    found = deleted.index.search(QUERIES, 10, nprobe=NLIST)
    assert not gone & {doc_id for row in found.doc_ids for doc_id in row}
    left = np.array([row for row in range(NUM) if f"d{row}" not in gone])
    assert recall(found.doc_ids, brute_force(QUERIES, 10, left)) >= 0.9
    assert deleted.index.search(QUERIES[:1], NUM).scores.shape == (1, NUM - len(gone))


def with_deletions(snapshot: SearchableSnapshot, gone: set[str]) -> SearchableSnapshot:
    """Rows deleted in deleted.parquet, as a nightly index would."""
    description, storage = snapshot.index.description, snapshot.storage
    rows = []
    for part in description.parts:
        table = pq.read_table(pa.BufferReader(storage.read(part.codes.file)), columns=["doc_id", "list_id"])
        for position, row in enumerate(table.to_pylist()):
            if row["doc_id"] in gone:
                rows.append({"list_id": row["list_id"], "part": part.part, "position": position})
    return rewritten(snapshot, deleted=pa.Table.from_pylist(rows, DELETED_SCHEMA))


def test_chunks_tell_their_place_without_an_embedding_shard(indexed: Indexed, tmp_path: Path) -> None:
    snapshot = make_indexed(tmp_path, num_chunks=4)
    found = snapshot.search(QUERIES, 5)
    exact = snapshot.search(QUERIES, 5, exact=True)
    assert found.chunks[0][0] == Chunk(found.chunks[0][0].chunk_index, 4, 0, 1)
    assert {column for row in found.kept for columns in row for column in columns} == {"lang", "year"}
    assert set(exact.rows.schema.names) == set(found.rows.schema.names)
    whole = indexed("sq8").search(QUERIES, 5)
    assert whole.chunks[0][0] == Chunk(0, 1, 0, None)


def test_threads_share_a_reader(tmp_path: Path) -> None:
    index = open_index(make_indexed(tmp_path, "rabitq"), cache_bytes=20_000)
    expected = index.search(QUERIES, 5).doc_ids

    def ask(number: int) -> list[list[str]]:
        return index.search(QUERIES[number : number + 1], 5, where="true" if number % 3 else None).doc_ids

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, list(range(len(QUERIES))) * 5))
    assert found == [[row] for row in expected] * 5


@pytest.mark.parametrize("cache_bytes", [0, 5000, 2**28])
def test_what_is_held_is_bounded_and_no_answer_depends_on_it(cache_bytes: int, indexed: Indexed) -> None:
    snapshot = indexed("sq8")
    index = open_index(snapshot, cache_bytes=cache_bytes)
    for _ in range(2):
        assert index.search(QUERIES, 10).doc_ids == snapshot.index.search(QUERIES, 10).doc_ids
        assert index.lists.num_bytes <= cache_bytes


def test_exact_search_answers_with_kept_columns_too(indexed: Indexed) -> None:
    snapshot = indexed("sq8")
    assert snapshot.search(QUERIES, 3, exact=True).doc_ids == exact_search(snapshot, QUERIES, 3).doc_ids
