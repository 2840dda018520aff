"""What is measured is what is said: the same documents on both sides, and the arithmetic of the tables."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from jobs import benchmark, flow_benchmark, job_benchmark
from jobs.benchmark_corpus import corpus_config, planned, write_first
from jobs.machine import describe_machine
from pipeline.config import parse_config
from pipeline.errors import InputError, VecmillError
from pipeline.flow.peer import StubEncoder, read_times
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
    write_first(corpus, tmp_path / "first", 25, 4)
    found = ds.dataset(tmp_path / "first", format="parquet").to_table()
    expected = ds.dataset(corpus, format="parquet").to_table(columns=["id", "text"]).slice(0, 25)
    assert found.equals(expected)
    metadata = pq.read_metadata(tmp_path / "first" / "00000.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [4, 4, 4, 4, 4, 4, 1]


@pytest.mark.parametrize("size", [300, 12_000])
def test_no_split_is_cut_by_the_end_of_a_file(tmp_path: Path, size: int) -> None:
    """Else the number of splits, by which the seconds are divided, would be another."""
    corpus = make_corpus(tmp_path / "corpus", 1, 3 * 12_000)
    write_first(corpus, tmp_path / "first", 3 * 12_000, size)
    groups: list[int] = []
    for path in sorted((tmp_path / "first").iterdir()):
        metadata = pq.read_metadata(path)
        groups += [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert groups == [size] * (3 * 12_000 // size)


def test_a_corpus_that_is_too_small_is_refused_with_its_size(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 1, 10)
    with pytest.raises(InputError, match="holds 10 documents, 11 are needed"):
        write_first(corpus, tmp_path / "first", 11, 4)


def test_a_folder_that_is_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no Parquet files with columns id and text in .*nowhere"):
        write_first(tmp_path / "nowhere", tmp_path / "first", 1, 1)


def test_a_corpus_without_its_columns_is_refused_with_those_it_has(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    pq.write_table(pa.table({"id": ["a"], "body": ["b"]}), folder / "0.parquet")
    with pytest.raises(InputError, match=r"columns id and text in .*: text missing among id, body$"):
        write_first(folder, tmp_path / "first", 1, 1)
    (folder / "0.parquet").write_bytes(b"no Parquet")
    with pytest.raises(InputError, match="no Parquet files with columns id and text") as error:
        write_first(folder, tmp_path / "first", 1, 1)
    assert "\n" not in str(error.value)


def test_the_encoders_benchmark_runs_where_ray_and_faiss_are_not_installed() -> None:
    """As on a machine with a GPU that was lent for an hour."""
    modules = ", ".join(f"jobs.encoder_benchmark.{name}" for name in ("contest", "ours", "peers", "ceiling", "alone"))
    code = f"import sys; sys.modules['ray'] = sys.modules['faiss'] = None; import jobs.benchmark, {modules}"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True)


def vectors(rows: Sequence[Sequence[float]], kind: pa.DataType) -> pa.Array:
    return pa.array([list(map(np.float16, row)) for row in rows], kind)


def test_vectors_are_compared_by_document_not_by_place() -> None:
    ours = pa.table({"doc_id": ["a", "b"], "vector": vectors([[1, 0], [0, 1]], pa.list_(pa.float16(), 2))})
    plain = pa.table({"id": ["b", "a"], "embedding": vectors([[0, 2], [3, 0]], pa.list_(pa.float32()))})
    assert job_benchmark.compare(ours, plain).tolist() == [1.0, 1.0]


def test_other_documents_on_the_other_side_are_no_comparison() -> None:
    ours = pa.table({"doc_id": ["a", "b"], "vector": vectors([[1, 0], [0, 1]], pa.list_(pa.float16(), 2))})
    plain = pa.table({"id": ["a"], "embedding": vectors([[1, 0]], pa.list_(pa.float32()))})
    with pytest.raises(VecmillError, match="2 and 1 rows"):
        job_benchmark.compare(ours, plain)


def test_the_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """Times of different rounds are of a machine in different moods."""
    cosines = np.ones(2, np.float32)
    rounds = [
        job_benchmark.Round(embed_s, alone_s, plain_s, 30_000, 1.01, 0.9, cosines)
        for embed_s, alone_s, plain_s in ((10, 8, 20), (20, 14, 60), (15, 15, 15))
    ]
    table = job_benchmark.describe_rounds(rounds, 1000)
    assert table.splitlines()[4].split() == ["median", "15.0", "14.0", "80.0%", "20.0", "2.00"]
    assert "embed: 67 documents/s, 2,000 tokens/s" in table
    assert "padding ratio 1.0100" in table


def test_without_the_plain_script_there_is_no_ratio_to_it() -> None:
    found = job_benchmark.Round(10, 8, None, 30_000, 1.01, 0.9, np.zeros(0, np.float32))
    table = job_benchmark.describe_rounds([found], 1000)
    assert table.splitlines()[1].split() == ["1", "10.0", "8.0", "80.0%", "-", "-"]
    assert "cosine" not in table
    assert "cosine_mean" not in json.loads(json.dumps(found.figures()))


def test_idle_is_what_is_waited_between_splits() -> None:
    """Two stubs: one waits 1 s of 10, the other 0.5 and 1.5 s of 10; when they started is not in it."""
    one = np.array([[100.0, 104.0], [105.0, 110.0]])
    other = np.array([[90.0, 93.0], [93.5, 96.0], [97.5, 100.0]])
    idle_ratio, wait_ms = flow_benchmark.waits_of([one, other])
    assert idle_ratio == pytest.approx(3 / 20)
    assert wait_ms == pytest.approx(1000)


def test_a_stub_is_at_work_as_long_as_its_rate_says(tmp_path: Path) -> None:
    stub = StubEncoder(4, 1_000, tmp_path)
    for _ in range(2):
        found = stub.encode(pa.chunked_array([[[1, 2, 3], [4] * 7]]))
        assert found.vectors.tolist() == [[1, 0, 0, 0]] * 2
    [times] = read_times(tmp_path)
    assert (times[:, 1] - times[:, 0] >= 0.01).all()


def test_the_start_of_the_flow_is_not_in_the_cost_of_a_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 s until the first of 21 splits is done, then one each 50 ms, in any order: 50 ms a split."""

    def time_flow(context: object, work: Sequence[Work]) -> list[tuple[float, SplitReport]]:
        report = SplitReport(read_s=0.01, write_s=0.002)
        return [(20 + 0.05 * number, report) for number in reversed(range(len(work)))]

    monkeypatch.setattr(flow_benchmark, "planned", lambda config: (None, [None] * 21))
    monkeypatch.setattr(flow_benchmark, "_time_flow", time_flow)
    cost = flow_benchmark._split_cost(parse_config({"input": {"uri": "in"}, "store": {"uri": "out"}}), 3)
    assert cost.rounds_ms == [50.0] * 3
    assert flow_benchmark.describe_costs({100: cost}).splitlines()[1].split() == ["100", "50.0", "10.0", "2.0", "0.500"]


def test_the_flow_is_that_of_embed_with_one_split_a_row_group(tmp_path: Path) -> None:
    write_first(make_corpus(tmp_path / "all", 1, 40), tmp_path / "corpus", 40, 10)
    context, work = planned(corpus_config(tmp_path, ["splits.max_rows=10"]))
    assert [(item.split.begin, item.split.end) for item in work] == [(0, 10), (10, 20), (20, 30), (30, 40)]
    assert context.model.dim == 384


@pytest.mark.parametrize("sizes", ["", "ten", "100,", "0", "100,-1"])
def test_sizes_that_are_none_are_a_mistake_of_usage(sizes: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(benchmark.main, ["split", str(tmp_path), "--sizes", sizes])
    assert result.exit_code == 2
    assert "numbers are above 0" in result.stderr


def test_figures_come_with_the_machine() -> None:
    told = describe_machine()
    assert f"{num_cores()} cores, load " in told
    assert "torch 2." in told
