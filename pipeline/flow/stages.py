"""The three stages of the flow, as plain callables on tables of one row (see pipeline.flow.rows).

    ReadStage     a planned split -> one row a split, tokenized; text has left the row unless it is kept
    EncodeStage   sequences -> unit vectors; one a process, it holds the model
    WriteStage    vectors -> shard, quarantine file, record; what comes out carries the record alone

A stage never raises: whatever goes wrong becomes a row whose report says so. Ray's errors name
no split, and a row that Ray drops after an exception may be an innocent one queued behind it.
A stage yields, as a function of its input alone, one row for each row it gets; only the reader,
where a range holds more than one split, yields several, all of them in order at every attempt.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Config
from pipeline.errors import ChangedError, VecmillError
from pipeline.flow.rows import Row, SplitReport, Work, Written
from pipeline.model import ModelDescription, fetch_model
from pipeline.read import ReadSplit, read_split
from pipeline.schema import QUARANTINE_SCHEMA, embedding_schema, encoded_schema, sequence_schema
from pipeline.snapshots.records import (
    QuarantineFile,
    Record,
    ShardFile,
    checksum,
    new_attempt,
    put_attempt,
    quarantine_name,
    shard_name,
)
from pipeline.splits import Split
from pipeline.tokens import SequenceTokenizer, load_tokenizer, tokenize
from pipeline.uris import Storage
from pipeline.write import quarantine_bytes, shard_bytes

if TYPE_CHECKING:
    from pipeline.encoder import Encoder

log = logging.getLogger(__name__)


class DriverEnvironment:
    """What the driver's environment says of object storage and the model hub, for the workers of other nodes.

    It travels inside the pickled stages and not in Ray's runtime_env, which Ray shows on its dashboard; and it is
    neither a dataclass nor a mapping, because Ray Data writes those out, field by field, into its metadata.
    """

    _CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
    _HUB = ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE")

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._values = {
            name: value for name, value in environment.items() if name.startswith("AWS_") or name in self._HUB
        }

    def __repr__(self) -> str:
        return "DriverEnvironment(***)"

    def apply(self) -> None:
        """Set what this process has no setting of. Credentials go together: half of two pairs opens nothing."""
        has_own = any(name in os.environ for name in self._CREDENTIALS)
        for name, value in self._values.items():
            if not (has_own and name in self._CREDENTIALS):
                os.environ.setdefault(name, value)


@dataclass(frozen=True)
class FlowContext:
    """All that the stages of one run share; pickled once to each worker."""

    config: Config
    run_id: str
    model: ModelDescription
    encoder_fp: str
    shard_fp: str
    keep: pa.Schema
    """The kept columns with their types."""
    input_storage: Storage
    store_storage: Storage
    environment: DriverEnvironment = field(default_factory=lambda: DriverEnvironment({}))

    @property
    def sequence_schema(self) -> pa.Schema:
        """Of rows between read and encode."""
        return sequence_schema(self.keep, with_text=self.config.store.keep_text or self.config.store.quarantine_text)

    @property
    def encoded_schema(self) -> pa.Schema:
        """Of rows between encode and write."""
        return encoded_schema(self.sequence_schema, self.model.dim)

    def enter_process(self) -> None:
        """Make a worker's environment the driver's, where the worker has no setting of its own."""
        self.environment.apply()


class ReadStage:
    """Reads and tokenizes the planned splits of a batch of `Work` items."""

    def __init__(self, context: FlowContext) -> None:
        self._context = context

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """One row for each split that comes of each planned one."""
        self._context.enter_process()
        for work in Work.from_batch(batch):
            try:
                for row in self._read(work):
                    yield row.pack()
            except Exception as error:
                report = failure(error, f"reading {work.split.file.uri}")
                yield Row(work.split, report, self._context.sequence_schema.empty_table()).pack()

    def _read(self, work: Work) -> Iterator[Row]:
        context, config = self._context, self._context.config
        tokenizer = load_tokenizer(fetch_model(config.encoder, config.input.storage_options), context.model)
        pieces = read_split(
            context.input_storage,
            work.split,
            config.input,
            context.keep,
            config.splits,
            done=work.done,
            quarantine_text=config.store.quarantine_text,
        )
        started = time.monotonic()
        for piece in pieces:
            if piece.documents is None:
                yield Row(piece.split, SplitReport(status="done"), context.sequence_schema.empty_table())
            else:
                yield self._tokenized(piece, piece.documents, tokenizer, started)
            started = time.monotonic()

    def _tokenized(self, piece: ReadSplit, documents: pa.Table, tokenizer: SequenceTokenizer, started: float) -> Row:
        context = self._context
        tokenized = tokenize(
            documents,
            tokenizer,
            input_file=piece.split.file.uri,
            with_text="text" in context.sequence_schema.names,
            quarantine_text=context.config.store.quarantine_text,
        )
        report = SplitReport(
            num_documents=piece.num_documents, num_counted=piece.num_counted, read_s=time.monotonic() - started
        )
        sequences = tokenized.sequences.select(context.sequence_schema.names).cast(context.sequence_schema)
        return Row(piece.split, report, sequences, pa.concat_tables([piece.quarantine, tokenized.quarantine]))


class EncodeStage:
    """Encodes; the model is loaded once for each actor of the pool."""

    def __init__(self, context: FlowContext, num_threads: int | None) -> None:
        context.enter_process()  # first: the hub's library reads its settings when it is imported
        from pipeline.encoder import Encoder  # torch: 2 s and 240 MiB that readers and writers do without

        self._context = context
        self._encoder: Encoder | SplitReport
        settings = context.config.encoder
        try:
            path = fetch_model(settings, context.config.input.storage_options)
            self._encoder = Encoder(
                path,
                context.model,
                compute=settings.compute,
                token_budget=settings.token_budget,
                num_threads=num_threads,
            )
        except Exception as error:
            # Ray would try again, and then end the job with an error that names no cause.
            self._encoder = failure(error, f"loading {settings.model}")

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Sequences in, embeddings out; what cannot be encoded goes to the row's quarantine."""
        row = Row.unpack(batch)
        empty = self._context.encoded_schema.empty_table()
        if row.report.status != "ok":
            return replace(row, documents=empty).pack()
        if isinstance(self._encoder, SplitReport):
            return replace(row, report=self._encoder, documents=empty).pack()
        try:
            return self._encode(row, self._encoder).pack()
        except Exception as error:
            return replace(row, report=failure(error, f"encoding {row.split.file.uri}"), documents=empty).pack()

    def _encode(self, row: Row, encoder: Encoder) -> Row:
        started = time.monotonic()
        schema = self._context.encoded_schema
        sequences = row.documents
        encoded = encoder.encode(sequences["input_ids"])
        vectors = pa.FixedSizeListArray.from_arrays(
            pa.array(encoded.vectors.reshape(-1)), type=schema.field("vector").type
        )
        documents = sequences.set_column(sequences.schema.get_field_index("input_ids"), schema.field("vector"), vectors)
        bad = dict.fromkeys(encoded.invalid, ("invalid_vector", "the vector is NaN, infinite or zero"))
        bad |= {index: ("encode_failed", message) for index, message in encoded.failed.items()}
        quarantine = row.quarantine
        if bad:
            quarantine = pa.concat_tables([quarantine, self._quarantined(row.split, sequences, bad)])
            documents = documents.filter(~np.isin(np.arange(documents.num_rows), list(bad)))
        report = replace(
            row.report,
            num_padded_tokens=encoded.num_padded_tokens,
            compute=encoder.compute,
            encode_s=time.monotonic() - started,
        )
        return Row(row.split, report, documents.select(schema.names), quarantine)

    def _quarantined(self, split: Split, sequences: pa.Table, bad: Mapping[int, tuple[str, str]]) -> pa.Table:
        rows = sequences.take(pa.array(sorted(bad), pa.int64()))
        texts = rows["text"] if self._context.config.store.quarantine_text else pa.nulls(rows.num_rows, pa.string())
        columns = {
            "doc_id": rows["doc_id"],
            "input_file": [split.file.uri] * rows.num_rows,
            "row": rows["row"],
            "content_hash": rows["content_hash"],
            "stage": ["encode"] * rows.num_rows,
            "reason": [bad[index][0] for index in sorted(bad)],
            "message": [bad[index][1] for index in sorted(bad)],
            "text": texts,
        }
        return pa.table(columns).cast(QUARANTINE_SCHEMA)


