from __future__ import annotations

import io
import threading

import pytest

from pipeline.report import Progress, summary

OUTCOME = {
    "snapshot_id": 3, "published": True, "documents_in": 1200, "embedded": 1000, "reused": 190, "quarantined": 10,
    "deleted": 5, "truncated": 0, "store_uri": "s3://v/docs", "seconds": 12.3,
}  # fmt: skip


def test_the_line_tells_splits_rates_busy_padding_and_time_left() -> None:
    progress = Progress(io.StringIO())
    progress.expect(4, 4000, 2)
    assert progress.line().endswith("? left")
    progress.add(num_bytes=1000, documents=100, tokens=1000, padded_tokens=1100)
    line = progress.line()
    for part in ("splits 1/4", "documents/s", "tokens/s", "of 2", "padding 1.100", "left"):
        assert part in line


def test_the_time_left_is_told_by_bytes_since_a_range_may_hold_many_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("pipeline.report.time.monotonic", lambda: now[0])
    progress = Progress(io.StringIO())
    progress.expect(1, 3000, 1)
    now[0] = 60.0
    progress.add(num_bytes=500)
    progress.add(num_bytes=500)
    assert "splits 2/2" in progress.line()
    assert progress.line().endswith("01:00 gone, 02:00 left")


def test_the_line_is_logged_while_no_split_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, lines = threading.Event(), list[str]()

    def info(template: str, line: str) -> None:
        lines.append(line)
        shown.set()

    monkeypatch.setattr("pipeline.report._LINE_EVERY_S", 0.001)
    monkeypatch.setattr("pipeline.report.log.info", info)
    with Progress(io.StringIO()) as progress:
        progress.expect(1, 1, 1)
        assert shown.wait(10)
    assert lines[0].startswith("splits 0/")


def test_a_second_flow_counts_on() -> None:
    progress = Progress(io.StringIO())
    progress.expect(4, 4000, 1)
    for _ in range(3):
        progress.add(num_bytes=1000)
    progress.expect(1, 1000, 1)
    assert "splits 3/4" in progress.line()


def test_the_summary_is_the_equation() -> None:
    text = summary(OUTCOME)
    assert "published snapshot 3 to s3://v/docs" in text
    assert "1,200 documents in = 1,000 embedded + 190 reused + 10 quarantined; 5 deleted" in text


def test_a_run_with_nothing_new_says_so() -> None:
    assert summary(OUTCOME | {"published": False}).startswith("nothing to do: snapshot 3 is current")
