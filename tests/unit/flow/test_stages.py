"""The stages one after the other, as Ray would call them, without Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import Config, parse_config
from pipeline.encoder import EncodedSplit, Encoder
from pipeline.errors import StorageFault
from pipeline.flow.context import DriverEnvironment, FlowContext
from pipeline.flow.ledger import Ledger, Trial, work_id
from pipeline.flow.rows import Row, Work, Written
from pipeline.flow.stages import EncodeStage, ReadStage, WriteStage
from pipeline.model import describe_model
from pipeline.read import packs as read_packs
from pipeline.snapshots.records import Record, record_name
from pipeline.splits import Split, list_input, pack_small_files, plan_files
from pipeline.splits.files import Clock
from pipeline.uris import Storage
from tests.stores import Killed

KEEP = pa.schema([pa.field("lang", pa.string())])
SETTLED = Clock(now_ns=lambda: 2**62)


def make_context(folder: Path, model: Path, **store: Any) -> FlowContext:
    config: Config = parse_config(
        {
            "input": {"uri": str(folder / "in"), "id": "id", "text": "{text}", "keep": ["lang"]},
            "store": {"uri": str(folder / "store"), **store},
            "encoder": {"model": str(model), "compute": "float32"},
        }
    )
    description = describe_model(model, config.encoder)
    return FlowContext(
        config=config,
        run_id="run",
        model=description,
        encoder_fp=description.fingerprint("{text}"),
        shard_fp="5" * 16,
        keep=KEEP,
        input_storage=Storage(config.input.uris[0]),
        store_storage=Storage(config.store.uri),
    )


def work_on(context: FlowContext, lines: Iterable[object]) -> pa.Table:
    """The source batch of one JSONL file."""
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    context.input_storage.put("a.jsonl", text.encode())
    files = list_input(context.input_storage, None, None, SETTLED)
    planned, _ = plan_files(context.input_storage, files, context.config.input, context.config.splits)
    return pa.Table.from_pylist([Work(split).to_item() for split in planned])


def run_stages(context: FlowContext, batch: pa.Table) -> list[Written]:
    encode, write = EncodeStage(context, 1), WriteStage(context)
    return [Written.unpack(write(encode(row)).to_pylist()[0]) for row in ReadStage(context)(batch)]


LINES = [{"id": "a", "text": "first text", "lang": "en"}, "no json", {"id": "b", "text": "the second", "lang": None}]


def test_three_stages_make_a_shard_a_quarantine_file_and_a_record(tiny: Path, tmp_path: Path) -> None:
    context = make_context(tmp_path, tiny)
    [written] = run_stages(context, work_on(context, LINES))
    record = written.record
    assert record is not None, written.report
    assert record.quarantine is not None
    assert (record.num_documents, record.num_counted, record.num_quarantined) == (3, 3, 1)
    assert record.reasons == {"invalid_json": 1}
    shard = pq.read_table(pa.BufferReader(context.store_storage.read(record.shard.file)))
    assert shard.select(["doc_id", "lang"]).to_pylist() == [
        {"doc_id": "a", "lang": "en"},
        {"doc_id": "b", "lang": None},
    ]
    quarantined = pq.read_table(pa.BufferReader(context.store_storage.read(record.quarantine.file)))
    assert "text" not in quarantined.column_names


def test_text_travels_only_where_it_is_asked_for(tiny: Path, tmp_path: Path) -> None:
    for number, store in enumerate([{}, {"keep_text": True}]):
        context = make_context(tmp_path / str(number), tiny, **store)
        [row] = ReadStage(context)(work_on(context, LINES))
        assert ("text" in Row.unpack(row).documents.column_names) == bool(store)
        [written] = run_stages(context, work_on(context, LINES))
        assert written.record is not None
        schema = pq.read_schema(pa.BufferReader(context.store_storage.read(written.record.shard.file)))
        assert ("text" in schema.names) == bool(store)


def test_quarantined_text_is_kept_only_where_it_is_asked_for(tiny: Path, tmp_path: Path) -> None:
    context = make_context(tmp_path, tiny, quarantine_text=True)
    [written] = run_stages(context, work_on(context, LINES))
    assert written.record is not None
    assert written.record.quarantine is not None
    quarantined = pq.read_table(pa.BufferReader(context.store_storage.read(written.record.quarantine.file)))
    assert quarantined["text"].to_pylist() == ["no json"]
    shard = pq.read_schema(pa.BufferReader(context.store_storage.read(written.record.shard.file)))
    assert "text" not in shard.names


def test_documents_without_a_vector_are_quarantined_and_the_rest_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Encoder.encode

    def encode(self: Encoder, input_ids: Any, **options: Any) -> EncodedSplit:
        made = real(self, input_ids)
        return EncodedSplit(made.vectors, made.num_padded_tokens, invalid=[1], failed={3: "no such luck"})

    monkeypatch.setattr(Encoder, "encode", encode)
    context = make_context(tmp_path, tiny)
    lines = [{"id": f"d{i}", "text": f"text {i}", "lang": "en"} for i in range(5)]
    [written] = run_stages(context, work_on(context, lines))
    record = written.record
    assert record is not None
    assert record.quarantine is not None
    shard = pq.read_table(pa.BufferReader(context.store_storage.read(record.shard.file)))
    assert shard["doc_id"].to_pylist() == ["d0", "d2", "d4"]
    quarantined = pq.read_table(pa.BufferReader(context.store_storage.read(record.quarantine.file))).to_pylist()
    assert [(row["doc_id"], row["stage"], row["reason"]) for row in quarantined] == [
        ("d1", "encode", "invalid_vector"),
        ("d3", "encode", "encode_failed"),
    ]
    norms = np.linalg.norm(np.array(shard["vector"].to_pylist()), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-3)


def test_an_encoder_that_was_killed_twice_by_one_document_quarantines_it_and_encodes_the_rest(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger and the stages together; integration tests kill real processes."""
    lines = [{"id": f"d{i}", "text": f"the text of {i}", "lang": "en"} for i in range(9)]
    context = make_context(tmp_path / "clean", tiny)
    [clean] = run_stages(context, work_on(context, lines))
    assert clean.record is not None
    expected = pq.read_table(pa.BufferReader(context.store_storage.read(clean.record.shard.file)))
    context = make_context(tmp_path / "killed", tiny)
    [work] = Work.from_batch(work_on(context, lines))
    forward, deaths = Encoder._forward, list[int]()
    [row] = ReadStage(context)(pa.Table.from_pylist([work.to_item()]))
    poison = Row.unpack(row).documents["input_ids"][4].as_py()

    def killing(self: Encoder, ids: Any, mask: Any) -> Any:
        if any(line[: len(poison)] == poison for line in ids.tolist()):
            deaths.append(len(ids))
            raise Killed
        return forward(self, ids, mask)

    monkeypatch.setattr(Encoder, "_forward", killing)
    ledger = Ledger(context.store_storage, context.run_id)
    for _ in range(6):
        item = replace(work, trial=ledger.trial(work.split)).to_item()
        try:
            [written] = run_stages(context, pa.Table.from_pylist([item]))
            break
        except Killed:
            assert ledger.learn([work.split], lambda node_id: True)
    assert deaths == [9, 9, 1, 1]
    record = written.record
    assert record is not None, written.report
    assert record.reasons == {"killed_process": 1}
    shard = pq.read_table(pa.BufferReader(context.store_storage.read(record.shard.file)))
    assert shard.drop_columns("vector").equals(
        expected.filter(pa.compute.not_equal(expected["doc_id"], "d4")).drop_columns("vector")
    )
    found, wanted = (np.array(table["vector"].to_pylist(), np.float32) for table in (shard, expected))
    np.testing.assert_allclose(found, np.delete(wanted, 4, axis=0), atol=2e-3)