class WriteStage:
    """Writes shard, quarantine file and record of a split; what comes out is a `Written`."""

    def __init__(self, context: FlowContext) -> None:
        self._context = context

    def __call__(self, batch: pa.Table) -> pa.Table:
        """What happened to the split, and its record."""
        self._context.enter_process()
        row = Row.unpack(batch)
        if row.report.status != "ok":
            return Written(row.split, row.report, None).pack()
        try:
            return self._write(row).pack()
        except Exception as error:
            report = failure(error, f"writing a split of {row.split.file.uri}")
            return Written(row.split, report, None).pack()

    def _write(self, row: Row) -> Written:
        context, store, split = self._context, self._context.config.store, row.split
        started = time.monotonic()
        schema = embedding_schema(context.model.dim, store.dtype, context.keep, keep_text=store.keep_text)
        shard = shard_bytes(row.documents, schema)
        quarantine = (
            quarantine_bytes(row.quarantine, with_text=store.quarantine_text) if row.quarantine.num_rows else None
        )
        ids = (context.encoder_fp, context.shard_fp, split.split_id, new_attempt())
        if split.end is None or split.last is None:
            raise VecmillError(f"a split of {split.file.uri} reached the writer without its end. This is a bug.")
        record = Record(
            split_id=split.split_id,
            generation=row.report.generation,
            attempt=ids[3],
            run_id=context.run_id,
            encoder_fp=context.encoder_fp,
            shard_fp=context.shard_fp,
            file_uri=split.file.uri,
            file_id=split.file.file_id,
            identity=split.file.identity,
            identity_kind=split.file.identity_kind,
            begin=split.begin,
            end=split.end,
            last=split.last,
            row_begin=split.row_begin,
            row_end=split.row_end,
            num_documents=row.report.num_documents,
            num_counted=row.report.num_counted,
            num_quarantined=row.quarantine.num_rows - row.quarantine["row"].null_count,
            num_reused=0,
            num_truncated=pc.sum(row.documents["truncated"], min_count=0).as_py(),
            num_tokens=pc.sum(row.documents["num_tokens"], min_count=0).as_py(),
            num_padded_tokens=row.report.num_padded_tokens,
            compute=row.report.compute,
            shard=ShardFile(
                shard_name(*ids), shard.data.size, checksum(shard.data), shard.num_rows, shard.vector_begin
            ),
            quarantine=QuarantineFile(quarantine_name(*ids), checksum(quarantine), row.quarantine.num_rows)
            if quarantine
            else None,
            reasons=dict(Counter(row.quarantine["reason"].to_pylist())),
        )
        put_attempt(context.store_storage, record, shard.data, quarantine)
        return Written(split, replace(row.report, write_s=time.monotonic() - started), record)


def failure(error: Exception, what: str) -> SplitReport:
    """The report of a split that an exception ended; `what` was being done."""
    if isinstance(error, VecmillError):
        return SplitReport(
            status="failed", error=str(error), exit_code=error.exit_code, changed=isinstance(error, ChangedError)
        )
    log.exception("%s failed", what)
    # The last frame, since the driver sees no more than this line of it.
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    return SplitReport(status="failed", error=f"{what}: {type(error).__name__}: {error} ({where})", exit_code=1)
