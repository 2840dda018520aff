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
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.errors import AcceleratorFault, ConfigError, VecmillError
from pipeline.flow.context import FlowContext, current_node_id, failure
from pipeline.flow.faults import document_numbers, documents_at_fault
from pipeline.flow.ledger import KILLED, Marks, Trial, work_id
from pipeline.flow.packs import recorded_members
from pipeline.flow.pulse import beat, beating
from pipeline.flow.rows import Row, SplitReport, Work, Written
from pipeline.logs import log_split
from pipeline.model import fetch_model
from pipeline.read import ReadSplit, Suspicion, read_split
from pipeline.read.documents import killed_range
from pipeline.schema import Reason, embedding_schema
from pipeline.snapshots.records import Record
from pipeline.splits import Split
from pipeline.splits.packs import told_by_file
from pipeline.tokens import SequenceTokenizer, Tokenized, load_tokenizer, tokenize
from pipeline.write import make_attempt, max_shard_rows

if TYPE_CHECKING:
    from pipeline.encoder import Encoder

log = logging.getLogger(__name__)


# Documents between two marks of a reader that tokenizes under suspicion.
_MARKED_DOCUMENTS = 256


class ReadStage:
    """Reads and tokenizes the planned splits of a batch of `Work` items."""

    def __init__(self, context: FlowContext) -> None:
        self._context = context

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """One row for each split that comes of each planned one."""
        self._context.enter_process()
        for work in Work.from_batch(batch):
            log_split(work_id(work.split))
            try:
                for row in self._read(work):
                    yield row.pack()
            except Exception as error:
                report = failure(error, f"reading {work.split.file.uri}", trial=work.trial)
                yield Row(work.split, report, self._context.sequence_schema.empty_table()).pack()

    def _read(self, work: Work) -> Iterator[Row]:
        context, config = self._context, self._context.config
        with beating(context.run_id):
            tokenizer = load_tokenizer(fetch_model(config.encoder, config.input.storage_options), context.model)
        marks = Marks(context.store_storage, context.run_id, work.trial, current_node_id())
        started = time.monotonic()
        for piece in self._pieces(work, marks):
            beat(context.run_id)
            report = SplitReport(trial=work.trial, generation=work.generation)
            if piece.documents is None:
                row = Row(piece.split, replace(report, status="done"), context.sequence_schema.empty_table())
            else:
                tokenized = self._tokenized(piece, piece.documents, tokenizer, marks, work.trial)
                report = replace(
                    report,
                    num_documents=piece.num_documents,
                    num_counted=piece.num_counted,
                    member_counts=piece.member_counts,
                    read_s=time.monotonic() - started,
                )
                sequences = tokenized.sequences.select(context.sequence_schema.names).cast(context.sequence_schema)
                self._check_fits(sequences.num_rows, piece.split)
                row = Row(piece.split, report, sequences, pa.concat_tables([piece.quarantine, tokenized.quarantine]))
            marks.finish()
            yield row
            started = time.monotonic()

    def _check_fits(self, num_rows: int, split: Split) -> None:
        """Documents are as many as planned; their chunks may be more than one shard takes."""
        store = self._context.config.store
        most = max_shard_rows(self._context.model.dim, store.dtype)
        if num_rows > most:
            raise ConfigError(
                f"a split of {split.file.uri} makes {num_rows} chunks, and a shard takes {most}; lower "
                "splits.max_bytes or raise encoder.chunk.tokens"
            )

    def _pieces(self, work: Work, marks: Marks) -> Iterator[ReadSplit]:
        """The pieces of the planned split, each place marked before it is read; up to the place that is fatal."""
        context, config, trial = self._context, self._context.config, work.trial
        is_pack, place, fatal_at = bool(work.split.members), work.split.begin, trial.fatal_at
        if place == fatal_at and not is_pack:
            yield killed_range(work.split, place, context.keep, KILLED)
            return
        if not is_pack:
            marks.before("read", begin=place)
        suspicion = Suspicion(lambda member: marks.before("read", begin=member), trial.fatal, KILLED)
        pieces = read_split(
            context.input_storage,
            work.split,
            config.input,
            context.keep,
            config.splits,
            done=work.done,
            quarantine_text=config.store.quarantine_text,
            suspicion=suspicion if trial.is_marked else None,
        )
        if is_pack:
            yield from pieces  # each member is marked before it is read
            return
        for piece in pieces:
            yield piece
            place = piece.split.end if piece.split.end is not None else place
            if place == fatal_at:
                yield killed_range(work.split, place, context.keep, KILLED)
                return
            marks.before("read", begin=place)
        marks.finish()

    def _tokenized(
        self, piece: ReadSplit, documents: pa.Table, tokenizer: SequenceTokenizer, marks: Marks, trial: Trial
    ) -> Tokenized:
        """The sequences of the piece's documents; in parts and with a mark before each where the attempt has marks."""
        context, rows = self._context, documents["row"].to_numpy()
        guilty: dict[int, tuple[Reason, str]] = {
            int(index): ("killed_process", KILLED) for index in _indices(rows, trial.guilty.get("tokenize", ()))
        }
        alone = _indices(rows, trial.alone.get("tokenize", ()))
        rest = np.setdiff1d(np.arange(len(rows)), [*guilty, *alone])
        num_parts = -(-len(rest) // _MARKED_DOCUMENTS) if trial.is_marked else 1
        made = []
        for part in [*np.array_split(rest, max(1, num_parts)), *alone.reshape(-1, 1)]:
            marks.before("tokenize", rows[part])
            made.append(
                tokenize(
                    documents.take(part) if trial.is_marked else documents,
                    tokenizer,
                    input_file=piece.split.file.uri,
                    with_text="text" in context.sequence_schema.names,
                    quarantine_text=context.config.store.quarantine_text,
                )
            )
        quarantine = [part.quarantine for part in made]
        quarantine.append(self._context.quarantined(piece.split, documents, "tokenize", guilty))
        sequences = pa.concat_tables([part.sequences for part in made])
        if trial.is_marked:
            sequences = sequences.sort_by([("row", "ascending"), ("chunk_index", "ascending")])
        return Tokenized(sequences, pa.concat_tables(quarantine))


class EncodeStage:
    """Encodes; the model is loaded once for each actor of the pool."""

    def __init__(self, context: FlowContext, num_threads: int | None) -> None:
        context.enter_process()  # first: the hub's library reads its settings when it is imported
        self._context = context
        self._encoder: Encoder | SplitReport
        settings = context.config.encoder
        try:
            with beating(context.run_id):
                from pipeline.encoder import Encoder  # torch: 2 s and 240 MiB that readers and writers do without

                self._encoder = Encoder(
                    fetch_model(settings, context.config.input.storage_options),
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
        log_split(row.split.split_id)
        try:
            return self._encode(row, self._encoder).pack()
        except AcceleratorFault:
            # It stays broken for this process, whoever comes next: let the pool have a new one. The ledger finds
            # whose fault it was.
            log.exception("encoding %s", row.split.file.uri)
            os._exit(1)
        except Exception as error:
            report = failure(error, f"encoding {row.split.file.uri}", trial=row.report.trial)
            return replace(row, report=report, documents=empty).pack()

    def _encode(self, row: Row, encoder: Encoder) -> Row:
        started = time.monotonic()
        context, trial = self._context, row.report.trial
        rows = row.documents["row"].to_numpy()
        guilty = _indices(rows, trial.guilty.get("encode", ()))
        bad: dict[int, tuple[Reason, str]] = {int(index): ("killed_process", KILLED) for index in guilty}
        sound = np.setdiff1d(np.arange(len(rows)), guilty)
        sequences = row.documents.take(sound) if bad else row.documents
        marks = Marks(context.store_storage, context.run_id, trial, current_node_id(), row.split)

        def before(batch: Sequence[int]) -> None:
            beat(context.run_id)
            marks.before("encode", rows[sound[batch]])

        alone = _indices(rows[sound], trial.alone.get("encode", ()))
        encoded = encoder.encode(sequences["input_ids"], alone=alone.tolist(), before=before, in_turn=trial.is_marked)
        marks.finish()
        bad |= {int(sound[i]): ("invalid_vector", "the vector is NaN, infinite or zero") for i in encoded.invalid}
        bad |= {int(sound[i]): ("encode_failed", message) for i, message in encoded.failed.items()}
        report = replace(
            row.report,
            num_padded_tokens=encoded.num_padded_tokens,
            compute=encoder.compute,
            encode_s=time.monotonic() - started,
            encoder_peak_bytes=encoder.peak_bytes,
        )
        embeddings = self._embeddings(sequences, encoded.vectors)
        documents, faults = documents_at_fault(row.documents, bad)
        if faults:
            is_lost = np.isin(document_numbers(row.documents), list(faults))
            embeddings = embeddings.filter(~is_lost[sound])
        quarantined = context.quarantined(row.split, documents, "encode", faults)
        return Row(row.split, report, embeddings, pa.concat_tables([row.quarantine, quarantined]))

    def _embeddings(self, sequences: pa.Table, vectors: np.ndarray) -> pa.Table:
        """The sequences with float32 vectors (N, D) in place of their ids."""
        schema = self._context.encoded_schema
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=schema.field("vector").type)
        index = sequences.schema.get_field_index("input_ids")
        return sequences.set_column(index, schema.field("vector"), column).select(schema.names)


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
        log_split(row.split.split_id)
        try:
            return self._write(row).pack()
        except Exception as error:
            report = failure(error, f"writing a split of {row.split.file.uri}", trial=row.report.trial)
            return Written(row.split, report, None).pack()

    def _write(self, row: Row) -> Written:
        context, store, split = self._context, self._context.config.store, row.split
        started = time.monotonic()
        quarantine = told_by_file(split, row.quarantine)
        schema = embedding_schema(context.model.dim, store.dtype, context.keep, keep_text=store.keep_text)
        made = make_attempt(
            (context.encoder_fp, context.shard_fp),
            split.split_id,
            row.documents,
            schema,
            quarantine,
            with_text=store.quarantine_text,
        )
        if split.end is None or split.last is None:
            raise VecmillError(f"a split of {split.file.uri} reached the writer without its end. This is a bug.")
        record = Record(
            split_id=split.split_id,
            generation=row.report.generation,
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
            num_padded_tokens=row.report.num_padded_tokens,
            compute=row.report.compute,
            members=recorded_members(row, quarantine),
            **made.fields,
        )
        made.put(context.store_storage, record)
        return Written(split, replace(row.report, write_s=time.monotonic() - started), record)


def _indices(rows: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """Where the wanted rows are, in order."""
    return np.flatnonzero(np.isin(rows, wanted))
