"""What `input.uri` names: lists and globs are files below one root, each once; an entry that names nothing is told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pipeline.config import Input
from pipeline.errors import InputError, StoreError
from pipeline.snapshots.store import check_store, open_store
from pipeline.splits import Corpus
from pipeline.splits.files import Clock
from pipeline.uris import Storage

LATER = Clock(now_ns=lambda: 2**62)
NAMES = [
    "a.jsonl",
    "b.jsonl.gz",
    "x/a.jsonl",
    "x/b1.parquet",
    "x/b2.parquet",
    "x/deep/er/c.csv",
    "x.parquet/part-0.parquet",
    "y/_tmp/d.jsonl",
    "y/e.txt",
    "odd[1].jsonl",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("x")
    return tmp_path / "in"


def _corpus(root: Path, *uris: str) -> Corpus:
    return Corpus.open(Input(uri=tuple(f"{root}/{uri}" if uri else str(root) for uri in uris)))


def _names(root: Path, *uris: str) -> list[str]:
    """Below `root`, whatever the corpus's own root is."""
    corpus = _corpus(root, *uris)
    return [corpus.source.full_uri(file.uri).removeprefix(f"{root}/") for file in corpus.list(LATER)]


@pytest.mark.parametrize(
    ("uris", "wanted"),
    [
        (["*.jsonl"], ["a.jsonl", "odd[1].jsonl"]),
        (["*.jsonl*"], ["a.jsonl", "b.jsonl.gz", "odd[1].jsonl"]),
        (["**/*.jsonl"], ["a.jsonl", "odd[1].jsonl", "x/a.jsonl"]),
        (["x/b?.parquet"], ["x/b1.parquet", "x/b2.parquet"]),
        (["x/b[2-9].parquet"], ["x/b2.parquet"]),
        (["x/b[!2].parquet"], ["x/b1.parquet"]),
        (["?/[ab]*"], ["x/a.jsonl", "x/b1.parquet", "x/b2.parquet"]),
        (["x/**"], ["x/a.jsonl", "x/b1.parquet", "x/b2.parquet", "x/deep/er/c.csv"]),
        (["x/*"], ["x/a.jsonl", "x/b1.parquet", "x/b2.parquet", "x/deep/er/c.csv"]),  # a folder is taken whole
        (["*.parquet"], ["x.parquet/part-0.parquet"]),
        (["x/d*/*/"], ["x/deep/er/c.csv"]),
        (["odd[1].jsonl"], ["odd[1].jsonl"]),  # there is such a file
        (["y", "a.jsonl"], ["a.jsonl", "y/e.txt"]),
        (["y/_tmp/"], ["y/_tmp/d.jsonl"]),
        (["y/_tmp", "a.jsonl"], ["a.jsonl", "y/_tmp/d.jsonl"]),
        (["y/_tmp/d.jsonl", "y"], ["y/_tmp/d.jsonl", "y/e.txt"]),
        (["x", "x/a.jsonl", "x/*.jsonl", "**/a.jsonl"],
         ["a.jsonl", "x/a.jsonl", "x/b1.parquet", "x/b2.parquet", "x/deep/er/c.csv"]),
        (["", "x"], sorted(name for name in NAMES if "_tmp" not in name)),
    ],
    ids=str,
)  # fmt: skip
def test_entries_name_files_each_once(root: Path, uris: list[str], wanted: list[str]) -> None:
    assert _names(root, *uris) == wanted


def test_ids_are_relative_to_the_longest_common_folder(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        corpus = _corpus(root, "x/deep/er/c.csv", "x/*.jsonl")
    assert corpus.root == f"{root}/x"
    assert [file.uri for file in corpus.list(LATER)] == ["a.jsonl", "deep/er/c.csv"]
    assert f"{root}/x" in caplog.text
    assert _corpus(root, "x/*.jsonl").root == _corpus(root, "x").root == _corpus(root, "x", "x/deep").root
    # One file alone is the corpus that it was before there were lists.
    assert _corpus(root, "a.jsonl").root == f"{root}/a.jsonl"
    assert [file.uri for file in _corpus(root, "a.jsonl").list(LATER)] == ["a.jsonl"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("nothing/", r"no files at .*/in/nothing;"),
        ("z*.jsonl", r"no files at .*/in/z\*\.jsonl;"),
        ("y/*/", r"only hidden files at .*/in/y/\*"),
        ("nothing.jsonl", r"no files at .*/in/nothing\.jsonl"),
    ],
)
def test_an_entry_that_names_nothing_is_told(root: Path, entry: str, message: str) -> None:
    (root / "y" / "e.txt").unlink()
    for uris in ([entry], ["x", entry]):
        with pytest.raises(InputError, match=message):
            _names(root, *uris)


@pytest.mark.parametrize(
    "uris",
    [["s3://one/x", "s3://other/x"], ["s3://one/x", "/x"], ["memory://a/x", "memory://b/x"],
     ["zip://x::s3://b/a.zip", "zip://x::s3://b/b.zip"]],
)  # fmt: skip
def test_what_has_no_folder_in_common_is_refused(uris: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Storage, "exists", lambda *_: False)
    with pytest.raises(InputError, match="no folder in common"):
        Corpus.open(Input(uri=tuple(uris)))


def test_a_store_may_lie_beside_what_is_read_and_not_inside(root: Path) -> None:
    """Below the common root of a list lies more than is read."""
    corpus = _corpus(root, "x/*.parquet", "y")
    for place in ("x/store", "y/store", "y", "x", ""):
        for check in (
            lambda store: check_store(store, corpus.root, corpus.read_uris),
            lambda store: open_store(store, corpus.root, corpus.read_uris, create=True),
        ):
            with pytest.raises(StoreError, match="its input"):
                check(Storage(str(root / place)))
    store = Storage(str(root / "store"))
    assert not check_store(store, corpus.root, corpus.read_uris)
    assert open_store(store, corpus.root, corpus.read_uris, create=True).input_root == str(root)
    with pytest.raises(StoreError, match="is of the corpus"):
        check_store(store, _corpus(root, "x").root, _corpus(root, "x").read_uris)
