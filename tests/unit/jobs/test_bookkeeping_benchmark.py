"""Bookkeeping of many splits: requests for listings and journals alone, and a few hundred bytes a split."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import pytest

from jobs import bookkeeping_benchmark as benchmark
from jobs.bookkeeping_ray import write_lines
from pipeline.config import SplitBounds
from pipeline.planning import Planner
from pipeline.splits import InputFile, plan_file
from pipeline.uris import Storage

NUM_SPLITS = 2_500


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_requests_are_for_pages_and_journals_and_what_no_journal_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "_UNJOURNALLED", 7)
    costs = {name: benchmark._measure(name, str(tmp_path), NUM_SPLITS) for name in benchmark.MEASURES}
    pages, journals, listings = 3, 1, 1
    assert costs["journal"].requests == journals
    assert costs["fresh"].requests == 0
    assert costs["all"].requests == pages + listings + journals + 7
    assert costs["half"].requests == 2 + listings + journals + 3
    # A listing of the shards, two tables, the manifest.
    assert costs["publish"].requests == pages + 3
    # The listing of manifests, the manifest, its splits; with a new file its shards, and the records listed.
    assert costs["current"].requests == 3
    assert costs["again"].requests == 4 + pages
    assert costs["night"].requests == 2 + pages + 3, "the tables of the parent first"


def test_a_planned_split_takes_a_third_of_a_kilobyte(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "0.jsonl").write_text('{"text": "a"}\n')
    config = benchmark._config(str(tmp_path))
    files = benchmark._files(config, NUM_SPLITS)
    planner = Planner(config, None, Storage(config.input.uris[0]), "e" * 16, Storage(config.store.uri), None)
    tracemalloc.start()
    try:
        plan = planner.plan(files)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(plan.work) == NUM_SPLITS
    assert peak / NUM_SPLITS < 400


def test_a_line_is_a_split(tmp_path: Path) -> None:
    write_lines(tmp_path / "corpus", 250)
    source = Storage(str(tmp_path / "corpus"))
    bounds = SplitBounds.model_validate({"max_rows": 1})
    files = [InputFile(info.name, info.size, info.identity, info.identity_kind) for info in source.list()]
    splits = [split for file in files for split in plan_file(source, file, bounds, None)]
    begins = [(split.file.uri, split.begin) for split in splits]
    lines = [(file.uri, index * 1_024) for file in files for index in range(file.size // 1_024)]
    assert begins == lines
    assert len(lines) == 250
