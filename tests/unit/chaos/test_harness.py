"""What the chaos harness counts is what it says, and its corpora are what its edges need."""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from tests.chaos.campaign import summary
from tests.chaos.documents import corpus_files
from tests.chaos.edges import EDGES
from tests.chaos.judging import encoded_again, recorded, rewritten
from tests.chaos.proxy import Exchange, Reply

SPLITS = {letter: letter * 32 for letter in "abc"}


def requests(*puts: str) -> list[Exchange]:
    """`shard a1`: attempt 1 of split a; `record a1 at 7`: answered when so many requests had been read."""
    exchanges = []
    for number, put in enumerate(puts):
        kind, name, *rest = put.split()
        split_id, attempt = SPLITS[name[0]], name[1] * 16
        path = {
            "shard": f"store/embeddings/e/s/{split_id[:2]}/{split_id}-{attempt}.parquet",
            "record": f"store/records/e/s/{split_id[:2]}/{split_id}-0-{attempt}.json",
        }[kind]
        exchange = Exchange(number, "PUT", f"/bucket/{path}", path, False, {}, b"")
        if rest == ["refused"]:
            exchange.reply, exchange.answered_at = Reply(503, [], b""), number + 1
        elif rest != ["lost"]:
            exchange.reply, exchange.answered_at = Reply(200, [], b""), int(rest[1]) if rest else number + 1
        exchanges.append(exchange)
    return exchanges


def test_a_split_that_was_in_work_at_a_kill_counts_as_put_twice_only() -> None:
    seen = requests("shard a1", "record a1", "shard b1", "shard b2", "record b2")
    assert encoded_again(seen, [0, 3]) == (1, 0)


def test_a_recorded_split_that_is_encoded_by_a_later_command_counts_as_known() -> None:
    seen = requests("shard a1", "record a1", "shard a2", "record a2")
    assert encoded_again(seen, [0, 2]) == (1, 1)


def test_a_record_that_came_after_the_command_had_started_was_not_known() -> None:
    seen = requests("shard a1", "record a1 at 4", "shard a2", "record a2")
    assert encoded_again(seen, [0, 2]) == (1, 0)


def test_a_put_that_was_tried_again_is_one() -> None:
    assert encoded_again(requests("shard a1", "shard a1", "record a1"), [0]) == (0, 0)


def test_a_record_that_was_not_stored_is_none() -> None:
    assert recorded(requests("record a1 lost", "record a1 refused", "record b1")) == {SPLITS["b"]: 3}


def stored(name: str, etag: str, status: int = 200) -> Exchange:
    reply = Reply(status, [("ETag", etag)], b"")
    return Exchange(0, "PUT", f"/bucket/store/{name}", f"store/{name}", False, {}, b"", reply, 1)


def test_a_name_that_a_manifest_can_list_may_be_stored_again_only_as_it_was() -> None:
    same = [stored("records/a", "1"), stored("records/a", "1"), stored("records/a", "2", status=412)]
    assert rewritten([*same, stored("runs/r/run.json", "1"), stored("runs/r/run.json", "2")]) == 0
    assert rewritten([*same, stored("snapshots/1.json", "1"), stored("snapshots/1.json", "2")]) == 1


def test_the_versions_of_the_corpus_differ_in_content_and_not_in_size() -> None:
    first, second = corpus_files(1), corpus_files(2)
    for name in first:
        assert len(first[name]) == len(second[name])
        assert first[name] != second[name]
    assert gzip.decompress(first["b.jsonl.gz"]) != gzip.decompress(second["b.jsonl.gz"])


def test_edges_have_names_of_their_own() -> None:
    assert len({edge.name for edge in EDGES}) == len(EDGES)


def result(edge: str, **values: Any) -> dict[str, Any]:
    zeros = dict.fromkeys(("kills", "lost", "doubled", "foreign", "strayed", "rewritten", "encoded_again"), 0)
    return {"edge": edge, "kind": "race", "counts": True, "ok": True, "exits": [0], "faults": {}, **zeros, **values}


def test_the_table_has_the_last_word_on_each_edge() -> None:
    table = summary(
        [
            result("a", ok=False, lost=7),
            result("a", exits=[-9, 0], kills=1, faults={"503": 4}),
            result("b", counts=False, lost=5),
            result("c", doubled=2, ok=False),
        ]
    )
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["race", "2", "1", "3", "1", "4", "0", "2", "0", "0", "0", "0"],
        ["all", "2", "1", "3", "1", "4", "0", "2", "0", "0", "0", "0"],
    ]


@pytest.mark.parametrize("put", ["store.json", "manifest", "record", "journal"])
@pytest.mark.parametrize("moment", ["before", "stored", "after"])
def test_each_put_of_the_protocol_has_its_three_edges(put: str, moment: str) -> None:
    assert f"driver killed, {put}, {moment}" in {edge.name for edge in EDGES}
