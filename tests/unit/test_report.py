from __future__ import annotations

import io

import pytest

from pipeline.report import Progress, summary

OUTCOME = {
    "snapshot_id": 3, "published": True, "documents_in": 1200, "embedded": 1000, "reused": 190, "quarantined": 10,
    "deleted": 5, "truncated": 0, "store_uri": "s3://v/docs", "seconds": 12.3,
}  # fmt: skip


def test_the_line_tells_splits_rates_busy_padding_and_time_left() -> None:
    progress = Progress(4, 2, io.StringIO())
    progress.add(documents=100, tokens=1000, padded_tokens=1100, encode_s=0.0)
    line = progress.line()
    for part in ("splits 1/4", "documents/s", "tokens/s", "of 2", "padding 1.100", "left"):
        assert part in line


def test_a_streamed_file_may_hold_more_splits_than_were_planned() -> None:
    progress = Progress(1, 1, io.StringIO())
    for _ in range(3):
        progress.add(documents=1, tokens=1, padded_tokens=1, encode_s=0.0)
    assert progress.figures()["splits"] == 3


def test_without_a_terminal_the_line_comes_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("pipeline.report.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress(100, 1, stream)
    for _ in range(25):
        now[0] += 1
        progress.add(documents=1, tokens=1, padded_tokens=1, encode_s=0.0)
    assert stream.getvalue().count("\n") == 2


def test_the_summary_is_the_equation() -> None:
    text = summary(OUTCOME)
    assert "published snapshot 3 to s3://v/docs" in text
    assert "1,200 documents in = 1,000 embedded + 190 reused + 10 quarantined; 5 deleted" in text


def test_a_run_with_nothing_new_says_so() -> None:
    assert summary(OUTCOME | {"published": False}).startswith("nothing to do: snapshot 3 is current")