def test_a_reader_that_was_killed_tokenizes_in_parts_and_keeps_the_order(tiny: Path, tmp_path: Path) -> None:
    lines = [{"id": f"d{i}", "text": f"text {i}", "lang": "en"} for i in range(600)]
    context = make_context(tmp_path, tiny)
    [work] = Work.from_batch(work_on(context, lines))
    [plain] = ReadStage(context)(pa.Table.from_pylist([work.to_item()]))
    rows = Row.unpack(plain).documents["row"].to_pylist()
    trial = Trial(work_id(work.split), 4, alone={"tokenize": rows[300:302]}, guilty={"tokenize": [rows[5]]})
    [marked] = ReadStage(context)(pa.Table.from_pylist([replace(work, trial=trial).to_item()]))
    expected = Row.unpack(plain).documents
    expected = expected.filter(pa.compute.not_equal(expected["row"], rows[5]))
    found = Row.unpack(marked)
    assert found.documents.equals(expected)
    assert [(row["doc_id"], row["stage"], row["reason"]) for row in found.quarantine.to_pylist()] == [
        ("d5", "tokenize", "killed_process")
    ]


def test_a_stage_never_raises_reading(tiny: Path, tmp_path: Path) -> None:
    context = make_context(tmp_path, tiny)
    batch = work_on(context, LINES)
    context.input_storage.put("a.jsonl", b'{"id": "z", "text": "rewritten meanwhile"}\n')
    [written] = run_stages(context, batch)
    assert (written.report.status, written.report.changed, written.record) == ("failed", True, None)


