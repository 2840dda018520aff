"""A store as `embed` leaves it, made in this process without Ray: real vectors of a real, tiny model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from pipeline.config import Config
from pipeline.encoder import Encoder
from pipeline.flow.packs import recorded_members
from pipeline.flow.rows import Row, SplitReport
from pipeline.model import describe_model, fetch_model
from pipeline.planning import type_names
from pipeline.read import ReadSplit, read_split
from pipeline.schema import embedding_schema, encoded_schema
from pipeline.snapshots.commit import Publication, publish
from pipeline.snapshots.manifest import latest
from pipeline.snapshots.records import Record
from pipeline.snapshots.store import open_store
from pipeline.splits import InputFile, pack_small_files, plan_files
from pipeline.splits.packs import told_by_file
from pipeline.tokens import load_tokenizer, tokenize
from pipeline.uris import Storage
from pipeline.write import make_attempt
from tests.corpus import Job, put_files
from tests.corpus import Row as Document


class Embedder:
    """Embeds a job's corpus anew, all of it in one go.

    Args:
        packs: whether small files share splits, as `embed` has it; else each has its own.
    """

    def __init__(self, job: Job, *, packs: bool = False) -> None:
        self._packs = packs
        self.config = Config.model_validate(job.config)
        self._job = job
        path = fetch_model(self.config.encoder)
        self._model = describe_model(path, self.config.encoder)
        self._tokenizer = load_tokenizer(path, self._model)
        self._encoder = Encoder(path, self._model, compute="float32")

    def publish(self, files: Mapping[str, list[Document] | bytes]) -> list[Record]:
        """Put the files, and publish them as a snapshot."""
        job, config = self._job, self.config
        put_files(job.corpus, files)
        open_store(job.store, job.corpus.uri, create=True)
        listed = [InputFile(i.name, i.size, i.identity, i.identity_kind) for i in job.corpus.list()]
        splits, keep = plan_files(job.corpus, listed, config.input, config.splits)
        if self._packs:
            splits = pack_small_files(splits, config.splits)
        fps = (self._model.fingerprint(config.input.text), config.shard_fingerprint(type_names(keep)))
        records = [
            self._put(piece, keep, fps)
            for split in splits
            for piece in read_split(job.corpus, split, config.input, keep, config.splits)
        ]
        publish(
            job.store,
            Publication(
                run_id="run",
                parent=latest(job.store),
                files={file.file_id for file in listed},
                records=records,
                carried=(),
                encoder={"model": config.encoder.model, "revision": None, **self._model.spelled_out(config.input.text)},
                encoder_fp=fps[0],
                shard_fp=fps[1],
                keep=type_names(keep),
                config=config.redacted(),
                versions={},
            ),
        )
        return records

    def _put(self, piece: ReadSplit, keep: pa.Schema, fps: tuple[str, str]) -> Record:
        split, dim = piece.split, self._model.dim
        assert piece.documents is not None
        assert split.end is not None
        assert split.last is not None
        sequences = tokenize(piece.documents, self._tokenizer, input_file=split.file.uri).sequences
        vector = encoded_schema(sequences.schema, dim).field("vector")
        flat = pa.array(self._encoder.encode(sequences["input_ids"]).vectors.reshape(-1))
        vectors = pa.FixedSizeListArray.from_arrays(flat, type=vector.type)
        rows = sequences.set_column(sequences.schema.get_field_index("input_ids"), vector, vectors)
        schema = embedding_schema(dim, self.config.store.dtype, keep, keep_text=False)
        quarantine = told_by_file(split, piece.quarantine)
        row = Row(split, SplitReport(member_counts=piece.member_counts), rows, quarantine)
        made = make_attempt(fps, split.split_id, rows, schema, quarantine, with_text=False)
        record = Record(
            split_id=split.split_id,
            generation=0,
            run_id="run",
            encoder_fp=fps[0],
            shard_fp=fps[1],
            file_uri=split.file.uri,
            file_id=split.file.file_id,
            identity=split.file.identity,
            identity_kind=split.file.identity_kind,
            begin=split.begin,
            end=split.end,
            last=split.last,
            row_begin=split.row_begin,
            row_end=split.row_end,
            num_documents=piece.num_documents,
            num_counted=piece.num_counted,
            num_quarantined=piece.num_quarantined,
            num_reused=0,
            num_padded_tokens=0,
            compute="float32",
            members=recorded_members(row, quarantine),
            **made.fields,
        )
        return made.put(self._job.store, record)


def make_job(folder: Path, model: Path, **changes: object) -> Job:
    """A job over two folders that keeps two columns, in splits of 20 rows."""
    sections = {"input": {"keep": ["lang", "year"]}, "splits": {"max_rows": 20}}
    job = Job.local(folder, model, **sections)
    job.config["input"] |= changes
    return job


def copied(store: Storage, folder: Path) -> Storage:
    """A copy of a local store."""
    import shutil

    shutil.copytree(store.uri, folder)
    return Storage(str(folder))
