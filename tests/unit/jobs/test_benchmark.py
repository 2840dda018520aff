"""What is measured is what is said: the same documents on both sides, and the arithmetic of the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from jobs import benchmark
from jobs.machine import describe_machine
from pipeline.config import parse_config
from pipeline.errors import InputError, VecmillError
from pipeline.flow.rows import SplitReport, Work
from pipeline.parallel import num_cores


def make_corpus(folder: Path, num_files: int, num_rows: int) -> Path:
    folder.mkdir()
    for index in range(num_files):
        ids = [f"{index}-{row:05}" for row in range(num_rows)]
        table = pa.table({"id": ids, "title": ids, "text": [f"text of {name}" for name in ids]})
        pq.write_table(table, folder / f"{index:05}.parquet")
    return folder


def test_the_first_documents_in_the_order_of_files(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 3, 10)
    benchmark.write_first(corpus, tmp_path / "first", 25, 4)
    found = ds.dataset(tmp_path / "first", format="parquet").to_table()
    expected = ds.dataset(corpus, format="parquet").to_table(columns=["id", "text"]).slice(0, 25)
    assert found.equals(expected)
    metadata = pq.read_metadata(tmp_path / "first" / "00000.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [4, 4, 4, 4, 4, 4, 1]


@pytest.mark.parametrize("size", [300, 12_000])
def test_no_split_is_cut_by_the_end_of_a_file(tmp_path: Path, size: int) -> None:
    """Else the number of splits, by which the seconds are divided, would be another."""
    corpus = make_corpus(tmp_path / "corpus", 1, 3 * 12_000)
    benchmark.write_first(corpus, tmp_path / "first", 3 * 12_000, size)
    groups: list[int] = []
    for path in sorted((tmp_path / "first").iterdir()):
        metadata = pq.read_metadata(path)
        groups += [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert groups == [size] * (3 * 12_000 // size)


def test_a_corpus_that_is_too_small_is_refused_with_its_size(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 1, 10)
    with pytest.raises(InputError, match="holds 10 documents, 11 are needed"):
        benchmark.write_first(corpus, tmp_path / "first", 11, 4)


def test_a_folder_that_is_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no Parquet files with columns id and text in .*nowhere"):
        benchmark.write_first(tmp_path / "nowhere", tmp_path / "first", 1, 1)


def vectors(rows: Sequence[Sequence[float]], kind: pa.DataType) -> pa.Array:
    return pa.array([list(map(np.float16, row)) for row in rows], kind)


def test_vectors_are_compared_by_document_not_by_place() -> None:
    ours = pa.table({"doc_id": ["a", "b"], "vector": vectors([[1, 0], [0, 1]], pa.list_(pa.float16(), 2))})
    plain = pa.table({"id": ["b", "a"], "embedding": vectors([[0, 2], [3, 0]], pa.list_(pa.float32()))})
    assert benchmark.compare(ours, plain).tolist() == [1.0, 1.0]


def test_other_documents_on_the_other_side_are_no_comparison() -> None:
    ours = pa.table({"doc_id": ["a", "b"], "vector": vectors([[1, 0], [0, 1]], pa.list_(pa.float16(), 2))})
    plain = pa.table({"id": ["a"], "embedding": vectors([[1, 0]], pa.list_(pa.float32()))})
    with pytest.raises(VecmillError, match="2 and 1 rows"):
        benchmark.compare(ours, plain)


def test_the_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """Times of different rounds are of a machine in different moods."""
    cosines = np.ones(2, np.float32)
    rounds = [benchmark.Round(a, b, 1.01, 0.9, cosines) for a, b in ((10, 20), (20, 60), (15, 15))]
    table = benchmark.describe_rounds(rounds, 1000)
    assert table.splitlines()[4].split() == ["median", "15.0", "20.0", "2.00"]
    assert "documents/s: embed 67, plain 50" in table
    assert "padding ratio 1.0100" in table


def test_the_start_of_the_flow_is_not_in_the_cost_of_a_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 s until the first of 21 splits is done, then one each 50 ms, in any order: 50 ms a split."""

    def time_flow(context: object, work: Sequence[Work]) -> list[tuple[float, SplitReport]]:
        report = SplitReport(read_s=0.01, write_s=0.002)
        return [(20 + 0.05 * number, report) for number in reversed(range(len(work)))]

    monkeypatch.setattr(benchmark, "_planned", lambda config: (None, [None] * 21))
    monkeypatch.setattr(benchmark, "_time_flow", time_flow)
    cost = benchmark._split_cost(parse_config({"input": {"uri": "in"}, "store": {"uri": "out"}}), 3)
    assert cost.rounds_ms == [50.0] * 3
    assert benchmark.describe_costs({100: cost}).splitlines()[1].split() == ["100", "50.0", "10.0", "2.0", "0.500"]


def test_the_flow_is_that_of_embed_with_one_split_a_row_group(tmp_path: Path) -> None:
    benchmark.write_first(make_corpus(tmp_path / "all", 1, 40), tmp_path / "corpus", 40, 10)
    context, work = benchmark._planned(benchmark._config(tmp_path, ["splits.max_rows=10"]))
    assert [(item.split.begin, item.split.end) for item in work] == [(0, 10), (10, 20), (20, 30), (30, 40)]
    assert context.model.dim == 384


@pytest.mark.parametrize("sizes", ["", "ten", "100,", "0", "100,-1"])
def test_sizes_that_are_none_are_a_mistake_of_usage(sizes: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(benchmark.main, ["split", str(tmp_path), "--sizes", sizes])
    assert result.exit_code == 2
    assert "sizes are numbers of documents" in result.stderr


def test_figures_come_with_the_machine() -> None:
    told = describe_machine()
    assert f"{num_cores()} cores, load " in told
    assert "torch 2." in told
