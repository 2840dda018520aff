"""Search from object storage: how many requests depend on each other, and how many bytes they are."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

import pipeline
from pipeline.uris import Storage
from tests.conftest import S3
from tests.indexed import QUERIES, make_indexed

# A request is answered after so long: what waits for an answer before it asks begins a round of its own.
DELAY_S = 0.3


class Rounds:
    """Counts rounds of requests: those that begin while none of an earlier round is unanswered."""

    def __init__(self, s3: S3) -> None:
        self._lock = threading.Lock()
        self._pending = 0
        self.num_rounds = 0
        self.targets: list[str] = []
        s3.answer = self._begin
        s3.after_reply.append(self._end)

    def _begin(self, method: str, target: str) -> None:
        with self._lock:
            if self._pending == 0:
                self.num_rounds += 1
            self._pending += 1
            self.targets.append(target)
        time.sleep(DELAY_S)

    def _end(self, method: str, target: str) -> None:
        with self._lock:
            self._pending -= 1

    def restart(self) -> None:
        self.num_rounds, self.targets = 0, []


@pytest.mark.parametrize("codec", ["sq8", "rabitq"])
def test_opening_takes_three_dependent_requests_and_a_query_two(codec: str, s3: S3, tmp_path: Path) -> None:
    expected = make_indexed(tmp_path, codec).search(QUERIES, 10).doc_ids
    make_indexed(Storage(s3.uri, s3.options), codec)
    rounds = Rounds(s3)
    snapshot = pipeline.open(s3.uri, s3.options)
    _ = snapshot.index
    assert rounds.num_rounds == 3, rounds.targets
    for number in range(4):
        rounds.restart()
        found = snapshot.search(QUERIES[number : number + 1], 10)
        assert rounds.num_rounds <= 2, rounds.targets
        assert found.doc_ids[0] == expected[number]
    rounds.restart()
    snapshot.search(QUERIES[:1], 10)
    assert rounds.num_rounds <= 1, "only vectors are read again"
