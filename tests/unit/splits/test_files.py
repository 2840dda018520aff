"""What is listed, what is refused, and that no file is listed while its identity may be stale."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from pipeline.errors import ChangedError, InputError
from pipeline.splits.files import Clock, InputFile, file_format, list_input
from pipeline.uris import Storage

LATER = Clock(now_ns=lambda: 2**62, sleep=lambda seconds: pytest.fail("waited"))


def _touch(root: Path, *names: str) -> Storage:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    return Storage(str(root))


def test_files_come_sorted_by_uri_without_hidden_ones(tmp_path: Path) -> None:
    names = ["b.jsonl", "a/z.parquet", "a/y.JSONL.GZ", "c.ndjson.zst", "d.pq", "_tmp/x.jsonl", "a/.x.jsonl", "_SUCCESS"]
    files = list_input(_touch(tmp_path, *names), None, None, LATER)
    assert [file.uri for file in files] == ["a/y.JSONL.GZ", "a/z.parquet", "b.jsonl", "c.ndjson.zst", "d.pq"]
    assert files[0].size == 1


def test_other_files_are_left_alone_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        files = list_input(_touch(tmp_path, "a.jsonl", "README.md", "x.json"), None, None, LATER)
    assert [file.uri for file in files] == ["a.jsonl"]
    assert "2 files" in caplog.text
    assert "README.md" in caplog.text


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.csv", ("csv", None)),
        ("a.TSV.gz", ("tsv", "gz")),
        ("a.txt", ("text", None)),
        ("a.txt.xz", ("text", "xz")),
        ("a.jsonl.bz2", ("jsonl", "bz2")),
        ("a.ndjson.xz", ("jsonl", "xz")),
        ("data-00000-of-00001.arrow", ("arrow", None)),
        ("a.feather", ("arrow", None)),
        ("a.arrow.gz", None),
    ],
)
def test_a_suffix_tells_the_format(name: str, found: object) -> None:
    assert file_format(name, None) == found


def test_what_hugging_face_writes_beside_its_data_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["train/data-00000-of-00001.arrow", "train/state.json", "train/dataset_info.json", "dataset_dict.json"]
    with caplog.at_level(logging.WARNING):
        files = list_input(_touch(tmp_path, *names), None, None, LATER)
    assert [file.uri for file in files] == names[:1]
    assert not caplog.text


def test_a_format_in_the_config_overrides_the_suffix() -> None:
    assert file_format("part-0000.gz", "jsonl") == ("jsonl", "gz")
    assert file_format("part-0000.txt", "jsonl") == ("jsonl", None)
    assert file_format("part-0000.txt.bz2", "lines") == ("lines", "bz2")
    assert file_format("part-0000", "parquet") == ("parquet", None)
    assert file_format("part-0000", None) is None
    assert file_format("a.parquet.gz", None) is None


def test_nothing_to_read_names_the_uri_and_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no files at {tmp_path}/none"):
        list_input(Storage(str(tmp_path / "none")), None, None, LATER)
    with pytest.raises(InputError, match=r"in 1 files at .*: notes.md"):
        list_input(_touch(tmp_path, "notes.md"), None, None, LATER)
    with pytest.raises(InputError, match="only hidden files"):
        list_input(_touch(tmp_path / "hidden", ".x.jsonl"), None, None, LATER)


def test_a_single_file(tmp_path: Path) -> None:
    storage = _touch(tmp_path, "a.jsonl", "_b.jsonl", "c.md")
    assert [file.uri for file in list_input(storage, "_b.jsonl", None, LATER)] == ["_b.jsonl"]
    assert [file.uri for file in list_input(storage, "c.md", "jsonl", LATER)] == ["c.md"]
    with pytest.raises(InputError, match="input not found"):
        list_input(storage, "d.jsonl", None, LATER)
    with pytest.raises(InputError, match=r"input\.format"):
        list_input(storage, "c.md", None, LATER)


def test_a_file_just_written_is_listed_only_after_its_identity_stood(tmp_path: Path) -> None:
    storage = _touch(tmp_path, "a.jsonl", "b.jsonl")
    now_ns = os.stat(tmp_path / "a.jsonl").st_ctime_ns
    slept: list[float] = []

    def write_while_waiting(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 1:
            (tmp_path / "a.jsonl").write_text("longer")

    files = list_input(storage, None, None, Clock(lambda: now_ns, write_while_waiting))
    assert slept == [2.0, 2.0]
    assert [file.size for file in files] == [6, 1]


def test_a_file_written_all_the_while_is_a_fault_not_a_hang(tmp_path: Path) -> None:
    storage = _touch(tmp_path, "a.jsonl")
    now_ns = os.stat(tmp_path / "a.jsonl").st_ctime_ns

    def append(seconds: float) -> None:
        with (tmp_path / "a.jsonl").open("a") as file:
            file.write("more")

    with pytest.raises(ChangedError, match=r"still being written: .*a\.jsonl"):
        list_input(storage, None, None, Clock(lambda: now_ns, append))


def test_another_identity_or_uri_is_another_file() -> None:
    file = InputFile("a", 1, "x", "etag")
    assert len(file.file_id) == 32
    assert file.file_id == InputFile("a", 2, "x", "stat").file_id
    assert len({file.file_id, InputFile("b", 1, "x", "etag").file_id, InputFile("a", 1, "y", "etag").file_id}) == 3


def test_a_name_that_is_not_utf8_is_refused_in_a_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = os.fsdecode(b"caf\xe9.jsonl")
    storage = _touch(tmp_path, "a.jsonl", name)
    for single in (None, name):
        with pytest.raises(InputError, match=r"not UTF-8: .*caf\\udce9\.jsonl; rename it"):
            list_input(storage, single, None, LATER)
    (tmp_path / name).rename(tmp_path / os.fsdecode(b"caf\xe9.md"))
    assert [file.uri for file in list_input(storage, None, None, LATER)] == ["a.jsonl"]
    assert "caf\\udce9.md" in caplog.text