def test_a_stage_never_raises_loading_the_model(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context(tmp_path, tiny)
    rows = list(ReadStage(context)(work_on(context, LINES)))

    def broken(self: Encoder, *args: object, **kwargs: object) -> None:
        raise RuntimeError("weights ended early")

    monkeypatch.setattr(Encoder, "__init__", broken)
    written = Row.unpack(EncodeStage(context, None)(rows[0]))
    assert written.report.status == "failed"
    assert "weights ended early" in written.report.error


def test_a_stage_never_raises_encoding(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context(tmp_path, tiny)

    def broken(self: Encoder, input_ids: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Encoder, "encode", broken)
    [written] = run_stages(context, work_on(context, LINES))
    assert (written.report.status, written.record) == ("failed", None)
    assert "MemoryError" in written.report.error


def test_a_stage_never_raises_writing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context(tmp_path, tiny)
    batch = work_on(context, LINES)

    def full(self: Storage, name: str, data: object) -> None:
        raise StorageFault(f"disk full: {name}")

    monkeypatch.setattr(Storage, "put", full)
    [written] = run_stages(context, batch)
    assert (written.report.status, written.report.exit_code) == ("failed", 75)
    assert "disk full" in written.report.error


def test_a_range_that_is_recorded_comes_back_as_a_status_row(tiny: Path, tmp_path: Path) -> None:
    """Nothing is skipped inside Ray: a generator that yields other rows at its retry loses splits."""
    context = make_context(tmp_path, tiny)
    work_on(context, LINES)
    files = list_input(context.input_storage, None, None, SETTLED)
    [split], _ = plan_files(context.input_storage, files, context.config.input, context.config.splits)
    assert split.end is not None
    done = Work(split, frozenset({(split.begin, split.end, True)}))
    [row] = ReadStage(context)(pa.Table.from_pylist([done.to_item()]))
    assert Row.unpack(row).report.status == "done"
    written = Written.unpack(WriteStage(context)(EncodeStage(context, None)(row)).to_pylist()[0])
    assert (written.report.status, written.record) == ("done", None)


def test_rows_have_one_schema_each_between_stages_whatever_happened(tiny: Path, tmp_path: Path) -> None:
    """Ray unifies the schemas of blocks; a failed row must not differ from a good one."""
    context = make_context(tmp_path, tiny)
    batch = work_on(context, LINES)
    [good] = ReadStage(context)(batch)
    context.input_storage.put("a.jsonl", b"{}\n")
    [failed] = ReadStage(context)(batch)
    assert good.schema.equals(failed.schema)
    encode = EncodeStage(context, None)
    assert encode(good).schema.equals(encode(failed).schema)


# -- packs ---------------------------------------------------------------------


def pack_on(context: FlowContext, files: Mapping[str, Iterable[object]], **changes: Any) -> pa.Table:
    """The source batch of one pack of JSONL files."""
    for name, lines in files.items():
        text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
        context.input_storage.put(name, text.encode())
    listed = list_input(context.input_storage, None, None, SETTLED)
    planned, _ = plan_files(context.input_storage, listed, context.config.input, context.config.splits)
    [pack] = pack_small_files(planned, context.config.splits)
    assert len(pack.members) == len(files)
    return pa.Table.from_pylist([Work(pack, **changes).to_item()])


def doc(name: str, words: int = 3) -> dict[str, str]:
    return {"id": name, "text": f"{name} " * words, "lang": "en"}


PACK: dict[str, list[Any]] = {
    "a.jsonl": [doc("a"), doc("b", 500)],
    "b.jsonl": ["no json", doc("c")],
    "c.jsonl": [],
    "d.jsonl": [doc("d")],
}


def quarantine_of(context: FlowContext, written: Written) -> list[tuple[str, int | None, str]]:
    assert written.record is not None
    assert written.record.quarantine is not None
    table = pq.read_table(pa.BufferReader(context.store_storage.read(written.record.quarantine.file)))
    return [tuple(row.values()) for row in table.select(["input_file", "row", "reason"]).to_pylist()]


def test_a_pack_is_one_shard_and_its_record_tells_of_each_file(tiny: Path, tmp_path: Path) -> None:
    context = make_context(tmp_path, tiny)
    batch = pack_on(context, PACK)
    [written] = run_stages(context, batch)
    record = written.record
    assert record is not None, written.report
    assert record.members is not None
    told = [(m.file_uri, m.num_documents, m.num_counted, m.num_quarantined, m.num_truncated) for m in record.members]
    assert told == [
        ("a.jsonl", 2, 2, 0, 1), ("b.jsonl", 2, 2, 1, 0), ("c.jsonl", 0, 0, 0, 0), ("d.jsonl", 1, 1, 0, 0),
    ]  # fmt: skip
    assert (record.num_documents, record.num_counted, record.num_quarantined) == (5, 5, 1)
    assert sum(member.num_tokens for member in record.members) == record.num_tokens
    alone = [run_stages(context, _alone(member)) for member in Work.from_batch(batch)[0].split.members]
    for member, [single] in zip(record.members, alone, strict=True):
        one = single.record
        assert one is not None
        assert (one.file_uri, one.file_id, one.end, one.num_tokens) == (
            member.file_uri, member.file_id, member.end, member.num_tokens,
        )  # fmt: skip
    shard = pq.read_table(pa.BufferReader(context.store_storage.read(record.shard.file)))
    assert shard["doc_id"].to_pylist() == ["a", "b", "c", "d"]
    assert quarantine_of(context, written) == [("b.jsonl", 0, "invalid_json")]
    assert Record.from_json(context.store_storage.read(record_name(record))) == record


def _alone(split: Split) -> pa.Table:
    return pa.Table.from_pylist([Work(split).to_item()])


def test_a_document_of_a_pack_that_fails_is_told_by_its_own_file(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of these files have a row 0."""
    context = make_context(tmp_path, tiny)
    real = Encoder.encode

    def encode(self: Encoder, *args: Any, **options: Any) -> EncodedSplit:
        return replace(real(self, *args, **options), invalid=[2])

    monkeypatch.setattr(Encoder, "encode", encode)
    [written] = run_stages(context, pack_on(context, {name: [doc(name)] for name in ("a.jsonl", "b.jsonl", "c.jsonl")}))
    assert quarantine_of(context, written) == [("c.jsonl", 0, "invalid_vector")]
    assert written.record is not None
    assert [member.num_quarantined for member in written.record.members or ()] == [0, 0, 1]


def test_a_killer_in_a_pack_is_convicted_and_no_row_of_its_number(tiny: Path, tmp_path: Path) -> None:
    context = make_context(tmp_path, tiny)
    files = {name: [doc(name)] for name in ("a.jsonl", "b.jsonl", "c.jsonl")}
    [row] = ReadStage(context)(pack_on(context, files))
    guilty = Row.unpack(row).documents["row"][1].as_py()
    for stage in ("tokenize", "encode"):
        [work] = Work.from_batch(pack_on(context, files))
        trial = Trial(work_id(work.split), number=4, guilty={stage: [guilty]})
        [written] = run_stages(context, pa.Table.from_pylist([replace(work, trial=trial).to_item()]))
        assert quarantine_of(context, written) == [("b.jsonl", 0, "killed_process")]


@pytest.mark.parametrize("killer", ["a.jsonl", "b.jsonl", "c.jsonl"])
def test_a_file_of_a_pack_whose_reading_kills_is_a_quarantined_file(tiny: Path, tmp_path: Path, killer: str) -> None:
    """And the others are read: it costs neither its pack nor what comes after it."""
    context = make_context(tmp_path, tiny)
    files = {name: [doc(name)] for name in ("a.jsonl", "b.jsonl", "c.jsonl")}
    ledger = Ledger(context.store_storage, "run")
    [work] = Work.from_batch(pack_on(context, files))
    real = read_packs._begin

    def begin(member: Split, read: Any) -> Any:
        if member.file.uri == killer:
            raise KeyboardInterrupt  # stands for the end of the process
        return real(member, read)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_packs, "_begin", begin)
        deaths = 0
        while deaths < 10:
            try:
                batch = pa.Table.from_pylist([replace(work, trial=ledger.trial(work.split)).to_item()])
                [written] = run_stages(context, batch)
                break
            except KeyboardInterrupt:
                ledger.learn([work.split], lambda node_id: True)
                deaths += 1
    assert deaths == 3
    assert quarantine_of(context, written) == [(killer, None, "killed_process")]
    assert written.record is not None
    assert [member.num_counted for member in written.record.members or ()] == [
        None if n == killer else 1 for n in files
    ]


def test_a_file_of_a_pack_that_was_rewritten_is_named(tiny: Path, tmp_path: Path) -> None:
    context = make_context(tmp_path, tiny)
    batch = pack_on(context, {name: [doc(name)] for name in ("a.jsonl", "b.jsonl", "c.jsonl")})
    context.input_storage.put("b.jsonl", b"{}\n")
    [written] = run_stages(context, batch)
    assert (written.report.status, written.report.changed, written.report.changed_uri) == ("failed", True, "b.jsonl")
    assert [file.uri for file in written.split.files] == ["a.jsonl", "b.jsonl", "c.jsonl"]


SECRETS = {"AWS_ACCESS_KEY_ID": "driver-key", "AWS_SECRET_ACCESS_KEY": "planted", "AWS_SESSION_TOKEN": "token"}


def test_the_drivers_settings_reach_a_worker_that_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"PATH": "x"})
    DriverEnvironment({**SECRETS, "AWS_ENDPOINT_URL": "http://s3", "HOME": "/driver", "HF_HOME": "/cache"}).apply()
    assert os.environ == {"PATH": "x", "AWS_ENDPOINT_URL": "http://s3", **SECRETS}


def test_credentials_of_two_owners_are_never_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"AWS_ACCESS_KEY_ID": "own", "AWS_SECRET_ACCESS_KEY": "own"}
    monkeypatch.setattr("os.environ", dict(own))
    DriverEnvironment({**SECRETS, "AWS_REGION": "eu"}).apply()
    assert os.environ == {**own, "AWS_REGION": "eu"}


def test_ray_data_does_not_write_secrets_into_its_metadata(tiny: Path, tmp_path: Path) -> None:
    """What its exporter makes of a stage's constructor arguments."""
    from ray.data._internal.metadata_exporter import sanitize_for_struct

    context = replace(make_context(tmp_path, tiny), environment=DriverEnvironment(SECRETS))
    assert "planted" not in str(
        sanitize_for_struct(  # type: ignore[no-untyped-call]
            {"args": [context]}
        )
    )
    assert "planted" not in repr(context)


# -- documents in chunks ---------------------------------------------------------


def chunking(folder: Path, model: Path, **store: Any) -> FlowContext:
    context = make_context(folder, model, **store)
    encoder = context.config.encoder.model_copy(update={"overlong": "chunk"})
    description = describe_model(model, encoder)
    return replace(context, config=context.config.model_copy(update={"encoder": encoder}), model=description)


LONG_LINES = [{"id": f"d{i}", "text": f"the text of {i}. " * (30 if i % 2 else 1), "lang": "en"} for i in range(6)]


def read_shard(context: FlowContext, written: Written) -> pa.Table:
    assert written.record is not None, written.report
    return pq.read_table(pa.BufferReader(context.store_storage.read(written.record.shard.file)))


def read_quarantine(context: FlowContext, written: Written) -> list[dict[str, Any]]:
    assert written.record is not None, written.report
    assert written.record.quarantine is not None
    rows: list[dict[str, Any]] = pq.read_table(
        pa.BufferReader(context.store_storage.read(written.record.quarantine.file))
    ).to_pylist()
    return rows


def test_a_chunk_without_a_vector_costs_its_document_and_no_other(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = chunking(tmp_path / "clean", tiny)
    [clean] = run_stages(context, work_on(context, LONG_LINES))
    expected = read_shard(context, clean)
    chunks = expected["doc_id"].to_pylist()
    assert chunks.count("d1") > 2
    bad = [chunks.index("d1") + 1, chunks.index("d1") + 2, chunks.index("d4")]
    real = Encoder.encode

    def encode(self: Encoder, input_ids: Any, **options: Any) -> EncodedSplit:
        made = real(self, input_ids)
        return EncodedSplit(made.vectors, made.num_padded_tokens, invalid=bad[1:], failed={bad[0]: "no such luck"})

    monkeypatch.setattr(Encoder, "encode", encode)
    context = chunking(tmp_path / "bad", tiny, quarantine_text=True)
    [written] = run_stages(context, work_on(context, LONG_LINES))
    record = written.record
    assert record is not None
    assert (record.num_documents, record.num_quarantined, record.shard.num_documents) == (6, 2, 4)
    assert record.reasons == {"encode_failed": 1, "invalid_vector": 1}
    kept = expected.filter(pa.compute.invert(pa.compute.is_in(expected["doc_id"], pa.array(["d1", "d4"]))))
    assert read_shard(context, written).drop_columns("vector").equals(kept.drop_columns("vector"))
    rows = read_quarantine(context, written)
    assert [(row["doc_id"], row["reason"]) for row in rows] == [("d1", "encode_failed"), ("d4", "invalid_vector")]
    assert rows[0]["message"] == "chunk 1: no such luck"
    assert [row["text"] for row in rows] == [LONG_LINES[1]["text"].rstrip(), LONG_LINES[4]["text"]]


def test_a_document_whose_chunk_kills_the_encoder_is_quarantined_whole_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = chunking(tmp_path, tiny)
    [work] = Work.from_batch(work_on(context, LONG_LINES))
    [row] = ReadStage(context)(pa.Table.from_pylist([work.to_item()]))
    documents = Row.unpack(row).documents
    poison = documents["input_ids"][documents["doc_id"].to_pylist().index("d3") + 2].as_py()
    forward, deaths, marks = Encoder._forward, list[int](), list[str]()

    def killing(self: Encoder, ids: Any, mask: Any) -> Any:
        if any(line[: len(poison)] == poison for line in ids.tolist()):
            deaths.append(len(ids))
            raise Killed
        return forward(self, ids, mask)

    put = Storage.put

    def counting(self: Storage, name: str, data: Any) -> Any:
        marks.append(name)
        return put(self, name, data)

    monkeypatch.setattr(Encoder, "_forward", killing)
    monkeypatch.setattr(Storage, "put", counting)
    ledger = Ledger(context.store_storage, context.run_id)
    for _ in range(6):
        item = replace(work, trial=ledger.trial(work.split)).to_item()
        marks.clear()
        try:
            [written] = run_stages(context, pa.Table.from_pylist([item]))
            break
        except Killed:
            assert ledger.learn([work.split], lambda node_id: True)
    assert deaths[-2:] == [1, 1]
    record = written.record
    assert record is not None, written.report
    assert (record.reasons, record.num_quarantined) == ({"killed_process": 1}, 1)
    shard = read_shard(context, written)
    assert set(shard["doc_id"].to_pylist()) == {"d0", "d1", "d2", "d4", "d5"}
    assert len(shard) == documents.filter(pa.compute.not_equal(documents["doc_id"], "d3")).num_rows
    attempts = [name for name in marks if "-read" not in name and "/attempts/" in name]
    assert len(attempts) <= 5 + 2, "a mark a document in doubt, not one a chunk"


def test_more_chunks_than_a_shard_takes_are_told(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.write.MAX_SHARD_ROWS", 10)
    context = chunking(tmp_path, tiny)
    [written] = run_stages(context, work_on(context, LONG_LINES))
    assert (written.report.status, written.report.exit_code) == ("failed", 2)
    assert "chunks, and a shard takes 10; lower splits.max_bytes or raise encoder.chunk.tokens" in written.report.error
